"""A/B tests: errors over shoppers, a policy against itself, tests that keep their promise however often one looks."""

import numpy as np
import polars as pl
import pytest
import small_market
from scipy import stats
from small_market import nothing, small_arm

from data_synth.ab_tests import (
    GUARDS,
    METRICS,
    Arm,
    aa_pvalues,
    aa_summary,
    by_prefix,
    compare,
    designs,
    gains,
    peeking,
)
from data_synth.experiment import draw_searches, meet


@pytest.fixture(scope="module")
def trial():
    return small_market.trial()


@pytest.fixture(scope="module")
def one_log():
    return small_market.one_log()


# ---------------------------------------------------------------- two arms
def test_one_session_a_shopper_is_the_ordinary_t_test():
    rng = np.random.default_rng(0)
    left, right = (rng.random(60) < rate for rate in (0.4, 0.6))
    a, b = (small_arm(part.astype(float).tolist(), list(range(60))) for part in (left, right))
    row = compare(a, b).row(0, named=True)
    expected = stats.ttest_rel(right.astype(float), left.astype(float))
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    first = np.arange(60) % 2 == 0
    row = compare(a, b, first).row(0, named=True)
    expected = stats.ttest_ind(right[~first].astype(float), left[first].astype(float), equal_var=False)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert row["relative"] == pytest.approx(100 * row["difference"] / row["a"])


def test_sessions_of_one_shopper_are_one_draw():
    """Each shopper ten times over tells no more than once."""
    rng = np.random.default_rng(1)
    left, right = (rng.random(40) < rate for rate in (0.4, 0.6))
    one = [small_arm(part.astype(float).tolist(), list(range(40))) for part in (left, right)]
    ten = [small_arm(np.repeat(part, 10).astype(float).tolist(), np.repeat(range(40), 10).tolist()) for part in (left, right)]  # fmt: skip # noqa: E501
    once, often = (compare(*arms).row(0, named=True) for arms in (one, ten))
    assert often["standard_error"] == pytest.approx(once["standard_error"])
    assert often["p"] == pytest.approx(once["p"])


def test_ratio_errors_agree_with_a_bootstrap_over_shoppers(trial):
    rows = trial.paired.rows_by_key("metric", named=True, unique=True)
    rng, shoppers = np.random.default_rng(0), int(trial.a.sessions["shopper"].max()) + 1
    for name in ("clicks", "position", "bait"):
        metric = METRICS[name]
        sums = [
            np.bincount(arm.sessions["shopper"], arm.sessions[column], minlength=shoppers)
            for arm in (trial.a, trial.b)
            for column in (metric.over, metric.per)
        ]
        there = np.flatnonzero(np.bincount(trial.a.sessions["shopper"], minlength=shoppers))
        pick = there[rng.integers(there.size, size=(1_000, there.size))]
        x_a, n_a, x_b, n_b = (part[pick].sum(axis=1) for part in sums)
        assert rows[name]["standard_error"] == pytest.approx((x_b / n_b - x_a / n_a).std(), rel=0.12)
        relative = 100 * (x_b / n_b / (x_a / n_a) - 1)
        width = rows[name]["relative_high"] - rows[name]["relative_low"]
        assert width == pytest.approx(2 * 1.96 * relative.std(), rel=0.15)


def test_the_smallest_detectable_effect_is_found_four_times_in_five(trial):
    row = trial.split.row(0, named=True)
    z = row["detectable"] / row["standard_error"]
    power = stats.norm.sf(1.96 - z) + stats.norm.cdf(-1.96 - z)
    assert power == pytest.approx(0.8, abs=0.01)


def test_what_has_no_click_has_no_position():
    world = small_market.world()
    arm = meet(world, draw_searches(world, 2, 0, 60), nothing, 0)
    rows = compare(arm, arm).rows_by_key("metric", named=True, unique=True)
    assert rows["position"]["a"] is None and rows["position"]["p"] is None
    assert rows["clicks"]["difference"] == 0 and rows["clicks"]["relative"] is None


def test_common_random_numbers_sharpen_the_comparison(trial):
    table = designs(trial.a, trial.b, small_market.again(), trial.first)
    share = {(row["metric"], row["design"]): row["variance"] for row in table.to_dicts()}
    for metric in ("clicks", "typed", "abandoned"):
        common, own = share[metric, "common random numbers"], share[metric, "same searches, own luck"]
        assert common < 0.4 and common < own
        assert own < (0.8 if metric != "abandoned" else 1.3), "leaving is luck alone"
        assert 1.5 < share[metric, "one half of the shoppers each"] < 3


def test_designs_hold_the_errors_that_each_comparison_gives(trial):
    table = designs(trial.a, trial.b, small_market.again(), trial.first)
    error = {(row["metric"], row["design"]): row["standard_error"] for row in table.to_dicts()}
    for found, design in ((trial.paired, "common random numbers"), (trial.split, "one half of the shoppers each")):
        for metric, expected in found.select("metric", "standard_error").iter_rows():
            assert error[metric, design] == expected
    rows = [np.bincount(arm.sessions["shopper"], arm.sessions["click"]) for arm in (trial.a, trial.b)]
    counts = np.bincount(trial.a.sessions["shopper"])
    shoppers, pooled = (counts > 0).sum(), 0.0
    for clicks in rows:
        residual = clicks - clicks.sum() / counts.sum() * counts
        pooled += shoppers * residual[counts > 0].var(ddof=1) / counts.sum() ** 2
    assert error["clicks", "independent shoppers"] == pytest.approx(np.sqrt(pooled))


def test_gains_of_several_pairs_are_adjusted_together(trial):
    swapped = trial._replace(paired=compare(trial.b, trial.a), split=compare(trial.b, trial.a, trial.first))
    rows = gains({("better", "own"): trial, ("own", "better"): swapped})
    assert len(rows) == 2 * len(METRICS) and rows["metric"].to_list() == [*METRICS] * 2
    assert rows["first"].unique(maintain_order=True).to_list() == ["better", "own"] and rows["second"][0] == "own"
    assert rows["mean"][: len(METRICS)].equals(trial.paired["relative"].alias("mean"))
    for name in ("low", "high", "detectable"):
        assert rows[name][len(METRICS) :].equals(swapped.paired[f"relative_{name}"].alias(name))
        assert rows[f"split_{name}"][: len(METRICS)].equals(trial.split[f"relative_{name}"].alias(f"split_{name}"))
    assert dict(rows.select("metric", "better").iter_rows()) == {
        name: metric.better for name, metric in METRICS.items()
    }
    p = rows["p"].to_numpy()
    step = np.minimum.accumulate((np.sort(p) * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    assert np.sort(rows["adjusted"].to_numpy()) == pytest.approx(np.minimum(step, 1))
    assert rows["clear"].to_list() == (rows["adjusted"] < 0.05).to_list() and 0 < rows["clear"].sum() < len(rows)


def test_prefix_bands_hold_the_requests_that_both_answered(trial):
    a, b = trial.a, trial.b
    common = a.requests.join(b.requests, on=["session", "step"], how="inner")
    counts = dict(common["prefix"].value_counts().iter_rows())
    rows = by_prefix(a, b, counts, (5, 30))
    assert rows["band"].to_list() == ["head", "torso", "tail"] and rows["requests"].sum() == len(common)
    assert rows["requests"].min() > 0
    tail = common.filter(pl.col("prefix").replace_strict(counts) < 5)
    row = rows.row(2, named=True)
    assert (row["requests"], row["a"], row["b"]) == (len(tail), tail["click"].mean(), tail["click_right"].mean())
    unknown = by_prefix(a, b, {})
    assert unknown["requests"].to_list() == [0, 0, len(common)] and unknown["difference"][0] is None


# ---------------------------------------------------------------- A/A
@pytest.mark.parametrize("metric", ["clicks", "typed", "position"])
def test_a_policy_against_itself_gives_uniform_p_values(one_log, metric):
    p = aa_pvalues(one_log, np.random.default_rng(5), 200, metric)
    low, high = stats.binom.interval(0.95, 200, 0.05)
    assert p.shape == (200,) and low <= (p < 0.05).sum() <= high
    assert stats.kstest(p, "uniform").pvalue > 0.05


def test_many_draws_are_those_of_some_at_a_time(one_log):
    rng, together = np.random.default_rng(3), aa_pvalues(one_log, np.random.default_rng(3), 450)
    assert together.shape == (450,) and len(np.unique(together)) > 400
    assert np.array_equal(together, np.concatenate([aa_pvalues(one_log, rng, part) for part in (150, 300)]))


def test_a_summary_counts_findings_and_says_what_chance_allows():
    even = (np.arange(200) + 0.5) / 200  # ten below 0.05
    many = np.where(np.arange(200) < 17, 0.01, 0.5)
    tests = pl.concat(pl.DataFrame({"metric": name, "p": p}) for name, p in (("even", even), ("many", many)))
    fine, off = aa_summary(tests).to_dicts()
    assert (fine["metric"], fine["tests"], fine["found"], fine["share"]) == ("even", 200, 10, 0.05)
    assert (fine["low"], fine["high"]) == stats.binom.interval(0.95, 200, 0.05) == (off["low"], off["high"])
    assert fine["inside"] and not off["inside"] and fine["uniform"] > 0.9 and off["uniform"] < 1e-6
    outside = [stats.binom.pmf(k, 200, 0.05) for k in range(201) if not fine["low"] <= k <= fine["high"]]
    assert fine["miss"] == pytest.approx(sum(outside)) and fine["miss"] <= 0.05
    assert [row["found"] for row in aa_summary(tests, 0.005).to_dicts()] == [1, 0]


def test_p_values_that_ignore_shoppers_are_caught():
    """What the check above is for: sessions of a shopper taken for independent find too much."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(200), 10)
    taste = np.repeat(rng.random(200) < 0.5, 10)
    arm = small_arm(np.where(rng.random(2_000) < 0.9, taste, ~taste).astype(float).tolist(), who.tolist())
    clustered = aa_pvalues(arm, np.random.default_rng(1))
    assert (clustered < 0.05).sum() <= stats.binom.ppf(0.975, 200, 0.05)
    click, naive = arm.sessions["click"].to_numpy(), []
    for _ in range(200):
        first = np.isin(who, rng.permutation(200)[:100])
        naive.append(stats.ttest_ind(click[first], click[~first]).pvalue)
    assert (np.array(naive) < 0.05).mean() > 0.3


def test_peeking_breaks_the_promise_and_guards_keep_it(one_log):
    rows = peeking(one_log, np.random.default_rng(2), 400)
    last = {row["guard"]: row for row in rows.filter(pl.col("look") == 10).to_dicts()}
    assert list(last) == list(GUARDS)
    assert last["no guard"]["low"] > 0.06, "ten looks at 5 % each"
    for guard in GUARDS[1:]:
        assert last[guard]["low"] <= 0.05
    assert last["O'Brien-Fleming"]["high"] > 0.03, "it spends what it has"
    for _, alarms in rows.group_by("guard", maintain_order=True).agg("alarms").iter_rows():
        assert alarms == sorted(alarms)


def test_guards_still_find_what_is_large():
    """An effect planted in the log: the shoppers of one half click four times as often, and the draw keeps halves."""
    rng = np.random.default_rng(0)
    days, who = np.repeat(np.arange(5), 400), np.tile(np.arange(400), 5)
    arm = small_arm((rng.random(2_000) < np.where(who < 200, 0.2, 0.8)).astype(float).tolist(), who.tolist())
    arm = Arm(arm.sessions.with_columns(day=pl.Series(days)), arm.requests)

    class Fixed(np.random.Generator):
        def permuted(self, table, axis=None):
            return np.tile(np.arange(table.shape[1]) < 200, (len(table), 1))

    rows = peeking(arm, Fixed(np.random.PCG64(0)), 5, effect=0.5)
    assert (rows.filter(pl.col("look") == 5)["alarms"] == 1).all()
