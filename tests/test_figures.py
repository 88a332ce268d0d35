"""Figures and tables: what is drawn is what was given, the same bytes each time, nothing half written."""

import warnings

import matplotlib.pyplot as plt
import polars as pl
import pytest
from matplotlib import font_manager

from onesug_lite import drawing, figures


@pytest.fixture(autouse=True)
def style():
    figures.use_style()
    yield
    plt.close("all")


DATA = pl.DataFrame({"position": [1, 2, 3], "shown": [100, 100, 100], "clicked": [40, 10, 5]})


def test_title_states_what_the_data_say():
    assert "8 times as often" in figures.click_by_position(DATA).axes[0].get_title(loc="left")
    flat = DATA.with_columns(clicked=pl.Series([10, 10, 10]))
    assert "1 times as often" in figures.click_by_position(flat).axes[0].get_title(loc="left")


def test_saved_twice_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        figures.save(figures.click_by_position(DATA), DATA, "clicks", tmp_path / folder)
    for name in ("clicks.png", "clicks.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["clicks.csv", "clicks.png"]
    assert pl.read_csv(tmp_path / "a" / "clicks.csv").equals(DATA)


def test_table_keeps_whole_numbers_whole():
    frame = pl.DataFrame({"position": [1, None], "share": [0.25, 1.0], "history": [["tea", "milk"], []]})
    html = figures.table(frame).data
    assert "<td>1</td>" in html and "0.250" in html and "tea · milk" in html and "nan" not in html.lower()


def test_a_table_breaks_lines_when_told():
    frame = pl.DataFrame({"why": ["a long reason"]})
    assert 'class="dataframe"' in figures.table(frame).data
    assert 'class="dataframe wrap"' in figures.table(frame, wrap=True).data


@pytest.mark.parametrize("text", ["short", "a finding so long that one line of the figure cannot hold it " * 2])
def test_long_titles_wrap(text):
    data = pl.DataFrame(
        [{"label": "a", "metric": "HR@16", "mean": 50.0, "low": 40.0, "high": 60.0}],
    )
    figure = figures.forest(data, text)
    limit = figure.get_figwidth() * 8.6
    assert all(len(line) <= limit for line in figure.get_suptitle().split("\n"))


SPANS = pl.DataFrame(
    {
        "statistic": ["prefix_length", "query_words", "head_half", "position_bias"],
        "ours": [4.6, 3.0, 0.3, 0.9],
        "low": [9.2, 2.0, 0.02, 0.9],
        "high": [9.2, 4.5, 0.045, 0.9],
        "verdict": ["below", "inside", "above", "inside"],
    }
)


def test_published_spans_counts_what_lies_inside_and_names_the_farthest():
    figure = figures.published_spans(SPANS)
    assert figure.get_suptitle() == "2 of 4 lie inside; the farthest out is head half, at 10 times its middle"
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["prefix length", "position bias", "query words", "head half"]  # by their distance
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert lines["ours, inside"] == [1.0, 1.0] and lines["ours, outside"] == pytest.approx([0.5, 10.0])


def test_published_spans_with_everything_inside():
    inside = SPANS.filter(pl.col("verdict") == "inside")
    assert figures.published_spans(inside).get_suptitle().startswith("2 of 2 lie inside")


def test_click_habits_says_where_and_when():
    data = pl.DataFrame({"habit": ["position"] * 2 + ["characters"] * 3, "value": [1, 2, 1, 2, 3],
                         "share": [0.7, 0.3, 0.2, 0.2, 0.6]})  # fmt: skip
    assert figures.click_habits(data).get_suptitle().replace("\n", " ") == (
        "The first place takes 70% of clicks; half of them come within 3 characters"
    )


@pytest.mark.parametrize(("exponent", "word"), [(0.7, "flatter than"), (0.9, "as steep as"), (1.2, "steeper than")])
def test_rank_frequency_compares_slopes(exponent, word):
    data = pl.DataFrame({"rank": range(1, 201), "searches": [200 // rank for rank in range(1, 201)]})
    title = figures.rank_frequency(data, exponent, 0.83, 1.0).axes[0].get_title(loc="left").replace("\n", " ")
    assert f"is {word} published ones (slope {exponent:.2f}); 50% of queries occur once" in title


def test_drift_names_the_widest_move_of_each_panel():
    lines = [("types", "tea", 0.01, 0.05), ("types", "milk", 0.02, 0.02), ("brands", "new", 0.0, 0.03)]
    data = pl.DataFrame(
        [{"panel": panel, "line": line, "day": day, "share": share} for panel, line, *both in lines
         for day, share in enumerate(both, 1)]
    )  # fmt: skip
    title = figures.drift(data, 2).get_suptitle().replace("\n", " ")
    assert title == "Demand drifts over the days: tea from 1.0% to 5.0% of searches, new from 0.0% to 3.0%"


# ---------------------------------------------------------------- Chinese labels
@pytest.fixture
def no_chinese_font(monkeypatch):
    monkeypatch.setattr(drawing, "_installed", dict)
    drawing._say_once.cache_clear()


@pytest.fixture
def chinese_font(monkeypatch):
    """A font with a few Chinese letters, behind one that lacks some of them."""
    letters, held = drawing._letters, {"some.ttf": frozenset("苹"), "all.ttf": frozenset("苹果耳机")}
    monkeypatch.setattr(drawing, "_installed", lambda: {"Some Hei": "some.ttf", "Whole Hei": "all.ttf"})
    monkeypatch.setattr(drawing, "_letters", lambda file: held.get(file) or letters(file))


TYPED = pl.DataFrame(
    {"prefix": ["苹", "p", "苹果"], "script": ["characters", "pinyin", "characters"], "clicks": [5, 4, 1]}
)


def test_labels_that_the_usual_font_draws_stay_as_they_are(chinese_font, capsys):
    texts = ["apple", "píng guǒ", "-1 | 2 %", ""]
    assert figures.legible(texts) == (texts, ["DejaVu Sans"])
    assert capsys.readouterr().err == ""


def test_a_font_with_all_letters_stands_behind_the_usual_one(chinese_font, capsys):
    assert figures.legible(["苹果", "apple"]) == (["苹果", "apple"], ["DejaVu Sans", "Whole Hei"])
    assert figures.legible(["苹"]).family == ["DejaVu Sans", "Some Hei"]
    assert capsys.readouterr().err == ""


def test_without_a_font_labels_are_transliterated_and_it_is_said_once(no_chinese_font, capsys):
    assert figures.legible(["苹果耳机", "pingg"]) == (["píng guǒ ěr jī", "pingg"], ["DejaVu Sans"])
    assert figures.legible(["手机 4k"]).texts == ["shǒu jī 4k"]
    assert figures.legible(["🎁"]).texts == ["?"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_font_that_lacks_a_letter_is_not_taken(chinese_font):
    assert figures.legible(["苹果汁"]) == (["píng guǒ zhī"], ["DejaVu Sans"])


def test_fonts_known_for_chinese_come_first_and_the_font_of_boxes_never(monkeypatch):
    names = ["Zapf", "SimHei", "Last Resort High-Efficiency", "Aharoni", "Noto Sans CJK SC"]
    entries = [font_manager.FontEntry(fname=f"{name}.ttf", name=name, weight=400) for name in names]
    entries.insert(0, font_manager.FontEntry(fname="light.ttf", name="SimHei", weight=800))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    assert list(drawing._installed()) == ["Noto Sans CJK SC", "SimHei", "Aharoni", "Zapf"]
    assert drawing._installed()["SimHei"] == "SimHei.ttf"


@pytest.mark.parametrize("installed", [True, False])
def test_no_label_is_an_empty_box(installed, request, tmp_path):
    """With whatever this machine has, and as if it had nothing."""
    if not installed:
        request.getfixturevalue("no_chinese_font")
    figures.use_style()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        figures.save(figures.typed_prefixes(TYPED, "苹果耳机"), TYPED, "typed", tmp_path)


def test_missing_letters_would_be_noticed(tmp_path):
    figure = figures.click_by_position(DATA)
    figure.axes[0].set_xlabel("苹果", fontfamily=["DejaVu Sans"])
    with pytest.warns(UserWarning, match="missing from font"):
        figures.save(figure, DATA, "box", tmp_path)


def test_chinese_figures_leave_the_others_alone(tmp_path):
    for folder in ("before", "after"):
        figures.save(figures.click_by_position(DATA), DATA, "clicks", tmp_path / folder)
        figures.save(figures.typed_prefixes(TYPED, "苹果"), TYPED, "typed", tmp_path / folder)
    assert (tmp_path / "before" / "clicks.png").read_bytes() == (tmp_path / "after" / "clicks.png").read_bytes()


def test_typed_prefixes_counts_all_of_them_and_draws_the_most_clicked():
    figure = figures.typed_prefixes(TYPED.with_columns(prefix=pl.Series(["ap", "a", "app"])), "apple", most=2)
    title = figure.axes[0].get_title(loc="left").replace("\n", " ")
    assert title == "3 different prefixes led to apple; 40% of the clicks followed pinyin"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ap", "a"]


def test_prefix_lengths_halves_each_script_by_itself():
    data = pl.DataFrame(
        {"script": ["characters"] * 3 + ["pinyin"] * 2, "length": [1, 2, 3, 2, 6], "clicks": [4, 5, 1, 10, 30]}
    )
    title = figures.prefix_lengths(data).axes[0].get_title(loc="left").replace("\n", " ")
    assert title == "Half the clicks come within 2 characters or 6 letters of pinyin"


def test_headroom_draws_every_gain_where_it_lies_filled_and_hollow():
    rows = [("clicks", world, bias, kind, number + 10.0 * (kind == "any"))
            for number, (world, bias) in enumerate([("a", "0.9"), ("a", "0.7"), ("b", "0.9"), ("b", "0.7")])
            for kind in ("recalled", "any")]  # fmt: skip
    data = pl.DataFrame(rows, schema=["panel", "world", "bias", "candidates", "gain"], orient="row")
    data = data.with_columns(low=pl.col("gain") - 0.5, high=pl.col("gain") + 1)
    figure = figures.headroom(pl.concat([data, data.with_columns(panel=pl.lit("orders"))]), "the finding")
    assert figure.get_suptitle() == "the finding" and len(figure.axes) == 2
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"] and axes.get_xlabel() == "clicks"
    found = {}
    for box in axes.containers:
        line, _, (bars,) = box
        ends = bars.get_segments()[0][:, 0]
        found[line.get_xdata()[0]] = (round(float(line.get_ydata()[0])), line.get_markerfacecolor(), *ends)
    assert sorted(found) == sorted(data["gain"])
    assert all(found[gain][0] == (0 if gain % 10 < 2 else 1) for gain in found), "in the world's row"
    assert all((found[gain][1] == "white") == (gain >= 10) for gain in found)
    assert all(found[gain][2:] == (gain - 0.5, gain + 1) for gain in found)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.9", "recalled", "0.7", "any"]


def test_reliability_counts_bins_that_agree_and_names_the_farthest():
    data = pl.DataFrame({"told": [0.001, 0.1, 0.4], "came": [0.0, 0.1, 0.8], "low": [0.0, 0.05, 0.7],
                         "high": [0.01, 0.2, 0.9], "pairs": [10, 100, 50]})  # fmt: skip
    title = figures.reliability(data).axes[0].get_title(loc="left").replace("\n", " ")
    assert title == "2 of 3 bins agree within chance; the farthest is off by a factor of 2.00"


# ---------------------------------------------------------------- results
GAPS = pl.DataFrame(
    {"label": ["a − b", "c − b"] * 2, "metric": ["HR@16"] * 2 + ["MRR@16"] * 2, "mean": [1.0, 0.2, -1.0, 0.1],
     "low": [0.5, -0.5, -2.0, -1.0], "high": [1.5, 0.9, -0.4, 1.2], "each_seed": [[0.9, 1.1]] * 4,
     "published": [2.0, None, 3.0, None]}
)  # fmt: skip


def drawn_dots(axes):
    """Place and centre -> whether the marker of an interval is filled."""
    dots = (box.lines[0] for box in axes.containers)
    return {
        (float(dot.get_ydata()[0]), float(dot.get_xdata()[0])): dot.get_markerfacecolor() != "white" for dot in dots
    }


def test_a_difference_is_filled_only_where_its_interval_excludes_zero():
    figure = figures.differences(GAPS, "the finding")
    assert figure.get_suptitle() == "the finding"
    assert [axes.get_xlabel() for axes in figure.axes] == ["HR@16, points", "MRR@16, points"]
    assert drawn_dots(figure.axes[0]) == {(0, 1.0): True, (1, 0.2): False}
    assert drawn_dots(figure.axes[1]) == {(0, -1.0): True, (1, 0.1): False}
    diamonds = [line for line in figure.axes[0].get_lines() if line.get_marker() == "D"]
    assert [list(line.get_xdata()) for line in diamonds] == [[2.0]], "where the paper prints none, none is drawn"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"ours", "each seed", "the paper"}


def test_a_waterfall_ends_where_the_steps_lead():
    data = pl.DataFrame({"label": ["plain", "+ PRE", "+ RWR"], "change": [40.0, 5.0, -2.0], "low": [39.0, 4.0, -3.0],
                         "high": [41.0, 6.0, -1.0]})  # fmt: skip
    axes = figures.waterfall(data, "the finding").axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([40, 45, 43, 43])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "+ PRE", "+ RWR", "all of it"]
    assert [text.get_text().strip() for text in axes.texts] == ["40.0", "+5.0", "-2.0", "43.0"]


def test_the_paper_stands_beside_ours():
    data = pl.DataFrame({"label": ["a", "b"], "metric": ["click HR@16"] * 2, "paper": [70.0, 80.0],
                         "mean": [60.0, 65.0], "low": [59.0, 64.0], "high": [61.0, 66.0]})  # fmt: skip
    axes = figures.paper_beside_ours(data, "the finding").axes[0]
    assert set(drawn_dots(axes)) == {(0, 60.0), (1, 65.0)}
    assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "D"] == [70.0, 80.0]


def test_curves_are_sorted_and_have_a_band():
    data = pl.DataFrame({"label": ["a"] * 3, "x": [2e6, 0.5, 4000.0], "mean": [3.0, -1.0, 2.0],
                         "low": [2.0, -2.0, 1.0], "high": [4.0, 0.0, 3.0]})  # fmt: skip
    axes = figures.budget_curves(data, "the finding", "steps", "points").axes[0]
    assert list(axes.get_lines()[0].get_xdata()) == [0.5, 4000, 2e6]
    assert axes.collections and axes.get_xscale() == "log" and axes.get_title(loc="left") == "the finding"
    assert axes.get_ylabel() == "points"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.5", "4,000", "2,000,000"]


def test_a_curve_of_one_point_shows_its_interval():
    data = pl.DataFrame({"label": ["a"], "x": [4.0], "mean": [3.0], "low": [1.0], "high": [5.0]})
    (bar,) = figures.budget_curves(data, "the finding", "steps").axes[0].collections
    assert [point.tolist() for point in bar.get_segments()[0]] == [[4.0, 1.0], [4.0, 5.0]]


def test_parts_have_a_panel_each_and_a_full_dot_only_where_clear_of_zero():
    rows = [(part, metric, x, 2.0 - place, 2.0 - place - wide, 2.0 - place + wide)
            for place, part in enumerate(("history", "marks", "ids")) for metric in ("HR@16", "MRR@16")
            for x, wide in ((2400.0, 0.5), (300.0, 3.0))]  # fmt: skip
    data = pl.DataFrame(rows, schema=["label", "metric", "x", "mean", "low", "high"], orient="row")
    figure = figures.part_curves(data, "the finding", "steps")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() or axes.get_title(loc="left") for axes in panels] == ["history", "marks", "ids"]
    assert len({axes.get_ylim() for axes in panels}) == 1 and panels[0].get_xscale() == "log"
    full = [[str(box.lines[0].get_markerfacecolor()) != "white" for box in axes.containers] for axes in panels]
    assert full == [[False, True] * 2, [False, True] * 2, [False, False] * 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["HR@16", "MRR@16"]
    assert [tick.get_text() for tick in panels[-1].get_xticklabels()] == ["300", "2,400"]
    assert all("steps" in axes.get_xlabel() for axes in panels[-2:])


def test_training_watch_has_a_panel_for_each_quantity():
    rows = [(panel, label, step, -step * sign) for panel in ("nats", "unknown") for label, sign in (("a", 1), ("b", -1))
            for step in (10, 0, 20)]  # fmt: skip
    data = pl.DataFrame(rows, schema=["panel", "label", "step", "value"], orient="row")
    figure = figures.training_watch(data, "the finding")
    assert [axes.get_ylabel() for axes in figure.axes] == ["nats", "unknown"]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0, 10, 20]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_replay_against_log_tells_twenty_systems_apart():
    data = pl.DataFrame(
        [{"label": f"s{n}", "logged": n, "logged_low": n - 1, "logged_high": n + 1, "replay": 2.0 * n,
          "replay_low": 2.0 * n - 1, "replay_high": 2.0 * n + 1} for n in range(20)]
    )  # fmt: skip
    figure = figures.replay_against_log(data, "the finding", "logged", "replay")
    dots = [box.lines[0] for box in figure.axes[0].containers]
    assert len({(dot.get_color(), dot.get_marker(), dot.get_markerfacecolor()) for dot in dots}) == 20
    assert [dot.get_ydata()[0] for dot in dots] == [2.0 * n for n in range(20)]


def test_bands_stay_in_their_place_where_a_system_lacks_one():
    data = pl.DataFrame({"label": ["a", "a", "b"], "band": ["head", "tail", "tail"], "mean": [50.0, 30.0, 20.0],
                         "low": [49.0, 29.0, 19.0], "high": [51.0, 31.0, 21.0]})  # fmt: skip
    axes = figures.bands(data, "the finding").axes[0]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in axes.patches] == [0, 1, 1]


@pytest.mark.parametrize("module", ["market_figures", "result_figures"])
def test_every_figure_has_its_name_in_one_place(module):
    import importlib
    import inspect

    place = importlib.import_module(f"onesug_lite.{module}")
    own = {name for name, function in inspect.getmembers(place, inspect.isfunction)
           if function.__module__ == place.__name__ and not name.startswith("_")}  # fmt: skip
    assert own and all(getattr(figures, name) is getattr(place, name) for name in own)
