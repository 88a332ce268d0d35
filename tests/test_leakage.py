"""A query that is planted on a test day reaches nothing that is learned from; planted on a training day, it does."""

import polars as pl
import pytest

from onesug_lite.log_files import log_files
from onesug_lite.pipeline import Pipeline

PLANTED = "never searched before this one"


def _planted(market, folder, day: int):
    """The smoke log with one more clicked query, a few times, in requests of a day counted from the first or last."""
    (folder / "log").mkdir()
    tables = {}
    for table, files in log_files(market / "log").items():
        tables[table] = pl.concat([pl.read_parquet(file) for file in files.values()], how="diagonal")
    days = tables["requests"]["time"].dt.date()
    chosen = tables["requests"].filter(days == days.unique().sort()[day])["request_id"].unique().sort()
    clicks = tables["candidates"].filter(
        pl.col("request_id").is_in(chosen.to_list()), pl.col("behaviour") == "query_click"
    )
    held = clicks["request_id"].unique().sort().head(12).to_list()
    there = pl.col("request_id").is_in(held) & (pl.col("behaviour") == "query_click")
    tables["candidates"] = tables["candidates"].with_columns(
        pl.when(there).then(pl.lit(PLANTED)).otherwise("query").alias("query")
    )
    for table, frame in tables.items():
        frame.write_parquet(folder / "log" / f"{table}.parquet")
    return folder / "log"


def _learned_from(road: Pipeline) -> dict[str, bool]:
    """Which of the things that models learn from hold the planted query."""
    sets = road.preference_sets.rows
    outcomes = road.changed({"targets": "outcomes"})
    return {
        "targets": PLANTED in road.targets["query"],
        "outcomes": PLANTED in outcomes.targets["query"],
        "pairs": PLANTED in road.pairs.prefix_query["query"],
        "counts": PLANTED in road.click_counts["query"],
        "chosen": PLANTED in sets["chosen"],
        "queries": PLANTED in road.queries,
        "trie": PLANTED in outcomes.known,
        "histories": PLANTED in road.training_clicks["history"].explode(),
    }


@pytest.mark.parametrize("day", [-1, -2, -3])
def test_what_is_planted_after_the_training_days_is_not_learned(market, tmp_path, day):
    road = Pipeline(_planted(market, tmp_path, day), "smoke", 0, tmp_path / "store")
    days = "validation" if day == -3 else "test"
    assert PLANTED in getattr(road.split, days).candidates["query"]  # it is there to be seen
    assert not any(_learned_from(road).values())


def test_what_is_planted_on_a_training_day_is_learned(market, tmp_path):
    """Else the test above could not fail."""
    road = Pipeline(_planted(market, tmp_path, 0), "smoke", 0, tmp_path / "store")
    found = _learned_from(road)
    assert all(found[name] for name in ("targets", "outcomes", "pairs", "counts", "chosen", "queries", "trie"))
