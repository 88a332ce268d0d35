"""The data card: every statistic inside its published span or with a reason, never both, and the page it makes."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import data_synth
from data_synth import MarketConfig, MarketError, knob_rows, market_config
from data_synth.card import (
    NOT_MODELLED,
    SCHEMA,
    STATISTICS,
    TOO_SMALL,
    UNEXPLAINED,
    Statistic,
    app,
    card_page,
    card_rows,
    place,
    published,
    rank_slope,
)
from data_synth.describe import Digest, digest_market

ROOT = Path(__file__).resolve().parents[1]
KEYS = set(re.findall(r"^@\w+\{(\S+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M))


@pytest.fixture(scope="module")
def chinese() -> Path:
    return data_synth.open_market(market_config("smoke", locale="zh"), ROOT / "build" / "store")


@pytest.fixture(scope="module")
def english(market) -> Digest:
    return digest_market(market)


# ---------------------------------------------------------------- the acceptance line
def faults(rows: pl.DataFrame) -> list[str]:
    """Statistics outside their span, or not compared, without a reason; and reasons beside what needs none."""
    found = []
    for row in rows.iter_rows(named=True):
        needs = row["verdict"] in ("below", "above", "not comparable")
        if needs and row["why"] in ("", UNEXPLAINED):
            found.append(f"{row['statistic']} is {row['verdict']} and does not say why")
        if not needs and row["why"]:
            found.append(f"{row['statistic']} is {row['verdict']} and gives a reason")
    return found


def test_every_statistic_is_inside_or_says_why(english):
    assert faults(card_rows(english)) == []


def test_every_chinese_statistic_is_inside_or_says_why(chinese):
    assert faults(card_rows(chinese)) == []


def test_faults_are_found(english):
    rows = card_rows(english)
    silent = rows.with_columns(why=pl.when(pl.col("statistic") == "prefix_length").then(pl.lit("")).otherwise("why"))
    assert faults(silent) == ["prefix_length is below and does not say why"]
    unexplained = rows.with_columns(why=pl.col("why").replace({rows["why"][1]: UNEXPLAINED}))
    assert faults(unexplained) == ["short_query_share is below and does not say why"]
    chatty = rows.with_columns(why=pl.when(pl.col("verdict") == "inside").then(pl.lit("a")).otherwise("why"))
    assert len(faults(chatty)) == (rows["verdict"] == "inside").sum() > 0


def test_a_new_outlier_is_unexplained(english, monkeypatch):
    """What lies outside on a side that nobody has explained does not borrow the other side's reason."""
    one_sided = Statistic("query_words", lambda log: 99.0, below="too short")
    monkeypatch.setattr("data_synth.card.STATISTICS", (one_sided,))
    rows = card_rows(english)
    assert rows.select("verdict", "why").row(0) == ("above", UNEXPLAINED)
    assert faults(rows) == ["query_words is above and does not say why"]


# ---------------------------------------------------------------- the published side
def test_every_published_statistic_is_measured_once_and_in_order():
    assert [each.name for each in STATISTICS] == [entry["statistic"] for entry in published()]


def test_every_source_is_in_the_bibliography():
    used = {figure["source"] for entry in published() for figure in entry["figures"]}
    knobs = {row["source"] for row in knob_rows() if row["source"] != "ours" and not row["source"].startswith("paper")}
    assert used and knobs and used | knobs | {"guo2026onesug"} <= KEYS


def test_spans_are_those_of_their_figures():
    for entry in published():
        values = [figure["value"] for figure in entry["figures"]]
        assert (entry["low"], entry["high"]) == ((min(values), max(values)) if values else (None, None)), entry


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.23, 0.23, 0.5, "inside"),
        (0.2251, 0.23, 0.5, "inside"),  # 0.23 in the decimals of the span
        (0.2249, 0.23, 0.5, "below"),
        (0.5049, 0.23, 0.5, "inside"),
        (0.506, 0.23, 0.5, "above"),
        (0.94, 0.9, 0.9, "inside"),
        (0.96, 0.9, 0.9, "above"),
        (5.4, 5.0, 5.0, "inside"),
        (5.6, 5.0, 5.0, "above"),
    ],
)
def test_place(value, low, high, verdict):
    assert place(value, low, high) == verdict


# ---------------------------------------------------------------- our side
def hand_made() -> Digest:
    """Six searches of two shoppers on the days 1, 1, 1, 2, 3 and 3; two training days and a test day."""
    minute = ["01 10:00", "01 10:03", "01 20:00", "02 10:00", "03 10:00", "03 11:00"]
    searches = pl.DataFrame(
        {
            "user_id": [1, 1, 2, 1, 1, 2],
            "time": [f"2025-06-{text}:00" for text in minute],
            "prefix": ["te", "milk", "coff", "te", "salt", "s"],
            "form": ["written", "misspelt", "synonym", "written", "written", "written"],
            "searched": ["tea", "milk", "black coffee beans now", "tea", "salt", None],
            "clicked": ["tea", None, "black coffee beans now", "tea", None, None],
            "position": [1, None, 3, 1, None, None],
            "behaviour": ["order", None, "query_click", "item_click", None, None],
            "passed_over": [False, None, True, False, None, None],
        }
    ).with_columns(pl.col("time").str.to_datetime())
    return Digest("en", 2, 1, searches, 8, 24, 8, 30, 10, 160)


def test_statistics_by_hand():
    ours = dict(card_rows(hand_made()).select("statistic", "ours").iter_rows())
    letters = 3 + 4 + 22 + 3 + 4
    assert ours["query_words"] == pytest.approx((1 + 1 + 4 + 1 + 1) / 5)
    assert ours["short_query_share"] == pytest.approx(4 / 5)
    assert ours["query_characters"] == pytest.approx(letters / 5)
    assert ours["prefix_length"] == pytest.approx(24 / 8)
    assert ours["prefix_share"] == pytest.approx((2 / 3 + 4 / 22 + 2 / 3) / 3)
    assert ours["keystrokes_saved"] == pytest.approx((1 + 18 + 1) / letters)
    assert ours["click_position"] == pytest.approx(2 / 3)
    assert ours["keystrokes_skipped"] == pytest.approx(1 / 3)
    assert ours["suggestion_use"] == pytest.approx(3 / 6)
    assert ours["repeat_rate"] == pytest.approx(1 / 5)
    assert ours["distinct_share"] == pytest.approx(4 / 5)
    assert ours["singleton_share"] == pytest.approx(3 / 4)
    assert ours["tail_share"] == pytest.approx(3 / 5)
    assert ours["head_half"] == pytest.approx(2 / 4)
    assert ours["head_share"] == pytest.approx(2 / 5)
    assert ours["misspelling_rate"] == pytest.approx(1 / 6)
    assert ours["starts_with"] == pytest.approx(2 / 3)
    assert ours["search_click_rate"] == pytest.approx(2 / 3)
    assert ours["search_to_order"] == pytest.approx(1 / 6)
    assert ours["click_to_order"] == pytest.approx(1 / 3)
    assert ours["shopper_activity"] == pytest.approx(3 * 30 / 3)
    assert ours["shopper_skew"] == pytest.approx(1)
    assert ours["searches_per_session"] == pytest.approx(6 / 5)
    assert ours["position_bias"] == pytest.approx(30 / 40)
    assert ours["query_churn"] == pytest.approx(1)  # of the test day's one query, salt


def test_a_log_too_small_says_so():
    log = hand_made()
    log = log._replace(searches=log.searches.filter(pl.col("time").dt.day() < 3))  # nothing on the test day
    row = card_rows(log).filter(pl.col("statistic") == "query_churn").row(0, named=True)
    assert (row["ours"], row["verdict"], row["why"]) == (None, "not comparable", TOO_SMALL)


def test_rank_slope_of_a_power_law():
    counts = 1e6 * np.arange(1, 2001.0) ** -0.8
    assert rank_slope(counts) == pytest.approx(0.8)
    assert rank_slope(counts[:200]) == pytest.approx(0.8)
    assert rank_slope(counts[:5]) == pytest.approx(0.8)


def test_digest_agrees_with_the_tables(market, english):
    """A row a search, whatever the shards; the click is the log's, the searched query the truth's."""
    requests = pl.read_parquet(market / "log" / "requests" / "*.parquet")
    truth = pl.read_parquet(market / "truth" / "requests" / "*.parquet")
    candidates = pl.read_parquet(market / "log" / "candidates" / "*.parquet")
    rows = english.searches
    assert rows.height == requests["session_id"].n_unique() and english.requests == requests.height
    assert english.candidates == candidates.height
    assert rows["searched"].drop_nulls().len() == truth["searched"].drop_nulls().len()
    clicked = rows.drop_nulls("clicked")
    assert clicked.height == candidates.filter(pl.col("behaviour").is_in(["order", "item_click", "query_click"])).height
    assert (clicked["clicked"] == clicked["searched"]).all() and clicked["passed_over"].null_count() == 0
    one = clicked.filter("passed_over").row(0, named=True)
    shown = candidates.filter(pl.col("position").is_not_null() & (pl.col("query") == one["clicked"]))
    own = requests.filter(pl.col("session_id") == one["session_id"])
    assert shown.join(own, on="request_id").height > 1


def test_rows_of_the_other_language_are_left_out(english, chinese):
    ours, theirs = set(card_rows(english)["statistic"]), set(card_rows(chinese)["statistic"])
    assert ours - theirs == {"query_words", "short_query_share", "query_characters", "prefix_length"}
    assert theirs - ours == {"zh_query_characters", "zh_query_5_to_8", "pinyin_share"}
    assert card_rows(english).schema == SCHEMA


def test_no_market_is_named(tmp_path, market):
    with pytest.raises(MarketError, match="holds no market; write one with"):
        digest_market(tmp_path)
    (tmp_path / "config.json").write_text((market / "config.json").read_text())
    with pytest.raises(MarketError, match=r"shard-00000.parquet is missing"):
        digest_market(tmp_path)


# ---------------------------------------------------------------- the page
def test_page_holds_statistics_knobs_and_what_is_missing(english, chinese):
    page = card_page([english, digest_market(chinese)])
    for each in STATISTICS:
        assert f"**{each.name.replace('_', ' ')}**" in page
    for knob in fields(MarketConfig):
        assert f"| `{knob.name}` |" in page
    assert all(f"- {line}" in page for line in NOT_MODELLED)
    cited = {key for keys in re.findall(r"\{cite\}`([^`]+)`", page) for key in keys.split(", ")}
    assert cited and cited <= KEYS
    for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.M):  # no cell breaks its table
        assert len({line.count("|") for line in block.splitlines()}) == 1


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_command_writes_the_page_and_nothing_else(market, tmp_path):
    out = tmp_path / "book" / "data_card.md"
    code, output = run("--log", market, "--out", out)
    assert code == 0 and "inside their span" in output
    assert out.read_text(encoding="utf-8") == card_page([digest_market(market)])
    assert [path.name for path in out.parent.iterdir()] == ["data_card.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--log", "nowhere"], "nowhere holds no market"), (["--profile", "huge"], "expected one of smoke, lite, full")],
)
def test_command_says_what_is_wrong(arguments, message, tmp_path):
    code, output = run(*arguments, "--store", tmp_path, "--out", tmp_path / "card.md")
    assert code == 2 and message in output and "Traceback" not in output
    assert not (tmp_path / "card.md").exists()
