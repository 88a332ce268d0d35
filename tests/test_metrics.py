"""Metrics against ir-measures, intervals against theory, slices and tables against counting."""

import math

import ir_measures
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesug_lite.metrics import (
    bootstrap,
    frequency_band,
    hit_rate,
    in_slice,
    invalid_share,
    ranks,
    reciprocal_rank,
    summary_table,
)

LISTS = [["a", "b", "c"], ["b", "a"], [], ["d", "d", "a"]]
TARGETS = ["a", "a", "a", "a"]


def test_ranks_by_hand():
    assert ranks(LISTS, TARGETS).tolist() == [1, 2, 0, 3]
    assert ranks([["x", "x"]], ["x"]).tolist() == [1]
    assert ranks([["A"]], ["a"]).tolist() == [0]  # no folding here: texts are compared as they are


def test_metrics_by_hand():
    found = np.array([1, 2, 0, 16, 17])
    assert hit_rate(found).tolist() == [1, 1, 0, 1, 0]
    assert reciprocal_rank(found).tolist() == [1, 1 / 2, 0, 1 / 16, 0]
    assert hit_rate(found, k=1).tolist() == [1, 0, 0, 0, 0]


query = st.sampled_from([f"q{number}" for number in range(30)])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.lists(query, unique=True, max_size=25), query),
        min_size=1,
        max_size=8,
    )
)
def test_equal_to_ir_measures(rows):
    lists, targets = [row for row, _ in rows], [target for _, target in rows]
    run = [
        ir_measures.ScoredDoc(str(number), text, -float(place))
        for number, row in enumerate(lists)
        for place, text in enumerate(row)
    ]
    judged = [ir_measures.Qrel(str(number), target, 1) for number, target in enumerate(targets)]
    for measure, ours in ((ir_measures.Success @ 16, hit_rate), (ir_measures.RR @ 16, reciprocal_rank)):
        theirs = {row.query_id: row.value for row in measure.iter_calc(judged, run)}
        expected = [theirs.get(str(number), 0.0) for number in range(len(rows))]
        np.testing.assert_allclose(ours(ranks(lists, targets)), expected)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1), st.integers(1, 20))
def test_reciprocal_rank_lies_between_zero_and_the_hit_rate(found, k):
    hits, reciprocal = hit_rate(np.array(found), k), reciprocal_rank(np.array(found), k)
    assert ((reciprocal >= 0) & (reciprocal <= hits)).all()
    assert (hit_rate(np.array(found), k + 1) >= hits).all()


def test_bootstrap_interval_has_the_width_that_theory_gives():
    values = (np.random.default_rng(0).random(2_000) < 0.8).astype(float)
    mean, low, high = bootstrap(values, np.random.default_rng(1))
    deviation = math.sqrt(mean * (1 - mean) / len(values))
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert bootstrap(values, np.random.default_rng(1)) == (mean, low, high)
    narrow = bootstrap(values, np.random.default_rng(1), level=0.5)
    assert narrow.high - narrow.low < 0.5 * (high - low)


def test_bootstrap_of_next_to_nothing():
    assert all(math.isnan(end) for end in bootstrap(np.array([]), np.random.default_rng(0)))
    mean, low, high = bootstrap(np.array([0.5]), np.random.default_rng(0))
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_unequal_lengths():
    with pytest.raises(ValueError, match="4 lists and 1 targets"):
        ranks(LISTS, ["a"])


def test_bands_at_their_edges():
    clicks = {"a": 0, "b": 9, "c": 10, "d": 99, "e": 100}
    assert frequency_band(["a", "b", "c", "d", "e", "new"], clicks) == [
        "tail",
        "tail",
        "torso",
        "torso",
        "head",
        "tail",
    ]


def test_slices_by_hand():
    columns = {
        "request_id": [1, 1, 2, 3],
        "behaviour": ["order", "query_click", "order", "item_click"],
        "training_clicks": [0, 9, 10, 100],
        "prefix_clicks": [100, 99, 9, 0],
        "seen": [False, True, True, True],
        "random": [False, False, True, False],
    }

    def rows(where):
        return in_slice(columns, where).nonzero()[0].tolist()

    assert rows("all") == rows("click") == rows("") == [0, 1, 2, 3]
    assert rows("order") == [0, 2] and rows("random") == [2]
    assert rows("seen") == [1, 2, 3] and rows("unseen") == [0]
    assert [rows(band) for band in ("tail", "torso", "head")] == [[0, 1], [2], [3]]
    assert [rows(f"prefix {band}") for band in ("tail", "torso", "head")] == [[2, 3], [1], [0]]
    assert rows("order prefix tail") == [2] and rows("order tail unseen") == [0]
    with pytest.raises(ValueError, match="no slice 'night'; expected one of all, click, order"):
        rows("order night")
    with pytest.raises(ValueError, match="'tail' needs the column 'training_clicks'"):
        in_slice({"request_id": [1]}, "tail")


def test_invalid_share():
    assert invalid_share([["a", "x"], ["a"], []], ["a", "b"]) == pytest.approx(1 / 3)
    assert invalid_share([[]], {"a"}) == 0


def test_summary_counts_each_cell():
    lists = [["a"], ["x", "b"], [], ["c"]]
    targets, behaviours = ["a", "b", "b", "c"], ["order", "query_click", "order", "item_click"]
    table = summary_table(lists, targets, behaviours, {"a": 500, "b": 20}, np.random.default_rng(0), draws=50)
    assert len(table) == 16

    def cell(rows, band, metric):
        row = table.filter(rows=rows, band=band, metric=metric).row(0, named=True)
        return row["requests"], row["mean"]

    assert cell("click", "all", "HR@16") == (4, 0.75)
    assert cell("click", "all", "MRR@16") == (4, 0.625)
    assert cell("order", "all", "HR@16") == (2, 0.5)
    assert cell("click", "torso", "MRR@16") == (2, 0.25)
    assert cell("order", "head", "HR@16") == (1, 1.0)
    assert cell("order", "tail", "HR@16") == (0, None)
    few = pl.col("requests") < 2  # too few to judge: five of the eight cells, for both metrics
    assert table.filter(few)["low"].null_count() == len(table.filter(few)) == 10
    assert table.filter(~few)["low"].null_count() == 0
    assert not table.select(pl.col("mean", "low", "high").is_nan().any()).row(0).count(True)


def test_summary_refuses_what_it_cannot_sort():
    with pytest.raises(ValueError, match="'show' is no click"):
        summary_table([["a"]], ["a"], ["show"], {}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 lists, 1 targets and 0 behaviours"):
        summary_table([["a"]], ["a"], [], {}, np.random.default_rng(0))
