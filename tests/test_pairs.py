"""Mined pairs against the formulas written out, loop by loop."""

from collections import defaultdict
from datetime import datetime
from itertools import combinations
from math import log2, sqrt

import numpy as np
import polars as pl
import pytest

from onesug_lite.log import CANDIDATE_SCHEMA, REQUEST_SCHEMA, Log
from onesug_lite.pairs import PairConfig, item_cf, mine_pairs, swing

WIDE = PairConfig(neighbours=1000, min_together=1, max_items=1000, max_users=1000)


def interactions(seed: int, users: int = 12, items: int = 9, rows: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    drawn = np.minimum(rng.integers(0, items, rows), rng.integers(0, items, rows))  # low items are popular
    return pl.DataFrame({"user": rng.integers(0, users, rows), "item": [f"q{number}" for number in drawn]})


def held_by(frame: pl.DataFrame) -> tuple[dict, dict]:
    by_user, by_item = defaultdict(set), defaultdict(set)
    for user, item in frame.rows():
        by_user[user].add(item)
        by_item[item].add(user)
    return by_user, by_item


def brute_item_cf(frame: pl.DataFrame) -> dict:
    by_user, by_item = held_by(frame)
    scores = {}
    for a, b in combinations(sorted(by_item), 2):
        both = by_item[a] & by_item[b]
        if both:
            total = sum(1 / log2(1 + len(by_user[user])) for user in both)
            scores[a, b] = total / sqrt(len(by_item[a]) * len(by_item[b]))
    return scores


def brute_swing(frame: pl.DataFrame, alpha: float) -> dict:
    by_user, by_item = held_by(frame)
    scores = {}
    for a, b in combinations(sorted(by_item), 2):
        total = sum(
            1 / sqrt(len(by_user[u]) * len(by_user[v])) / (alpha + len(by_user[u] & by_user[v]))
            for u, v in combinations(sorted(by_item[a] & by_item[b]), 2)
        )
        if total:
            scores[a, b] = total
    return scores


def scores_of(frame: pl.DataFrame) -> dict:
    return {(a, b): score for a, b, score in frame.rows()}


@pytest.mark.parametrize("seed", range(4))
def test_item_cf_is_its_formula(seed):
    frame = interactions(seed)
    assert scores_of(item_cf(frame, WIDE)) == pytest.approx(brute_item_cf(frame))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_swing_is_its_formula(seed, alpha):
    frame = interactions(seed)
    config = PairConfig(neighbours=1000, min_together=1, max_items=1000, max_users=1000, alpha=alpha)
    assert scores_of(swing(frame, config)) == pytest.approx(brute_swing(frame, alpha))


def test_swing_by_hand():
    # Users 1 and 2 share a and b alone; 3 and 4 share a, b, c and d: the first two are the better witnesses.
    frame = pl.DataFrame(
        {"user": [1, 1, 2, 2, 3, 3, 3, 4, 4, 4], "item": ["a", "b", "a", "b", "c", "d", "e", "c", "d", "e"]}
    )
    scores = scores_of(swing(frame, WIDE))
    assert scores["a", "b"] == pytest.approx(1 / 2 / 3)
    assert scores["c", "d"] == pytest.approx(1 / 3 / 4)


@pytest.mark.parametrize("method", [item_cf, swing])
def test_only_the_best_neighbours_stay(method):
    frame = interactions(7, users=40, rows=300)
    every = scores_of(method(frame, WIDE))
    kept = scores_of(method(frame, PairConfig(neighbours=2, min_together=1, max_items=1000, max_users=1000)))
    best = set()
    for query in {name for pair in every for name in pair}:
        mine = sorted((pair for pair in every if query in pair), key=lambda pair: (-round(every[pair], 9), pair))
        best |= set(mine[:2])
    assert len(kept) < len(every)
    assert set(kept) == best


@pytest.mark.parametrize("method", [item_cf, swing])
def test_one_common_user_may_be_chance(method):
    frame = pl.DataFrame({"user": [1, 1, 2, 2, 2, 3, 3], "item": ["a", "b", "a", "c", "b", "x", "y"]})
    assert set(scores_of(method(frame, PairConfig()))) == {("a", "b")}


def test_a_busy_user_counts_with_the_latest_queries_only():
    frame = pl.DataFrame({"user": [1] * 5, "item": ["a", "b", "c", "a", "d"]})
    pairs = item_cf(frame, PairConfig(min_together=1, max_items=2))
    assert set(scores_of(pairs)) == {("a", "d")}  # a was repeated after c


def test_swing_keeps_the_users_with_the_fewest_queries():
    crowd = [(user, item) for user in range(6) for item in ("a", "b")]
    busy = [(user, f"only {user} {number}") for user in range(3, 6) for number in range(5)]
    frame = pl.DataFrame(crowd + busy, schema=["user", "item"], orient="row")
    few = scores_of(swing(frame, PairConfig(max_users=3)))
    alone = scores_of(swing(frame.filter(pl.col("user") < 3), PairConfig(max_users=3)))
    assert few["a", "b"] == pytest.approx(alone["a", "b"])


@pytest.mark.parametrize("method", [item_cf, swing])
def test_nothing_to_pair_gives_an_empty_frame(method):
    empty = pl.DataFrame(schema={"user": pl.Int64, "item": pl.String})
    lonely = pl.DataFrame({"user": [1, 2], "item": ["a", "b"]})
    for frame in (empty, lonely):
        pairs = method(frame, PairConfig())
        assert pairs.is_empty() and pairs.columns == ["query_a", "query_b", "score"]


def log_of(rows: list[tuple[int, str, str, str]]) -> Log:
    """From (user, prefix, query, behaviour), one candidate a request."""
    requests = [(n, n, user, datetime(2025, 1, 1), prefix, [], []) for n, (user, prefix, _, _) in enumerate(rows)]
    candidates = [(n, query, 1, behaviour, 0.0) for n, (_, _, query, behaviour) in enumerate(rows)]
    return Log(
        pl.DataFrame(requests, schema=REQUEST_SCHEMA, orient="row"),
        pl.DataFrame(candidates, schema=CANDIDATE_SCHEMA, orient="row"),
    )


def test_mined_pairs_come_from_clicks_by_shopper_and_by_prefix():
    train = log_of(
        [
            (1, "sh", "shoes red", "order"),
            (1, "sh", "shirt", "query_click"),
            (2, "sh", "shoes red", "item_click"),
            (2, "shi", "shirt", "query_click"),
            (3, "shi", "shoes red", "query_click"),
            (4, "sh", "shorts", "show"),  # never clicked
        ]
    )
    pairs = mine_pairs(train, PairConfig())
    assert pairs.prefix_query.rows() == [
        ("sh", "shirt", 1),
        ("sh", "shoes red", 2),
        ("shi", "shirt", 1),
        ("shi", "shoes red", 1),
    ]
    assert pairs.query_query["source"].to_list() == ["item_cf", "item_cf_prefix", "swing", "swing_prefix"]
    assert set(pairs.query_query.select("query_a", "query_b").rows()) == {("shirt", "shoes red")}
    assert mine_pairs(train, PairConfig(by_prefix=False)).query_query["source"].to_list() == [
        "item_cf",
        "swing",
    ]


def test_the_order_of_candidates_does_not_matter():
    rng = np.random.default_rng(0)
    rows = [
        (int(user), f"p{prefix}", f"q{query}", "query_click") for user, prefix, query in rng.integers(0, 8, (200, 3))
    ]
    train = log_of(rows)
    again = Log(train.requests, train.candidates.sample(fraction=1, shuffle=True, seed=3))
    for one, other in zip(mine_pairs(train, PairConfig()), mine_pairs(again, PairConfig()), strict=True):
        assert one.equals(other)


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"max_users": -1}, {"alpha": 0.0}])
def test_senseless_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=f"PairConfig.{next(iter(wrong))}"):
        PairConfig(**wrong)
