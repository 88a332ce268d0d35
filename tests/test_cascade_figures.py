"""The cascade's figures: drawn as measured."""

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest

from onesug_lite import cascade_figures, figures
from onesug_lite.cascade_faults import STAGES, TOGETHER
from onesug_lite.cascade_figures import interval_table, labelled
from onesug_lite.features import CHANNELS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


NUMBERS = dict.fromkeys(("mean", "low", "high", "only"), pl.Float64)


def left(label: str, means: list[float]) -> pl.DataFrame:
    """A slice that holds three clicks and one that holds none, as ``surviving`` gives them."""
    place = {"stage": STAGES * 2, "slice": ["all"] * 4 + ["none"] * 4, "requests": [3] * 4 + [0] * 4, "label": label}
    return pl.DataFrame(place | dict.fromkeys(("mean", "low", "high"), [*means, *[None] * 4]))


def held(means: list, only: list, name: str = "all", requests: int = 2) -> pl.DataFrame:
    """A slice as ``channel_shares`` gives it."""
    rows = {"slice": name, "channel": [*CHANNELS, TOGETHER], "requests": requests, "only": only}
    return pl.DataFrame(rows | dict.fromkeys(("mean", "low", "high"), means), schema_overrides=NUMBERS)


HELD = held([1.0, 0.0, 0.0, 0.5, 0.0, 0.5], [0.5, 0.0, 0.0, 0.0, 0.0, None])


def drawn(axes):
    """Points of the lines that have a label, by label."""
    return {box.get_label(): box.lines[0].get_ydata().tolist() for box in axes.containers}


def test_funnel_draws_each_slice_and_leaves_empty_ones_empty():
    figures.use_style()
    data = [left("one", [2 / 3, 2 / 3, 2 / 3, 1 / 3]), left("other", [1.0] * 4)]
    figure = cascade_figures.funnel(pl.concat(data), "a title")
    whole, none, spare = figure.axes
    assert figure.get_suptitle() == "a title" and whole.get_title(loc="left") == "all (3 clicks)"
    assert drawn(whole) == {"one": pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3]), "other": [1.0] * 4}
    assert none.get_title(loc="left") == "none (0 clicks)" and np.isnan(drawn(none)["one"]).all()
    assert not spare.get_visible() and [text.get_text() for text in whole.get_xticklabels()] == list(STAGES)


def test_channel_bars_draw_the_whole_and_what_is_its_own():
    figures.use_style()
    data = pl.concat([HELD, held([None] * 6, [None] * 6, "none", 0)])
    figure = cascade_figures.channel_bars(data, "a title")
    widths = [[bar.get_width() for bar in box] for box in figure.axes[0].containers if len(box) == len(CHANNELS) + 1]
    assert widths == [[1.0, 0.0, 0.0, 0.5, 0.0, 0.5], [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [*CHANNELS, TOGETHER]


def test_permutation_forest_fills_what_excludes_zero():
    figures.use_style()
    data = pl.DataFrame(
        [("one", "text", 5.0, 4.0, 6.0), ("one", "ctr", 1.0, -1.0, 3.0), ("other", "ctr", -2.0, -3.0, -1.0)],
        schema=["label", "group", "mean", "low", "high"],
        orient="row",
    )
    figure = cascade_figures.permutation_forest(data, "a title")
    faces = [[box.lines[0].get_markerfacecolor() for box in axes.containers] for axes in figure.axes]
    assert [[face != "white" for face in panel] for panel in faces] == [[True, False], [True]]
    assert [box.lines[0].get_ydata()[0] for box in figure.axes[1].containers] == [1]  # the row of "ctr"


def test_saved_twice_the_same_bytes(tmp_path):
    figures.use_style()
    for folder in ("a", "b"):
        figures.save(cascade_figures.channel_bars(HELD, "a title"), HELD, "bars", tmp_path / folder)
    assert (tmp_path / "a" / "bars.png").read_bytes() == (tmp_path / "b" / "bars.png").read_bytes()


# ---------------------------------------------------------------- tables
def test_systems_stand_beside_each_other():
    one = pl.DataFrame({"stage": ["recall", "rank"], "mean": [0.5, None], "low": [0.25, None], "high": [0.751, None]})
    other = pl.DataFrame({"stage": ["rank", "recall"], "mean": [1.0, 0.0], "low": [1.0, 0.0], "high": [1.0, 0.0]})
    data = labelled({"one": one, "other": other})
    assert data["label"].to_list() == ["one", "one", "other", "other"]
    table = interval_table(data, ["stage"])
    assert table.to_dict(as_series=False) == {
        "stage": ["recall", "rank"],
        "one": ["50.0 [25.0, 75.1]", "-"],
        "other": ["0.0 [0.0, 0.0]", "100.0 [100.0, 100.0]"],
    }
    assert interval_table(data, ["stage"], 1, 2)["one"][0] == "0.50 [0.25, 0.75]"
