"""Recall: the first stage of the cascade looks up, among all queries of the training days, those that may fit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from os.path import commonprefix

import numpy as np
import polars as pl
from scipy import sparse

from onesug_lite.features import CascadeConfig, Requests
from onesug_lite.popularity import PopularityCompletion
from onesug_lite.sid_search import nearest


class Recall:
    r"""Channels that recall queries of the pool, and their merging.

    ================  ==================================================================================================
    channel           queries, best first
    ================  ==================================================================================================
    ``embedding``     nearest to the prefix's vector by cosine, among the whole pool
    ``completion``    of :class:`onesug_lite.popularity.PopularityCompletion`
    ``cooccurrence``  clicked under the prefix, and their ItemCF partners
    ``history``       the shopper's earlier searches and their ItemCF partners, those with a word that starts with the
                      word that is being typed
    ``spelling``      clicked under prefixes that one edit turns into this one: a character more, less or another, or
                      two neighbours swapped
    ================  ==================================================================================================

    The vector of a prefix is pooled as in :class:`onesug_lite.prefix_search.PrefixSearch`: its own embedding plus
    the mean of those of the queries clicked under it, weighed by log2(1 + clicks). A new prefix is its own embedding.

    Args:
        queries: the pool, Q distinct texts.
        vectors: ``float32`` (Q, D) their unit embeddings.
        prefixes: P distinct texts, those of ``clicks`` among them.
        prefix_vectors: ``float32`` (P, D) their unit embeddings.
        clicks: ``prefix, query, clicks`` of the training days, each pair once.
        related: ``query_a, query_b, score`` of :func:`onesug_lite.pairs.item_cf`, scores of a pair to be summed.
        config: ``channels`` and ``recalled`` and the channels' own settings are read.

    Source:
        Paper, offline table, for recall by embedding; the other channels are ours, those of a textbook production
        system. Deletions on both sides to find what may be one edit away: Garbe's SymSpell (2012).
    """

    def __init__(
        self,
        queries: list[str],
        vectors: np.ndarray,
        prefixes: list[str],
        prefix_vectors: np.ndarray,
        clicks: pl.DataFrame,
        related: pl.DataFrame,
        config: CascadeConfig,
    ):
        self.queries, self.vectors, self.prefixes, self.prefix_vectors = queries, vectors, prefixes, prefix_vectors
        self.clicks, self.related, self.config = clicks, related, config
        self.number = {query: number for number, query in enumerate(queries)}
        self.code = {prefix: code for code, prefix in enumerate(prefixes)}

    def __call__(self, requests: Requests) -> np.ndarray:
        """Merge the channels, which take turns: each gives its best query that is not there yet.

        Args:
            requests: B of them.

        Returns:
            ``int64`` (B, recalled) numbers of queries, each once in a row, best first; -1 fills up.
        """
        channels = [self.channel(name, requests) for name in self.config.channels]
        found = np.full((len(requests.prefixes), self.config.recalled), -1)
        for row, lists in enumerate(zip(*channels, strict=True)):
            turn = np.concatenate([np.arange(len(part)) for part in lists])
            joined = np.concatenate(lists)[np.argsort(turn, kind="stable")]
            _, first = np.unique(joined, return_index=True)
            joined = joined[np.sort(first)][: self.config.recalled]
            found[row, : len(joined)] = joined
        return found

    def channel(self, name: str, requests: Requests) -> list[np.ndarray]:
        """What one channel recalls.

        Args:
            name: one of :data:`onesug_lite.features.CHANNELS`.
            requests: B of them.

        Returns:
            B arrays of at most ``recalled`` numbers of queries, best first.
        """
        if name == "history":
            return self._history(requests)
        row = {prefix: row for row, prefix in enumerate(requests.prefixes)}  # the others look at the prefix alone
        found = getattr(self, f"_{name}")(requests.take(np.array(list(row.values()), dtype=np.int64)))
        found = dict(zip(row, found, strict=True))
        return [found[prefix] for prefix in requests.prefixes]

    def _embedding(self, requests: Requests) -> list[np.ndarray]:
        vectors = np.where(requests.code[:, None] >= 0, self._pooled[requests.code], requests.vectors)
        return list(nearest(self.vectors, vectors, min(self.config.recalled, len(self.queries))))

    def _completion(self, requests: Requests) -> list[np.ndarray]:
        lists = self._completions.suggest(requests.prefixes, self.config.recalled)
        return [np.array([self.number[query] for query in row], dtype=np.int64) for row in lists]

    def _cooccurrence(self, requests: Requests) -> list[np.ndarray]:
        return self._best(_sum_rows(self._clicks, [[code] for code in requests.code.tolist()]) @ self._partners)

    def _spelling(self, requests: Requests) -> list[np.ndarray]:
        near = []
        for prefix in requests.prefixes:
            codes = {code for form in self._forms(prefix) for code in self._misspelt.get(form, ())}
            near.append(sorted(code for code in codes if _one_edit(prefix, self.prefixes[code])))
        return self._best(_sum_rows(self._clicks, near))

    def _history(self, requests: Requests) -> list[np.ndarray]:
        earlier = [[n for n in row if n < len(self.queries)] for row in requests.history.tolist()]
        found = self._best(_sum_rows(self._partners, earlier))
        typed = [" " + prefix.split(" ")[-1] for prefix in requests.prefixes]
        return [
            np.array([n for n in row.tolist() if word in " " + self.queries[n]], dtype=np.int64)
            for word, row in zip(typed, found, strict=True)
        ]

    def _best(self, scores: sparse.csr_matrix) -> list[np.ndarray]:
        """The columns of each row by score, equals by number."""
        scores.sort_indices()
        found = []
        for start, stop in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
            order = np.argsort(-np.round(scores.data[start:stop], 9), kind="stable")[: self.config.recalled]
            found.append(scores.indices[start:stop][order].astype(np.int64))
        return found

    def _forms(self, prefix: str) -> Iterator[str]:
        """The prefix, and what is left of it without one of its characters; texts one edit apart share a form."""
        if len(prefix) >= self.config.min_spelling_chars:
            yield prefix
            yield from (prefix[:at] + prefix[at + 1 :] for at in range(len(prefix)))

    @cached_property
    def _misspelt(self) -> dict[str, list[int]]:
        """Prefixes with clicks, by their forms."""
        found: dict[str, list[int]] = {}
        for code in np.flatnonzero(np.diff(self._clicks.indptr)).tolist():
            for form in self._forms(self.prefixes[code]):
                found.setdefault(form, []).append(code)
        return found

    @cached_property
    def _completions(self) -> PopularityCompletion:
        return PopularityCompletion(self.clicks)

    @cached_property
    def _clicks(self) -> sparse.csr_matrix:
        """Clicks (P, Q) of queries under prefixes."""
        return self._matrix(self.clicks, self.clicks["clicks"].to_numpy().astype(np.float64))

    @cached_property
    def _partners(self) -> sparse.csr_matrix:
        """ItemCF scores (Q, Q), and 1 on the diagonal."""
        first, second = (
            self.related[side].replace_strict(self.number, return_dtype=pl.Int64).to_numpy()
            for side in ("query_a", "query_b")
        )
        half = sparse.csr_matrix((self.related["score"].to_numpy(), (first, second)), (len(self.queries),) * 2)
        return (half + half.T + sparse.identity(len(self.queries))).tocsr()

    @cached_property
    def _pooled(self) -> np.ndarray:
        """Pooled unit vectors (P, D) of prefixes."""
        order = self.clicks.sort("prefix", "clicks", "query", descending=[False, True, False])
        best = order.group_by("prefix", maintain_order=True).head(self.config.cooccurring)
        pooling = self._matrix(best, np.log2(1 + best["clicks"].to_numpy()))
        total = np.asarray(pooling.sum(axis=1))  # (P, 1)
        pooled = self.prefix_vectors + (pooling @ self.vectors) / np.maximum(total, 1e-9)
        return (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)

    def _matrix(self, clicks: pl.DataFrame, values: np.ndarray) -> sparse.csr_matrix:
        rows = clicks["prefix"].replace_strict(self.code, return_dtype=pl.Int64).to_numpy()
        columns = clicks["query"].replace_strict(self.number, return_dtype=pl.Int64).to_numpy()
        return sparse.csr_matrix((values, (rows, columns)), shape=(len(self.prefixes), len(self.queries)))


def _one_edit(first: str, second: str) -> bool:
    """Whether one character more, less or another, or two neighbours swapped, turns one text into the other."""
    same = len(commonprefix([first, second]))
    a, b = first[same:], second[same:]
    swapped = a[:2] == b[1::-1] and a[2:] == b[2:]
    return a != b and (a[1:] == b or a == b[1:] or a[1:] == b[1:] or swapped)


def _sum_rows(matrix: sparse.csr_matrix, rows: list[list[int]]) -> sparse.csr_matrix:
    """For each list of row numbers the sum of these rows; negative numbers count for nothing."""
    pairs = [(at, row) for at, some in enumerate(rows) for row in some if row >= 0]
    at, row = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return sparse.csr_matrix((np.ones(len(at)), (at, row)), shape=(len(rows), matrix.shape[0])) @ matrix
