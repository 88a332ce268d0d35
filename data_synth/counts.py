"""What the policies know: for every typed prefix, how often searches that passed through it ended in each query.

The counts are rebuilt at the start of every period from the searches of the periods before, so they are stale, they
favour what was shown before, and they know no query that nobody has searched.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from .catalogue import Catalogue
from .config import MarketConfig
from .keystrokes import HEAD, prefix_keys


class Index(NamedTuple):
    """Counts of one period: the candidates of every prefix, best first."""

    keys: np.ndarray  # (P,) uint64, ascending
    start: np.ndarray  # (P + 1,) into query and score
    query: np.ndarray  # (E,)
    score: np.ndarray  # (E,) float32, log of the believed weight of the query under the prefix
    department: np.ndarray  # (E,) int8
    brand: np.ndarray  # (E,) int8
    modifier: np.ndarray  # (E,) int8


class Counts(NamedTuple):
    """Searches so far: what was typed and which query it ended in."""

    points: np.ndarray  # (C, HEAD) uint32
    query: np.ndarray  # (C,)
    weight: np.ndarray  # (C,)


def add_counts(old: Counts | None, points: np.ndarray, query: np.ndarray, memory: float) -> Counts:
    """Count new searches beside older ones, which keep ``memory`` of their weight."""
    weight = np.ones(query.size)
    if old is not None:
        kept = old.weight * memory > 0.02  # what is nearly forgotten is forgotten
        points = np.concatenate([old.points[kept], points])
        query = np.concatenate([old.query[kept], query])
        weight = np.concatenate([old.weight[kept] * memory, weight])
    keys = prefix_keys(points)[:, -1]
    order = np.lexsort((query, keys))
    points, query, weight, keys = points[order], query[order], weight[order], keys[order]
    first = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (query[1:] != query[:-1])])
    return Counts(points[first], query[first], np.add.reduceat(weight, first))


def build_index(config: MarketConfig, catalogue: Catalogue, counts: Counts) -> Index:
    """Rank the candidates of every prefix that was typed.

    A prefix with too few candidates of its own borrows from the one a letter shorter, and a single letter from the most
    searched queries of all, so that every list is full.

    Returns:
        The index; a row holds at most ``recalled`` candidates and at least shown + not_shown + exploration.
    """
    keys = prefix_keys(counts.points)
    least = config.shown + config.not_shown + config.exploration
    order = np.lexsort((counts.query, -counts.weight))
    total = pl.DataFrame({"query": counts.query, "weight": counts.weight}).group_by("query").agg(pl.col("weight").sum())
    total = total.sort(["weight", "query"], descending=[True, False]).head(2 * least)
    # Level 0 is the empty prefix, the most searched queries of all.
    rows = [_Rows(np.zeros(1, np.uint64), np.array([0, len(total)]), total["query"].to_numpy(), _log(total["weight"]))]
    for length in range(1, HEAD + 1):
        letter = counts.points[:, length - 1]
        at = order[((letter > 0) & (letter != ord(" ")))[order]]  # a prefix that ends in a blank is the one before it
        if at.size == 0:
            break
        frame = (
            pl.DataFrame({"key": keys[at, length - 1], "query": counts.query[at], "weight": counts.weight[at]})
            .group_by("key", "query")
            .agg(pl.col("weight").sum())
            .sort(["key", "weight", "query"], descending=[False, True, False])
        )
        key, first = np.unique(frame["key"].to_numpy(), return_index=True)
        rank = np.arange(len(frame)) - np.repeat(first, np.diff(np.r_[first, len(frame)]))
        keep = rank < config.recalled
        start = np.r_[0, np.cumsum(np.add.reduceat(keep, first))]
        own = _Rows(key, start, frame["query"].to_numpy()[keep], _log(frame["weight"])[keep])
        above = keys[at, length - 2] if length > 1 else np.zeros(at.size, np.uint64)
        above = above[np.unique(keys[at, length - 1], return_index=True)[1]]  # of each key in turn
        rows.append(_filled(own, above, rows, least))
    return _flat(catalogue, rows[1:])


class _Rows(NamedTuple):
    """Candidates of the prefixes of one length, best first; start (P + 1,) into query and score."""

    key: np.ndarray
    start: np.ndarray
    query: np.ndarray
    score: np.ndarray


def _log(weight: pl.Series) -> np.ndarray:
    return np.log(weight.to_numpy())


def _table(rows: _Rows, which: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``width`` candidates and scores of some rows; -1 where a row is shorter."""
    at = rows.start[which][:, None] + np.arange(width)
    there = at < rows.start[which + 1][:, None]
    at = np.minimum(at, rows.query.size - 1)
    return np.where(there, rows.query[at], -1), np.where(there, rows.score[at], -np.inf)


def _filled(own: _Rows, above: np.ndarray, levels: list[_Rows], least: int) -> _Rows:
    """Lend short rows the best candidates of their parent that they lack, behind their own."""
    short = np.flatnonzero(np.diff(own.start) < least)
    if short.size == 0:
        return own
    lent, weight = np.full((short.size, 2 * least), -1), np.full((short.size, 2 * least), -np.inf)
    for level in levels[-2:]:  # the parent stands two letters up where the letter between is a blank
        found = np.minimum(np.searchsorted(level.key, above[short]), level.key.size - 1)
        hit = level.key[found] == above[short]
        lent[hit], weight[hit] = _table(level, found[hit], 2 * least)
    query, score = _table(own, short, least)
    new = (lent >= 0) & ~(lent[:, :, None] == query[:, None, :]).any(axis=2)
    new &= np.cumsum(new, axis=1) <= least - (query >= 0).sum(axis=1, keepdims=True)
    floor = np.where(query >= 0, score, np.inf).min(axis=1, keepdims=True)
    both = np.concatenate([query, np.where(new, lent, -1)], axis=1)
    value = np.concatenate([score, np.minimum(weight - np.log(4.0), floor)], axis=1)
    row = np.concatenate([np.repeat(np.arange(own.key.size), np.diff(own.start)), np.repeat(short, both.shape[1])])
    is_short = np.zeros(own.key.size, dtype=bool)
    is_short[short] = True
    keep = np.concatenate([~is_short[row[: own.query.size]], both.ravel() >= 0])
    order = np.argsort(row[keep], kind="stable")
    start = np.r_[0, np.cumsum(np.bincount(row[keep], minlength=own.key.size))]
    return _Rows(
        own.key,
        start,
        np.concatenate([own.query, both.ravel()])[keep][order],
        np.concatenate([own.score, value.ravel()])[keep][order],
    )


def _flat(catalogue: Catalogue, levels: list[_Rows]) -> Index:
    """All lengths in one index, by key."""
    key = np.concatenate([rows.key for rows in levels])
    width = np.concatenate([np.diff(rows.start) for rows in levels])
    begin = np.r_[0, np.cumsum(width)][:-1]
    order = np.argsort(key, kind="stable")
    start = np.r_[0, np.cumsum(width[order])]
    pick = np.repeat(begin[order] - start[:-1], width[order]) + np.arange(start[-1])
    query = np.concatenate([rows.query for rows in levels])[pick]
    score = np.concatenate([rows.score for rows in levels])[pick].astype(np.float32)
    parts = catalogue.split(query)
    department = catalogue.type_department[parts.type].astype(np.int8)
    return Index(
        key[order], start, query, score, department, parts.brand.astype(np.int8), parts.modifier.astype(np.int8)
    )


def find_rows(index: Index, keys: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Row of the longest known prefix of each text.

    Args:
        index: the counts.
        keys: (N, HEAD) from :func:`data_synth.keystrokes.prefix_keys`.
        length: (N,) characters typed.

    Returns:
        (N,) rows; -1 where not even the first letter is known.
    """
    row = np.full(length.size, -1)
    left = np.arange(length.size)
    length = length.copy()
    while left.size:
        key = keys[left, length[left] - 1]
        found = np.minimum(np.searchsorted(index.keys, key), index.keys.size - 1)
        hit = index.keys[found] == key
        row[left[hit]] = found[hit]
        left = left[~hit]
        length[left] -= 1
        left = left[length[left] > 0]
    return row
