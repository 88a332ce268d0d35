"""Figures and tables: what is drawn is what was given, the same bytes each time, nothing half written."""

import polars as pl
import pytest

from onesug_lite import figures

DATA = pl.DataFrame({"position": [1, 2, 3], "shown": [100, 100, 100], "clicked": [40, 10, 5]})


def test_title_states_what_the_data_say():
    figures.use_style()
    assert "8 times as often" in figures.click_by_position(DATA).axes[0].get_title(loc="left")
    flat = DATA.with_columns(clicked=pl.Series([10, 10, 10]))
    assert "1 times as often" in figures.click_by_position(flat).axes[0].get_title(loc="left")


def test_saved_twice_the_same_bytes(tmp_path):
    figures.use_style()
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


@pytest.mark.parametrize("text", ["short", "a finding so long that one line of the figure cannot hold it " * 2])
def test_long_titles_wrap(text):
    figures.use_style()
    data = pl.DataFrame(
        [{"label": "a", "metric": "HR@16", "mean": 50.0, "low": 40.0, "high": 60.0}],
    )
    figure = figures.forest(data, text)
    limit = figure.get_figwidth() * 8.6
    assert all(len(line) <= limit for line in figure.get_suptitle().split("\n"))
