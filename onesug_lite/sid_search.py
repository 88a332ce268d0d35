"""Search by semantic id, fine to coarse, and by plain nearest neighbours.

First come the rows that share the full id, then those that share the id shortened by one level, and so on; the cosine
decides among equals. :class:`onesug_lite.prefix_search.PrefixSearch` asks for the related queries of a prefix.

Source: paper, section PRE, clustering-based search (figure of the authors' public repository).
"""

from __future__ import annotations

import numpy as np

STEPS = 1_000_000  # cosines are compared in millionths: float noise must not order equals


def search(
    sids: np.ndarray, vectors: np.ndarray, query_sids: np.ndarray, query_vectors: np.ndarray, k: int
) -> np.ndarray:
    """The k rows that share the longest start of a semantic id; among equals the highest cosine.

    Args:
        sids: ``int`` (M, L) semantic ids to search in, coarse to fine.
        vectors: ``float32`` (M, D) their unit vectors.
        query_sids: ``int`` (N, L).
        query_vectors: ``float32`` (N, D), unit vectors.
        k: rows wanted, at most M.

    Returns:
        ``int64`` (N, k), best first: by the number of shared levels, then by cosine, then by row number.

    Raises:
        ValueError: k is more than M.

    Source:
        Paper, section PRE, clustering-based search (figure of the authors' public repository).
    """
    _check_k(k, len(sids))
    found = np.empty((len(query_sids), k), dtype=np.int64)
    members = _groups(sids[:, 0])
    far = []  # queries whose first code has fewer than k members: any row may be an answer
    for code, rows in _groups(query_sids[:, 0]).items():
        group = members.get(code)
        if group is None or len(group) < k:
            far.append(rows)
            continue
        for some in _chunks(rows, len(group)):
            near = (query_vectors[some], query_sids[some])
            found[some] = group[_top(*near, vectors[group], sids[group], k)]
    if far:
        for some in _chunks(np.concatenate(far), len(sids)):
            found[some] = _top(query_vectors[some], query_sids[some], vectors, sids, k)
    return found


def nearest(vectors: np.ndarray, query_vectors: np.ndarray, k: int) -> np.ndarray:
    """The k rows of highest cosine, for comparison: what the search gives up for its ids.

    Args:
        vectors: ``float32`` (M, D) unit vectors to search in.
        query_vectors: ``float32`` (N, D) unit vectors.
        k: rows wanted, at most M.

    Returns:
        ``int64`` (N, k), best first; equals by row number.

    Raises:
        ValueError: k is more than M.
    """
    _check_k(k, len(vectors))
    found = np.empty((len(query_vectors), k), dtype=np.int64)
    for some in _chunks(np.arange(len(query_vectors)), len(vectors)):
        found[some] = _top(query_vectors[some], None, vectors, None, k)
    return found


def _check_k(k: int, rows: int) -> None:
    if not 1 <= k <= rows:
        raise ValueError(f"k is {k} and there are {rows} rows to search in; expected k from 1 to {rows}.")


def _groups(codes: np.ndarray) -> dict[int, np.ndarray]:
    """Row numbers of each code, ascending."""
    order = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def _chunks(rows: np.ndarray, width: int, cells: int = 8_000_000) -> list[np.ndarray]:
    """Pieces of ``rows`` whose table of ``width`` columns stays small in memory."""
    size = max(1, cells // max(width, 1))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _top(
    query_vectors: np.ndarray,
    query_sids: np.ndarray | None,
    vectors: np.ndarray,
    sids: np.ndarray | None,
    k: int,
) -> np.ndarray:
    """The best k of the rows for each query (n, k), by shared levels, cosine and row number."""
    key = np.rint(query_vectors @ vectors.T * STEPS).astype(np.int64)  # (n, m)
    if sids is not None:
        same = np.ones(key.shape, dtype=bool)
        for level in range(sids.shape[1]):
            same &= query_sids[:, level, None] == sids[None, :, level]
            key += same * np.int64(4 * STEPS)  # more than two cosines can differ
    # The row number makes every key different, so that picking the top k needs no second look at ties.
    key = key * len(vectors) + np.arange(len(vectors) - 1, -1, -1)
    if k < key.shape[1]:
        some = np.argpartition(key, -k, axis=1)[:, -k:]
    else:
        some = np.broadcast_to(np.arange(key.shape[1]), key.shape)
    order = np.argsort(-np.take_along_axis(key, some, axis=1), axis=1)
    return np.take_along_axis(some, order, axis=1)
