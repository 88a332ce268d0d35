"""The cascade taken apart: where clicks are lost, what each channel and each group of features brings.

A clicked query that a stage drops cannot come back, so the share that a stage lets through is what a perfect ranker
behind it would reach: the ceiling of HR@16, and of MRR@16 too, of all that follows. Everything works from what a
:class:`onesug_lite.cascade.Cascade` offers to anyone; :mod:`onesug_lite.cascade_figures` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr

from onesug_lite.cascade import Cascade, Stages
from onesug_lite.features import CHANNELS, COLUMNS, FEATURES, Requests
from onesug_lite.log import CLICKS, Log, day_number
from onesug_lite.metrics import BANDS, Interval, bootstrap, in_slice, ranks, reciprocal_rank
from onesug_lite.rankers import DCN, DIN, batch_of
from onesug_lite.recall import Recall
from onesug_lite.significance import Resampled

STAGES = ("pool", "recall", "pre-rank", "rank")
"""Where a clicked query can be lost: it is no query of the training days, or one of the three stages drops it."""

TOGETHER = "all together"
"""How :func:`channel_shares` calls the merged channels."""


# ---------------------------------------------------------------- where clicks are lost
def frequency_slices(rows: pl.DataFrame, training_clicks: pl.DataFrame) -> dict[str, np.ndarray]:
    """Held-out clicks by how often their query, and their prefix, was clicked in training.

    Args:
        rows: N clicks with ``request_id``, ``prefix`` and ``training_clicks`` (of the query).
        training_clicks: a row a training click, with ``prefix``.

    Returns:
        ``all``, then ``head query``, ``torso query``, ``tail query`` and the same of the prefix -> ``bool`` (N,).
    """
    behind = training_clicks.group_by("prefix").agg(prefix_clicks=pl.len())
    behind = rows.select("prefix").join(behind, on="prefix", how="left", maintain_order="left")
    columns = {name: rows[name].to_numpy() for name in ("request_id", "training_clicks")}
    columns["prefix_clicks"] = behind["prefix_clicks"].fill_null(0).to_numpy()
    slices = {"all": in_slice(columns)}
    slices |= {f"{band} query": in_slice(columns, band) for band in BANDS}
    return slices | {f"{band} prefix": in_slice(columns, f"prefix {band}") for band in BANDS}


def surviving(
    cascade: Cascade,
    stages: Stages,
    targets: Sequence[str],
    slices: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> pl.DataFrame:
    """How many of the clicked queries are still there after each stage, by slice of the requests.

    Args:
        cascade: whose pool counts as the first stage.
        stages: of N requests, from :meth:`onesug_lite.cascade.Cascade.stages`.
        targets: N clicked queries.
        slices: name -> ``bool`` (N,).
        rng: of the bootstrap.

    Returns:
        ``slice, stage, kept`` (the most queries a request has after the stage), ``requests, mean, low, high``
        (a share and its bootstrap interval; null where there is none to measure), stages as in :data:`STAGES`.

    Raises:
        ValueError: another number of targets than of requests.
    """
    if len(targets) != len(stages.recalled):
        raise ValueError(f"{len(targets)} targets for the stages of {len(stages.recalled)} requests; give one for each")
    known = set(cascade.queries)
    there = [np.array([target in known for target in targets], dtype=float)]
    there += [np.array([t in row for t, row in zip(targets, lists, strict=True)], dtype=float) for lists in stages[:3]]
    kept = [len(known), *(max(map(len, lists), default=0) for lists in stages[:3])]
    rows = [
        (name, stage, size, int(where.sum()), *bootstrap(reached[where], rng))
        for name, where in slices.items()
        for stage, size, reached in zip(STAGES, kept, there, strict=True)
    ]
    return pl.DataFrame(rows, ["slice", "stage", "kept", "requests", *Interval._fields], orient="row").fill_nan(None)


def lost_shares(survived: pl.DataFrame) -> pl.DataFrame:
    """Of the clicked queries that a cascade does not show, how many were lost where.

    Args:
        survived: of one slice and one cascade, from :func:`surviving`.

    Returns:
        ``stage``, ``lost`` (a share of those that are not shown; 0 throughout where all are).
    """
    lost = np.abs(np.diff([1.0, *survived["mean"]]))  # no stage brings any back
    return survived.select("stage", lost=pl.Series(lost / max(lost.sum(), 1e-9)))


# ---------------------------------------------------------------- channels
def channel_shares(
    recall: Recall,
    requests: Requests,
    targets: Sequence[str],
    slices: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Which channels hold the clicked query, each alone and all of them merged.

    Args:
        recall: of a cascade; every channel is asked, whether its config names it or not.
        requests: N of them, from :meth:`onesug_lite.cascade.Cascade.encode`.
        targets: N clicked queries.
        slices: name -> ``bool`` (N,).
        rng: of the bootstrap.

    Returns:
        ``slice, channel, queries`` (how many it recalls on average), ``requests, mean, low, high`` (share of requests
        whose clicked query it holds), ``only`` (share that it alone holds). The last channel of a slice is
        :data:`TOGETHER`, the first ``recalled`` queries when the channels of the recall's config take turns; its
        ``only`` is null, as is everything in a slice without a request.
    """
    numbers = np.array([recall.number.get(target, -1) for target in targets])  # (N,)
    lists = {name: recall.channel(name, requests) for name in CHANNELS}
    lists[TOGETHER] = [row[row >= 0] for row in recall(requests)]
    holds = {
        name: np.array([number in row for number, row in zip(numbers, found, strict=True)])
        for name, found in lists.items()
    }
    sizes = {name: np.array([len(row) for row in found]) for name, found in lists.items()}
    single = np.sum([holds[name] for name in CHANNELS], axis=0) == 1  # (N,) one channel alone holds it
    rows = []
    for name, where in slices.items():
        for channel, held in holds.items():
            interval, values = bootstrap(held[where].astype(float), rng), (sizes[channel], held & single)
            size, alone = (value[where].mean() if where.any() else np.nan for value in values)
            rows.append((name, channel, size, int(where.sum()), *interval, np.nan if channel == TOGETHER else alone))
    schema = ["slice", "channel", "queries", "requests", *Interval._fields, "only"]
    return pl.DataFrame(rows, schema, orient="row").fill_nan(None)


# ---------------------------------------------------------------- two rankers
def disagreement(cascade: Cascade, requests: Requests, targets: Sequence[str], batch_size: int = 128) -> pl.DataFrame:
    """How far the two rankers agree on what is recalled, request by request, and what each alone would make of it.

    Args:
        cascade: trained.
        requests: N of them, from :meth:`onesug_lite.cascade.Cascade.encode`.
        targets: N clicked queries.
        batch_size: requests at a time.

    Returns:
        N rows: ``recalled``, the rank correlation (Spearman) of the two orders over all recalled queries; ``kept``,
        that over those which the pre-ranker hands on; both null where a ranker scores all alike. ``dropped``, how many
        of the queries that the ranker would show it never sees. ``DCN``, ``DIN``, where each of the two puts the
        clicked query among all recalled ones, from 1; 0 for absent.
    """
    config, rows = cascade.config, []
    for batch, candidates, numeric in _described(cascade, requests, batch_size):
        cheap = numeric[:, :, _columns(config.features, cascade.cheap)]
        scores = _logits(cascade.dcn, batch, candidates, cheap), _logits(cascade.din, batch, candidates, numeric)
        clicked = targets[len(rows) :][: len(candidates)]
        places = [ranks(_ordered(cascade.queries, candidates, some), clicked) for some in scores]
        for dcn, din, *place in zip(*scores, *places, strict=True):
            recalled = np.isfinite(dcn)
            kept = np.argsort(-dcn, kind="stable")[: min(config.preranked, recalled.sum())]
            shown = np.argsort(-din, kind="stable")[: min(config.results, recalled.sum())]
            correlations = [_spearman(dcn[some], din[some]) for some in (recalled, kept)]
            rows.append((*correlations, len(set(shown) - set(kept)), *place))
    schema = {"recalled": pl.Float64, "kept": pl.Float64, "dropped": pl.Int64, "DCN": pl.Int64, "DIN": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def disagreement_summary(apart: pl.DataFrame, results: int, rng: np.random.Generator) -> pl.DataFrame:
    """What :func:`disagreement` comes to over all requests.

    Args:
        apart: from there.
        results: queries that the ranker would show.
        rng: of the bootstrap.

    Returns:
        ``measure, mean, low, high``.
    """
    dropped = apart["dropped"].to_numpy()
    measures = {
        "rank correlation over all recalled": apart["recalled"].drop_nulls().to_numpy(),
        "rank correlation over what DCN keeps": apart["kept"].drop_nulls().to_numpy(),
        f"share of DIN's {results} best that DCN dropped": dropped / results,
        "share of requests that lose one of them": (dropped > 0).astype(float),
    }
    rows = [(name, *bootstrap(values, rng)) for name, values in measures.items()]
    return pl.DataFrame(rows, schema=["measure", *Interval._fields], orient="row")


# ---------------------------------------------------------------- features
def permuted_ranks(
    cascade: Cascade, requests: Requests, targets: Sequence[str], rng: np.random.Generator, batch_size: int = 128
) -> dict[str, np.ndarray]:
    """Ranks of the clicked queries when one group of features at a time is made to say nothing.

    Recall is left as it is; both rankers read the permuted group. The numbers of a group that describe the query are
    shuffled together among the candidates of a request. ``history`` and ``profile`` describe the shopper, and DIN reads
    them in other ways too (attention, crosses), so there each request gets those of another request. Group ``position``
    is left out: when serving, every candidate stands at the top, so there is nothing to permute.

    Args:
        cascade: trained.
        requests: N of them, from :meth:`onesug_lite.cascade.Cascade.encode`.
        targets: N clicked queries.
        rng: of the permutations.
        batch_size: requests at a time.

    Returns:
        ``nothing`` and each group that the rankers read -> ``int64`` (N,) ranks among the results, 0 for absent.

    Source:
        Breiman, "Random Forests" (2001), section 10, for permutation; by group and within a request, ours.
    """
    features = cascade.config.features
    strangers = {name: rng.permutation(len(requests.prefixes)) for name in ("history", "profile")}
    found: dict[str, list[list[str]]] = {name: [] for name in ("nothing", *cascade.cheap, *strangers)}
    for batch, candidates, numeric in _described(cascade, requests, batch_size):
        start = len(found["nothing"])
        for name, answers in found.items():
            read, changed, columns = batch, numeric.copy(), _columns(features, (name,))
            if name in cascade.cheap:
                order = np.argsort(rng.random(candidates.shape) + (candidates < 0), axis=1)[:, :, None]
                changed[:, :, columns] = np.take_along_axis(numeric[:, :, columns], order, axis=1)
            elif name in strangers:
                rows = strangers[name][start : start + len(candidates)]
                read = batch._replace(**{name: getattr(requests, name)[rows]})
                changed[:, :, columns] = cascade.features(read, candidates, (name,) if columns.any() else ())
            answers += _served(cascade, read, candidates, changed)
    return {name: ranks(answers, targets) for name, answers in found.items()}


def permutation_losses(answered: Mapping[str, np.ndarray], resampled: Resampled) -> pl.DataFrame:
    """Points of MRR@16 that each group of features is worth.

    Args:
        answered: from :func:`permuted_ranks`.
        resampled: the same requests, in the same order.

    Returns:
        ``group, mean, low, high``, groups in the order of :data:`onesug_lite.features.FEATURES`.
    """
    scores = {group: 100 * reciprocal_rank(places) for group, places in answered.items()}
    losses = {group: resampled.mean((scores["nothing"] - scores[group])[None]) for group in FEATURES if group in scores}
    rows = [(group, *loss[:3]) for group, loss in losses.items()]
    return pl.DataFrame(rows, schema=["group", *Interval._fields], orient="row")


def known_by_day(cascade: Cascade, train: Log, prefix: str, query: str) -> pl.DataFrame:
    """What the features of each day know of a pair, beside what the log holds of it: no number may know its own day.

    Args:
        cascade: trained on ``train``.
        train: the training days.
        prefix: one of them.
        query: of the pool.

    Returns:
        ``day`` (from 0; the last is the first one to be served), ``shown`` and ``clicks`` of that day, counted from
        the log, ``shown before`` and ``clicks before``, as the cascade's tally has them.

    Raises:
        ValueError: the training days lack the prefix or the query.
    """
    recall, tally = cascade.recall, cascade.features.by_pair
    for text, known in ((prefix, recall.code), (query, recall.number)):
        if text not in known:
            raise ValueError(f"'{text}' is not in the training days; choose a pair that was clicked there")
    days = np.arange(tally.span)
    key = recall.code[prefix] * len(cascade.queries) + recall.number[query]
    shown, clicks = tally.before(np.full(len(days), key), days)
    log = train.candidates.join(train.requests.with_columns(day_number(train)), on="request_id")
    log = log.filter(pl.col("prefix") == prefix, pl.col("query") == query, pl.col("position").is_not_null())
    each = log.group_by("day").agg(shown=pl.len(), clicks=pl.col("behaviour").is_in(CLICKS).sum())
    known = pl.DataFrame({"day": days.astype(np.int32), "shown before": shown, "clicks before": clicks})
    known = known.join(each, on="day", how="left", maintain_order="left").fill_null(0)
    return known.select("day", "shown", "clicks", "shown before", "clicks before")


def _described(
    cascade: Cascade, requests: Requests, batch_size: int
) -> Iterator[tuple[Requests, np.ndarray, np.ndarray]]:
    """Batches of requests with what is recalled for them and all the numbers that the cascade knows of it."""
    for start in range(0, len(requests.prefixes), batch_size):
        batch = requests.take(slice(start, start + batch_size))
        candidates = cascade.recall(batch)
        yield batch, candidates, cascade.features(batch, candidates, cascade.config.features)


def _ordered(queries: Sequence[str], candidates: np.ndarray, logits: np.ndarray) -> list[list[str]]:
    """Candidates (B, C) by their logits, best first; equals keep their order."""
    best = np.take_along_axis(candidates, np.argsort(-logits, axis=1, kind="stable"), axis=1)
    return [[queries[number] for number in row if number >= 0] for row in best.tolist()]


def _served(cascade: Cascade, requests: Requests, candidates: np.ndarray, numeric: np.ndarray) -> list[list[str]]:
    """The answers of both rankers to described candidates (B, C)."""
    config = cascade.config
    cheap = numeric[:, :, _columns(config.features, cascade.cheap)]
    logits = _logits(cascade.dcn, requests, candidates, cheap)
    passed = np.argsort(-logits, axis=1, kind="stable")[:, : config.preranked]
    candidates = np.take_along_axis(candidates, passed, axis=1)
    logits = _logits(cascade.din, requests, candidates, np.take_along_axis(numeric, passed[:, :, None], axis=1))
    return [row[: config.results] for row in _ordered(cascade.queries, candidates, logits)]


@torch.inference_mode()
def _logits(model: DCN | DIN, requests: Requests, candidates: np.ndarray, numeric: np.ndarray) -> np.ndarray:
    """Logits (B, C), rounded as in serving so that the noise of float products does not order equals."""
    logits = model(batch_of(requests, candidates, numeric)).double().numpy().round(4)
    return np.where(candidates >= 0, logits, -np.inf)


def _columns(features: Sequence[str], some: Sequence[str]) -> np.ndarray:
    """Which of the numbers of all ``features`` belong to ``some`` of the groups."""
    return np.array([name in some for name in FEATURES if name in features for _ in COLUMNS[name]], dtype=bool)


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation; None where one side does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
