"""Pairs of texts that belong together, mined from clicks: ItemCF and Swing.

The encoder of :mod:`onesug_lite.align` learns from two kinds of pairs. A prefix belongs to the queries that
were clicked under it. Two queries belong together when the same *users* clicked both, where the part of the
user is played once by the shopper and once by the prefix: queries clicked under one prefix are related too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import sparse

from onesug_lite.log import Log, clicked

EMPTY = {"query_a": pl.String, "query_b": pl.String, "score": pl.Float64}


@dataclass(frozen=True)
class PairConfig:
    """Sizes of the mining. The paper names the two methods and gives no number.

    Source:
        Paper, section PRE (ItemCF and Swing, by third-party notes); every value is ours.
    """

    neighbours: int = 10  # ours: best partners kept for a query, by each method
    min_together: int = 2  # ours: users that must hold both queries; one may be chance
    max_items: int = 100  # ours: latest queries kept of a user, which bounds the pairs of a busy one
    max_users: int = 50  # ours: users kept of a pair of queries in Swing, those with the fewest queries
    alpha: float = 1.0  # ours: Swing's smoothing, its usual value
    min_clicks: int = 1  # ours: clicks that make a prefix and a query a pair
    by_prefix: bool = True  # ours: let the prefix play the user as well

    def __post_init__(self) -> None:
        for name in ("neighbours", "min_together", "max_items", "max_users", "min_clicks"):
            if getattr(self, name) < 1:
                raise ValueError(f"PairConfig.{name} is {getattr(self, name)}; expected 1 or more.")
        if not self.alpha > 0:
            raise ValueError(f"PairConfig.alpha is {self.alpha}; expected more than 0.")


class Pairs(NamedTuple):
    """What mining found.

    Attributes:
        prefix_query: ``prefix, query, clicks``, sorted by prefix and query.
        query_query: ``query_a, query_b, score, source`` with ``query_a < query_b``, sorted by source and
            both queries; ``source`` is ``item_cf`` or ``swing``, with ``_prefix`` behind it when prefixes
            played the users. Scores compare within a source only.
    """

    prefix_query: pl.DataFrame
    query_query: pl.DataFrame


def mine_pairs(train: Log, config: PairConfig) -> Pairs:
    """Mine the clicks of the training days for pairs.

    Args:
        train: the training part of a log; never pass later days, their clicks are the answers.
        config: sizes.

    Returns:
        The pairs, the same for the same log whatever the order of its candidates.

    Source:
        Paper, section PRE: real prefix-to-query and query-to-query pairs, mined by collaborative filtering.
    """
    clicks = clicked(train)
    prefix_query = (
        clicks.group_by("prefix", "query")
        .agg(clicks=pl.len().cast(pl.Int64))
        .filter(pl.col("clicks") >= config.min_clicks)
        .sort("prefix", "query")
    )
    users = {"": "user_id", "_prefix": "prefix"} if config.by_prefix else {"": "user_id"}
    found = []
    for suffix, user in users.items():
        interactions = clicks.select(pl.col(user).alias("user"), pl.col("query").alias("item"))
        for name, method in (("item_cf", item_cf), ("swing", swing)):
            pairs = method(interactions, config)
            found.append(pairs.with_columns(source=pl.lit(name + suffix)))
    return Pairs(prefix_query, pl.concat(found).sort("source", "query_a", "query_b"))


def item_cf(interactions: pl.DataFrame, config: PairConfig) -> pl.DataFrame:
    r"""Item-to-item collaborative filtering, with busy users damped.

    .. math::

        s(a, b) = \frac{1}{\sqrt{|U_a|\,|U_b|}} \sum_{u \in U_a \cap U_b} \frac{1}{\log_2(1 + |I_u|)}

    with :math:`U_a` the users of query *a* and :math:`I_u` the queries of user *u*.

    Args:
        interactions: ``user`` (any type) and ``item`` (text), oldest first; repeats count once.
        config: ``neighbours``, ``min_together`` and ``max_items`` are read.

    Returns:
        ``query_a, query_b, score`` with ``query_a < query_b``, sorted by both; each pair is among the best
        ``neighbours`` of one of its two queries.

    Source:
        Breese, Heckerman and Kadie (1998) for the damping; Linden, Smith and York (2003) for the method.
    """
    held, items = _incidence(interactions, config.max_items)  # (users, items) of 0 and 1
    if held.nnz == 0:
        return pl.DataFrame(schema=EMPTY)
    sizes = np.asarray(held.sum(axis=1)).ravel()  # (users,)
    popularity = np.asarray(held.sum(axis=0)).ravel()  # (items,)
    together = sparse.triu(held.T @ held, k=1).tocsr()
    together.sort_indices()
    damped = sparse.triu(held.T @ sparse.diags(1 / np.log2(1 + sizes)) @ held, k=1).tocsr()
    damped.sort_indices()  # same pattern as `together`, so the entries line up
    first, second = _coordinates(damped)
    score = damped.data / np.sqrt(popularity[first] * popularity[second])
    enough = together.data >= config.min_together
    return _best(first[enough], second[enough], score[enough], items, config.neighbours)


def swing(interactions: pl.DataFrame, config: PairConfig) -> pl.DataFrame:
    r"""Swing: two users who share little else are the best witnesses that two queries belong together.

    .. math::

        s(a, b) = \sum_{\{u, v\} \subseteq U_a \cap U_b}
            \frac{1}{\sqrt{|I_u|}} \cdot \frac{1}{\sqrt{|I_v|}} \cdot \frac{1}{\alpha + |I_u \cap I_v|}

    over unordered pairs of different users. A pair of queries with more than ``max_users`` common users is
    scored on those with the fewest queries, which carry the largest weights.

    Args:
        interactions: ``user`` (any type) and ``item`` (text), oldest first; repeats count once.
        config: ``neighbours``, ``min_together``, ``max_items``, ``max_users`` and ``alpha`` are read.

    Returns:
        ``query_a, query_b, score`` with ``query_a < query_b``, sorted by both; each pair is among the best
        ``neighbours`` of one of its two queries.

    Source:
        Yang et al., "Large scale product graph construction for recommendation in e-commerce" (2020).
    """
    held, items = _incidence(interactions, config.max_items)
    sizes = np.asarray(held.sum(axis=1)).ravel()  # (users,)
    # Users are renumbered by size, so that "those with the fewest queries" are the lowest numbers.
    order = np.lexsort((np.arange(len(sizes)), sizes))
    held, weight = held[order], 1 / np.sqrt(np.maximum(sizes[order], 1))

    pair, user = _witnesses(held)  # (W,), (W,): user `user` holds both queries of pair `pair`
    if len(pair) == 0:
        return pl.DataFrame(schema=EMPTY)
    by_pair = np.lexsort((user, pair))
    pair, user = pair[by_pair], user[by_pair]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]])
    counts = np.diff(np.r_[starts, len(pair)])
    rank = np.arange(len(pair)) - np.repeat(starts, counts)
    keep = (np.repeat(counts, counts) >= max(2, config.min_together)) & (rank < config.max_users)
    pair, user, rank = pair[keep], user[keep], rank[keep]
    if len(pair) == 0:
        return pl.DataFrame(schema=EMPTY)

    # Witness number r of a pair meets the r witnesses before it: two users each, every pair of users once.
    later = np.repeat(np.arange(len(pair)), rank)
    earlier = later - 1 - (np.arange(len(later)) - np.repeat(np.cumsum(rank) - rank, rank))
    u, v = user[earlier], user[later]
    # Meetings repeat between the same two users, once for each pair of queries that they share.
    meeting, which = np.unique(u.astype(np.int64) * held.shape[0] + v, return_inverse=True)
    shared = _shared(held, meeting // held.shape[0], meeting % held.shape[0])[which]
    value = weight[u] * weight[v] / (config.alpha + shared)
    pairs, group = np.unique(pair[later], return_inverse=True)
    score = np.bincount(group, weights=value)
    return _best(pairs // len(items), pairs % len(items), score, items, config.neighbours)


def _incidence(interactions: pl.DataFrame, max_items: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Users x items of 0 and 1, and the texts of the items in sorted order."""
    kept = (
        interactions.unique(["user", "item"], keep="last", maintain_order=True)
        .group_by("user", maintain_order=True)
        .tail(max_items)
    )
    items = kept["item"].unique().sort()
    users = kept["user"].rank("dense").to_numpy().astype(np.int64) - 1
    columns = kept["item"].rank("dense").to_numpy().astype(np.int64) - 1
    shape = (int(users.max(initial=-1)) + 1, len(items))
    held = sparse.csr_matrix((np.ones(len(users)), (users, columns)), shape=shape)
    held.sort_indices()
    return held, items.to_numpy()


def _coordinates(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows.astype(np.int64), matrix.indices.astype(np.int64)


def _witnesses(held: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Every (pair of items a < b, user who holds both); a pair is the number a * items + b."""
    lengths = np.diff(held.indptr).astype(np.int64)
    # Each entry of a row meets the entries behind it in its row.
    position = np.arange(held.nnz) - np.repeat(held.indptr[:-1], lengths)
    behind = np.repeat(lengths, lengths) - 1 - position
    first = np.repeat(np.arange(held.nnz), behind)
    second = first + 1 + (np.arange(len(first)) - np.repeat(np.cumsum(behind) - behind, behind))
    user = np.repeat(np.arange(held.shape[0]), lengths)[first]
    pair = held.indices[first].astype(np.int64) * held.shape[1] + held.indices[second]
    return pair, user


def _shared(held: sparse.csr_matrix, u: np.ndarray, v: np.ndarray, chunk: int = 200_000) -> np.ndarray:
    """How many items users u and v share, for each of many pairs of users."""
    shared = np.empty(len(u))
    for start in range(0, len(u), chunk):  # bounds the memory of the row-wise products
        some = slice(start, start + chunk)
        shared[some] = np.asarray(held[u[some]].multiply(held[v[some]]).sum(axis=1)).ravel()
    return shared


def _best(first: np.ndarray, second: np.ndarray, score: np.ndarray, items: np.ndarray, neighbours: int) -> pl.DataFrame:
    """Keep the pairs that are among the best of one of their queries; ties go to the earlier text."""
    query = np.concatenate([first, second])
    partner = np.concatenate([second, first])
    # Sums in another order differ in the last digits; they must not decide between equals.
    rounded = np.round(np.concatenate([score, score]), 12)
    order = np.lexsort((partner, -rounded, query))
    starts = np.flatnonzero(np.r_[True, np.diff(query[order]) != 0])[: len(order)]
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.zeros(len(score), dtype=bool)
    kept[order[rank < neighbours] % max(len(score), 1)] = True
    first, second, score = first[kept], second[kept], score[kept]
    by_text = np.lexsort((second, first))  # items are sorted, so numbers sort like texts
    return pl.DataFrame(
        {
            "query_a": items[first[by_text]],
            "query_b": items[second[by_text]],
            "score": np.round(score[by_text], 12),
        },
        schema=EMPTY,
    )
