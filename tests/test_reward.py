"""Rewards, weights and preference rows: by hand, by counting, and for every pair of rewards."""

import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_lite.log import BEHAVIOURS, CANDIDATE_SCHEMA, CLICKS, REQUEST_SCHEMA, Log
from onesug_lite.reward import (
    LEVELS,
    PAIR_TYPES,
    RewardConfig,
    pair_weight,
    preference_sets,
    prefix_query_ctr,
    reward,
)

POOL = [f"random {number}" for number in range(40)]


def make_log(requests):
    """A log from (prefix, [(query, behaviour), ...]) rows; shown candidates stand in the order given."""
    heads, candidates = [], []
    for number, (prefix, shown) in enumerate(requests):
        time = datetime(2024, 1, 1) + timedelta(minutes=number)
        heads.append((number, number, 0, time, prefix, ["woman"], [f"earlier {number}"]))
        place = 0
        for query, behaviour in shown:
            place += behaviour != "not_shown"
            position = None if behaviour == "not_shown" else place
            candidates.append((number, query, position, behaviour, 0.0))
    return Log(
        pl.DataFrame(heads, schema=REQUEST_SCHEMA, orient="row"),
        pl.DataFrame(candidates, schema=CANDIDATE_SCHEMA, orient="row"),
    )


def full_request(number, clicks=(("c", "query_click"),)):
    shown = [(f"s{number}-{place}", "show") for place in range(6)]
    hidden = [(f"h{number}-{place}", "not_shown") for place in range(3)]
    return ("ap", list(clicks) + shown + hidden)


LOG = make_log([full_request(number) for number in range(50)])


def test_levels_and_pair_types_are_the_papers():
    assert list(LEVELS.values()) == [2.0, 1.5, 1.0, 0.5, 0.2, 0.0]
    assert tuple(LEVELS) == (*BEHAVIOURS, "random")
    assert len(PAIR_TYPES) == len(set(PAIR_TYPES)) == 9
    assert all(LEVELS[chosen] > LEVELS[rejected] for chosen, rejected in PAIR_TYPES)


def test_ctr_by_hand():
    log = make_log(
        [
            ("a", [("x", "order"), ("y", "show")]),
            ("a", [("x", "show"), ("y", "not_shown")]),
            ("b", [("x", "item_click"), ("z", "query_click")]),
        ]
    )
    rates = prefix_query_ctr(log, RewardConfig(prior=0))
    assert rates.rows() == [
        ("a", "x", 2, 1, 0.5),
        ("a", "y", 1, 0, 0.0),
        ("b", "x", 1, 1, 1.0),
        ("b", "z", 1, 1, 1.0),
    ]
    mean = 3 / 5
    shrunk = prefix_query_ctr(log, RewardConfig(prior=2))["ctr"].to_list()
    assert shrunk == pytest.approx([(1 + 2 * mean) / 4, 2 * mean / 3, (1 + 2 * mean) / 3, (1 + 2 * mean) / 3])


def test_only_the_centred_factor_can_shrink_a_level():
    levels, ctr = np.array([2.0, 1.0, 0.5]), np.array([0.0, 0.1, 0.3])
    plain = reward(levels, ctr, 0.2, RewardConfig(ctr_factor="plain"))
    centred = reward(levels, ctr, 0.2, RewardConfig(ctr_factor="centred"))
    np.testing.assert_allclose(plain, [2.0, math.exp(0.1), 0.5 * math.exp(0.3)])
    assert (plain >= levels).all()
    assert (centred < levels).tolist() == [True, True, False]
    # released rows hold 0.97 for a query click and 0.47 for a show: rates 0.03 and 0.06 under the mean
    np.testing.assert_allclose(
        reward(np.array([1.0, 0.5]), np.array([0.17, 0.138]), 0.2, RewardConfig()), [0.97, 0.47], atol=5e-3
    )


def test_a_small_gap_weighs_more():
    config = RewardConfig()
    weights = pair_weight(np.array([2.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.5]), config)
    np.testing.assert_allclose(weights, [0.5, 1.0, 2.0])
    # equal and inverted rewards, of which the printed form makes infinity and less than nothing
    np.testing.assert_allclose(pair_weight(np.array([1.0, 0.5]), np.array([1.0, 2.0]), config), [10, 10])


@settings(deadline=None)
@given(st.floats(0, 6), st.floats(0, 6))
def test_weight_is_finite_and_positive_for_every_pair(chosen, rejected):
    config = RewardConfig(min_gap=0.1)
    weight = pair_weight(np.array(chosen), np.array(rejected), config)
    assert 0 < weight <= 1 / config.min_gap + 1e-9
    if chosen - rejected >= config.min_gap:
        assert weight == pytest.approx(1 / (chosen - rejected))


def test_rows_hold_what_the_mix_asks_for():
    sets = preference_sets(LOG, POOL, RewardConfig(), np.random.default_rng(0))
    rows = sets.rows
    assert len(rows) == 50
    assert rows["request_id"].to_list() == list(range(50))
    assert rows["history"][7].to_list() == ["earlier 7"]
    for row in rows.iter_rows(named=True):
        number = row["request_id"]
        assert row["rejected_behaviour"] == ["show", "not_shown", "random", "show"]
        assert [query[0] for query in row["rejected"]] == ["s", "h", "r", "s"]
        assert len(set(row["rejected"])) == 4
        assert all(row["rejected"][slot][1:].startswith(f"{number}-") for slot in (0, 1, 3))
    # all six shown and all three hidden candidates are drawn now and then: a draw, not the first few
    drawn = rows.explode("rejected")["rejected"].str.replace(r"\d+-", "")
    assert {f"s{place}" for place in range(6)} | {f"h{place}" for place in range(3)} <= set(drawn)


def test_rewards_and_weights_stand_beside_their_queries():
    config = RewardConfig()
    sets = preference_sets(LOG, POOL, config, np.random.default_rng(0))
    rates = {(prefix, query): ctr for prefix, query, _, _, ctr in prefix_query_ctr(LOG, config).rows()}
    assert sets.mean_ctr == pytest.approx(1 / 7)
    for row in sets.rows.iter_rows(named=True):
        expected = [
            LEVELS[behaviour] * math.exp(rates.get((row["prefix"], query), sets.mean_ctr) - sets.mean_ctr)
            for query, behaviour in zip(row["rejected"], row["rejected_behaviour"], strict=True)
        ]
        chosen = math.exp(rates[row["prefix"], row["chosen"]] - sets.mean_ctr)
        assert row["rejected_reward"] == pytest.approx(expected)
        assert row["chosen_reward"] == pytest.approx(chosen)
        assert row["weight"] == pytest.approx([1 / max(chosen - other, config.min_gap) for other in expected])


def test_the_propensity_of_the_clicked_place_comes_along():
    chances = pl.Series([0.1 + 0.01 * row for row in range(LOG.candidates.height)], dtype=pl.Float32) / 10
    hidden = pl.col("behaviour") == "not_shown"
    known = LOG.candidates.with_columns(propensity=pl.when(~hidden).then(chances))
    rows = preference_sets(Log(LOG.requests, known), POOL, RewardConfig(), np.random.default_rng(0)).rows
    clicks = known.filter(pl.col("query") == "c").sort("request_id")
    assert rows["propensity"].equals(clicks["propensity"]) and rows["propensity"].n_unique() == 50
    plain = preference_sets(LOG, POOL, RewardConfig(), np.random.default_rng(0)).rows
    assert plain["propensity"].null_count() == 50 and plain["propensity"].dtype == pl.Float32
    assert plain.drop("propensity").equals(rows.drop("propensity"))  # no draw depends on it


def test_all_rejected_can_be_the_rest_of_the_shown_list():
    shown = [(f"s{place}", "show") for place in range(7)]
    log = make_log([("a", [("c", "order"), *shown, ("h", "not_shown")])] * 3)
    rows = preference_sets(log, POOL, RewardConfig(negatives=7, mix=("show",)), np.random.default_rng(0)).rows
    assert all(set(row) == {query for query, _ in shown} for row in rows["rejected"].to_list())
    assert set(rows.explode("rejected_behaviour")["rejected_behaviour"]) == {"show"}


def test_every_pair_type_occurs():
    requests = [full_request(number, [(f"c{number}", CLICKS[number % 3])]) for number in range(9)]
    rows = preference_sets(make_log(requests), POOL, RewardConfig(), np.random.default_rng(0)).rows
    found = rows.explode("rejected_behaviour").select("chosen_behaviour", "rejected_behaviour").unique().rows()
    assert set(found) == set(PAIR_TYPES)


def test_nothing_clicked_is_ever_rejected():
    clicks = (("c", "order"), ("d", "query_click"))
    log = make_log([full_request(number, clicks) for number in range(30)])
    rows = preference_sets(log, [*POOL, "c", "d"], RewardConfig(mix=("random",)), np.random.default_rng(0)).rows
    assert len(rows) == 60 and set(rows["chosen"]) == {"c", "d"}
    assert not {"c", "d"} & set(rows.explode("rejected")["rejected"])


def test_random_queries_are_no_candidates_and_distinct():
    shown = [(query, "show") for query in POOL[:16]]
    log = make_log([("a", [("c", "order"), *shown])] * 20)
    config = RewardConfig(mix=("random",), negatives=6)
    rows = preference_sets(log, POOL[:23], config, np.random.default_rng(0)).rows
    for row in rows["rejected"].to_list():
        assert len(set(row)) == 6 and set(row) <= set(POOL[16:23])


def test_missing_levels_become_random():
    log = make_log([("a", [("c", "order"), ("s", "show")])])
    row = preference_sets(log, POOL, RewardConfig(), np.random.default_rng(0)).rows.row(0, named=True)
    assert row["rejected_behaviour"] == ["show", "random", "random", "random"]
    assert row["rejected"][0] == "s" and len(set(row["rejected"])) == 4
    assert row["rejected_reward"][1:] == [0, 0, 0]


def test_same_seed_same_rows_whatever_the_order_of_the_file():
    first = preference_sets(LOG, POOL, RewardConfig(), np.random.default_rng(3)).rows
    shuffled = Log(LOG.requests, LOG.candidates.sample(fraction=1, shuffle=True, seed=0))
    assert first.equals(preference_sets(shuffled, POOL, RewardConfig(), np.random.default_rng(3)).rows)
    assert not first.equals(preference_sets(LOG, POOL, RewardConfig(), np.random.default_rng(4)).rows)


def test_bad_input_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="pool of 2 queries is too small"):
        preference_sets(LOG, POOL[:2], RewardConfig(mix=("random",)), rng)
    with pytest.raises(ValueError, match="pool of 0 queries is too small"):
        preference_sets(LOG, [], RewardConfig(), rng)
    with pytest.raises(ValueError, match="no click"):
        preference_sets(make_log([("a", [("s", "show")])]), POOL, RewardConfig(), rng)
    for wrong in (
        {"ctr_factor": "raw"},
        {"negatives": 0},
        {"min_gap": 0.0},
        {"prior": -1.0},
        {"mix": ("order",)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RewardConfig(**wrong)
