"""The committed reference records: whole, of one code and log, and none above what is possible."""

from pathlib import Path

import pytest

from onesug_lite.claims import load_claims
from onesug_lite.records import Grid, read_records
from onesug_lite.tables import results_table
from onesug_lite.variants import VARIANTS

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "lite"


@pytest.fixture(scope="module")
def records():
    return read_records(REFERENCE)


@pytest.fixture(scope="module")
def grid(records):
    return Grid(records, draws=400)


COMPARED = (
    "mca",
    "online_mca",
    "sft",
    "dpo",
    "sft_pre",
    "onesug",
    "pairwise",
    "without_pre",
    "continued",
    "recommended",
)


def test_every_row_is_there_and_what_the_paper_compares_has_three_seeds(grid):
    assert list(grid.runs) == list(VARIANTS)
    assert all(len(grid.runs[name]) >= 3 for name in COMPARED)


def test_they_come_from_one_code_one_log_and_one_set_of_libraries(records):
    for key in ("code", "log", "profile", "libraries", "market_changes"):
        assert len({str(record[key]) for record in records}) == 1, key


def test_each_says_what_it_changed(records):
    assert all(record["changes"] == _as_json(VARIANTS[record["variant"]].changes) for record in records)


def test_no_system_exceeds_the_ceiling_beyond_noise(grid):
    for name in grid.runs:
        for metric in ("HR@16", "MRR@16"):
            if name != "ceiling" and grid.has(name, metric):
                assert grid.share(name, "ceiling", metric).low <= 100, (name, metric)
        for metric in ("replay clicks",):
            if name != "preference" and grid.has(name, metric):
                assert grid.difference("preference", name, metric).high > 0, name


def test_the_table_has_a_row_for_each_system_with_clicks(grid):
    assert len(results_table(grid)) == sum(grid.has(name, "MRR@16") for name in grid.runs)


def test_every_row_that_a_claim_names_was_run(grid):
    for claims in load_claims()["claims"].values():
        for claim in claims:
            for test in claim.get("tests", []):
                assert {test["first"], test["second"]} <= set(grid.runs)


def _as_json(value):
    """As a record holds it: tuples are lists there."""
    if isinstance(value, dict):
        return {key: _as_json(held) for key, held in value.items()}
    return [_as_json(held) for held in value] if isinstance(value, tuple) else value
