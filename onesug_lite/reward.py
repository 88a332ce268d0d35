r"""Rewards of shopper behaviour, and the chosen and rejected queries that preference training compares.

What a shopper did to a query says how much the query was worth. Six behaviour levels carry a base reward
:math:`\lambda`, and the click-through rate of the query under the prefix scales it:

.. math::  r(x, q) = \lambda(\text{behaviour}) \cdot \exp(p)

A pair of a chosen and a rejected query is weighted by the inverse of the gap between their rewards,
:math:`rw_\Delta = 1 / (r_w - r_l)`: two queries of nearly equal worth are a hard pair and weigh more.

What :math:`p` is remains an open question. As printed it is the rate itself, at or above 0, so a reward could
never be below its base; yet the rows that the authors released hold chosen rewards of 0.97 (base 1.0) and
rejected rewards of 0.47 (base 0.5). A rate from which the average rate is subtracted explains them. Both
readings are here: ``ctr_factor="centred"`` and ``"plain"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from onesug_lite.log import CLICKS, Log

LEVELS = {"order": 2.0, "item_click": 1.5, "query_click": 1.0, "show": 0.5, "not_shown": 0.2, "random": 0.0}
"""Base reward of each behaviour level, best first (authors' article); ``random`` is drawn from all."""

REJECTED = ("show", "not_shown", "random")
"""Levels that a rejected query can have: shown and not clicked, recalled and not shown, drawn at random."""

PAIR_TYPES = tuple((chosen, rejected) for chosen in CLICKS for rejected in REJECTED)
"""The nine pair types: each of the three clicked levels against each level of :data:`REJECTED`."""


@dataclass(frozen=True)
class RewardConfig:
    """How behaviour becomes rewards, weights and pairs."""

    ctr_factor: str = "centred"  # paper: "plain", exp(ctr); exp(ctr - mean) fits the authors' released rows
    prior: float = 10.0  # ours: impressions at the log's mean rate that are added to every (prefix, query)
    min_gap: float = 0.1  # ours: smallest r_w - r_l, so that no pair weighs more than 1 / min_gap
    negatives: int = 4  # authors' public code: 4 rejected queries for each chosen one
    mix: tuple[str, ...] = ("show", "not_shown", "random", "show")  # ours: levels of the rejected, in turn

    def __post_init__(self):
        if self.ctr_factor not in ("centred", "plain"):
            raise ValueError(f"ctr_factor is '{self.ctr_factor}'; expected 'centred' or 'plain'")
        if not self.prior >= 0:
            raise ValueError(f"prior is {self.prior}; expected 0 or more impressions")
        if not self.min_gap > 0:
            raise ValueError(f"min_gap is {self.min_gap}; expected a number above 0, or equal rewards weigh infinitely")
        if self.negatives < 1:
            raise ValueError(f"negatives is {self.negatives}; expected 1 or more rejected queries for a chosen one")
        unknown = [level for level in self.mix if level not in REJECTED]
        if unknown or not self.mix:
            raise ValueError(f"mix is {self.mix}; expected one or more of {', '.join(REJECTED)}")


class PreferenceSets(NamedTuple):
    """Chosen clicks, each with its rejected queries.

    Attributes:
        rows: one row a chosen click, in the order of time: ``request_id``, ``prefix``, ``profile``, ``history``,
            ``chosen``, ``chosen_behaviour``, ``propensity`` (probability that the logging policy put the chosen query
            at the place where it was clicked, null when the log does not say), ``chosen_reward``, and the lists
            ``rejected``, ``rejected_behaviour``, ``rejected_reward``, ``weight``, each ``negatives`` long and in the
            same order.
        mean_ctr: clicks over impressions of the whole log, what the centred factor subtracts.
    """

    rows: pl.DataFrame
    mean_ctr: float


def prefix_query_ctr(train: Log, config: RewardConfig) -> pl.DataFrame:
    r"""Click-through rate of every query shown under a prefix, shrunk towards the mean rate of the log.

    With few impressions the observed rate is mostly luck, so ``prior`` impressions at the mean rate
    :math:`\bar p` are added:

    .. math::  p = (\mathrm{clicks} + \mathrm{prior} \cdot \bar p) / (\mathrm{impressions} + \mathrm{prior})

    Args:
        train: log of the training days.
        config: ``prior`` is read.

    Returns:
        ``prefix``, ``query``, ``shown`` (impressions), ``clicked`` and ``ctr``, sorted by prefix and query. A
        pair that was never shown has no row.

    Raises:
        ValueError: the log shows no query at all.

    Source:
        The paper takes a factor from "that CTR"; the shrinkage is ours.
    """
    shown = train.candidates.lazy().filter(pl.col("behaviour") != "not_shown")
    frame = (
        shown.select("request_id", "query", clicked=pl.col("behaviour").is_in(CLICKS))
        .join(train.requests.lazy().select("request_id", "prefix"), on="request_id")
        .group_by("prefix", "query")
        .agg(shown=pl.len().cast(pl.Int64), clicked=pl.col("clicked").sum().cast(pl.Int64))
        .sort("prefix", "query")
        .collect()
    )
    if frame.is_empty():
        raise ValueError(
            "the training log shows no query, so there is no click-through rate; give a log with impressions"
        )
    mean = frame["clicked"].sum() / frame["shown"].sum()
    ctr = (pl.col("clicked") + config.prior * mean) / (pl.col("shown") + config.prior)
    return frame.with_columns(ctr=ctr)


def reward(level_values: np.ndarray, ctr: np.ndarray, mean_ctr: float, config: RewardConfig) -> np.ndarray:
    r"""Reward of queries: :math:`\lambda \exp(p)` with :math:`p` the rate (plain) or the rate less its mean
    (centred).

    Args:
        level_values: base rewards, any shape; see :data:`LEVELS`.
        ctr: click-through rates between 0 and 1, of a shape that broadcasts with it.
        mean_ctr: what the centred factor subtracts.
        config: ``ctr_factor`` is read.

    Returns:
        ``float64`` rewards, 0 or more. An order of the lowest rate is worth more than a show of the highest: rates
        differ by at most 1, less than :math:`\ln 4`.

    Source:
        The base rewards and "a factor from that CTR": the authors' article; the exponential: third-party notes; the
        centring: ours, from the released sample rows.
    """
    shift = mean_ctr if config.ctr_factor == "centred" else 0.0
    return np.asarray(level_values, dtype=np.float64) * np.exp(np.asarray(ctr, dtype=np.float64) - shift)


def pair_weight(chosen: np.ndarray, rejected: np.ndarray, config: RewardConfig) -> np.ndarray:
    r"""Weight of a pair, :math:`rw_\Delta = 1 / (r_w - r_l)`, finite for every two rewards.

    As printed the weight is infinite for equal rewards and negative for inverted ones (a clicked query of a low rate
    against a shown one of a high rate), which would turn the loss around. The gap is therefore never taken below
    ``min_gap``: such a pair is as hard as a pair can be, and the click still says which query was chosen.

    Args:
        chosen: rewards of the chosen queries, any shape.
        rejected: rewards of the rejected queries, of a shape that broadcasts with it.
        config: ``min_gap`` is read.

    Returns:
        ``float64`` weights, above 0 and at most ``1 / min_gap``.

    Source:
        The paper's RWR weight (authors' article, third-party notes); the floor is ours.
    """
    gap = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    return 1.0 / np.maximum(gap, config.min_gap)


def preference_sets(
    train: Log, queries: Sequence[str], config: RewardConfig, rng: np.random.Generator
) -> PreferenceSets:
    """Give each clicked query of the training days its rejected queries, with rewards and weights.

    The rejected queries take the levels of ``mix`` in turn until there are ``negatives`` of them: ``show`` and
    ``not_shown`` are drawn without replacement from the candidates of the same request, ``random`` from all queries.
    A request that has too few of a level gets random queries in their place. A rejected query is never one that was
    clicked in the same request and never stands twice in a row; a random one is no candidate of the request.

    Args:
        train: log of the training days.
        queries: every query that a random one may be.
        config: see :class:`RewardConfig`.
        rng: source of all draws; the same seed gives the same rows.

    Returns:
        One row a click, sorted by time, request id and position.

    Raises:
        ValueError: the log holds no click, or there are too few queries to draw random ones from.

    Source:
        The paper's nine pair types (authors' article); 4 rejected queries: authors' public code; the mix is ours.
    """
    ctr = prefix_query_ctr(train, config)
    mean_ctr = float(ctr["clicked"].sum() / ctr["shown"].sum())
    clicks, candidates = _clicks_and_candidates(train)
    if clicks.is_empty():
        raise ValueError("the training log holds no click, so nothing was chosen; give a log with clicks")

    texts = pl.concat([pl.Series("query", queries, dtype=pl.String), candidates["query"]]).unique().sort()
    texts = texts.drop_nulls()
    codes = pl.Enum(texts)
    pool = np.unique(pl.Series(queries, dtype=codes).to_physical().to_numpy())  # (Q,) what a random query may be
    query = candidates["query"].cast(codes).to_physical().to_numpy().astype(np.int64)  # (C,)
    chosen = clicks["query"].cast(codes).to_physical().to_numpy().astype(np.int64)  # (N,)

    first, length = clicks["first"].to_numpy().astype(np.int64), clicks["length"].to_numpy().astype(np.int64)
    level = candidates["level"].to_numpy()  # (C,) index into REJECTED, -1 for clicked
    # One entry a pair of a click and a candidate of its request: numbers of the click and of the candidate, (P,) each.
    row = np.repeat(np.arange(len(first)), length)
    candidate = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length) + np.repeat(first, length)
    rejected, levels = _logged_negatives(len(first), row, query[candidate], level[candidate], config, rng)
    _random_negatives(rejected, row, query[candidate], pool, rng)

    behaviour = clicks["behaviour"].to_list()
    rows, negatives = rejected.shape
    asked = pl.DataFrame(
        {
            "prefix": pl.concat([clicks["prefix"], clicks["prefix"].gather(np.repeat(np.arange(rows), negatives))]),
            "query": texts.gather(np.concatenate([chosen, rejected.ravel()])),
        }
    )
    # A query never shown under the prefix is given the mean rate: what the shrinkage says of no impressions.
    found = asked.join(ctr.select("prefix", "query", "ctr"), on=["prefix", "query"], how="left", maintain_order="left")
    rates = found["ctr"].fill_null(mean_ctr).to_numpy()  # (N + N * negatives,)
    chosen_reward = reward(np.array([LEVELS[name] for name in behaviour]), rates[:rows], mean_ctr, config)  # (N,)
    base = np.array([LEVELS[name] for name in REJECTED])[levels]
    rejected_reward = reward(base, rates[rows:].reshape(rows, negatives), mean_ctr, config)  # (N, negatives)
    weight = pair_weight(chosen_reward[:, None], rejected_reward, config)

    def lists(column: Callable[[int], pl.Series]) -> pl.Expr:
        return pl.concat_list([column(slot).alias(f"slot {slot}") for slot in range(negatives)])

    frame = clicks.select(
        "request_id", "prefix", "profile", "history", "propensity", chosen="query", chosen_behaviour="behaviour"
    ).with_columns(
        chosen_reward=pl.Series(chosen_reward),
        rejected=lists(lambda slot: texts.gather(rejected[:, slot])),
        rejected_behaviour=lists(lambda slot: pl.Series(REJECTED).gather(levels[:, slot])),
        rejected_reward=lists(lambda slot: pl.Series(rejected_reward[:, slot])),
        weight=lists(lambda slot: pl.Series(weight[:, slot])),
    )
    return PreferenceSets(frame, mean_ctr)


def _clicks_and_candidates(train: Log) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Clicks with the place of their request's candidates, and those candidates, request by request."""
    is_click = pl.col("behaviour").is_in(CLICKS)
    requests = train.requests.sort("time", "request_id").with_row_index("place")
    level = pl.col("behaviour").replace_strict(
        dict(zip(REJECTED, range(len(REJECTED)), strict=True)), default=-1, return_dtype=pl.Int8
    )
    logged = train.candidates.lazy()
    if "propensity" not in train.candidates.columns:  # an optional column of the log
        logged = logged.with_columns(propensity=pl.lit(None, dtype=pl.Float32))
    with_click = logged.filter(is_click).select("request_id").unique()
    candidates = (
        logged.join(with_click, on="request_id", how="semi")
        .join(requests.lazy().select("request_id", "place"), on="request_id")
        .select("place", "request_id", "query", "behaviour", "position", "propensity", level=level)
        .sort("place", "position", "query", nulls_last=True)
        .collect()
    )
    spans = (
        candidates.lazy()
        .with_row_index("row")
        .group_by("place")
        .agg(first=pl.col("row").min(), length=pl.len())
        .collect()
    )
    clicks = (
        candidates.filter(is_click)
        .join(spans, on="place", how="left", maintain_order="left")
        .join(requests.select("place", "prefix", "profile", "history"), on="place", how="left", maintain_order="left")
        .sort("place", "position", "query")
    )
    return clicks, candidates


def _logged_negatives(
    rows: int, row: np.ndarray, query: np.ndarray, level: np.ndarray, config: RewardConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the slots that the request's own candidates can fill; the others stay -1 and become random.

    Args:
        rows: number of clicks.
        row, query, level: (P,) click, query code and level of each candidate of each click's request.
        config: ``negatives`` and ``mix``.
        rng: source of the draws.

    Returns:
        Query codes (N, negatives), -1 where empty, and levels (N, negatives), indices into :data:`REJECTED`.
    """
    slots = [REJECTED.index(config.mix[slot % len(config.mix)]) for slot in range(config.negatives)]
    rejected = np.full((rows, config.negatives), -1, dtype=np.int64)
    levels = np.full((rows, config.negatives), REJECTED.index("random"), dtype=np.int64)
    for wanted in (REJECTED.index("show"), REJECTED.index("not_shown")):
        places = np.array([slot for slot, kind in enumerate(slots) if kind == wanted], dtype=np.int64)
        if not len(places):
            continue
        of_level = level == wanted
        rows_here, queries_here = row[of_level], query[of_level]
        # Sorting by a random number inside each row and keeping the first few draws without replacement.
        order = np.lexsort((rng.random(len(rows_here)), rows_here))
        rows_here, queries_here = rows_here[order], queries_here[order]
        counts = np.bincount(rows_here, minlength=rows)
        nth = np.arange(len(rows_here)) - (np.cumsum(counts) - counts)[rows_here]  # place inside the row
        kept = nth < len(places)
        target = places[nth[kept]]
        rejected[rows_here[kept], target] = queries_here[kept]
        levels[rows_here[kept], target] = wanted
    return rejected, levels


def _random_negatives(
    rejected: np.ndarray, row: np.ndarray, query: np.ndarray, pool: np.ndarray, rng: np.random.Generator
) -> None:
    """Fill the empty slots in place with queries that are no candidate of the request, each once a row."""
    width = int(max(pool.max(initial=0), query.max(initial=0))) + 1
    taken = np.sort(row * width + query)  # (row, query) of every candidate as one number, sorted
    for slot in range(rejected.shape[1]):
        todo = np.flatnonzero(rejected[:, slot] < 0)
        for _ in range(200):  # draws of those that clashed; only a pool that is all but used up needs many
            if not len(todo) or not len(pool):
                break
            drawn = pool[rng.integers(len(pool), size=len(todo))]
            key = todo * width + drawn
            place = np.minimum(np.searchsorted(taken, key), len(taken) - 1)
            clash = (taken[place] == key) | (rejected[todo] == drawn[:, None]).any(axis=1)
            rejected[todo[~clash], slot] = drawn[~clash]
            todo = todo[clash]
        if len(todo):
            raise ValueError(
                f"a pool of {len(pool)} queries is too small to draw random ones from: {len(todo)} "
                "request(s) found none that was not a candidate already; pass more queries or lower negatives"
            )
