"""Related queries of a prefix: what PRE puts into the prompt.

A prefix is short and ambiguous. PRE enriches it with the queries whose semantic ids agree with its own, found by
:func:`onesug_lite.sid_search.search`. The vector of a prefix is the mean of its own embedding and the embeddings of the
queries clicked under it.

Source: paper, section PRE.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from onesug_lite.folders import replacing
from onesug_lite.sid_search import nearest, search

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from onesug_lite.rqvae import RQVAE


@dataclass(frozen=True)
class SearchConfig:
    """Search of related queries.

    Source:
        Paper, section PRE; K, the number of related queries, is not given.
    """

    related: int = 6  # ours: queries that enrich a prefix
    cooccurring: int = 32  # ours: clicked queries that are pooled into a prefix, the most clicked ones
    method: str = "sid"  # paper: semantic ids, fine to coarse; "nearest": ours, plain nearest neighbours
    damping: bool = True  # ours: weigh a query by log2(1 + clicks); False: by clicks, a plain mean over clicks

    def __post_init__(self) -> None:
        if self.method not in ("sid", "nearest"):
            raise ValueError(f"SearchConfig.method is '{self.method}'; expected 'sid' or 'nearest'.")
        if self.related < 1 or self.cooccurring < 0:
            raise ValueError(
                f"SearchConfig.related is {self.related} and cooccurring is {self.cooccurring}; expected 1 "
                "or more and 0 or more."
            )


class PrefixSearch:
    r"""Related queries of any prefix.

    The vector of prefix *p*, clicked under which were queries *q* with counts :math:`c_q`, is

    .. math::

        v_p \propto e_p + \sum_q w_q\, e_q, \qquad w_q = \frac{\log_2(1 + c_q)}{\sum_{q'} \log_2(1 + c_{q'})}

    so the prefix weighs as much as all of its queries together, and a query clicked by many does not drown
    the rest. A prefix without clicks is its own embedding.

    For a training row, the row's own click is taken out of the counts before they are weighed. Otherwise a
    generator would learn from prompts that hold the answer, and would miss it when it serves.

    Args:
        encoder: from :func:`onesug_lite.encoder.load_encoder`.
        rqvae: trained on embeddings of this encoder.
        clicks: ``prefix, query, clicks`` of the training days, each pair once.
        queries: distinct queries to choose from.
        config: sizes.

    Raises:
        ValueError: no query to choose from, a query given twice, or a pair of ``clicks`` given twice.

    Source:
        Paper, section PRE: mean pooling with co-occurring queries (figure of the authors' public repository);
        the weights and the leaving-out are ours.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        rqvae: RQVAE,
        clicks: pl.DataFrame,
        queries: Sequence[str],
        config: SearchConfig,
    ) -> None:
        from onesug_lite.encoder import embed

        clicks = clicks.select("prefix", "query", pl.col("clicks").cast(pl.Int64))
        if not len(queries) or len(set(queries)) < len(queries):
            raise ValueError(
                f"{len(queries)} queries, {len(set(queries))} of them distinct; expected one or more, each once."
            )
        if clicks.select("prefix", "query").is_duplicated().any():
            raise ValueError("clicks names a (prefix, query) pair twice; sum its clicks into one row.")
        # The queries stand first, in their order: row i of the embeddings is query i.
        others = pl.concat([clicks["prefix"], clicks["query"]]).unique().sort()
        others = others.filter(~others.is_in(pl.Series(queries, dtype=pl.String).implode()))
        texts = list(queries) + others.to_list()
        embeddings = embed(encoder, texts)
        sids = rqvae.encode(embeddings[: len(queries)]).numpy()
        self._start(config, texts, embeddings, sids, clicks, rqvae)
        self.encoder = encoder

    def _start(self, config, texts, embeddings, sids, clicks, rqvae) -> None:
        self.config, self.texts, self.embeddings, self.sids = config, texts, embeddings, sids
        self.clicks, self.rqvae = clicks, rqvae
        self.queries = texts[: len(sids)]
        self._row = {text: row for row, text in enumerate(texts)}

    @cached_property
    def encoder(self) -> SentenceTransformer:
        """The text encoder; after :meth:`load` it is read only when a new text comes."""
        from onesug_lite.encoder import load_encoder

        return load_encoder(self._encoder_folder)

    @cached_property
    def _top_clicks(self) -> pl.DataFrame:
        """The most clicked queries of a prefix; one more than are pooled, since a row may leave one out."""
        return (
            self.clicks.sort("prefix", "clicks", "query", descending=[False, True, False])
            .group_by("prefix", maintain_order=True)
            .head(self.config.cooccurring + 1)
            .with_columns(row=pl.col("query").replace_strict(self._row, return_dtype=pl.Int64))
        )

    def vectors(self, prefixes: Sequence[str], clicked: Sequence[str | None] | None = None) -> np.ndarray:
        """Pooled vectors of prefixes.

        Args:
            prefixes: N texts, seen or not.
            clicked: for training rows, the query clicked in each row (``None``: no click to leave out). One
                click is taken from its count under the prefix, so a click that nobody else made is not seen.

        Returns:
            ``float32`` (N, D) unit vectors.

        Raises:
            ValueError: ``clicked`` has another length.
        """
        cases, case = _cases(prefixes, clicked)
        return self._pool(cases)[case]

    def _pool(self, cases: pl.DataFrame) -> np.ndarray:
        """Pooled vectors of distinct cases ``case, prefix, clicked``."""
        own = self._embed(cases["prefix"].to_list())  # (C, D)
        weight = (pl.col("clicks") + 1).log(2) if self.config.damping else pl.col("clicks").cast(pl.Float64)
        left = (
            cases.lazy()
            .join(self._top_clicks.lazy(), on="prefix")
            .with_columns(clicks=pl.col("clicks") - (pl.col("query") == pl.col("clicked")).fill_null(False))
            .filter(pl.col("clicks") > 0)
            .sort("case", "clicks", "query", descending=[False, True, False])
            .filter(pl.int_range(pl.len()).over("case") < self.config.cooccurring)
            .with_columns(weight=weight)
            .collect()
        )
        rows, columns = left["case"].to_numpy(), left["row"].to_numpy()
        total = np.bincount(rows, weights=left["weight"].to_numpy(), minlength=len(cases))
        share = left["weight"].to_numpy() / total[rows]
        pooling = sparse.csr_matrix((share, (rows, columns)), shape=(len(cases), len(self.texts)))
        pooled = own + pooling @ self.embeddings  # (C, D)
        return (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embeddings of distinct or repeated texts; only new ones go through the encoder."""
        rows = np.array([self._row.get(text, -1) for text in texts], dtype=np.int64)
        vectors = self.embeddings[rows]
        new = np.flatnonzero(rows < 0)
        if len(new):
            from onesug_lite.encoder import embed

            vectors[new] = embed(self.encoder, [texts[row] for row in new])
        return vectors

    def related(self, prefixes: Sequence[str], clicked: Sequence[str | None] | None = None) -> list[list[str]]:
        """Related queries of prefixes, best first.

        Args:
            prefixes: N texts, seen or not.
            clicked: as for :meth:`vectors`.

        Returns:
            N lists of ``related`` queries (fewer only when fewer exist).
        """
        if not len(prefixes):
            return []
        cases, case = _cases(prefixes, clicked)
        vectors = self._pool(cases)  # (C, D)
        k = min(self.config.related, len(self.queries))
        queries = self.embeddings[: len(self.queries)]
        if self.config.method == "nearest":
            rows = nearest(queries, vectors, k)  # (C, k)
        else:
            rows = search(self.sids, queries, self.rqvae.encode(vectors).numpy(), vectors, k)
        return np.asarray(self.queries, dtype=object)[rows[case]].tolist()

    def save(self, folder: str | Path) -> None:
        """Write everything that :meth:`load` needs, encoder and RQ-VAE included.

        Args:
            folder: replaced when it exists.
        """
        from safetensors.numpy import save_file

        from onesug_lite.encoder import save_encoder
        from onesug_lite.rqvae import save_rqvae

        with replacing(folder) as new:
            save_file(
                {"embeddings": self.embeddings, "sids": np.ascontiguousarray(self.sids)},
                new / "vectors.safetensors",
            )
            pl.DataFrame({"text": self.texts}).write_parquet(new / "texts.parquet")
            self.clicks.write_parquet(new / "clicks.parquet")
            (new / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8")
            save_rqvae(self.rqvae, new / "rqvae")
            if "encoder" in self.__dict__:
                save_encoder(self.encoder, new / "encoder")
            else:  # loaded from a folder and never needed: copy it unread
                shutil.copytree(self._encoder_folder, new / "encoder")

    @classmethod
    def load(cls, folder: str | Path) -> PrefixSearch:
        """Open what :meth:`save` wrote; the encoder is read when the first unseen prefix comes.

        Args:
            folder: as given to :meth:`save`.

        Returns:
            A search that answers as the saved one did.

        Raises:
            FileNotFoundError: the folder is missing or incomplete.
        """
        from safetensors.numpy import load_file

        from onesug_lite.rqvae import load_rqvae

        folder = Path(folder)
        for name in (
            "config.json",
            "vectors.safetensors",
            "texts.parquet",
            "clicks.parquet",
            "rqvae",
            "encoder",
        ):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no {name}; build the search again and save it there.")
        held = load_file(folder / "vectors.safetensors")
        found = cls.__new__(cls)
        found._start(
            SearchConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))),
            pl.read_parquet(folder / "texts.parquet")["text"].to_list(),
            held["embeddings"],
            held["sids"],
            pl.read_parquet(folder / "clicks.parquet"),
            load_rqvae(folder / "rqvae"),
        )
        found._encoder_folder = folder / "encoder"
        return found


def _cases(prefixes: Sequence[str], clicked: Sequence[str | None] | None) -> tuple[pl.DataFrame, np.ndarray]:
    """Distinct (prefix, clicked) as ``case, prefix, clicked``, and the case of each row (N,)."""
    if clicked is not None and len(clicked) != len(prefixes):
        raise ValueError(f"{len(clicked)} clicked queries for {len(prefixes)} prefixes; expected as many.")
    asked = pl.DataFrame(
        {"prefix": list(prefixes), "clicked": [None] * len(prefixes) if clicked is None else list(clicked)},
        schema={"prefix": pl.String, "clicked": pl.String},
    )
    cases = asked.unique(maintain_order=True).with_row_index("case")
    case = asked.join(cases, on=["prefix", "clicked"], nulls_equal=True, maintain_order="left")["case"]
    return cases, case.to_numpy()
