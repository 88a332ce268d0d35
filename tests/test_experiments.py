"""Experiments by pair and seed: what their records say, as the market's own analysis does, and how they are made."""

import json

import numpy as np
import pytest
import small_market
from fake_experiments import fake_experiments

from data_synth import ab_tests
from onesug_lite import grid
from onesug_lite.experiment_grid import run_experiments
from onesug_lite.experiments import METRICS, PAIRS, Experiments, ratio, read_experiments
from onesug_lite.grid import GridError
from onesug_lite.metrics import BANDS
from onesug_lite.variants import VARIANTS

FIRST, SECOND = PAIRS[0]


def test_metrics_are_those_of_the_market():
    assert {name: tuple(metric) for name, metric in METRICS.items()} == {
        name: tuple(metric) for name, metric in ab_tests.METRICS.items()
    }
    assert ab_tests.BANDS == BANDS
    assert all(name in VARIANTS for pair in PAIRS for name in pair) and len(set(PAIRS)) == len(PAIRS)


# ---------------------------------------------------------------- what records say
def test_gain_and_interval_are_those_of_paired_shoppers():
    """A bucket a shopper and one seed: the same question as the market's own analysis, which resamples nothing."""
    trial = small_market.trial()
    (record,) = fake_experiments({}, PAIRS[:1], seeds=1)
    shopper = trial.a.sessions["shopper"].to_numpy()
    for side, arm in (("a", trial.a), ("b", trial.b)):
        columns = {column for metric in METRICS.values() for column in (metric.over, metric.per)}
        record["shoppers"][side] = {
            column: np.bincount(shopper, arm.sessions[column].to_numpy()).tolist() for column in columns
        }
    found = Experiments([record | {"sessions": len(shopper)}])
    for row in ab_tests.compare(trial.a, trial.b).to_dicts():
        gain = found.gain(FIRST, SECOND, row["metric"])
        assert gain.mean == pytest.approx(row["relative"], rel=1e-6), row["metric"]
        reach = (row["relative_high"] - row["relative_low"]) / 2
        assert (gain.high - gain.low) / 2 == pytest.approx(reach, rel=0.08) and reach > 0, row["metric"]
        assert gain.rows == len(shopper)


def test_planted_gains_are_found_on_every_metric_and_band():
    planted = {"clicks": 0.1, "typed": -0.05, "position": -0.2, "head prefixes": 0.05, "tail prefixes": 0.3}
    found = Experiments(fake_experiments({PAIRS[0]: planted}))
    for metric in METRICS:
        gain = found.gain(*PAIRS[0], metric)
        assert gain.low - 1 < 100 * planted.get(metric, 0.0) < gain.high + 1 and len(gain.each_seed) == 3
    assert found.gain(*PAIRS[1], "clicks").low < 0.5, "planted in one pair alone"
    head, tail = (found.gain(*PAIRS[0], "clicks", band) for band in ("head", "tail"))
    more = found.gain(*PAIRS[0], "clicks", "tail", "head")
    assert more.mean == pytest.approx(tail.mean - head.mean) and 20 < more.low < more.high < 30
    assert found.gain(*PAIRS[0], "judgement").mean == pytest.approx(20, abs=8)


def test_seeds_that_disagree_widen_the_interval():
    def width(shares):
        records = [
            fake_experiments({PAIRS[0]: {"clicks": share}}, PAIRS[:1], seeds=1)[0] | {"seed": number}
            for number, share in enumerate(shares)
        ]
        gain = Experiments(records).gain(*PAIRS[0], "clicks")
        return gain.high - gain.low

    assert width([0.0, 0.1, 0.2]) > 5 * width([0.1, 0.1, 0.1])


def test_where_nothing_happened_there_is_no_interval():
    record = fake_experiments({}, PAIRS[:1], seeds=1)[0]
    record["shoppers"]["b"]["order"] = [0] * len(record["shoppers"]["b"]["order"])
    found = Experiments([record])
    assert np.isnan(found.gain(*PAIRS[0], "orders").low) and not np.isnan(found.gain(*PAIRS[0], "clicks").low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log": "other"}, "onesug-online_mca-seed1.json has log 'other', others have 'log0'"),
        ({"sessions": 7}, "has sessions '7'"),
        ({"judgement": {"request_id": [1], "verdicts": [0]}}, "of other searches or requests"),
        ({"seed": 0}, "two records onesug-online_mca-seed0.json"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_records_that_cannot_be_compared_are_refused(change, message):
    one, other = fake_experiments({}, PAIRS[:1], seeds=2)
    with pytest.raises(ValueError, match=message):
        Experiments([one, other | change])
    other["shoppers"]["a"]["sessions"][0] += 1
    with pytest.raises(ValueError, match="of other searches"):
        Experiments([one, other])


def test_what_is_not_there_is_named():
    found = Experiments(fake_experiments({}, PAIRS[:1], seeds=1))
    with pytest.raises(ValueError, match="no experiment mca-sft; there are onesug-online_mca"):
        found.gain("mca", "sft", "clicks")
    with pytest.raises(ValueError, match="no metric 'ctr' of an experiment; expected one of clicks, orders"):
        found.gain(*PAIRS[0], "ctr")
    with pytest.raises(ValueError, match="no orders on band 'tail'; expected clicks on one of head, torso, tail"):
        ratio("orders", "tail")
    with pytest.raises(ValueError, match="no records of experiments; make them with: make experiments"):
        Experiments([])


# ---------------------------------------------------------------- making them
def test_a_run_leaves_a_record_and_is_not_made_again(market, tmp_path, monkeypatch):
    (made,) = run_experiments(tmp_path, "smoke", pairs=PAIRS[:1])
    path = tmp_path / f"{FIRST}-{SECOND}-seed0.json"
    assert read_experiments(tmp_path) == [made] and path.stat().st_size < 60_000
    (fake,) = fake_experiments({}, PAIRS[:1], seeds=1)
    assert set(fake) <= set(made), "the fake records are of this shape"
    found, told = Experiments([made]), {row["metric"]: row for row in made["metrics"]}
    for name in METRICS:
        gain, relative = found.gain(FIRST, SECOND, name), told[name]["relative"]
        assert np.isnan(gain.mean) or gain.mean == pytest.approx(relative, abs=0.1), "buckets add up to all"
    for row in made["by_prefix"]:
        gain = found.gain(FIRST, SECOND, "clicks", row["band"])
        assert gain.rows == row["requests"]
        assert np.isnan(gain.mean) or gain.mean == pytest.approx(row["relative"])
    counts = made["judgement"]
    assert [counts["verdicts"].count(value) for value in (1, 0, -1)] == [counts[n] for n in ("good", "same", "bad")]

    # what is there is not made again; what was cut short, or is of other settings, is
    asked = []
    monkeypatch.setattr(grid, "run_notebook", lambda source, target, parameters, **_: asked.append(parameters))
    assert run_experiments(tmp_path, "smoke", pairs=PAIRS[:1]) == [made] and asked == []
    run_experiments(tmp_path, "smoke", pairs=PAIRS[:1], sessions=61)
    assert [parameters["sessions"] for parameters in asked] == [61]
    path.write_text(json.dumps(made)[:-9])
    with pytest.raises(ValueError):
        run_experiments(tmp_path, "smoke", pairs=PAIRS[:1])
    assert len(asked) == 2


def test_unknown_names_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="unknown profile 'tiny'"):
        run_experiments(tmp_path, "tiny")
    with pytest.raises(ValueError, match="unknown variant 'onesugar'"):
        run_experiments(tmp_path, "smoke", pairs=[("onesugar", "mca")])
    with pytest.raises(GridError, match="has no parameter 'bean'; expected one of build, first, judged"):
        run_experiments(tmp_path, "smoke", pairs=PAIRS[:1], bean=3)
    assert not list(tmp_path.glob("[!.]*"))  # a lock may be left, no record and no run
