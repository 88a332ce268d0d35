r"""The headroom map: how far a perfect imitation of the log lies below what shoppers would have liked better.

No model is trained. For requests of the test days the truth gives, for every query :math:`c`,

.. math::

    \text{exposure} \times \text{click}: \; P(\text{the log's click falls on } c)
    \qquad
    \text{click given shown}: \; \sum_q P(q \mid p, h, z) \; P(\text{click } c \mid q, \text{read})

A suggester that learns its log by heart ranks by the first; one that corrects for what was shown and read, by the
second, or by the same times the probability of an order. The difference between them is what any correction can gain
at most, on the requests that the logging policy's searches came to. *Replay* is a list's expected outcome with the
shoppers of the market; *logged* HR@16 and MRR@16 score a ranking by the clicks that the log is expected to hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import polars as pl
from filelock import FileLock
from scipy.stats import beta
from tqdm.auto import tqdm

from .catalogue import period_of
from .ceilings import best_lists, given_shown, logged_clicks, ranked, value
from .config import MarketConfig, MarketError, market_config
from .market import fingerprint
from .oracle import Oracle, Posterior
from .policies import Batch, recall
from .world import World, build_world, play_shard

#: Worlds of the map by the policy that writes their log; the last is a contrast: few are recalled, prefixes are longer.
WORLDS: dict[str, dict[str, Any]] = {
    "popularity": {"world": "selective"},
    "production": {"world": "production"},
    "random": {"policy": "random"},
    "few candidates": {"world": "few_candidates"},
}
#: Levels of position bias, weakest first, and lists that are read each place by itself.
BIASES: dict[str, dict[str, Any]] = {
    "patience 0.97": {"patience": 0.97},
    "patience 0.9": {"patience": 0.9},
    "patience 0.75": {"patience": 0.75},
    "by position": {"examination": "position"},
}
#: What was shown; exposure x click; click (and order) given shown, of what the logging policy recalls and of all
#: candidates; and the greedy ceilings.
RANKINGS = ("shown", "imitation", "click, recalled", "order, recalled", "click", "order",
            "best click", "best order", "best revenue")  # fmt: skip
REPLAY, LOGGED = ("clicks", "orders", "revenue"), ("HR@16", "MRR@16")


class Cell(NamedTuple):
    """One market of the map."""

    world: str
    bias: str
    config: MarketConfig


class Sample(NamedTuple):
    """Requests of one day and what came of them."""

    batch: Batch
    intent: np.ndarray  # (N,) query in mind
    shown: np.ndarray  # (N, K)
    clicked: np.ndarray  # (N,) bool


def map_cells(
    profile: str = "lite",
    worlds: Sequence[str] = tuple(WORLDS),
    biases: Sequence[str] = tuple(BIASES)[:3],
    seeds: Sequence[int] = (0,),
) -> list[Cell]:
    """The markets of a map: every world at every level of position bias, with every market seed."""
    return [
        Cell(world, bias, market_config(profile, **(WORLDS[world] | BIASES[bias]), seed=seed))
        for world in worlds
        for bias in biases
        for seed in seeds
    ]


def sample_requests(world: World, requests: int, rng: np.random.Generator, shard: int = 0) -> list[Sample]:
    """Requests of the test days that the logging policy answered, all equally likely, day by day.

    Args:
        world: the market; the shard is played from the first day, so that histories have grown.
        requests: how many.
        rng: draws them.
        shard: whose.

    Raises:
        MarketError: there are fewer.
    """
    days = [day for day in play_shard(world, shard)[1] if day.day >= world.config.days]
    own = np.concatenate([~day.at_random for day in days])
    if own.sum() < requests:
        raise MarketError(f"requests is {requests}; the test days of shard {shard} hold {own.sum()}: lower requests")
    drawn = np.sort(rng.choice(np.flatnonzero(own), requests, replace=False))
    found, first = [], 0
    for day in days:
        at = drawn[(drawn >= first) & (drawn < first + day.who.size)] - first
        first += day.who.size
        batch = Batch(day.day, *(part[at] for part in day.batch[1:]))
        found.append(Sample(batch, day.intent[at], day.page.shown[at], day.responses.place[at] >= 0))
    return found


def ranked_lists(
    world: World, sample: Sample, posteriors: list[Posterior], among: int = 100
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The lists of all :data:`RANKINGS` for some requests.

    Candidates are all queries that the logging policy recalls for the prefix, shown or not, and the ``among`` that the
    shopper most probably has in mind; the greedy ceilings choose from the ``among`` that score best for their goal.

    Returns:
        lists: (N, len(RANKINGS), K) queries, -1 behind the last.
        logged: as :func:`data_synth.ceilings.logged_clicks` gives it.
    """
    config, places = world.config, world.config.shown
    index = world.indexes[int(period_of(config, sample.batch.day))]
    recalled, _ = recall(config, world.catalogue, index, config.policy, sample.batch)
    logged = logged_clicks(world, sample.batch, posteriors)
    lists = np.full((len(posteriors), len(RANKINGS), places), -1)
    lists[:, 0, : sample.shown.shape[1]] = sample.shown
    choices: list[list[np.ndarray]] = [[], [], []]  # by goal: clicks, orders, revenue
    for row, posterior, known, (queries, click, _) in zip(lists, posteriors, recalled, logged, strict=True):
        candidates = np.union1d(known[known >= 0], posterior.query[:among])
        score = given_shown(world, posterior, candidates)
        old = np.isin(candidates, known)
        row[1] = ranked(queries, click, places)
        for goal in (0, 1):
            row[2 + goal] = ranked(candidates[old], score[goal, old], places)
            row[4 + goal] = ranked(candidates, score[goal], places)
        for goal, of in enumerate(score):
            choices[goal].append(ranked(candidates, of, min(among, candidates.size)))
    for place, goal in enumerate(("click", "order", "revenue")):
        lists[:, 6 + place] = best_lists(world, posteriors, goal, choices=choices[place])
    return lists, logged


def headroom_cell(config: MarketConfig, requests: int = 400) -> pl.DataFrame:
    """What each ranking is worth in one market.

    Args:
        config: the market; the requests are drawn from the test days of its first shard.

    Returns:
        One row a ranking and metric: ``ranking``, ``metric``, ``value`` and ``gain``, its difference from perfect
        imitation on the same requests, each with its standard ``error`` over requests. Clicks, orders and revenue are
        per 100 requests, HR@16 and MRR@16 in per cent; the list that was shown has no logged metric of its own.
    """
    world = build_world(config)
    oracle, worth, kept, total = Oracle(world), [], [], []
    for sample in sample_requests(world, requests, np.random.default_rng([config.seed, 4])):
        posteriors = oracle.posterior(sample.batch)
        lists, logged = ranked_lists(world, sample, posteriors)
        worth.append(np.stack(value(world, posteriors, lists)))  # (3, N, rankings)
        share = np.zeros(lists.shape)  # of the log's expected clicks, by place
        for row, (queries, click, _) in enumerate(logged):
            at = np.minimum(np.searchsorted(queries, lists[row]), max(queries.size - 1, 0))
            share[row] = np.where(queries[at] == lists[row], click[at], 0.0) if queries.size else 0.0
        kept.append(np.stack([share.sum(axis=2), share @ (1 / np.arange(1.0, lists.shape[2] + 1))]))
        total.append(np.array([click.sum() for _, click, _ in logged]))
    per = np.concatenate(total)
    rows = []
    for metric, table in zip(REPLAY + LOGGED, np.concatenate([*map(np.hstack, (worth, kept))]), strict=True):
        weight = per if metric in LOGGED else np.ones(per.size)
        for place, ranking in enumerate(RANKINGS):
            if ranking != "shown" or metric in REPLAY:
                own, gain = table[:, place], table[:, place] - table[:, 1]
                rows.append((ranking, metric, *_ratio(own, weight), *_ratio(gain, weight)))
    columns = ["ranking", "metric", "value", "error", "gain", "gain_error"]
    return pl.DataFrame(rows, schema=columns, orient="row").with_columns(pl.col(columns[2:]).round(9))


def _ratio(total: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """100 times the sum of one number a request over that of another, and its standard error over requests."""
    mean = total.mean() / weight.mean()
    return 100 * mean, 100 * (total - mean * weight).std(ddof=1) / np.sqrt(total.size) / weight.mean()


def headroom_map(cells: Sequence[Cell], requests: int = 400, jobs: int = 2) -> pl.DataFrame:
    """The rows of :func:`headroom_cell` for every cell, below ``world``, ``bias`` and market ``seed``.

    The numbers do not depend on ``jobs``, the processes at a time (joblib).
    """
    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    done = work(joblib.delayed(headroom_cell)(cell.config, requests) for cell in cells)
    found = []
    for cell, rows in zip(cells, tqdm(done, "headroom", len(cells), disable=None, leave=False), strict=True):
        world, bias, seed = pl.lit(cell.world), pl.lit(cell.bias), pl.lit(cell.config.seed, pl.Int64)
        found.append(rows.select(world.alias("world"), bias.alias("bias"), seed.alias("seed"), pl.all()))
    return pl.concat(found)


def open_map(cells: Sequence[Cell], root: Path, requests: int = 400, jobs: int = 2) -> pl.DataFrame:
    """A map: computed where it is absent, read at once where it is there, as :func:`data_synth.open_market` does it."""
    told = [requests, [(cell.world, cell.bias, asdict(cell.config)) for cell in cells]]
    path = Path(root) / f"headroom-{fingerprint(told, 'oracle', 'ceilings', 'headroom')}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            new = path.with_suffix(".new")
            headroom_map(cells, requests, jobs).write_parquet(new)
            os.replace(new, path)
    return pl.read_parquet(path)


def over_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """The mean over market seeds; its errors are over seeds where there are several, else those over requests."""
    spread = [
        pl.when(pl.len() > 1).then(pl.col(of).std() / pl.len().sqrt()).otherwise(pl.col(error).first()).alias(error)
        for of, error in (("value", "error"), ("gain", "gain_error"))
    ]
    cells = rows.group_by("world", "bias", "ranking", "metric", maintain_order=True)
    return cells.agg(pl.col("value", "gain").mean(), *spread, seeds=pl.len())


def calibration(posteriors: Sequence[Posterior], intents: np.ndarray, edges: Sequence[float]) -> pl.DataFrame:
    """How often what the oracle thinks likely is what was in mind.

    Args:
        posteriors: of N requests.
        intents: (N,) what was in mind.
        edges: between bins of probability, ascending.

    Returns:
        One row a bin of the pairs of a request and a query: ``pairs``, ``told`` (the mean probability), ``came`` (the
        share that was in mind) and its 95 % interval, ``low`` and ``high``.
    """
    told = np.concatenate([posterior.probability for posterior in posteriors])
    came = np.concatenate([one.query == intent for one, intent in zip(posteriors, intents, strict=True)])
    pairs = pl.DataFrame({"bin": np.digitize(told, edges), "told": told, "came": came}).group_by("bin")
    rows = pairs.agg(pl.len().alias("pairs"), pl.col("told").mean(), pl.col("came").sum()).sort("bin")
    hits, count = (rows[name].to_numpy() for name in ("came", "pairs"))
    low, high = beta.ppf([[0.025], [0.975]], hits + 0.5, count - hits + 0.5)  # Jeffreys
    low[hits == 0], high[hits == count] = 0.0, 1.0
    return rows.select("pairs", "told", came=pl.col("came") / pl.col("pairs"), low=pl.Series(low), high=pl.Series(high))
