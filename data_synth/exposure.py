"""The logging policy: which suggestions were shown, by a system that knows what its own log told it.

It recalls the queries that the typed prefix used to end in, by an idea of their popularity that is noisy
and some days old; moves them by what it sees of the shopper (profile and history); and gives a few places
to chance, so that the log also tells of queries it would not have shown.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from .catalogue import Catalogue
from .config import MarketConfig
from .keystrokes import Typing, prefix_rows

_PADDING_STEP = np.log(4.0)  # a candidate borrowed from a prefix one letter shorter counts for a quarter


class Recall(NamedTuple):
    """The candidates of every prefix of a part of the log, best first."""

    prefixes: np.ndarray  # (P,) ascending indices into Typing.prefixes
    candidates: np.ndarray  # (P, R) rows of the catalogue, no row twice
    score: np.ndarray  # (P, R) log of the believed weight of the query under the prefix


class Exposure(NamedTuple):
    """What one batch of requests saw and what was recalled for it but not shown."""

    shown: np.ndarray  # (N, K) rows of the catalogue, first place first
    not_shown: np.ndarray  # (N, M) rows of the catalogue


def believed_popularity(config: MarketConfig, catalogue: Catalogue, rng: np.random.Generator) -> np.ndarray:
    """The policy's noisy idea of how popular each query is.

    Returns:
        (Q,) log weights; a new query's weight counts for its part of the test days' intents.
    """
    popularity = catalogue.popularity.copy()
    popularity[: catalogue.known] *= 1.0 - config.new_share if catalogue.text.size > catalogue.known else 1.0
    popularity[catalogue.known :] *= config.new_share
    return np.log(np.maximum(popularity, 1e-12)) + rng.normal(0.0, config.popularity_noise, popularity.size)


def recall_table(
    config: MarketConfig,
    typing: Typing,
    prefixes: np.ndarray,
    popularity: np.ndarray,
    queries: slice,
    rng: np.random.Generator,
) -> Recall:
    """Find the candidates of every prefix.

    A prefix takes its own most frequent queries; one with too few is filled up from the prefix one letter
    shorter, and a single letter from the most popular queries of all.

    Args:
        config: the market.
        typing: the typing tables.
        prefixes: indices into ``typing.prefixes`` that were typed.
        popularity: (Q,) log weights from :func:`believed_popularity`.
        queries: the part of the catalogue that exists.
        rng: draws the error of the counts by prefix.

    Returns:
        The candidates of the prefixes and of all their own prefixes.
    """
    wanted, parent = _with_parents(typing, prefixes)
    rows = prefix_rows(typing, wanted, queries)
    prefix, query = rows["prefix"].to_numpy(), rows["query"].to_numpy()
    score = popularity[query] + np.log(rows["probability"].to_numpy())
    score += rng.normal(0.0, 0.6 * config.popularity_noise, score.size)
    order = np.lexsort((query, -score, prefix))
    prefix, query, score = prefix[order], query[order], score[order]
    place = np.searchsorted(wanted, prefix)  # row of the table
    rank = np.arange(place.size) - np.searchsorted(place, place)  # rank inside the prefix
    keep = rank < config.recalled
    candidates = np.full((wanted.size, config.recalled), -1, dtype=np.int32)
    scores = np.full((wanted.size, config.recalled), -np.inf)
    candidates[place[keep], rank[keep]] = query[keep]
    scores[place[keep], rank[keep]] = score[keep]

    believed = popularity[queries]
    top = np.argsort(-believed, kind="stable")[: config.recalled]
    letters = typing.prefixes.gather(wanted).str.len_chars().to_numpy()
    for depth in np.unique(letters):
        short = np.flatnonzero((letters == depth) & (candidates[:, -1] < 0))
        if short.size == 0:
            continue
        orphan = parent[short] < 0
        source = np.where(orphan[:, None], top[None, :], candidates[parent[short]])  # (n, R), full
        weight = np.where(orphan[:, None], believed[top][None, :], scores[parent[short]]) - _PADDING_STEP
        own = candidates[short]
        span = popularity.size
        row = np.arange(short.size)[:, None] * span
        known = np.isin(row + source, np.where(own >= 0, row + own, -1))
        both = np.concatenate([own, source], axis=1)
        value = np.concatenate([scores[short], weight], axis=1)
        drop = np.concatenate([own < 0, known], axis=1)
        first = np.argsort(drop, axis=1, kind="stable")[:, : config.recalled]
        candidates[short] = np.take_along_axis(both, first, axis=1)
        scores[short] = np.take_along_axis(value, first, axis=1)
    return Recall(wanted, candidates, scores.astype(np.float32))


def expose(
    config: MarketConfig,
    catalogue: Catalogue,
    recall: Recall,
    prefix: np.ndarray,
    history: np.ndarray,
    profile: np.ndarray,
    trend: np.ndarray,
    rng: np.random.Generator,
) -> Exposure:
    """Choose what each request sees.

    Args:
        config: the market.
        catalogue: its queries.
        recall: candidates of the prefixes.
        prefix: (N,) typed prefixes.
        history: (N, H) rows of the catalogue searched earlier, -1 where there is none.
        profile: (N, 5) codes of the visible profile, -1 where there is none.
        trend: (T,) factor of each type, as old as the policy's knowledge.
        rng: draws the explored places and what is logged as not shown.

    Returns:
        Shown and not shown candidates. The explored ones stand at random places.
    """
    shown = config.shown
    row = np.searchsorted(recall.prefixes, prefix)
    candidates = recall.candidates[row]  # (N, R)
    score = recall.score[row] + np.log(trend).astype(np.float32)[catalogue.type[candidates]]
    if config.personalisation > 0:
        score += np.float32(config.personalisation) * _affinity(catalogue, candidates, history, profile)
    order = np.argsort(-score, axis=1, kind="stable")
    ranked = np.take_along_axis(candidates, order, axis=1)
    chosen, rest = ranked[:, : shown - config.exploration], ranked[:, shown - config.exploration :]
    lucky = np.argsort(rng.random(rest.shape, dtype=np.float32), axis=1)
    lucky = np.take_along_axis(rest, lucky[:, : config.exploration + config.not_shown], axis=1)
    explored, not_shown = lucky[:, : config.exploration], lucky[:, config.exploration :]
    places = np.concatenate(
        [
            np.broadcast_to(np.arange(chosen.shape[1], dtype=np.float32), chosen.shape),
            rng.uniform(-0.5, shown - 0.5, explored.shape).astype(np.float32),
        ],
        axis=1,
    )
    page = np.take_along_axis(
        np.concatenate([chosen, explored], axis=1), np.argsort(places, axis=1, kind="stable"), axis=1
    )
    return Exposure(page, not_shown)


def _affinity(catalogue: Catalogue, candidates: np.ndarray, history: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Log-scale bonus of every candidate from visible history and profile.

    Returns:
        (N, R) float32.
    """
    vocabulary = catalogue.vocabulary
    count, departments = history.shape[0], len(vocabulary.departments)
    rows = np.arange(count)[:, None]
    past = history >= 0
    seen_department = np.where(past, catalogue.department[history], departments)
    seen_brand = np.where(past, catalogue.brand[history], 0)
    counts = np.zeros((count, departments + 1), dtype=np.float32)
    np.add.at(counts, (rows, seen_department), 1.0)
    liked = profile[:, 2]
    counts[rows[:, 0], np.where(liked >= 0, liked, departments)] += 2.0
    counts = counts[:, :departments]
    # Smoothed share of the department in what is known of the shopper, against an even spread.
    lift = np.log((counts + 0.5) / (counts.sum(axis=1, keepdims=True) / departments + 0.5))
    brands = np.zeros((count, len(vocabulary.brands)), dtype=np.float32)
    np.add.at(brands, (rows, seen_brand), 0.7)
    np.minimum(brands, 1.8, out=brands)
    brands[rows[:, 0], np.maximum(profile[:, 3], 0)] += 0.8
    brands[:, 0] = 0.0
    modifiers = np.zeros((count, len(vocabulary.modifiers)), dtype=np.float32)
    for named, told in (
        (vocabulary.modifier_audience, profile[:, 0]),
        (vocabulary.modifier_tier, profile[:, 1]),
    ):
        match = np.where(named[None, :] == told[:, None], 0.8, -0.8)
        modifiers += np.where((named[None, :] < 0) | (told[:, None] < 0), 0.0, match).astype(np.float32)
    bonus = np.take_along_axis(lift.astype(np.float32), catalogue.department[candidates], axis=1)
    bonus += np.take_along_axis(brands, catalogue.brand[candidates], axis=1)
    bonus += np.take_along_axis(modifiers, catalogue.modifier[candidates], axis=1)
    return bonus


def _with_parents(typing: Typing, prefixes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Close a set of prefixes under "one letter shorter".

    Returns:
        wanted: (P,) ascending indices into ``typing.prefixes``.
        parent: (P,) place in ``wanted`` of the prefix one letter shorter, -1 for a single letter.
    """
    shorter = typing.prefixes.str.head(-1).str.strip_chars_end()
    numbered = pl.DataFrame({"text": typing.prefixes}).with_row_index("code")
    up = (
        pl.DataFrame({"text": shorter})
        .join(numbered, on="text", how="left", maintain_order="left")["code"]
        .cast(pl.Int64)
        .fill_null(-1)
        .to_numpy()
    )
    wanted = np.unique(prefixes)
    while True:
        above = np.unique(up[wanted])
        grown = np.union1d(wanted, above[above >= 0])
        if grown.size == wanted.size:
            break
        wanted = grown
    return wanted, np.where(up[wanted] < 0, -1, np.searchsorted(wanted, up[wanted]))
