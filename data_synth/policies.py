"""Logging policies: which suggestions a request is shown, by systems that know what earlier searches told them.

Both built-in systems start from the counts of :mod:`data_synth.counts`. ``popularity`` ranks by them alone;
``production`` moves the recalled candidates by what it sees of the shopper. A few places are filled by chance from the
recalled rest. ``random`` shows recalled candidates in random order. Every shown place has a known propensity.

A policy is a callable from a :class:`Batch` and a generator to a :class:`Page`; :func:`text_policy` turns one that
answers with strings into one.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from .catalogue import Catalogue
from .config import MarketConfig
from .counts import Index, find_rows
from .keystrokes import prefix_keys, prefix_texts
from .shoppers import profile_texts


class Batch(NamedTuple):
    """Requests of one day, as a policy may see them."""

    day: int
    points: np.ndarray  # (N, HEAD) code points of what is being typed; only the first ``length`` have been
    length: np.ndarray  # (N,) characters typed so far
    history: np.ndarray  # (N, H) earlier searches, oldest first, -1 for none
    profile: np.ndarray  # (N, 5) codes, -1 where there is none


class Page(NamedTuple):
    """What each request saw and what was recalled for it but not shown."""

    shown: np.ndarray  # (N, K) queries, first place first, -1 for an empty place
    not_shown: np.ndarray  # (N, M) queries, -1 for none
    propensity: np.ndarray  # (N, K) probability of this query at this place, given what the policy knew


Policy = Callable[[Batch, np.random.Generator], Page]


def main_places(shown: int, exploration: int) -> np.ndarray:
    """(shown - exploration, shown) probability that the i-th ranked candidate lands at place j.

    The explored places are a random set, and the ranked candidates fill the others in order.
    """
    table = np.zeros((shown - exploration, shown))
    for rank in range(shown - exploration):
        for before in range(exploration + 1):
            table[rank, rank + before] = comb(rank + before, before) * comb(
                shown - rank - before - 1, exploration - before
            )
    return table / comb(shown, exploration)


def builtin_policy(config: MarketConfig, catalogue: Catalogue, index: Index, name: str) -> Policy:
    """One of the three built-in policies over the counts of a period.

    Args:
        config: the market.
        catalogue: its queries.
        index: the counts.
        name: popularity, production or random.
    """
    shown, explored, hidden = config.shown, config.exploration, config.not_shown
    if name == "random":
        explored = shown
    ranked = shown - explored
    places = main_places(shown, explored)

    def answer(batch: Batch, rng: np.random.Generator) -> Page:
        count = batch.length.size
        row = find_rows(index, prefix_keys(batch.points), batch.length)
        known = row >= 0
        row = np.maximum(row, 0)
        start, width = index.start[row], index.start[row + 1] - index.start[row]
        behind = np.maximum(width - ranked, 1)
        pick = distinct_draws(behind, explored + hidden, rng)
        drawn = pick < behind[:, None]
        if name == "production":
            top = _personal_top(config, catalogue, index, batch, start, width, ranked)
            for column in np.sort(top, axis=1).T:  # the drawn places count those behind the top alone
                pick += pick >= column[:, None]
        else:
            top = np.broadcast_to(np.arange(ranked), (count, ranked))
            pick += ranked
        chance = np.where(drawn, pick, -1)
        chosen = np.concatenate([top, chance], axis=1)
        there = known[:, None] & (chosen >= 0) & (chosen < width[:, None])
        query = np.where(
            there, index.query[np.minimum(start[:, None] + np.maximum(chosen, 0), index.query.size - 1)], -1
        )
        page, listed = query[:, :shown], query[:, shown:]
        if explored == 0:
            return Page(page, listed, np.ones(page.shape, dtype=np.float32))
        lucky = explored / shown / np.maximum(behind, explored)
        if ranked == 0:
            return Page(page, listed, np.repeat((1.0 / behind).astype(np.float32)[:, None], shown, axis=1))
        where = np.argsort(rng.random((count, shown), dtype=np.float32), axis=1)[:, :explored]
        is_lucky = np.zeros((count, shown), dtype=bool)
        np.put_along_axis(is_lucky, where, True, axis=1)
        number = np.where(is_lucky, ranked - 1 + np.cumsum(is_lucky, axis=1), np.cumsum(~is_lucky, axis=1) - 1)
        propensity = np.where(is_lucky, lucky[:, None], places[np.minimum(number, ranked - 1), np.arange(shown)])
        return Page(np.take_along_axis(page, number, axis=1), listed, propensity.astype(np.float32))

    return answer


def recall(config: MarketConfig, catalogue: Catalogue, index: Index, name: str, batch: Batch) -> tuple[np.ndarray, int]:
    """All that a built-in policy knows of each prefix, in the order in which it would rank it.

    Args:
        config: the market.
        catalogue: its queries.
        index: the counts.
        name: popularity, production or random.
        batch: N requests.

    Returns:
        query: (N, W) -1 behind the last.
        ranked: how many of them are shown for sure, best first; chance draws evenly from the rest.
    """
    ranked = 0 if name == "random" else config.shown - config.exploration
    row = find_rows(index, prefix_keys(batch.points), batch.length)
    start, width = index.start[row], np.where(row >= 0, index.start[row + 1] - index.start[row], 0)
    place = np.arange(int(width.max(initial=1)))
    at = np.minimum(start[:, None] + place, index.query.size - 1)
    query = np.where(place < width[:, None], index.query[at], -1)
    if name == "production":
        top = _personal_top(config, catalogue, index, batch, start, width, ranked)
        rank = np.broadcast_to(place + ranked, query.shape).copy()
        np.put_along_axis(rank, top, np.arange(top.shape[1]), axis=1)
        query = np.take_along_axis(query, np.argsort(rank, axis=1), axis=1)
    return query, ranked


def distinct_draws(among: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(N, count) different numbers below ``among`` (N,), in random order; where there are too few, larger ones."""
    drawn = np.empty((among.size, count), dtype=np.int64)
    earlier = np.empty((among.size, 0), dtype=np.int64)  # sorted
    for place in range(count):
        left = among - place
        number = (rng.random(among.size) * np.maximum(left, 1)).astype(np.int64)
        for column in range(place):
            number += number >= earlier[:, column]
        drawn[:, place] = np.where(left > 0, number, among + place)
        earlier = np.sort(np.concatenate([earlier, drawn[:, place : place + 1]], axis=1), axis=1)
    return drawn


def _personal_top(config, catalogue, index: Index, batch: Batch, start, width, ranked: int) -> np.ndarray:
    """(N, ranked) places, counted from the row's start, of the best candidates for this shopper, best first."""
    place = np.arange(int(width.max(initial=1)))
    at = np.minimum(start[:, None] + place, index.query.size - 1)
    score = index.score[at] + np.float32(config.personalisation) * affinity(catalogue, index, at, batch)
    score[place >= width[:, None]] = -np.inf
    best = np.argpartition(-score, min(ranked, place.size - 1), axis=1)[:, :ranked]
    order = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def affinity(catalogue: Catalogue, index: Index, at: np.ndarray, batch: Batch) -> np.ndarray:
    """Log-scale bonus of candidates from visible history and profile, as a production ranker might have learnt it.

    Args:
        catalogue: the queries.
        index: the counts.
        at: (N, R) places in the index.
        batch: the requests.

    Returns:
        (N, R) float32: a department's lift over an even spread, brands searched before, words that fit the profile, and
        queries searched before.
    """
    count, departments = batch.length.size, catalogue.department_share.size
    rows, past = np.arange(count)[:, None], batch.history >= 0
    parts = catalogue.split(batch.history)
    seen = np.where(past, catalogue.type_department[parts.type], departments)
    weight = np.zeros((count, departments + 1), dtype=np.float32)
    np.add.at(weight, (rows, seen), 1.0)
    told = batch.profile[:, 2]
    weight[rows[:, 0], np.where(told >= 0, told, departments)] += 2.0
    weight = weight[:, :departments]
    lift = np.log((weight + 0.5) / (weight.sum(axis=1, keepdims=True) / departments + 0.5))
    brand = np.zeros((count, departments + 1, catalogue.sizes[1]), dtype=np.float32)
    np.add.at(brand, (rows, seen, np.where(past, parts.brand, 0)), 0.7)
    brand[rows[:, 0], np.where(told >= 0, told, departments), np.maximum(batch.profile[:, 3], 0)] += 0.9
    brand = np.minimum(brand[:, :departments], 2.0)
    brand[:, :, 0] = 0.0
    tags = np.array([word.tag for word in catalogue.words["modifier"]], dtype=object).reshape(departments, -1)
    speaks = np.zeros((count, *tags.shape), dtype=np.float32)
    for names, code in ((catalogue.lexicon.audiences, 0), (catalogue.lexicon.tiers, 1)):
        named = np.array([[names.index(tag) if tag in names else -1 for tag in row] for row in tags])  # (D, M)
        match = np.where(named == batch.profile[:, code, None, None], np.float32(0.8), np.float32(-0.8))
        speaks += match * ((named >= 0) & (batch.profile[:, code, None, None] >= 0))
    of = index.department[at].astype(np.intp)
    bonus = lift[rows, of] + brand[rows, of, index.brand[at]] + speaks[rows, of, index.modifier[at]]
    query = index.query[at]
    for column in batch.history.T:
        bonus += np.float32(1.0) * ((query == column[:, None]) & (column >= 0)[:, None])
    return bonus


def text_policy(catalogue: Catalogue, suggest: Callable[[pl.DataFrame], list[list[str]]], shown: int = 16) -> Policy:
    """A policy out of a callable that answers a frame of requests with ranked lists of strings.

    Args:
        catalogue: the queries; a string that is none of them takes up its place and is never clicked.
        suggest: from a frame with prefix (String), history and profile (List(String)) to N lists, best first.
        shown: places of a list.
    """

    def answer(batch: Batch, rng: np.random.Generator) -> Page:
        page = catalogue.find_lists(suggest(request_frame(catalogue, batch)), shown)
        return Page(page, np.full((len(page), 0), -1, dtype=np.int64), np.ones(page.shape, dtype=np.float32))

    return answer


def request_frame(catalogue: Catalogue, batch: Batch) -> pl.DataFrame:
    """Requests as a model reads them: prefix, history and profile as text."""
    return pl.DataFrame(
        {
            "prefix": pl.Series(prefix_texts(batch.points, batch.length).tolist(), dtype=pl.String),
            "history": pl.from_arrow(history_texts(catalogue, batch.history)).cast(pl.List(pl.String)),
            "profile": pl.from_arrow(profile_texts(catalogue, batch.profile)),
        }
    )


def history_texts(catalogue: Catalogue, history: np.ndarray) -> pa.ListArray:
    """Earlier searches (N, H) as lists of texts; the values stay a dictionary, which is quick to write."""
    past = history >= 0
    offsets = np.r_[0, np.cumsum(past.sum(axis=1))].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), query_column(catalogue, history[past]))


def query_column(catalogue: Catalogue, queries: np.ndarray, mask: np.ndarray | None = None) -> pa.DictionaryArray:
    """Texts of queries (N,) as a dictionary array: each distinct query is put together once."""
    coded = pa.array(queries, mask=mask).dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        coded.indices, catalogue.texts(coded.dictionary.to_numpy(zero_copy_only=False))
    )
