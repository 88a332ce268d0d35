"""What a posterior is worth: expected clicks, orders and revenue of lists, and the ceilings that no policy exceeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from .catalogue import period_of
from .config import MarketConfig, MarketError
from .keystrokes import heads
from .market_tables import FIRST_DAY
from .oracle import Oracle, Posterior
from .policies import Batch, Policy, builtin_policy, recall
from .responses import click_places, click_probability, outcome_probability, price, reading
from .shoppers import profile_codes
from .world import World


class Value(NamedTuple):
    """Expected outcome of lists: probability of a click and of an order, and money, per request."""

    click: np.ndarray  # (N,), or (N, L) where each request has L lists
    order: np.ndarray
    revenue: np.ndarray


def click_table(world: World, posterior: Posterior, queries: np.ndarray) -> np.ndarray:
    """(K, C) click probability, once read, of C queries for each query in mind."""
    return click_probability(world.config, world.catalogue, posterior.query, queries[None, :]).astype(np.float64)


def order_table(world: World, posterior: Posterior, queries: np.ndarray) -> np.ndarray:
    """(K, C) probability of an order once clicked, over the shopper's likely price tiers."""
    tiers, intents = np.arange(posterior.tier.size)[:, None], posterior.query[:, None]
    own = outcome_probability(world.config, world.catalogue, queries, queries, tiers)[1]  # (tiers, C)
    first = outcome_probability(world.config, world.catalogue, intents, queries[None, :], 0)[1]  # (K, C)
    return first * (posterior.tier @ own / np.maximum(own[0], 1e-300))  # the tier is a factor, whatever the intent


def given_shown(world: World, posterior: Posterior, queries: np.ndarray) -> np.ndarray:
    """(3, C) expected click, order and revenue of each of C queries, were it alone and read: see :class:`Value`."""
    click = click_table(world, posterior, queries)
    order = posterior.probability @ (click * order_table(world, posterior, queries))
    return np.stack([posterior.probability @ click, order, order * price(world.catalogue, queries)])


def value(world: World, posteriors: list[Posterior], lists: np.ndarray) -> Value:
    """What lists are expected to bring, to shoppers who look at them with probability ``glance``.

    Args:
        posteriors: of N requests.
        lists: (N, K) queries, -1 for an empty place or a string that is no query; (N, L, K) for L lists a request.
    """
    found = np.zeros((3, *lists.shape[:-1]))
    for number, (posterior, pages) in enumerate(zip(posteriors, lists, strict=True)):
        queries, where = np.unique(pages, return_inverse=True)
        where = where.reshape(pages.shape)
        click = world.config.glance * click_places(world.config, click_table(world, posterior, queries)[:, where])
        order = click * order_table(world, posterior, np.maximum(queries, 0))[:, where]
        click, order = (np.tensordot(posterior.probability, table, axes=1) for table in (click, order))
        money = order * price(world.catalogue, np.maximum(queries, 0))[where]
        found[:, number] = click.sum(axis=-1), order.sum(axis=-1), money.sum(axis=-1)
    return Value(*found)


def _ending(config: MarketConfig, places: int) -> np.ndarray:
    """(K,) of the shoppers who come past a place, the share that has read it: all of them in a cascade."""
    return reading(config, places) if config.examination == "position" else np.ones(places)


def best_lists(
    world: World,
    posteriors: list[Posterior],
    goal: str = "click",
    among: int = 64,
    choices: list[np.ndarray] | None = None,
) -> np.ndarray:
    """The list that serves a goal best, place by place: the ceiling of a replay.

    Each place takes the query that adds most, given what stands above it; for clicks this is within a factor of
    1 - 1/e of the best possible, and in practice far nearer, since few queries serve the same intent.

    Args:
        posteriors: of N requests.
        goal: click, order or revenue.
        among: most probable queries that a place may take.
        choices: the queries that a place may take, for each request, instead of those.

    Returns:
        (N, K) queries, -1 behind the last.
    """
    lists = np.full((len(posteriors), world.config.shown), -1)
    weight = _ending(world.config, lists.shape[1])
    for number, posterior in enumerate(posteriors):
        choice = posterior.query[:among] if choices is None else choices[number]
        if choice.size == 0:
            continue
        click = click_table(world, posterior, choice)
        gain = click.copy()
        if goal != "click":
            gain *= order_table(world, posterior, choice)
        if goal == "revenue":
            gain *= price(world.catalogue, choice)
        alive, free = posterior.probability.copy(), np.ones(choice.size, dtype=bool)
        for place in range(min(lists.shape[1], choice.size)):
            score = np.where(free, alive @ gain, -1.0)
            best = int(score.argmax())
            lists[number, place], free[best] = choice[best], False
            alive *= 1.0 - weight[place] * click[:, best]
    return lists


def logged_clicks(
    world: World,
    batch: Batch,
    posteriors: list[Posterior],
    policy: Policy | str | None = None,
    rng: np.random.Generator | None = None,
    pages: int = 4,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Where the click of the log is likely to fall under the policy that writes it.

    A query's share is its *exposure*, the probability of being read, times its click probability given that. Exposure
    is averaged over a few drawn pages; that of places of chance is spread evenly over all that could have stood there.

    Args:
        world: the market.
        batch: N requests of one day.
        posteriors: of theirs.
        policy: that writes the log: the name of a built-in one, the market's own by default, or any other.
        rng: draws the policy's chance places.
        pages: draws that an average over them is taken over.

    Returns:
        For each request, queries that may be shown, the probability that the log's click, and that its order, falls
        on each. Ranking by the second is perfect imitation of the log, and its HR@16 and MRR@16 are the ceiling.
    """
    rng = rng or np.random.default_rng(1)
    recalled, ranked = np.full((batch.length.size, 0), -1), 0
    if policy is None or isinstance(policy, str):
        name, index = policy or world.config.policy, world.indexes[int(period_of(world.config, batch.day))]
        policy = builtin_policy(world.config, world.catalogue, index, name)
        recalled, ranked = recall(world.config, world.catalogue, index, name, batch)
    drawn = np.stack([policy(batch, rng).shown for _ in range(pages)], axis=1)  # (N, pages, K)
    weight = _ending(world.config, drawn.shape[2])
    found = []
    for posterior, lists, known in zip(posteriors, drawn, recalled, strict=True):
        chance = known[ranked:][known[ranked:] >= 0]
        queries, where = np.unique(np.r_[-1, chance, lists.ravel()], return_inverse=True)
        chance, lists = where[1 : chance.size + 1], where[chance.size + 1 :].reshape(lists.shape)
        table = click_table(world, posterior, queries)  # column 0 is the empty place
        seen = table[:, lists]
        read = world.config.glance * click_places(world.config, seen) / np.maximum(seen, 1e-30) / pages  # (K, pages, K)
        ends, lucky = np.minimum(seen * weight, 1 - 1e-9), np.isin(lists, chance)
        below = np.cumsum((read * lucky)[..., ::-1], axis=2)[..., ::-1] - read * lucky
        again = below * ends / (1 - ends)  # a query is never above itself: below it, its own clicks are given back
        exposure, even = np.zeros_like(table), 1 / max(chance.size, 1)
        exposure[:, chance] = read[:, lucky].sum(axis=1, keepdims=True) * even
        for page, here in enumerate(lucky):  # no page holds a query twice
            exposure[:, lists[page]] += np.where(here, again[:, page] * even, read[:, page])
        share = exposure * table
        order = share * order_table(world, posterior, np.maximum(queries, 0))
        found.append((queries[1:], *(posterior.probability @ part[:, 1:] for part in (share, order))))
    return found


def ranked(queries: np.ndarray, score: np.ndarray, places: int) -> np.ndarray:
    """(places,) queries by score, best first, -1 behind the last."""
    best = queries[np.argsort(-score, kind="stable")[:places]]
    return np.r_[best, np.full(places - best.size, -1)]


def log_ceiling(
    world: World, frame: pl.DataFrame, clicked: Sequence[str], goal: str = "click", places: int = 16
) -> pl.DataFrame:
    """The best possible ranking of logged requests, scored on what was clicked: what no model's HR and MRR exceed.

    Args:
        world: the market that wrote the log.
        frame: N requests as for :func:`batches_from_log`, with a ``policy`` if some are of the random slice.
        clicked: N texts.
        goal: click, or order for requests of which each ended in an order; ``places`` are those that count.

    Returns:
        N rows in the frame's order: ``rank`` of the clicked query (1 is the top, 0 is absent), and what was to be
        expected of a request with a click: ``hit``, and ``reciprocal`` of the rank.
    """
    oracle, target = Oracle(world), world.catalogue.find(list(clicked))
    found = np.zeros((3, len(frame)))
    lucky = frame["policy"].to_numpy() == "random" if "policy" in frame.columns else np.zeros(len(frame), bool)
    halves = [(by_chance, np.flatnonzero(lucky == by_chance)) for by_chance in (False, True)]
    parts = [(half, some[at], day) for half, some in halves for at, day in batches_from_log(world, frame[some])]
    for by_chance, rows, batch in tqdm(parts, "ceiling", disable=None, leave=False):
        policy = world.policies(int(period_of(world.config, batch.day)))[int(by_chance)]
        posteriors = oracle.posterior(batch, policy)
        logged = logged_clicks(world, batch, posteriors, "random" if by_chance else None)
        for row, (queries, *shares) in zip(rows, logged, strict=True):
            share = shares[goal == "order"]
            best = np.argsort(-share, kind="stable")[:places]
            at = np.flatnonzero(queries[best] == target[row])
            kept = share[best] / max(share.sum(), 1e-300)
            found[:, row] = at[0] + 1 if at.size else 0, kept.sum(), kept @ (1 / np.arange(1.0, best.size + 1))
    return pl.DataFrame({"rank": found[0].astype(np.int32), "hit": found[1], "reciprocal": found[2]})


def batches_from_log(world: World, frame: pl.DataFrame) -> list[tuple[np.ndarray, Batch]]:
    """Requests as they stand in a log, day by day as policies and the oracle take them.

    Args:
        world: the market that wrote the log.
        frame: ``time``, ``prefix``, ``history`` and ``profile`` as in the log's table of requests.

    Returns:
        For each day in turn the rows of the frame and their batch. A search of the history that is no query of the
        market is -1; a blank that the log has stripped from the end of a prefix stays away.

    Raises:
        MarketError: a row of another day than the market's, a prefix that is empty or longer than any of the market's,
            or a profile attribute that it does not know.
    """
    config, days = world.config, world.config.days + world.config.test_days
    day = (frame["time"].to_numpy().astype("datetime64[us]") - FIRST_DAY) // np.timedelta64(1, "D")
    points, length = heads(pa.array(frame["prefix"], pa.string()))
    for wrong, reads in (
        ((day < 0) | (day >= days), f"time of {days} days from {FIRST_DAY.astype('datetime64[D]')} on"),
        ((length < 1) | (length > config.max_prefix), f"prefix of 1 to {config.max_prefix} characters"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            told = f"time {frame['time'][row]}, prefix {frame['prefix'][row]!r}"
            raise MarketError(f"row {row} has {told}; expected a {reads}: give requests of this market's own log")
    past = frame["history"].to_arrow()
    width = pc.fill_null(pc.list_value_length(past), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(width.size), width)
    column = config.history_length - width[row] + np.arange(row.size) - np.repeat(np.cumsum(width) - width, width)
    history = np.full((width.size, config.history_length), -1)
    kept = column >= 0
    history[row[kept], column[kept]] = world.catalogue.find(pc.list_flatten(past).cast(pa.string()))[kept]
    profile = profile_codes(world.catalogue, frame["profile"].to_list())
    found = []
    for number in np.unique(day):
        rows = np.flatnonzero(day == number)
        found.append((rows, Batch(int(number), *(part[rows] for part in (points, length, history, profile)))))
    return found
