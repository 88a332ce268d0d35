"""Training of the cascade: statistics by day, what each ranker learns from, and the order of things.

Recall is counted and embedded, not trained. DCN learns to tell the queries that were shown from the others: those that
the logging system recalled and did not show, those that recall brings here, and queries drawn at random. A pre-ranker
is to hand on a good set, not an order (Zhang et al., "Rethinking the Role of Pre-ranking", 2023). DIN learns to tell
the clicked query from the rest, in lists that hold a click.

A textbook DIN learns from shown queries alone, and then has to order 64 of which most were never shown; on those it is
at sea, a fault known as sample selection bias (Ma et al., "Entire Space Multi-Task Model", 2018). So DIN is given some
unshown queries too; ``rank_negatives=0`` is the textbook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from onesug_lite.cascade import Cascade
from onesug_lite.features import CascadeConfig, Requests, Tally
from onesug_lite.log import CLICKS, POSITIONS, Log, clicked, day_number
from onesug_lite.pairs import Pairs
from onesug_lite.rankers import batch_of, fit
from onesug_lite.recall import Recall

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def train_cascade(
    train: Log, pairs: Pairs, encoder: SentenceTransformer, config: CascadeConfig, rng: np.random.Generator
) -> Cascade:
    """Build recall from the training days and train the two rankers, each on its own objective.

    No row knows its own day: the statistics that describe it are those of the days before, and the first ``warmup`` of
    the days only feed them. What does know all training days is the encoder, one for all, and recall, from which
    negatives alone are drawn.

    Args:
        train: the training part of a log; never pass later days, their clicks are the answers.
        pairs: mined from the same days.
        encoder: aligned on these pairs.
        config: sizes.
        rng: of the samples, the weights and the order of the batches.

    Returns:
        The cascade, ready to serve.

    Raises:
        ValueError: ``pairs`` holds clicks that ``train`` does not, or no list after the warm-up holds a click.

    Source:
        Paper, offline table, for the three stages; how they are trained is not told.
    """
    from onesug_lite.encoder import embed

    clicks = clicked(train).group_by("prefix", "query").agg(clicks=pl.len().cast(pl.Int64)).sort("prefix", "query")
    strange = pairs.prefix_query.join(clicks, on=["prefix", "query"], how="anti")
    if len(strange):
        raise ValueError(
            f"pairs holds {len(strange)} clicks that the training days do not, one of them {strange['query'][0]!r} "
            f"under {strange['prefix'][0]!r}; mine pairs from the same days, later ones hold the answers."
        )
    queries, prefixes = (
        column.unique().sort().to_list() for column in (train.candidates["query"], train.requests["prefix"])
    )
    rows = _rows(train, queries, prefixes)
    vectors = embed(encoder, queries + prefixes)
    related = pairs.query_query.filter(pl.col("source").str.starts_with("item_cf"))
    recall = Recall(queries, vectors[: len(queries)], prefixes, vectors[len(queries) :], clicks, related, config)

    shown = rows.filter(pl.col("position") > 0)
    day, query, code, was_clicked = (shown[name].to_numpy() for name in ("day", "query", "code", "clicked"))
    span = int(rows["day"].max()) + 2  # serving is one day after the last
    tallies = [Tally.count(keys, day, was_clicked, span) for keys in (query, code * len(queries) + query)]
    seed = int(rng.integers(2**31))
    cascade = Cascade(recall, *tallies, encoder.tokenizer, config, encoder, seed)

    rows = rows.filter(pl.col("day") >= int(config.warmup * (span - 1)))
    losses = [
        _train_dcn(cascade, train, rows, rng).with_columns(stage=pl.lit("dcn")),
        _train_din(cascade, train, rows, rng).with_columns(stage=pl.lit("din")),
    ]
    cascade.losses = pl.concat(losses).select("stage", "step", "loss")
    return cascade


def _rows(train: Log, queries: list[str], prefixes: list[str]) -> pl.DataFrame:
    """One row a candidate: ``request`` (row of its request), ``day``, ``code``, ``query``, ``position``, ``clicked``.

    Prefix and query are numbers, the position of a query that was not shown is 0; sorted by request.
    """
    requests = train.requests.select(
        "request_id",
        request=pl.int_range(pl.len()),
        day=day_number(train).cast(pl.Int64),
        code=pl.col("prefix").cast(pl.Enum(prefixes)).to_physical().cast(pl.Int64),
    )
    candidates = train.candidates.select(
        "request_id",
        query=pl.col("query").cast(pl.Enum(queries)).to_physical().cast(pl.Int64),
        position=pl.col("position").fill_null(0).cast(pl.Int64),
        clicked=pl.col("behaviour").is_in(CLICKS),
    )
    return candidates.join(requests, on="request_id").drop("request_id").sort("request", "position", "query")


def _sample(
    cascade: Cascade, train: Log, rows: pl.DataFrame, size: int, rng: np.random.Generator
) -> tuple[Requests, np.ndarray, np.ndarray, np.ndarray]:
    """Some of the requests that have rows, and their candidates, positions and clicks, each (R, C)."""
    distinct = rows["request"].unique().sort().to_numpy()
    picked = np.sort(rng.choice(distinct, min(size, len(distinct)), replace=False))
    rows = rows.filter(pl.col("request").is_in(picked))
    lengths = rows.group_by("request", maintain_order=True).len()["len"].cast(pl.Int64).to_numpy()
    row = np.repeat(np.arange(len(picked)), lengths)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tables = []
    for name, empty in (("query", -1), ("position", 0), ("clicked", 0)):
        table = np.full((len(picked), lengths.max()), empty)
        table[row, place] = rows[name].to_numpy()
        tables.append(table)
    days = rows.group_by("request", maintain_order=True).first()["day"].to_numpy()
    return cascade.encode(train.requests[picked], days), *tables


def _train_dcn(cascade: Cascade, train: Log, rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    config = cascade.config
    requests, logged, position, _ = _sample(cascade, train, rows, config.prerank_requests, rng)
    drawn = rng.integers(0, len(cascade.queries), (len(logged), config.random_negatives))
    negatives = np.concatenate([_recalled(cascade, requests, config.hard_negatives, rng), drawn], axis=1)
    candidates, (labels,) = _append(logged, negatives, position > 0)
    batch = batch_of(requests, candidates, cascade.features(requests, candidates, cascade.cheap))
    return fit(cascade.dcn, batch, torch.from_numpy(labels).float(), config.prerank_epochs, config, rng)


def _train_din(cascade: Cascade, train: Log, rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    config = cascade.config
    rows = rows.filter(pl.col("clicked").any().over("request"))
    if config.rank_negatives == 0:
        rows = rows.filter(pl.col("position") > 0)
    if rows.is_empty():
        raise ValueError("no list after the warm-up days holds a click; DIN has nothing to learn from.")
    requests, logged, position, was_clicked = _sample(cascade, train, rows, config.rank_requests, rng)
    negatives = _recalled(cascade, requests, config.rank_negatives, rng)
    candidates, (position, labels) = _append(logged, negatives, position, was_clicked)
    # What was not shown gets a place by chance. A place of its own would explain alone why nobody clicked it.
    position = np.where(position > 0, position, rng.integers(1, POSITIONS + 1, position.shape))
    numeric = cascade.features(requests, candidates, config.features)
    batch = batch_of(requests, candidates, numeric, position)
    return fit(cascade.din, batch, torch.from_numpy(labels).float(), config.rank_epochs, config, rng)


def _recalled(cascade: Cascade, requests: Requests, size: int, rng: np.random.Generator) -> np.ndarray:
    """For each request some queries (B, size) of those that are recalled for it."""
    if size == 0:
        return np.empty((len(requests.prefixes), 0), dtype=np.int64)
    recalled = cascade.recall(requests)
    some = np.argsort(rng.random(recalled.shape), axis=1)[:, :size]
    return np.take_along_axis(recalled, some, axis=1)


def _append(logged: np.ndarray, negatives: np.ndarray, *tables: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Put negatives (B, N) behind logged candidates (B, C), none of them twice, and zeros behind their tables."""
    negatives = np.where((negatives[:, :, None] == logged[:, None, :]).any(axis=2), -1, negatives)
    zeros = np.zeros(negatives.shape, dtype=np.int64)
    return np.concatenate([logged, negatives], axis=1), [np.concatenate([table, zeros], axis=1) for table in tables]
