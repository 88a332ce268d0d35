"""What every system is built on: the log and its split, related queries (PRE), and prompts.

Every stage is a property or a method, in the order in which the data flows, built once and kept in the store.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
import torch

from onesug_lite.log import Log, Split, clicked, split_by_time
from onesug_lite.log_files import log_files, normalise, read_log
from onesug_lite.pairs import Pairs
from onesug_lite.popularity import count_clicks
from onesug_lite.prefix_search import PrefixSearch
from onesug_lite.profiles import Sizes, sizes
from onesug_lite.store import Store, hash_file

if TYPE_CHECKING:
    from onesug_lite.batches import Prompt

THREADS = 1  # fixed, not the machine's count: the order of float additions, and so the bytes, depend on it


def _to_stderr(line: str) -> None:
    """Progress goes to stderr, so that a notebook's stored output holds results alone."""
    print(line, file=sys.stderr, flush=True)


class Groundwork:
    """Lazy chain of stages over one log.

    Args:
        log: folder with the two tables of :mod:`onesug_lite.log`.
        profile: ``smoke``, ``lite``, ``full`` or a :class:`Sizes` of your own.
        seed: of everything that is trained or drawn.
        store: folder of the artefacts.
        announce: called with one line a stage; stderr by default.
    """

    def __init__(
        self,
        log: str | Path,
        profile: str | Sizes = "lite",
        seed: int = 0,
        store="build/store",
        announce=_to_stderr,
    ):
        self.log_folder = Path(log)
        self.sizes = sizes(profile)
        self.profile = profile if isinstance(profile, str) else "custom"
        self.seed = int(seed)
        self.store = Store(store, announce)
        torch.set_num_threads(THREADS)

    # ---------------------------------------------------------------- log
    @cached_property
    def log(self) -> Log:
        """The checked search log, its texts in the form that prompts and answers have (see ``tokenizer.clean``)."""
        return normalise(read_log(self.log_folder))

    @cached_property
    def log_fingerprint(self) -> str:
        """Checksum of the names and bytes of all files of both tables."""
        files = {name: file for table in log_files(self.log_folder).values() for name, file in table.items()}
        listing = "".join(f"{name} {hash_file(file)}\n" for name, file in files.items())
        return hashlib.sha256(listing.encode()).hexdigest()[:32]

    @cached_property
    def split(self) -> Split:
        """Training, validation and test days, split by time."""
        return split_by_time(self.log, self.sizes.validation_days, self.sizes.test_days)

    @cached_property
    def training_clicks(self) -> pl.DataFrame:
        """One row per clicked query of the training days."""
        return clicked(self.split.train)

    @cached_property
    def targets(self) -> pl.DataFrame:
        """Rows that supervised training learns from, one a (request, query): clicks, or what searches came to.

        Raises:
            ValueError: ``Sizes.targets`` is neither.
        """
        from onesug_lite.outcomes import outcomes

        if self.sizes.targets not in ("clicks", "outcomes"):
            raise ValueError(f"targets is '{self.sizes.targets}'; expected clicks or outcomes")
        return self.training_clicks if self.sizes.targets == "clicks" else outcomes(self.split.train)

    @cached_property
    def click_counts(self) -> pl.DataFrame:
        """Training clicks by (prefix, query), sorted."""
        return count_clicks(self.training_clicks)

    @cached_property
    def queries(self) -> list[str]:
        """Distinct queries seen in the training days (shown, recalled or clicked), sorted."""
        return self.split.train.candidates["query"].unique().sort().to_list()

    @property
    def known(self) -> list[str]:
        """Queries that a constrained generator may write: :attr:`queries` and all that it learns to write, sorted."""
        return sorted({*self.queries, *self.targets["query"].to_list()})

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """The same road with some settings replaced (see :meth:`Sizes.changed`); what is not touched is shared."""
        if not changes:
            return self
        other = copy.copy(self)
        other.sizes = self.sizes.changed(changes)
        days = ("log", "log_fingerprint", "split", "training_clicks", "click_counts", "queries")
        same = (other.sizes.validation_days, other.sizes.test_days) == (
            self.sizes.validation_days,
            self.sizes.test_days,
        )
        kept = {"log_folder", "sizes", "profile", "seed", "store", *(days if same else days[:2])}
        for name in set(vars(other)) - kept:
            del vars(other)[name]
        return other

    def _days(self) -> dict[str, str]:
        days = f"{self.sizes.validation_days}+{self.sizes.test_days}"
        return {"log": self.log_fingerprint, "held-out days": days, "seed": str(self.seed)}

    # ---------------------------------------------------------------- PRE
    @cached_property
    def pairs_folder(self) -> Path:
        """Folder of the mined pairs."""
        from onesug_lite.pairs import mine_pairs

        def build(out: Path, work: Path) -> None:
            pairs = mine_pairs(self.split.train, self.sizes.pairs)
            pairs.prefix_query.write_parquet(out / "prefix_query.parquet")
            pairs.query_query.write_parquet(out / "query_query.parquet")

        inputs = {name: value for name, value in self._days().items() if name != "seed"}
        return self.store.get("pairs", self.sizes.pairs, inputs, ["pairs"], build)

    @cached_property
    def pairs(self) -> Pairs:
        """Prefix-query and query-query pairs of the training days."""
        return Pairs(*(pl.read_parquet(self.pairs_folder / f"{name}.parquet") for name in Pairs._fields))

    @cached_property
    def align_folder(self) -> Path:
        """Folder of the aligned encoder (``encoder/``) and its loss curve (``history.parquet``)."""
        from onesug_lite.align import train_encoder

        def build(out: Path, work: Path) -> None:
            self._seed()
            result = train_encoder(self.pairs, self.sizes.align, self.seed, out / "encoder")
            result.history.write_parquet(out / "history.parquet")

        inputs = {"pairs": self.pairs_folder.name, "seed": str(self.seed)}
        return self.store.get("align", self.sizes.align, inputs, ["align"], build)

    @cached_property
    def rqvae_folder(self) -> Path:
        """Folder of the RQ-VAE, its loss curve, its report and the texts with their SIDs."""
        from onesug_lite.encoder import embed, load_encoder
        from onesug_lite.rqvae import codebook_report, save_rqvae
        from onesug_lite.rqvae_training import train_rqvae

        def build(out: Path, work: Path) -> None:
            self._seed()
            prefixes = self.click_counts["prefix"].unique().sort().to_list()
            texts = pl.DataFrame(
                {
                    "text": self.queries + prefixes,
                    "kind": ["query"] * len(self.queries) + ["prefix"] * len(prefixes),
                }
            )
            encoder = load_encoder(self.align_folder / "encoder")
            vectors = embed(encoder, texts["text"].to_list())  # (N, D)
            result = train_rqvae(vectors, self.sizes.rqvae, torch.Generator().manual_seed(self.seed))
            save_rqvae(result.model, out / "model")
            codes = np.asarray(result.model.encode(torch.from_numpy(vectors)))
            result.history.write_parquet(out / "history.parquet")
            report = codebook_report(codes[: len(self.queries)], self.sizes.rqvae)
            report.write_parquet(out / "report.parquet")
            texts.with_columns(sid=pl.Series(codes.tolist(), dtype=pl.List(pl.Int32))).write_parquet(
                out / "texts.parquet"
            )

        inputs = {"align": self.align_folder.name, "seed": str(self.seed)}
        return self.store.get("rqvae", self.sizes.rqvae, inputs, ["rqvae_training", "encoder"], build)

    @cached_property
    def search_folder(self) -> Path:
        """Folder of the related-query search and of the related queries of each training click."""
        from onesug_lite.encoder import load_encoder
        from onesug_lite.rqvae import load_rqvae

        def build(out: Path, work: Path) -> None:
            self._seed()
            encoder = load_encoder(self.align_folder / "encoder")
            rqvae = load_rqvae(self.rqvae_folder / "model")
            search = PrefixSearch(encoder, rqvae, self.click_counts, self.queries, self.sizes.search)
            search.save(out / "search")
            # one list per distinct (prefix, clicked query): the row's own click is left out of what it may see
            related = search.related(self.click_counts["prefix"].to_list(), self.click_counts["query"].to_list())
            self.click_counts.select("prefix", "query").with_columns(
                related=pl.Series(related, dtype=pl.List(pl.String))
            ).write_parquet(out / "related.parquet")

        inputs = {"rqvae": self.rqvae_folder.name, "seed": str(self.seed)}
        return self.store.get("sid_search", self.sizes.search, inputs, ["prefix_search"], build)

    @cached_property
    def search(self) -> PrefixSearch:
        """Related queries for any prefix."""
        return PrefixSearch.load(self.search_folder / "search")

    # ---------------------------------------------------------------- generator
    @cached_property
    def tokenizer(self):
        """Subword tokeniser trained on the texts of the training days."""
        from onesug_lite.generator import load_tokenizer
        from onesug_lite.tokenizer import train_tokenizer

        def build(out: Path, work: Path) -> None:
            if self.sizes.generator.checkpoint:
                load_tokenizer(self.sizes.generator.checkpoint).save_pretrained(out)
                return
            texts = self.training_clicks["query"].to_list()
            texts += self.training_clicks["profile"].list.explode().drop_nulls().to_list()
            train_tokenizer(texts, self.sizes.prompt).save_pretrained(out)

        inputs = self._days() | {"checkpoint": str(self.sizes.generator.checkpoint)}
        return load_tokenizer(self.store.get("tokenizer", self.sizes.prompt, inputs, ["prompt"], build))

    def prompts(self, rows: pl.DataFrame, pre: bool) -> list[Prompt]:
        """Encoder input ids of training rows (columns prefix, history, profile and, with PRE, the clicked query)."""
        from onesug_lite.prompt import build_prompts

        related = None
        if pre:
            known = pl.read_parquet(self.search_folder / "related.parquet")
            rows = rows.join(known, on=["prefix", "query"], how="left", maintain_order="left")
            # nobody clicked that query under that prefix, so there is no click of its own to leave out
            rest = rows.filter(pl.col("related").is_null())["prefix"].unique().sort().to_list()
            plain = dict(zip(rest, self.search.related(rest), strict=True))
            pairs = rows.select("prefix", "related").iter_rows()
            related = [plain[prefix] if found is None else found for prefix, found in pairs]
        histories, profiles = ([items or [] for items in rows[name].to_list()] for name in ("history", "profile"))
        users = rows["user_id"].to_list() if self.sizes.prompt.ids else None
        prefixes = rows["prefix"].to_list()
        return build_prompts(self.tokenizer, prefixes, related, histories, profiles, self.sizes.prompt, users)

    def _seed(self) -> None:
        from onesug_lite.trainer import set_seed

        set_seed(self.seed, THREADS)
