"""What a cascade is told: its settings, requests as numbers, statistics of earlier days, and features made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
from torch import Tensor

CHANNELS = ("embedding", "completion", "cooccurrence", "history", "spelling")
"""Ways to recall queries; see :class:`onesug_lite.recall.Recall`."""

COLUMNS = {
    "text": ("cosine", "starts", "word starts", "shared n-grams", "prefix length", "query length"),
    "counts": ("query clicks", "pair clicks"),
    "ctr": ("query click rate", "pair click rate", "pair impressions"),
    "recency": ("recent query clicks", "recent pair clicks"),
    "history": ("searched before", "nearest search", "latest search"),
    "profile": ("named by profile",),
    "position": (),
}
"""Columns of each group of features; see :class:`Features`. ``position`` has none: DIN reads it beside the others."""

FEATURES = tuple(COLUMNS)
"""The groups. DIN reads all those that the config names."""

CHEAP = ("text", "counts", "ctr", "recency")
"""The groups that DCN reads as well: those that know nothing of the shopper."""

ONLINE = {"channels": CHANNELS, "features": FEATURES}
"""What onlineMCA changes in a :class:`CascadeConfig`, whose defaults are MCA."""


@dataclass(frozen=True)
class CascadeConfig:
    """What is recalled by what, how many queries pass each stage, and the two rankers.

    Source:
        Paper, offline table: MCA is "BGE recall + DCN pre-rank + DIN rank", onlineMCA the production system with
        "hundreds of features" [third-party notes]. No size is given.
    """

    channels: tuple[str, ...] = ("embedding",)  # paper: BGE for MCA; onlineMCA: all of CHANNELS, ours
    features: tuple[str, ...] = ("text", "counts", "ctr")  # ours; onlineMCA: all of FEATURES, ours
    recalled: int = 200  # ours: queries that recall keeps
    preranked: int = 64  # ours: queries that DCN keeps
    results: int = 16  # paper: 16 are shown
    cooccurring: int = 32  # ours: clicked queries that are pooled into a prefix, as in SearchConfig
    max_prefix_chars: int = 64  # ours: as in PromptConfig
    min_spelling_chars: int = 3  # ours: a shorter prefix is one edit away from nearly everything

    dim: int = 24  # ours: embedding of a token and of a query
    tokens: int = 10  # ours: of a text; the rest is cut
    history: int = 8  # ours: latest searches that are looked at
    profile: int = 6  # ours: profile attributes that are looked at
    cross_layers: int = 2  # ours
    hidden: tuple[int, ...] = (64, 32)  # ours: layers of DCN's deep part and of DIN
    attention: int = 24  # ours: hidden units of DIN's attention
    buckets: int = 16_384  # ours: hashed weights of profile attribute x query token
    recent: int = 3  # ours: days that count as recent
    prior: float = 10.0  # ours: impressions that the prior of a click rate is worth

    warmup: float = 0.1  # ours: share of the training days, the first ones, that only feed the statistics
    prerank_requests: int = 20_000  # ours: requests that DCN learns from
    rank_requests: int = 60_000  # ours: requests with a click that DIN learns from
    hard_negatives: int = 12  # ours: of what is recalled for a request, for DCN
    random_negatives: int = 8  # ours: of the whole pool, for DCN
    rank_negatives: int = 32  # ours: of what is recalled for a request, for DIN; 0: it learns from shown lists alone
    batch_size: int = 128  # ours: requests in a batch
    learning_rate: float = 5e-3  # ours
    weight_decay: float = 1e-2  # ours: AdamW's default
    prerank_epochs: int = 2  # ours
    rank_epochs: int = 2  # ours

    def __post_init__(self) -> None:
        for name, valid in (("channels", CHANNELS), ("features", FEATURES)):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given) or not set(given) <= set(valid):
                raise ValueError(f"CascadeConfig.{name} is {given}; expected one or more of {', '.join(valid)}.")
        if not set(self.features) & set(CHEAP):
            raise ValueError(f"CascadeConfig.features is {self.features}; DCN needs one of {', '.join(CHEAP)}.")
        if not self.recalled >= self.preranked >= self.results:
            raise ValueError(
                f"CascadeConfig keeps {self.recalled}, then {self.preranked}, then {self.results} queries; expected no "
                "stage to keep more than the one before."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"CascadeConfig.warmup is {self.warmup}; expected 0 or more and less than 1.")
        may_be_zero = ("warmup", "weight_decay", "hard_negatives", "random_negatives", "rank_negatives", "cooccurring")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name not in may_be_zero)):
                raise ValueError(f"CascadeConfig.{field.name} is {value}; expected more than 0.")


class Requests(NamedTuple):
    """A batch of B requests as the features and the rankers read them; -1 is "none" in every array of numbers.

    Attributes:
        prefixes: B cleaned texts.
        code: (B,) number of the prefix among those of the training days, -1 when it is new.
        vectors: (B, D) unit embeddings of the prefixes.
        day: (B,) day of the request; statistics are those of the days before.
        tokens: ``int32`` (N + 1, T) of N texts, the pool's queries first, from :func:`tokenise`; the last row is
            that of the empty text, so that text -1 is none.
        prefix: (B,) texts.
        history: (B, H) texts, newest first.
        profile: (B, A) texts.
    """

    prefixes: list[str]
    code: np.ndarray
    vectors: np.ndarray
    day: np.ndarray
    tokens: Tensor
    prefix: np.ndarray
    history: np.ndarray
    profile: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Requests:
        """Some of the requests."""
        chosen = [self.prefixes[row] for row in np.arange(len(self.prefixes))[rows]]
        arrays = (value if isinstance(value, Tensor) else value[rows] for value in self[1:])
        return Requests(chosen, *arrays)


class Tally:
    """How often each of many keys was shown and clicked on the days before any given day.

    A feature must not know the click that it is to predict. Here no row knows anything of its own day: a row of day d
    is described by days 0 to d - 1, in training as in serving. (To leave only the row's own click out of the total of
    all days would give it away all the same: the total is one less for a clicked row than for others of its key.)

    Args:
        codes: ``int64`` (K,) ascending ``key * span + day``.
        totals: ``int32`` (K + 1, 2) impressions and clicks of all codes before each.
        span: more than any day that is asked for.
    """

    def __init__(self, codes: np.ndarray, totals: np.ndarray, span: int):
        self.codes, self.totals, self.span = codes, totals, span

    @classmethod
    def count(cls, keys: np.ndarray, days: np.ndarray, clicks: np.ndarray, span: int) -> Tally:
        """Count impressions, one a row: (N,) keys, days and whether it was clicked."""
        codes, place = np.unique(keys.astype(np.int64) * span + days, return_inverse=True)
        totals = np.zeros((len(codes) + 1, 2), dtype=np.int32)  # halves what a saved cascade weighs
        totals[1:, 0] = np.cumsum(np.bincount(place, minlength=len(codes)))
        totals[1:, 1] = np.cumsum(np.bincount(place, weights=clicks, minlength=len(codes)))
        return cls(codes, totals, span)

    def before(self, keys: np.ndarray, days: np.ndarray, last: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Impressions and clicks on the days before ``days``, or on the ``last`` few of them.

        Args:
            keys: whole numbers of any shape; a negative one is unknown and has none.
            days: of the same shape, or one that broadcasts to it.
            last: days to look back; None for all.
        """
        start = np.zeros_like(days) if last is None else np.maximum(days - last, 0)
        low, high = (self.totals[np.searchsorted(self.codes, keys * self.span + day)] for day in (start, days))
        found = np.where(keys[..., None] >= 0, high - low, 0)
        return found[..., 0], found[..., 1]


class Features:
    """Numbers that describe a query for a request.

    ==============  ====================================================================================================
    group           columns, named in :data:`COLUMNS`
    ==============  ====================================================================================================
    ``text``        cosine of the embeddings; whether the query starts with the prefix; whether one of its words starts
                    with the word being typed; the share of the prefix's character 2- and 3-grams that it holds; lengths
    ``counts``      clicks of the query, and of the query under this prefix
    ``ctr``         click rate of the query, relative to all queries; of the query under this prefix, relative to the
                    query; how often it was shown under this prefix. A rate seen on n impressions weighs n against the
                    ``prior`` of the coarser rate
    ``recency``     as ``counts``, over the ``recent`` days before
    ``history``     whether the shopper searched it before; cosine with the nearest and with the latest earlier search
    ``profile``     share of its tokens that the shopper's profile holds too
    ==============  ====================================================================================================

    Counts and lengths are logarithms of one plus the number, relative rates are logarithms.

    Args:
        queries: the pool, Q distinct texts.
        vectors: ``float32`` (Q, D) their unit embeddings.
        tokens: ``int32`` (Q, T) from :func:`tokenise`.
        vocabulary: more than the largest token id.
        by_query: tally of queries, by number.
        by_pair: tally of prefix and query, by ``code * Q + number``.
        config: ``recent`` and ``prior`` are read.
    """

    def __init__(
        self,
        queries: Sequence[str],
        vectors: np.ndarray,
        tokens: np.ndarray,
        vocabulary: int,
        by_query: Tally,
        by_pair: Tally,
        config: CascadeConfig,
    ):
        self.queries, self.vectors, self.tokens = pl.Series(queries, dtype=pl.String), vectors, tokens
        self.vocabulary, self.by_query, self.by_pair, self.config = vocabulary, by_query, by_pair, config
        self._lengths = np.log1p(self.queries.str.len_chars().to_numpy())  # (Q,)
        self._gram: dict[str, int] = {}
        grams = [sorted({self._gram.setdefault(g, len(self._gram)) for g in _grams(query)}) for query in queries]
        self._grams = np.full((len(grams), max(map(len, grams))), len(self._gram))  # (Q, G); the last gram is none
        for row, held in enumerate(grams):
            self._grams[row, : len(held)] = held

    def __call__(self, requests: Requests, candidates: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Describe candidates.

        Args:
            requests: B of them.
            candidates: (B, C) numbers of queries, -1 for none.
            groups: some of :data:`FEATURES`.

        Returns:
            ``float32`` (B, C, F), 0 where there is no candidate; columns in the order of :data:`COLUMNS`.
        """
        groups = [group for group in FEATURES if group in groups and COLUMNS[group]]
        table = np.zeros((*candidates.shape, self.width(groups)), dtype=np.float32)
        step = max(1, 100_000 // max(candidates.shape[1], 1))  # bounds the memory
        for start in range(0, len(candidates), step):
            some = slice(start, start + step)
            described = (getattr(self, f"_{group}")(requests.take(some), candidates[some]) for group in groups)
            for column, values in enumerate(values for part in described for values in part):
                table[some, :, column] = values
        table[candidates < 0] = 0
        return table

    @staticmethod
    def width(groups: Sequence[str]) -> int:
        """How many columns some groups have."""
        return sum(len(COLUMNS[group]) for group in groups)

    def _text(self, requests: Requests, candidates: np.ndarray) -> list[np.ndarray]:
        rows = np.repeat(np.arange(len(candidates)), candidates.shape[1])
        words = [" " + prefix.split(" ")[-1] for prefix in requests.prefixes]
        typed, last = (pl.Series(texts, dtype=pl.String).gather(rows) for texts in (requests.prefixes, words))
        query = self.queries.gather(np.maximum(candidates, 0).ravel())
        found = query.str.starts_with(typed), (" " + query).str.contains(last, literal=True)
        starts, word = (column.to_numpy().reshape(candidates.shape) for column in found)
        cosine = np.einsum("bcd,bd->bc", self.vectors[candidates], requests.vectors)
        held = np.zeros((len(candidates), len(self._gram) + 1), dtype=bool)
        many = np.ones((len(candidates), 1))
        for row, prefix in enumerate(requests.prefixes):
            grams = _grams(prefix)
            many[row] = max(len(grams), 1)
            held[row, [self._gram[gram] for gram in grams if gram in self._gram]] = True
        overlap = held[np.arange(len(candidates))[:, None, None], self._grams[candidates]].sum(axis=2) / many
        length = np.log1p([[len(prefix)] for prefix in requests.prefixes])
        return [cosine, starts, word, overlap, length, self._lengths[candidates]]

    def _pairs(self, requests: Requests, candidates: np.ndarray) -> np.ndarray:
        return np.where(requests.code[:, None] >= 0, requests.code[:, None] * len(self.queries) + candidates, -1)

    def _counts(self, requests: Requests, candidates: np.ndarray, last: int | None = None) -> list[np.ndarray]:
        day = requests.day[:, None]
        keys = ((self.by_query, candidates), (self.by_pair, self._pairs(requests, candidates)))
        return [np.log1p(tally.before(key, day, last)[1]) for tally, key in keys]

    def _recency(self, requests: Requests, candidates: np.ndarray) -> list[np.ndarray]:
        return self._counts(requests, candidates, self.config.recent)

    def _ctr(self, requests: Requests, candidates: np.ndarray) -> list[np.ndarray]:
        day, prior = requests.day[:, None], self.config.prior
        overall = self._overall[day]
        shown, clicks = self.by_query.before(candidates, day)
        of_query = (clicks + prior * overall) / (shown + prior)
        shown, clicks = self.by_pair.before(self._pairs(requests, candidates), day)
        of_pair = (clicks + prior * of_query) / (shown + prior)
        return [np.log(of_query / overall), np.log(of_pair / of_query), np.log1p(shown)]

    @cached_property
    def _overall(self) -> np.ndarray:
        """Click rate (span,) of all queries on the days before each day; as if 1 of 20 more had been clicked."""
        shown, clicks = np.diff(self.by_query.totals, axis=0).T
        days = self.by_query.codes % self.by_query.span
        shown, clicks = (np.bincount(days, weights=part, minlength=self.by_query.span) for part in (shown, clicks))
        return (np.r_[0, np.cumsum(clicks)[:-1]] + 1) / (np.r_[0, np.cumsum(shown)[:-1]] + 20)

    def _history(self, requests: Requests, candidates: np.ndarray) -> list[np.ndarray]:
        known = np.where(requests.history < len(self.queries), requests.history, -1)  # (B, H)
        repeated = (candidates[:, :, None] == known[:, None, :]).any(axis=2)
        cosine = self.vectors[candidates] @ self.vectors[known].transpose(0, 2, 1)  # (B, C, H)
        cosine = np.where(known[:, None, :] >= 0, cosine, 0)
        return [repeated, cosine.max(axis=2), cosine[:, :, 0]]

    def _profile(self, requests: Requests, candidates: np.ndarray) -> list[np.ndarray]:
        rows = np.arange(len(candidates))
        held = np.zeros((len(candidates), self.vocabulary), dtype=bool)
        held[rows[:, None, None], requests.tokens.numpy()[requests.profile]] = True
        held[:, 0] = False  # the pad
        tokens = self.tokens[candidates]  # (B, C, T)
        return [held[rows[:, None, None], tokens].sum(axis=2) / np.maximum((tokens > 0).sum(axis=2), 1)]


def tokenise(tokenizer, texts: Sequence[str], width: int) -> np.ndarray:
    """Token ids of texts, each one higher than the tokeniser's, for 0 is the pad.

    Returns:
        ``int32`` (N, width); what is longer is cut.
    """
    found = np.zeros((len(texts), width), dtype=np.int32)
    if len(texts):
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for row, ids in enumerate(encoded):
            found[row, : min(len(ids), width)] = np.asarray(ids[:width], dtype=np.int32) + 1
    return found


def _grams(text: str) -> set[str]:
    text = " " + text
    return {text[start : start + size] for size in (2, 3) for start in range(len(text) - size + 1)}
