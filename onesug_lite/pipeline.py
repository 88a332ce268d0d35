"""The whole road from a log to evaluated suggesters, each stage built once and kept in the store.

A pipeline is opened on a log folder and asked for what is wanted; ``Pipeline(log).policy("onesug").suggest("appl")``
builds whatever is missing on the way, with progress. Every stage is a property or a method, in the order in which the
data flows.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch

from onesug_lite.log import BEHAVIOURS, Log, LogError, Split, clicked, log_files, read_log, split_by_time
from onesug_lite.metrics import invalid_share, ranks, summary_table
from onesug_lite.pairs import Pairs
from onesug_lite.policy import OneSugPolicy
from onesug_lite.popularity import PopularityCompletion
from onesug_lite.profiles import Sizes, sizes
from onesug_lite.prompt import clean
from onesug_lite.reward import PreferenceSets
from onesug_lite.sid_search import PrefixSearch
from onesug_lite.store import Store, hash_file
from onesug_lite.training import Examples
from onesug_lite.variants import Variant, variant

if TYPE_CHECKING:
    from onesug_lite.generator import Prompt
    from onesug_lite.trie import Trie

THREADS = 1  # fixed, not the machine's count: the order of float additions, and so the bytes, depend on it


class Trained(NamedTuple):
    """A trained generator as the store holds it."""

    folder: Path
    history: pl.DataFrame


def _to_stderr(line: str) -> None:
    """Progress goes to stderr, so that a notebook's stored output holds results alone."""
    print(line, file=sys.stderr, flush=True)


class Pipeline:
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
        """The checked search log, its texts in the form that prompts and answers have (see ``prompt.clean``)."""
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
        return self.training_clicks.group_by("prefix", "query").agg(clicks=pl.len()).sort("prefix", "query")

    @cached_property
    def queries(self) -> list[str]:
        """Distinct queries seen in the training days (shown, recalled or clicked), sorted."""
        return self.split.train.candidates["query"].unique().sort().to_list()

    @property
    def known(self) -> list[str]:
        """Queries that a constrained generator may write: :attr:`queries` and all that it learns to write, sorted."""
        return sorted({*self.queries, *self.targets["query"].to_list()})

    def changed(self, changes: Mapping[str, Any]) -> Pipeline:
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
        from onesug_lite.align import embed, load_encoder
        from onesug_lite.rqvae import codebook_report, save_rqvae, train_rqvae

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
        return self.store.get("rqvae", self.sizes.rqvae, inputs, ["rqvae", "align"], build)

    @cached_property
    def search_folder(self) -> Path:
        """Folder of the related-query search and of the related queries of each training click."""
        from onesug_lite.align import load_encoder
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
        return self.store.get("sid_search", self.sizes.search, inputs, ["sid_search"], build)

    @cached_property
    def search(self) -> PrefixSearch:
        """Related queries for any prefix."""
        return PrefixSearch.load(self.search_folder / "search")

    # ---------------------------------------------------------------- generator
    @cached_property
    def tokenizer(self):
        """Subword tokeniser trained on the texts of the training days."""
        from onesug_lite.generator import load_tokenizer
        from onesug_lite.prompt import train_tokenizer

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

    def _generator(self, stage: str, pre: bool, config, inputs: dict[str, str], modules: list[str], train) -> Trained:
        """Run a stage that trains a generator; ``train(work)`` returns its ``model`` and ``history``."""
        from onesug_lite.generator import save_generator

        def build(out: Path, work: Path) -> None:
            self._seed()
            result = train(work)
            save_generator(result.model, self.tokenizer, out / "generator")
            result.history.write_parquet(out / "history.parquet")

        inputs = inputs | self._days() | {"prompt": repr(self.sizes.prompt), "generator": repr(self.sizes.generator)}
        if pre:
            inputs["sid_search"] = self.search_folder.name
        folder = self.store.get(stage, config, inputs, modules, build)
        return Trained(folder, pl.read_parquet(folder / "history.parquet"))

    def _examples(self, pre: bool) -> Examples:
        from onesug_lite.prompt import encode_queries

        rows = self.targets
        return Examples(
            self.prompts(rows, pre),
            encode_queries(self.tokenizer, rows["query"].to_list(), self.sizes.prompt),
        )

    def supervised(self, pre: bool) -> Trained:
        """Generator fine-tuned on the clicked queries of the training days: the seed model M_t."""
        from onesug_lite.generator import build_generator
        from onesug_lite.training import train_supervised

        def train(work: Path):
            model = build_generator(self.sizes.generator, self.tokenizer, self.seed)
            return train_supervised(model, self._examples(pre), self.sizes.train, self.seed, work)

        stage = "supervised_pre" if pre else "supervised"
        inputs, modules = {"targets": self.sizes.targets}, ["training", "prompt"]
        if self.sizes.targets == "outcomes":
            modules.append("outcomes")
        return self._generator(stage, pre, self.sizes.train, inputs, modules, train)

    # ---------------------------------------------------------------- preference
    @cached_property
    def preference_sets(self) -> PreferenceSets:
        """Chosen clicks with their rejected queries, rewards and weights, from the training days."""
        from onesug_lite.reward import preference_sets

        rng = np.random.default_rng(self.seed)
        return preference_sets(self.split.train, self.queries, self.sizes.reward, rng)

    def preferred(self, pre: bool, **changes) -> Trained:
        """The seed model after reward-weighted ranking (RWR): M_{t+1}.

        Args:
            pre: related queries in the prompt.
            **changes: fields of the preference config to override.
        """
        from onesug_lite.generator import load_generator
        from onesug_lite.preference import train_preference

        seed_model = self.supervised(pre).folder
        config = replace(self.sizes.preference, **changes)

        def train(work: Path):
            sets = self.preference_sets
            model, tokenizer = load_generator(seed_model / "generator")
            rows = sets.rows.rename({"chosen": "query"})
            if self.sizes.prompt.ids:
                rows = rows.join(
                    self.log.requests.select("request_id", "user_id"), on="request_id", maintain_order="left"
                )
            prompts, trie = self.prompts(rows, pre), self.trie if config.known else None
            return train_preference(model, sets, prompts, tokenizer, config, self.seed, work, self.sizes.prompt, trie)

        inputs = {"seed model": seed_model.name, "reward": repr(self.sizes.reward)}
        return self._generator("preference", pre, config, inputs, ["preference", "reward"], train)

    @cached_property
    def trie(self) -> Trie:
        """Trie of the :attr:`known` queries."""
        from onesug_lite.trie import trie_of

        return trie_of(self.tokenizer, self.known, self.sizes.prompt)

    # ---------------------------------------------------------------- cascade
    @cached_property
    def cascade_folder(self) -> Path:
        """Folder of the multi-stage baseline."""
        from onesug_lite.align import load_encoder
        from onesug_lite.cascade_training import train_cascade

        def build(out: Path, work: Path) -> None:
            self._seed()
            encoder, rng = load_encoder(self.align_folder / "encoder"), np.random.default_rng(self.seed)
            train_cascade(self.split.train, self.pairs, encoder, self.sizes.cascade, rng).save(out / "cascade")

        inputs = self._days() | {"pairs": self.pairs_folder.name, "align": self.align_folder.name}
        return self.store.get("cascade", self.sizes.cascade, inputs, ["cascade_training"], build) / "cascade"

    # ---------------------------------------------------------------- systems
    def trained(self, row: Variant) -> Trained:
        """The trained generator behind a row of the table."""
        road = self.changed(row.changes)
        return road.preferred(row.pre) if row.preferred else road.supervised(row.pre)

    def policy(self, name: str):
        """The system of a row of the table as a callable from a frame of requests to ranked lists of queries.

        Raises:
            ValueError: no such row, or one that is no system, as the ceiling.
        """
        from onesug_lite.cascade import Cascade
        from onesug_lite.generator import load_generator

        row = variant(name)
        road = self.changed(row.changes)
        if row.system == "ceiling":
            raise ValueError(f"'{name}' is no system but what the market's truth allows; choose another row")
        if row.system == "popularity":
            return PopularityCompletion(self.click_counts)
        if row.system == "cascade":
            return Cascade.load(road.cascade_folder)
        model, tokenizer = load_generator(self.trained(row).folder / "generator")
        search = road.search if row.pre else None
        return OneSugPolicy(model, tokenizer, search, road.sizes.prompt, road.sizes.decode, road.known)

    def held_out(self, days: str = "test") -> pl.DataFrame:
        """Clicked rows that every system answers: one fixed sample of the test (or validation) days.

        Columns as :func:`onesug_lite.log.clicked` gives them, ``training_clicks`` of the clicked query, and ``random``:
        whether the log says that the request was answered at random.
        """
        log = getattr(self.split, days)
        rows = clicked(log)
        rng = np.random.default_rng(0)  # the same rows whatever the model's seed, so that systems can be paired
        size = min(self.sizes.evaluated, len(rows))
        rows = rows[np.sort(rng.choice(len(rows), size, replace=False))]
        counts = self.training_clicks.group_by("query").agg(training_clicks=pl.len())
        by_chance = log.requests.select("request_id", random=pl.lit(False))
        if "policy" in log.requests.columns:
            by_chance = log.requests.select("request_id", random=(pl.col("policy") == "random").fill_null(False))
        return (
            rows.join(counts, on="query", how="left", maintain_order="left")
            .join(by_chance, on="request_id", how="left", maintain_order="left")
            .with_columns(pl.col("training_clicks").fill_null(0))
        )

    def asked(self, days: str = "test", number: int = 400) -> pl.DataFrame:
        """A fixed sample of requests of the held-out days, clicked or not, for what a list is worth in replay."""
        rows = getattr(self.split, days).requests.sort("time", "request_id")
        rng = np.random.default_rng(1)
        return rows[np.sort(rng.choice(len(rows), min(number, len(rows)), replace=False))]

    def evaluate(self, name: str, days: str = "test") -> pl.DataFrame:
        """Answer the held-out rows with one system.

        Returns:
            Frame with ``request_id``, ``query``, ``behaviour``, ``training_clicks``, ``random``, ``rank`` (1-16, 0 is
            absent), ``suggestions`` and ``unknown`` (the share of these that are no query of the training log).
        """
        return pl.read_parquet(self.answered(name, days) / "clicked.parquet")

    def replayed(self, name: str, days: str = "test") -> pl.DataFrame:
        """One system's answers to :meth:`asked`: ``request_id``, ``suggestions`` and ``unknown``."""
        return pl.read_parquet(self.answered(name, days) / "asked.parquet")

    def answered(self, name: str, days: str = "test") -> Path:
        """Folder of what one system answers to the rows of :meth:`held_out` and :meth:`asked`."""
        row = variant(name)

        def build(out: Path, work: Path) -> None:
            self._seed()
            policy, known = self.policy(name), set(self.queries)

            def answer(requests: pl.DataFrame, *columns: str) -> pl.DataFrame:
                lists = policy(requests)
                return requests.select("request_id", *columns).with_columns(
                    unknown=pl.Series([invalid_share([shown], known) for shown in lists], dtype=pl.Float64),
                    suggestions=pl.Series(lists, dtype=pl.List(pl.String)),
                )

            rows = self.held_out(days)
            answers = answer(rows, "query", "behaviour", "training_clicks", "random")
            found = ranks(answers["suggestions"].to_list(), rows["query"].to_list())
            answers.with_columns(rank=pl.Series(found).cast(pl.Int32)).write_parquet(out / "clicked.parquet")
            answer(self.asked(days)).write_parquet(out / "asked.parquet")

        road = self.changed(row.changes)
        inputs = self._days() | {"days": days, "evaluated": str(self.sizes.evaluated)}
        inputs |= {"prompt": repr(road.sizes.prompt), "system": row.system}
        if row.system == "generator":
            inputs["system"] = self.trained(row).folder.name
        elif row.system == "cascade":
            inputs["system"] = road.cascade_folder.parent.name
        modules = {"generator": ["policy"]}.get(row.system, [row.system])
        return self.store.get(f"answers_{name}", road.sizes.decode, inputs, modules, build)

    def account(self, name: str) -> dict[str, Any]:
        """What a system took to make: ``seconds`` by stage, as the store noted them, ``parameters`` and ``curves``."""
        row = variant(name)
        road = self.changed(row.changes)
        stages = {"answers": self.answered(name)}
        curves, files = {}, []
        if row.system == "cascade" or row.pre:
            stages |= {"pairs": self.pairs_folder, "align": self.align_folder}
        if row.pre:
            stages |= {"rqvae": self.rqvae_folder, "sid_search": road.search_folder}
        if row.system == "cascade":
            stages["cascade"] = road.cascade_folder.parent
            losses = pl.read_parquet(road.cascade_folder / "losses.parquet")
            curves = {stage: losses.filter(pl.col("stage") == stage).drop("stage") for stage in ("dcn", "din")}
            files = [road.cascade_folder / f"{stage}.safetensors" for stage in curves]
        if row.system == "generator":
            seed_model = road.supervised(row.pre)
            stages["supervised"], curves["supervised"] = seed_model.folder, seed_model.history
            if row.preferred:
                preferred = road.preferred(row.pre)
                stages["preference"], curves["preference"] = preferred.folder, preferred.history
            files = [road.trained(row).folder / "generator" / "model.safetensors"]
        seconds = {
            stage: json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["seconds"]
            for stage, folder in stages.items()
        }
        return {
            "seconds": seconds,
            "parameters": sum(map(_parameters, files)) or None,
            "curves": {stage: curve.to_dict(as_series=False) for stage, curve in curves.items()},
        }

    def summary(self, answers: pl.DataFrame) -> pl.DataFrame:
        """HR@16 and MRR@16 of answered rows with intervals, by click or order and by frequency of the clicked query."""
        return summary_table(
            answers["suggestions"].to_list(),
            answers["query"].to_list(),
            answers["behaviour"].to_list(),
            dict(answers.select("query", "training_clicks").iter_rows()),
            np.random.default_rng(0),
            self.sizes.decode.results,
        )

    def _seed(self) -> None:
        from onesug_lite.training import set_seed

        set_seed(self.seed, THREADS)


def _parameters(file: Path) -> int:
    """Numbers in a file of weights."""
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def normalise(log: Log) -> Log:
    """Bring prefixes and queries into the form of :func:`onesug_lite.prompt.clean`.

    Two candidates of one request that become equal are merged into the one with the better behaviour.

    Raises:
        LogError: a text has nothing left after cleaning.
    """

    def cleaned(column: pl.Series) -> pl.Series:
        texts = column.unique().sort()
        new = pl.Series([clean(text) for text in texts.to_list()], dtype=pl.String)
        if (new == "").any():
            bad = texts.filter(new == "")[0]
            raise LogError(f"column '{column.name}' holds {bad!r}, which has no visible character; drop that row")
        return column if new.equals(texts) else column.replace_strict(texts, new)

    requests = log.requests.with_columns(cleaned(log.requests["prefix"]))
    queries = cleaned(log.candidates["query"])
    candidates = log.candidates
    if not queries.equals(candidates["query"]):
        level = pl.col("behaviour").replace_strict(BEHAVIOURS, range(len(BEHAVIOURS)), return_dtype=pl.Int8)
        candidates = (
            candidates.with_columns(queries, row=pl.int_range(pl.len()))
            .sort(level, "row")
            .unique(["request_id", "query"], keep="first", maintain_order=True)
            .sort("row")
            .drop("row")
        )
    return Log(requests, candidates)
