"""Departments and families of a list of queries, induced from their texts and counts, and the pool made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .catalogue import Pool
from .config import MarketError
from .query_list import QueryList


class Tastes(NamedTuple):
    """What the shoppers of N queries can have a taste for."""

    department: np.ndarray  # (N,) int32 in 0..D-1, no department empty
    family: np.ndarray  # (N,) int32 in 0..F-1, near matches of each other, each inside one department
    department_names: list[str]  # D different names: the three most telling words of the department


def induce_tastes(texts: Sequence[str], counts, departments: int, family_size: int, seed: int) -> Tastes:
    """Guess departments and families from how queries are spelt.

    Character n-grams of 2 to 4, weighted by tf-idf, serve any script; k-means on their leading singular vectors gives
    departments, and again inside each department, on its own vectors, families. The answer depends on the arguments
    alone: not on the number of threads, nor on Python's hash seed.

    Args:
        texts: N different queries.
        counts: (N,) how often each was searched; a query weighs ``log(1 + count)``.
        departments: how many are wanted; fewer come out when there are not ``family_size`` queries for each.
        family_size: queries in a family on average, at least 2.
        seed: of every draw, at least 0.

    Raises:
        MarketError: no texts or a blank one; counts of another number or below 1; a size out of range.

    Source: ours, from latent semantic analysis (Deerwester et al., 1990) and mini-batch k-means (Sculley, 2010).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits

    counts = np.asarray(counts, dtype=np.float64)
    if not len(texts) or not all(map(str.strip, texts)) or counts.shape != (len(texts),) or not (counts >= 1).all():
        raise MarketError(f"{len(texts)} texts, counts {counts.shape}; expected queries and one count >= 1 for each")
    if departments < 1 or family_size < 2 or seed < 0:
        raise MarketError(
            f"departments is {departments}, family_size {family_size}, seed {seed}; expected at least 1, 2 and 0"
        )
    weight, state = np.log1p(counts), int(np.random.SeedSequence(seed).generate_state(1)[0])
    family, families = np.empty(len(texts), dtype=np.int32), 0
    with threadpool_limits(1):  # the last bits of a sum differ with the number of threads
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), max_features=2**16, dtype=np.float32)
        ngrams = vectorizer.fit_transform(texts)  # (N, V)
        department = _cluster(ngrams, weight, min(departments, len(texts) // family_size), state, init="k-means++")
        for number in range(department.max() + 1):
            rows = np.flatnonzero(department == number)
            # spread starts would cost minutes for thousands of families
            inside = _cluster(ngrams[rows], weight[rows], round(rows.size / family_size), state, init="random")
            family[rows] = families + inside
            families += inside.max() + 1
        return Tastes(department, family, _name_departments(texts, weight, department))


def _cluster(ngrams, weight: np.ndarray, clusters: int, state: int, init: str) -> np.ndarray:
    """(n,) int32 labels without gaps: k-means of the rows of (n, V) in 32 singular vectors."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    if clusters < 2:
        return np.zeros(ngrams.shape[0], dtype=np.int32)
    ngrams = ngrams[:, np.flatnonzero(ngrams.getnnz(axis=0))]  # a department lacks most n-grams of the list
    left, scale, _ = randomized_svd(ngrams, 32, random_state=state)
    kmeans = MiniBatchKMeans(
        clusters, init=init, n_init=1 if init == "random" else 3, batch_size=4096, random_state=state
    )
    label = kmeans.fit_predict(normalize(left * scale), sample_weight=weight)
    return np.unique(label, return_inverse=True)[1].astype(np.int32)


def _name_departments(texts: Sequence[str], weight: np.ndarray, department: np.ndarray) -> list[str]:
    """The three words that are most frequent in a department and most its own."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(token_pattern=r"\S+", lowercase=False, binary=True)
    held = vectorizer.fit_transform(texts)  # (N, W)
    words, overall, names = vectorizer.get_feature_names_out(), held.T @ weight, []
    for number in range(department.max() + 1):
        rows = department == number
        mass = held[rows].T @ weight[rows]
        best = np.argsort(-mass * np.log1p(weight.sum() / weight[rows].sum() * mass / overall), kind="stable")[:3]
        name = " ".join(words[best[mass[best] > 0]])
        names.append(name if name not in names else f"{name} ({number})")
    return names


def build_pool(listed: QueryList, seed: int) -> Pool:
    """A list of queries as the pool of a market: about 16 departments, families of about 12.

    Args:
        listed: the queries.
        seed: of the clustering.
    """
    departments = int(np.clip(len(listed.text) // 200, 4, 16))
    tastes = induce_tastes(listed.text, listed.count, departments, 12, seed)
    order = np.argsort(tastes.department, kind="stable")  # the catalogue keeps departments together
    text = [listed.text[row] for row in order.tolist()]
    return Pool(text, listed.count[order], tastes.department[order], tastes.family[order], tastes.department_names)
