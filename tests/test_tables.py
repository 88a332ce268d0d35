"""From records to tables and plot data: pairing over requests and seeds, intervals that cover, bad records."""

import json
import math
import time

import numpy as np
import pytest
from fake_records import EFFECTS, fake_records
from scipy import stats

from onesug_lite import frames, tables
from onesug_lite.metrics import reciprocal_rank
from onesug_lite.records import Grid, beside, read_records
from onesug_lite.significance import Estimate, Resampled


@pytest.fixture(scope="module")
def records():
    return fake_records()


@pytest.fixture(scope="module")
def grid(records):
    return Grid(records)


# ---------------------------------------------------------------- intervals over requests and seeds
def drawn(rng, seeds, size, truth, of_requests=1.0, of_seeds=0.1):
    """(S, N) differences: the truth, a part of each request, a part of each seed, and noise of both."""
    parts = of_requests * rng.standard_normal((1, size)), of_seeds * rng.standard_normal((seeds, 1))
    return truth + sum(parts) + 0.5 * rng.standard_normal((seeds, size))


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_about_as_often_as_they_say(seeds):
    rng = np.random.default_rng(0)
    resampled = Resampled(np.arange(100), draws=400)
    covered, blind = 0, 0
    for _ in range(200):
        values = drawn(rng, seeds, 100, 0.3)
        low, high = resampled.mean(values)[1:3]
        covered += low <= 0.3 <= high
        low, high = resampled.mean(values.mean(axis=0, keepdims=True))[1:3]
        blind += low <= 0.3 <= high
    assert 0.91 <= covered / 200 <= 1.0
    assert blind < covered, "an interval that does not know of seeds is too narrow"


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    resampled = Resampled(np.arange(400))
    calm, wild = (resampled.mean(drawn(rng, 5, 400, 0.3, 1.0, spread)) for spread in (0.0, 1.0))
    assert wild.high - wild.low > 3 * (calm.high - calm.low)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_alone_have_the_interval_of_a_mean_of_few(seeds):
    """Where every request says the same, what is left is Student's interval over the seeds."""
    each = np.random.default_rng(seeds).standard_normal(seeds)
    found = Resampled(np.arange(20), draws=40_000).mean(np.repeat(each[:, None], 20, axis=1))
    half = stats.t.ppf(0.975, seeds - 1) * each.std(ddof=1) / np.sqrt(seeds)
    assert (found.low, found.high) == pytest.approx((each.mean() - half, each.mean() + half), abs=0.1 * half)


def test_one_seed_has_the_interval_of_its_requests():
    values = np.random.default_rng(0).standard_normal((1, 900))
    mean, low, high, _, each, rows = Resampled(np.arange(900)).mean(values)
    assert mean == pytest.approx(values.mean()) and each == (pytest.approx(mean),) and rows == 900
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.1)


def test_rows_of_a_request_stay_together():
    once = np.random.default_rng(0).standard_normal((1, 200))
    single = Resampled(np.arange(200)).mean(once)
    triple = Resampled(np.repeat(np.arange(200), 3)).mean(np.repeat(once, 3, axis=1))
    assert triple.high - triple.low == pytest.approx(single.high - single.low, rel=1e-4), "no new request, no new news"


def test_p_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    resampled = Resampled(np.arange(50), draws=999)
    for shift in np.linspace(-1, 1, 21):
        found = resampled.mean(drawn(rng, 3, 50, shift))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert resampled.mean(np.zeros((3, 50))) == (0, 0, 0, 1, (0, 0, 0), 50)


def test_contrast_and_ratio_by_hand():
    values = np.array([[1.0, 3.0, 0.0, 2.0], [3.0, 5.0, 0.0, 0.0]])
    left = np.array([True, True, False, False])
    resampled = Resampled(np.arange(4))
    assert resampled.contrast(values, left, ~left)[0] == pytest.approx((2 - 1 + 4 - 0) / 2)
    assert resampled.contrast(values, left, ~left).each_seed == (1.0, 4.0)
    assert resampled.ratio(values, np.full((1, 4), 5.0)).each_seed == (pytest.approx(0.3), pytest.approx(0.4))


def test_next_to_no_rows_give_no_interval():
    resampled = Resampled(np.arange(3))
    one = resampled.mean(np.ones((2, 3)), np.array([True, False, False]))
    none = resampled.mean(np.ones((2, 3)), np.zeros(3, dtype=bool))
    assert one.mean == 1 and math.isnan(one.low) and math.isnan(none.mean) and math.isnan(none.p)


def test_what_rounds_to_zero_has_no_minus_sign():
    assert tables.percent(Estimate(-0.001, -0.2, 0.004, 1.0, (-0.001,), 9), signed=True) == "+0.00 [-0.20, +0.00]"


def test_twenty_systems_of_a_whole_grid_are_quick():
    """20 systems, 3,000 rows, 5 seeds, two metrics each over everything and the tail."""
    grid = Grid(fake_records({f"v{place}": place / 20 for place in range(20)}, seeds=5, rows=3000))
    start = time.process_time()
    for name in grid.runs:
        for metric in ("HR@16", "MRR@16"):
            for where in ("all", "tail"):
                if grid.has(name, metric):
                    grid.difference(name, "v0", metric, where)
    assert time.process_time() - start < 20  # 2 to 3 seconds on one core; the rest is for a busy machine


# ---------------------------------------------------------------- a grid of records
def test_a_difference_is_that_of_the_means_over_rows_and_seeds(records, grid):
    def mean(name):
        runs = [record for record in records if record["variant"] == name]
        return 100 * np.mean([reciprocal_rank(np.array(run["clicks"]["rank"])) for run in runs])

    gap = tables.compare(records, "onesug", "sft")["MRR@16"]
    assert gap.mean == pytest.approx(mean("onesug") - mean("sft"))
    assert len(gap.each_seed) == 3 and np.mean(gap.each_seed) == pytest.approx(gap.mean)
    assert gap.low < gap.mean < gap.high and gap.low > 0, "the planted effect is found"
    assert grid.difference("sft", "onesug", "MRR@16").mean == pytest.approx(-gap.mean)


def test_pairing_narrows_the_interval(grid):
    gap = grid.difference("continued", "pairwise", "MRR@16")
    alone = [grid.estimate(name, "MRR@16") for name in ("continued", "pairwise")]
    assert gap.high - gap.low < 0.7 * sum(one.high - one.low for one in alone)


def test_what_has_no_parameters_stands_for_every_seed(grid):
    assert len(grid.difference("onesug", "popularity", "HR@16").each_seed) == 3
    assert len(grid.estimate("popularity", "HR@16").each_seed) == 1


def test_seeds_are_paired_by_number(records):
    some = [record for record in records if (record["variant"], record["seed"]) != ("sft", 1)]
    gap, whole = (Grid(part).difference("onesug", "sft", "HR@16") for part in (some, records))
    assert gap.each_seed == (whole.each_seed[0], whole.each_seed[2])
    apart = [record for record in records if record["seed"] == (0 if record["variant"] == "sft" else 1)]
    with pytest.raises(ValueError, match="onesug, sft share no seed"):
        Grid(apart).difference("onesug", "sft", "HR@16")


def test_slices_hold_the_rows_that_they_name(records, grid):
    clicks = records[0]["clicks"]
    assert grid.estimate("sft", "HR@16", "order").rows == clicks["behaviour"].count("order")
    assert grid.estimate("sft", "HR@16", "unseen").rows == clicks["seen"].count(False)
    both = [b == "order" and c < 10 for b, c in zip(clicks["behaviour"], clicks["training_clicks"], strict=True)]
    assert grid.estimate("sft", "HR@16", "order tail").rows == sum(both)
    assert grid.estimate("sft", "HR@16", "prefix torso").rows == clicks["prefix_clicks"].count(30)
    with pytest.raises(ValueError, match="no slice 'night'"):
        grid.estimate("sft", "HR@16", "night")
    with pytest.raises(ValueError, match="'prefix tail' needs the column 'prefix_clicks'"):
        grid.estimate("sft", "replay clicks", "prefix tail")


def test_a_gain_planted_on_the_tail_is_found():
    found = Grid(fake_records(tail={"onesug": 1.0})).difference(
        "onesug", "online_mca", "MRR@16", "prefix tail", "prefix head"
    )
    assert found.low > 0


def test_bad_records_are_named(records):
    with pytest.raises(ValueError, match="no records"):
        Grid([])
    with pytest.raises(ValueError, match="two records of variant 'popularity' with seed 0"):
        Grid([records[0], records[0]])
    with pytest.raises(ValueError, match="'mca' with seed 0 has log 'other'.*run the grid again"):
        Grid([records[0], records[1] | {"log": "other"}])
    turned = records[1] | {"clicks": records[1]["clicks"] | {"request_id": records[1]["clicks"]["request_id"][::-1]}}
    with pytest.raises(ValueError, match="'mca' with seed 0 answers different requests under 'clicks'"):
        Grid([records[0], turned])
    with pytest.raises(ValueError, match="no record of variant 'nobody'"):
        Grid(records).estimate("nobody", "HR@16")
    with pytest.raises(ValueError, match="no record of variant 'imitation' with 'clicks'"):
        Grid(records).estimate("imitation", "HR@16")
    with pytest.raises(ValueError, match="no metric 'NDCG'"):
        Grid(records).estimate("sft", "NDCG")


def test_records_are_read_in_order(records, tmp_path):
    for record in reversed(records):
        name = f"{record['variant']}-seed{record['seed']}.json"
        (tmp_path / name).write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "provenance.json").write_text("{}", encoding="utf-8")
    found = read_records(tmp_path)
    assert len(found) == len(records)
    assert [record["seed"] for record in found if record["variant"] == "onesug"] == [0, 1, 2]
    assert Grid(found).difference("onesug", "sft", "HR@16") == Grid(records).difference("onesug", "sft", "HR@16")
    assert read_records(tmp_path / "nowhere") == []


# ---------------------------------------------------------------- tables
def test_results_stand_beside_the_paper(records):
    table = tables.results_table(records)
    assert len(table) == len(EFFECTS) + 1, "every system with clicks, the ceiling among them"
    row = table.filter(system="the sft_pre system").row(0, named=True)
    assert row["seeds"] == 3 and row["unknown"] == "12.5%" and row["short"] == "1.0%"
    assert row["paper: click HR / MRR"] == "79.76 / 44.80" and row["paper: order HR / MRR"] == "-"
    full = table.filter(system="the onesug system").row(0, named=True)
    assert full["paper's row"] == "OneSug, BART-base" and full["paper: order HR / MRR"] == "87.40 / 56.34"
    assert table.filter(system="the continued system")["paper's row"].item() == "-"
    cell = Grid(records).estimate("onesug", "HR@16", "click")
    assert full["click HR@16"] == f"{cell.mean:.1f} [{cell.low:.1f}, {cell.high:.1f}]"


def test_share_of_the_ceiling(records, grid):
    table = tables.ceiling_table(records)
    assert "the best possible ranking" not in table["system"] and {"head", "torso", "tail"} <= set(table.columns)
    share = grid.share("onesug", "ceiling", "MRR@16")
    best = 100 * np.mean(next(r for r in records if r["variant"] == "ceiling")["expected"]["reciprocal"])
    assert share.mean == pytest.approx(100 * grid.estimate("onesug", "MRR@16").mean / best)
    assert table.filter(system="the onesug system")["all"].item().startswith(f"{share.mean:.1f} [")


def test_headroom_recovered_is_zero_at_imitation_and_hundred_at_preference(records, grid):
    table = tables.replay_table(records)
    cells = {row["system"]: row["headroom recovered"] for row in table.to_dicts()}
    assert cells["perfect imitation"] == "0.0 [0.0, 0.0]" and cells["perfect preference"] == "100.0 [100.0, 100.0]"
    found = grid.share("onesug", "preference", "replay clicks", floor="imitation")
    assert found.low < 100 * (0.9 + 1) / 3 < found.high, "the planted share"
    without = tables.replay_table(fake_records(ceilings=False))
    assert set(without["headroom recovered"]) == {"-"}


def test_costs(records):
    row = tables.cost_table(records).filter(system="the onesug system").row(0, named=True)
    assert (row["seconds"], row["slowest stage"], row["peak memory (MB)"]) == (65.0, "supervised, 60.0 s", 900)


def test_differences_say_from_which_records(records):
    one = [record for record in records if record["seed"] == 0]
    table = tables.differences({"fresh": one, "reference": records}, [("onesug", "sft"), ("onesug", "continued")])
    assert table["records"].to_list() == ["fresh, 1 seed(s)"] * 2 + ["reference, 3 seed(s)"] * 2 + \
        ["fresh, 1 seed(s)"] * 2 + ["reference, 3 seed(s)"] * 2  # fmt: skip
    assert table["difference"][0] == "the onesug system − the sft system"
    assert len(table["each seed"][2].split()) == 3
    fresh, reference = (tables.compare(part, "onesug", "sft")["HR@16"] for part in (one, records))
    assert tables.agree(fresh, reference)
    assert not tables.agree(fresh, tables.compare(records, "sft", "onesug")["HR@16"])


def test_verdicts_flip_with_the_records(records):
    claim = [("the full model ranks better", "onesug", "sft")]
    assert tables.verdicts(records, claim)["verdict"].item() == "held"
    swapped = fake_records(EFFECTS | {"onesug": EFFECTS["sft"], "sft": EFFECTS["onesug"]})
    assert tables.verdicts(swapped, claim)["verdict"].item() == "reversed"
    assert tables.verdicts(fake_records(seeds=1), claim)["verdict"].item() == (
        "direction only, 1 seed(s): not yet a finding"
    )


# ---------------------------------------------------------------- plot data
def test_bars_leave_out_what_is_too_small(records):
    data = frames.bars(records, "click", ["MRR@16"], ["head", "tail"])
    assert set(data["band"]) == {"head", "tail"} and set(data["metric"]) == {"MRR@16"}
    few = fake_records({"sft": 0.0}, rows=3, ceilings=False)
    for record in few:
        record["clicks"]["training_clicks"] = [0, 0, 500]
    assert frames.bars(few, "click", ["HR@16"], ["head", "tail"])["band"].to_list() == ["tail"]


def test_a_waterfall_adds_up(records, grid):
    steps = ["popularity", "sft", "sft_pre", "onesug"]
    data = frames.waterfall_frame(records, steps)
    assert data["label"].to_list() == [grid.labels[name] for name in steps]
    # the first step is over every seed of the generator, so the sum ends at its mean over seeds
    assert data["change"].sum() == pytest.approx(grid.estimate("onesug", "MRR@16").mean)


def test_differences_carry_the_published_figure(records):
    data = frames.difference_frame(records, [("onesug", "sft_pre"), ("onesug", "continued")])
    assert data["published"].to_list() == [2.38, 5.75, None, None]
    assert data["each_seed"].list.len().to_list() == [3] * 4
    assert frames.difference_frame(records, [("onesug", "dpo")], ["replay clicks"])["published"].to_list() == [None]


def test_paper_frame_has_the_rows_that_the_paper_prints(records):
    data = frames.paper_frame(records, ["click HR@16", "order HR@16"])
    ablated = data.filter(label="the without_pre system")
    assert ablated["metric"].to_list() == ["click HR@16"] and ablated["paper"].to_list() == [78.46]
    assert "the popularity system" not in data["label"]


def test_curves_take_a_point_from_each_grid(records):
    short = [record for record in fake_records(seed=5, seeds=2) if record["variant"] != "without_pre"]
    points = [(100, short), (400, records)]
    data = frames.curve_frame(points, ["onesug", "without_pre"])
    assert data.filter(label="the onesug system")["x"].to_list() == [100, 400]
    assert data.filter(label="the without_pre system")["x"].to_list() == [400]
    assert data["seeds"].to_list() == [len(Grid(grid).runs["onesug"]) for grid in (short, records, records)]
    less = frames.curve_frame(points, ["onesug"], minus="continued")
    assert less["label"].unique().to_list() == ["the onesug system − the continued system"] and len(less) == 2
    share = frames.curve_frame(points, ["onesug"], whole="ceiling")
    assert share["mean"].to_list() == [Grid(each).share("onesug", "ceiling", "MRR@16").mean for _, each in points]
    without = [record for record in short if record["variant"] != "ceiling"]
    assert frames.curve_frame([(100, without), (400, records)], ["onesug"], whole="ceiling")["x"].to_list() == [400]


def test_gains_are_the_differences_of_each_part_metric_and_grid(records):
    short = [record for record in fake_records(seed=5, seeds=2) if record["variant"] != "without_pre"]
    parts = {"RWR": ("onesug", "continued"), "PRE": ("onesug", "without_pre"), "never run": ("onesug", "no such")}
    data = frames.gains_frame([(400, records), (100, short)], parts)
    assert data.select("label", "metric", "x").rows() == [
        ("RWR", "HR@16", 400), ("RWR", "HR@16", 100), ("RWR", "MRR@16", 400), ("RWR", "MRR@16", 100),
        ("PRE", "HR@16", 400), ("PRE", "MRR@16", 400),
    ]  # fmt: skip
    for row in data.iter_rows(named=True):
        gap = Grid(records if row["x"] == 400 else short).difference(*parts[row["label"]], row["metric"])
        assert (row["mean"], row["low"], row["high"]) == (gap.mean, gap.low, gap.high)


def test_headroom_is_shared_out_between_its_two_ends_under_each_condition(records):
    """Half way between imitation and preference is 50 % of that condition; one without both ends has no row."""
    floor, best = (next(r["replay"] for r in records if r["variant"] == name) for name in ("imitation", "preference"))
    half = {name: [(a + b) / 2 for a, b in zip(floor[name], best[name], strict=True)] for name in ("click", "order")}
    there = [r | {"replay": r["replay"] | half} if r["variant"] == "onesug" else r for r in records]
    fewer = [r for r in fake_records(seed=5, seeds=2) if r["variant"] != "sft"]
    endless = [r for r in records if r["variant"] != "imitation"]
    tables = {"": there, ", longer": fewer, ", endless": endless, ", not run": None}
    room = frames.headroom_frame(tables, {"onesug": "full", "sft": "plain"})
    assert room["label"].to_list() == ["full", "full, longer", "plain"]
    assert room["seeds"].to_list() == [3, 2, 3]
    assert room.row(0, named=True)["mean"] == pytest.approx(50)
    assert room["mean"][1] == Grid(fewer).share("onesug", "preference", "replay clicks", floor="imitation").mean
    assert (room["low"] <= room["mean"]).all() and (room["mean"] <= room["high"]).all()


def test_a_system_stands_beside_itself_under_other_settings(records):
    """On the same requests and seeds: a setting that was run with two seeds is compared on those two."""
    lower = [
        record | {"clicks": record["clicks"] | {"rank": [rank and rank + 3 for rank in record["clicks"]["rank"]]}}
        for record in records
        if record["variant"] == "onesug" and record["seed"] > 0
    ]
    grid = beside(records, "onesug", {"β 2": lower})
    assert list(grid.runs) == ["onesug", "β 2"] and list(grid.runs["β 2"]) == [1, 2]
    gap = grid.difference("β 2", "onesug", "MRR@16")
    own, other = (Grid(some).estimate("onesug", "MRR@16") for some in (records, lower))
    assert len(gap.each_seed) == 2 and gap.high < 0
    assert gap.each_seed == pytest.approx([b - a for a, b in zip(own.each_seed[1:], other.each_seed, strict=True)])
    assert records[0]["variant"] != "β 2" and not any(record["variant"] == "β 2" for record in lower)
    with pytest.raises(ValueError, match="the records of 'less' hold no variant 'onesug'; expected one of popularity"):
        beside(records, "onesug", {"less": [record for record in records if record["variant"] == "popularity"]})


def test_unknown_strings_over_a_budget_are_means_of_the_shared_seeds(records):
    def leaking(shares, variant="onesug"):
        return [
            {**record, "unknown_share": shares[record["seed"]]}
            for record in records
            if record["variant"] == variant and record["seed"] in shares
        ]

    few = leaking({0: 0.2, 1: 0.4}) + leaking({0: 0.9}, "dpo")
    data = frames.unknown_frame([(0, records), (60, few)], ["onesug", "dpo", "absent"])
    label = {record["variant"]: record["label"] for record in records}
    assert data["label"].to_list() == [label["onesug"]] * 2 + [label["dpo"]] * 2
    assert data["x"].to_list() == [0, 60, 0, 60] and data["seeds"].to_list() == [2, 2, 1, 1]
    assert data["mean"].to_list() == pytest.approx([12.5, 30, 12.5, 90])
    two = data.row(1, named=True)
    reach = 12.706 * 10  # t with one degree of freedom, times the deviation of the mean of 20 and 40
    assert two["high"] == pytest.approx(30 + reach, rel=1e-3) and two["low"] == 0
    assert data["low"][3] == data["high"][3] == pytest.approx(90)
    assert frames.unknown_frame([(0, leaking({0: 0.2})), (60, leaking({1: 0.2}))], ["onesug"]).is_empty()


def test_several_markets_count_once_each(records, grid):
    pair = {"RWR": ("onesug", "continued")}
    markets = [fake_records(seed=number, seeds=number) for number in (1, 2, 3)]
    data = frames.markets_frame({": here": [records], ": fresh": markets, ": none": []}, pair, ["MRR@16"])
    here, fresh = data.to_dicts()
    assert (here["label"], fresh["label"]) == ("RWR: here", "RWR: fresh")
    own = grid.difference("onesug", "continued", "MRR@16")
    assert (here["mean"], here["low"], here["high"]) == own[:3] and here["each_seed"] == list(own.each_seed)
    means = [Grid(market).difference("onesug", "continued", "MRR@16").mean for market in markets]
    assert fresh["each_seed"] == means and fresh["mean"] == pytest.approx(sum(means) / 3)
    reach = 4.3027 * np.std(means, ddof=1) / 3**0.5  # t with two degrees of freedom
    assert fresh["high"] - fresh["mean"] == pytest.approx(reach, rel=1e-4)
    assert fresh["mean"] - fresh["low"] == pytest.approx(reach, rel=1e-4)


def test_watch_and_replay_frames(records):
    watch = frames.watch_frame(
        records, ["popularity", "onesug"], {"chosen_log_ratio": "nats", "unknown_share": "unknown", "absent": "x"}
    )
    assert watch["label"].unique().to_list() == ["the onesug system"]
    assert watch.filter(panel="nats").height == 30 and watch.filter(panel="unknown").height == 29
    both = frames.replay_frame(records)
    assert both["label"].to_list() == [f"the {name} system" for name in EFFECTS], "neither ceiling was seen by both"
    assert (both["replay_low"] <= both["replay"]).all() and (both["logged"] <= both["logged_high"]).all()


def test_a_pair_on_several_slices(grid):
    found = frames.slice_frame(grid, "onesug", "sft", ["prefix head", "prefix tail", "unseen"])
    assert found["label"].unique(maintain_order=True).to_list() == ["prefix head", "prefix tail", "unseen"]
    for row in found.to_dicts():
        gap = grid.difference("onesug", "sft", row["metric"], row["label"])
        assert (row["mean"], row["low"], row["high"]) == gap[:3]


def test_a_fresh_run_agrees_with_the_reference_unless_a_system_has_changed(records):
    fresh = fake_records(EFFECTS | {"mca": EFFECTS["mca"] + 1.5}, seeds=1)
    compared = tables.agreement(fresh, records)
    apart = compared.filter(~compared["agree"])["system"].unique().to_list()
    assert apart == [next(record["label"] for record in records if record["variant"] == "mca")]
    assert compared["metric"].n_unique() == 2
