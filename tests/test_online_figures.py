"""The figures of the experiments draw what the analysis gives; what the paper reports stands in the ledger's claims."""

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest
import small_market

from data_synth.ab_tests import GUARDS, METRICS, aa_pvalues, by_prefix, designs, peeking
from onesug_lite import online_figures
from onesug_lite.claims import load_claims
from onesug_lite.metrics import SLICES
from onesug_lite.variants import VARIANTS


def gains(pair: str) -> pl.DataFrame:
    split = {"split_mean": [3.0, 0.0, None], "split_low": [-9.0, -3.0, None], "split_high": [15.0, 3.0, None]}
    paired = {
        "mean": [2.0, -5.0, None],
        "low": [1.0, -8.0, None],
        "high": [3.0, -2.0, None],
        "clear": [True, True, False],
    }
    names = {"pair": pair, "metric": ["clicks", "typed", "bait"], "better": [1, -1, -1]}
    return pl.DataFrame(names | paired | split | {"published": [2.01, None, None]})


def test_gains_are_drawn_where_they_are_and_coloured_by_what_is_better():
    data = pl.concat([gains("one"), gains("two").with_columns(better=-pl.col("better"))])
    figure = online_figures.online_gains(data, "a finding")
    assert figure.get_suptitle() == "a finding"
    one, two = (axes for axes in figure.axes if axes.get_visible())
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"paired, better", "paired, worse", "the paper"} <= labels
    assert [axes.get_title("left") or axes.get_title() for axes in (one, two)] == ["one", "two"]
    for axes, name in ((one, "paired, better"), (two, "paired, worse")):
        drawn = [box for box in axes.containers if box.get_label() == name]
        assert [tuple(box[0].get_xydata()[0]) for box in drawn] == [(2.0, 0.0), (-5.0, 1.0)]
        diamonds = [line for line in axes.lines if line.get_label() == "the paper"]
        assert [tuple(line.get_xydata()[0]) for line in diamonds] == [(2.01, -0.25)]
    plt.close("all")


def test_every_figure_takes_what_the_analysis_gives():
    rng, trial, one_log = np.random.default_rng(0), small_market.trial(), small_market.one_log()
    chance = pl.DataFrame({"metric": "clicks", "p": aa_pvalues(one_log, rng, 50)})
    step = online_figures.same_policy(chance, "t").axes[0].lines[-1]
    assert np.allclose(step.get_xdata()[1:-1], np.sort(chance["p"].to_numpy()))
    looks = peeking(one_log, rng, 50)
    lines = {line.get_label(): line for line in online_figures.false_alarms(looks, "t").axes[0].lines}
    for guard in GUARDS:
        assert lines[guard].get_ydata().tolist() == looks.filter(pl.col("guard") == guard)["alarms"].to_list()
    ways = designs(trial.a, trial.b, small_market.again(), trial.first)
    lines = {line.get_label(): line for line in online_figures.variance_left(ways, "t").axes[0].lines}
    assert set(online_figures.DESIGNS) == set(ways["design"]) < set(lines)
    bands = by_prefix(trial.a, trial.b, {})
    bands = bands.select(pair=pl.lit("p"), band="band", mean="relative", low="relative_low", high="relative_high",
                         published=pl.lit(None, pl.Float64))  # fmt: skip
    drawn = online_figures.prefix_gains(bands, "t").axes[0].containers
    assert len(drawn) == 1, "head and torso hold no request"
    shares = pl.DataFrame({"pair": "p", "verdict": ["good", "same", "bad"], "share": [0.5, 0.3, 0.2]})
    bars = online_figures.judgements(shares, "t").axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.5, 0.3, 0.2]) and bars[2].get_x() == 0.8
    plt.close("all")


def test_the_papers_figures_are_of_what_is_measured():
    rows = online_figures.published_gains()
    assert set(rows["metric"]) <= set(METRICS) and set(rows["where"]) <= set(SLICES)
    assert set(rows["first"]) | set(rows["second"]) <= set(VARIANTS)
    assert not rows.select("first", "second", "where", "metric").is_duplicated().any()
    found = {tuple(row[:-1]): row[-1] for row in rows.iter_rows()}
    assert found["onesug", "online_mca", "all", "clicks"] == 2.01
    assert found["onesug", "online_mca", "all", "position"] == -9.33
    assert found["onesug", "pairwise", "all", "revenue"] == 0.2
    assert found["onesug", "online_mca", "prefix tail", "clicks"] == 3.59


def test_a_claim_says_in_words_what_it_holds_in_numbers():
    claims = [claim for part in load_claims()["claims"].values() for claim in part if "published" in claim]
    assert len(claims) >= 7
    for claim in claims:
        told = f"{claim['text']} {claim['source']}"
        numbers = [gain for part in claim["published"] for gain in part["gains"].values()]
        assert numbers and all(f"{abs(gain):.2f} %" in told for gain in numbers), claim["id"]
        sign = "falls" in told or "less" in told
        assert all((gain < 0) == sign for gain in numbers), claim["id"]
