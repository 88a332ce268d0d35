"""Prefix popularity completion: what most shoppers clicked, the simplest honest baseline.

Every system in the results stands beside this one. It learns nothing but counts of the training clicks, knows
no shopper, and cannot write a query that nobody has clicked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl


class PopularityCompletion:
    """The most clicked queries of a prefix, then of ever shorter prefixes, until the list is full.

    For a prefix the list takes, in this order, skipping what it already holds:

    1. the queries clicked under this very prefix, by clicks under it;
    2. the queries that start with the prefix, by clicks under any prefix;
    3. the same two for the prefix without its last character, and so on down to the empty prefix, where the
       second step is the most clicked queries of all.

    Equal clicks are ordered by the query's text (code points). The first step finds what completion cannot,
    synonyms and corrected spellings; the last fills the list whatever was typed.

    Args:
        clicks: training clicks, columns ``prefix`` (String), ``query`` (String) and ``clicks`` (a number
            above 0); a (prefix, query) pair in several rows is summed. Text is compared as it is: normalise
            it beforehand, the same way as the prefixes that will be asked for.

    Raises:
        ValueError: a column is missing, or there is no row.

    Source:
        Ours; the "most popular completion" of the query auto-completion literature.
    """

    def __init__(self, clicks: pl.DataFrame):
        missing = [name for name in ("prefix", "query", "clicks") if name not in clicks.columns]
        if missing:
            raise ValueError(
                f"the clicks frame has no column '{missing[0]}'; found {', '.join(clicks.columns)}; expected "
                "prefix, query and clicks"
            )
        if clicks.is_empty():
            raise ValueError("the clicks frame has no rows; popularity needs at least one training click")
        queries = clicks.group_by("query").agg(pl.col("clicks").sum()).sort("query")
        self._queries = queries["query"].to_list()  # sorted by code point: UTF-8 bytes sort the same way
        order = np.argsort(-queries["clicks"].to_numpy().astype(np.float64), kind="stable")  # ties stay sorted by text
        self._by_rank = order  # rank -> index of the query
        self._rank = np.empty(len(order), dtype=np.int64)  # index of the query -> rank, 0 the most clicked
        self._rank[order] = np.arange(len(order))

        pairs = clicks.group_by("prefix", "query").agg(pl.col("clicks").sum())
        pairs = pairs.sort("prefix", "clicks", "query", descending=[False, True, False])
        first = pairs.with_row_index("row").group_by("prefix", maintain_order=True).agg(pl.first("row"), pl.len())
        self._clicked = pairs["query"].to_list()
        self._slices = {
            prefix: (start, start + length)
            for prefix, start, length in first.select("prefix", "row", "len").iter_rows()
        }
        self._completions: dict[tuple[str, int], list[str]] = {}
        self._lists: dict[tuple[str, int], list[str]] = {}

    def suggest(self, prefixes: Sequence[str], k: int = 16) -> list[list[str]]:
        """Ranked lists of distinct queries.

        Args:
            prefixes: what was typed, N strings; an empty one gives the most clicked queries of all.
            k: length of a list; it is shorter only when the training clicks hold fewer distinct queries.

        Returns:
            N lists, best first.

        Raises:
            ValueError: ``k`` is below 1.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more suggestions")
        return [list(self._list(prefix, k)) for prefix in prefixes]

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        """The baseline as a policy: up to 16 queries for each row's ``prefix``, nothing else is looked at."""
        return self.suggest(requests["prefix"].to_list())

    def _list(self, prefix: str, k: int) -> list[str]:
        if (prefix, k) not in self._lists:
            found: dict[str, None] = {}  # an ordered set
            for query in self._candidates(prefix, k):
                found[query] = None
                if len(found) == k:
                    break
            self._lists[prefix, k] = list(found)
        return self._lists[prefix, k]

    def _candidates(self, prefix: str, k: int) -> Iterator[str]:
        for length in range(len(prefix), -1, -1):
            shorter = prefix[:length]
            start, stop = self._slices.get(shorter, (0, 0))
            yield from self._clicked[start:stop]
            # The k best cover the list even if all that came before are among them: those count towards k
            # too.
            yield from self._complete(shorter, k)

    def _complete(self, prefix: str, k: int) -> list[str]:
        """The k most clicked queries that start with the prefix."""
        if (prefix, k) not in self._completions:
            start = bisect_left(self._queries, prefix)
            # Sorted texts that start with the prefix are one run, so "no longer starts with it" is False then
            # True.
            stop = bisect_left(self._queries, True, lo=start, key=lambda query: not query.startswith(prefix))
            ranks = self._rank[start:stop]
            if len(ranks) > k:
                ranks = np.partition(ranks, k)[:k]
            best = [self._queries[index] for index in self._by_rank[np.sort(ranks)]]
            self._completions[prefix, k] = best
        return self._completions[prefix, k]


def count_clicks(clicks: pl.DataFrame) -> pl.DataFrame:
    """``prefix``, ``query``, ``clicks``, sorted: how often each query was clicked under each prefix.

    Args:
        clicks: a row a click, as :func:`onesug_lite.log.clicked` gives them.
    """
    return clicks.group_by("prefix", "query").agg(clicks=pl.len()).sort("prefix", "query")
