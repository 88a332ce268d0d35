r"""The catalogue: every query that can be suggested, what it is made of, and how much it is wanted and worth.

A query is a product type with or without a brand, a style, an attribute and a modifier: ``norvik black waterproof
running shoes for men``. Every combination exists, so a query is a number in a mixed radix, its text is put together
when it is needed, and ten million queries take no more memory than ten thousand. How much a query is wanted is a
product of factors,

.. math::

    P(q \mid u, \tau) = \theta_{u,d} \; P_\tau(\text{type} \mid d) \; P_\tau(\text{brand} \mid \text{type}, u) \;
    P(\text{style} \mid \text{type}) \; P(\text{attribute} \mid \text{type}, u) \;
    P_\tau(\text{modifier} \mid \text{type}, u)

for shopper :math:`u` on day :math:`\tau`, so that its posterior stays in closed form. A list of real queries is the
same thing with one query a type and no other words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .config import MarketConfig, MarketError
from .lexicon import Lexicon, Word


class Pool(NamedTuple):
    """Real queries to make a market of, sorted by department; see :func:`data_synth.query_tastes.build_pool`."""

    text: list[str]  # N different queries
    count: np.ndarray  # (N,) how often each was searched
    department: np.ndarray  # (N,) ascending, none empty
    family: np.ndarray  # (N,) near matches of each other
    names: list[str]  # of the departments


class Parts(NamedTuple):
    """The parts of some queries, one code each, counted inside the department or shelf; 0 = none (but for types)."""

    type: np.ndarray  # (N,) over all departments
    brand: np.ndarray  # (N,)
    style: np.ndarray  # (N,)
    attribute: np.ndarray  # (N,)
    modifier: np.ndarray  # (N,)


class Catalogue(NamedTuple):
    """The words as arrays and their weights. D departments, S shelves, T types; B, C, A, M words of a slot with none.

    Periods number the stretches between two rebuilds of the policies' counts; launches and retirements fall on them.
    """

    lexicon: Lexicon
    sizes: tuple[int, int, int, int, int]  # T, B, C, A, M
    words: dict[str, list[Word]]  # of every slot, all groups one after the other, "" for none
    shown: dict[str, pa.Array]  # their texts, null for none
    type_department: np.ndarray  # (T,) ascending
    type_shelf: np.ndarray  # (T,)
    family: np.ndarray  # (T,) types of one family are near matches of each other
    row: np.ndarray  # (T,) row of the tables below; one row serves all types of a list
    department_share: np.ndarray  # (D,) of all searches
    type_share: np.ndarray  # (days + 1, T) inside the department, by day; the last row is before the first day
    brand_tier: np.ndarray  # (D, B) index into tiers, -1 for none
    brand_since: np.ndarray  # (D, B) first period in which it exists
    favourites: np.ndarray  # (D, B) bool, brands that may be somebody's favourite
    brand: np.ndarray  # (periods, rows, tiers, B favourite, B) probability
    style: np.ndarray  # (rows, C)
    attribute: np.ndarray  # (rows, A favourite, A)
    modifier: np.ndarray  # (periods, rows, audiences, tiers, M)
    price: np.ndarray  # (T,) typical price in the market's currency
    traits: np.ndarray  # (2,) uint64 keys of what a query hides: see attraction, quality, is_bait

    @property
    def size(self) -> int:
        """Number of queries."""
        return int(np.prod(self.sizes))

    @property
    def split_base(self) -> int:
        """Queries of one type: ``query // split_base`` is the type."""
        return int(np.prod(self.sizes[1:]))

    def split(self, queries: np.ndarray) -> Parts:
        """The parts of queries (any shape, -1 gives a type of -1)."""
        rest, codes = np.asarray(queries, dtype=np.int64), []
        for size in self.sizes[:0:-1]:
            whole = rest // size  # three times as quick as np.divmod
            codes.append(rest - whole * size)
            rest = whole
        return Parts(rest, *codes[::-1])

    def join(self, parts: Parts) -> np.ndarray:
        """The queries made of parts."""
        number = np.asarray(parts[0], dtype=np.int64)
        for size, code in zip(self.sizes[1:], parts[1:], strict=True):
            number = number * size + code
        return number

    def word_rows(self, parts: Parts) -> dict[str, np.ndarray]:
        """Row in ``words`` of each part of each query."""
        department, shelf = self.type_department[parts.type], self.type_shelf[parts.type]
        _, brands, styles, attributes, modifiers = self.sizes
        return {
            "type": parts.type,
            "brand": department * brands + parts.brand,
            "style": shelf * styles + parts.style,
            "attribute": shelf * attributes + parts.attribute,
            "modifier": department * modifiers + parts.modifier,
        }

    def texts(self, queries: np.ndarray) -> pa.Array:
        """The texts of queries (N,), as they are shown."""
        rows = self.word_rows(self.split(queries))
        columns = [self.shown[slot].take(pa.array(rows[slot])) for slot in self.lexicon.order]
        return pc.binary_join_element_wise(*columns, self.lexicon.separator, null_handling="skip")

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """The queries that have these texts, -1 where there is none.

        Raises:
            MarketError: the pool is too large to be listed.
        """
        if self.size > 3_000_000:
            raise MarketError(f"the pool has {self.size:,} queries; texts can be looked up among 3 million at most")
        found = pc.index_in(pa.array(texts, pa.string()), value_set=self.texts(np.arange(self.size)))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def find_lists(self, lists: Sequence[Sequence[str]], places: int) -> np.ndarray:
        """(N, places) queries of N lists of texts, -1 for a text that is no query and behind the last.

        Raises:
            MarketError: as for :meth:`find`.
        """
        lists = [texts[:places] for texts in lists]
        found = np.full((len(lists), places), -1, dtype=np.int64)
        there = np.arange(places) < np.array([len(texts) for texts in lists], dtype=np.int64)[:, None]
        found[there] = self.find([text for texts in lists for text in texts])
        return found

    def born(self, config: MarketConfig, queries: np.ndarray) -> np.ndarray:
        """First day on which each query exists."""
        parts = self.split(queries)
        period = self.brand_since[self.type_department[parts.type], parts.brand]
        day = np.maximum(config.days + (period - period_of(config, config.days)) * config.period_days, 0)
        return np.maximum(day, (self.type_share[:-1] > 0).argmax(axis=0)[parts.type])

    def uniform(self, queries: np.ndarray, trait: int) -> np.ndarray:
        """A number in [0, 1) that belongs to each query for good: its bits mixed (splitmix64), no table needed."""
        bits = np.asarray(queries).astype(np.uint64) + self.traits[trait]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def is_bait(self, queries: np.ndarray, share: float) -> np.ndarray:
        """Whether a query attracts more clicks than it can satisfy."""
        return self.uniform(queries, 0) < share

    def attraction(self, queries: np.ndarray, config: MarketConfig) -> np.ndarray:
        """Factor on the click probability of a near match, around 1."""
        number = self.uniform(queries, 0)  # bait sits at the lower end, so the rest is spread anew
        rest = np.clip((number - config.clickbait) / max(1.0 - config.clickbait, 1e-6), 0.0, 1.0)
        factor = np.float32(0.45) + np.float32(1.1) * rest
        return np.where(number < config.clickbait, np.float32(config.bait_attraction), factor)

    def quality(self, queries: np.ndarray, config: MarketConfig) -> np.ndarray:
        """How well what lies behind the query serves, in 0..1; hidden until after the click."""
        number = self.uniform(queries, 1)
        return np.where(self.is_bait(queries, config.clickbait), 0.2 * number, 0.3 + 0.65 * number)


def text_column(texts: Iterable[str]) -> pa.Array:
    """Texts as an Arrow array, null for an empty one."""
    return pa.array([text or None for text in texts], pa.string())


def period_of(config: MarketConfig, day: np.ndarray | int) -> np.ndarray:
    """Period of a day; one starts on the first test day, and days before the first belong to period 0."""
    before = -(-config.days // config.period_days)
    return np.maximum((np.asarray(day) - config.days) // config.period_days + before, 0)
