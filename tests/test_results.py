"""The committed reference records: whole, of one code and log, and none above what is possible."""

from pathlib import Path

import polars as pl
import pytest

from onesug_lite.claims import load_claims
from onesug_lite.decay import FOLDER, answers_of, decay
from onesug_lite.metrics import BANDS, SLICES, in_slice
from onesug_lite.records import Grid, read_records
from onesug_lite.rounds import ARMS
from onesug_lite.rounds import FOLDER as ROUNDS
from onesug_lite.tables import results_table
from onesug_lite.update_grid import FIXED, PLANS, schedule_of, variants
from onesug_lite.variants import VARIANTS

REFERENCE = Path(__file__).resolve().parents[1] / "results" / "lite"


@pytest.fixture(scope="module")
def records():
    return read_records(REFERENCE)


@pytest.fixture(scope="module")
def grid(records):
    return Grid(records, draws=400)


def test_every_row_is_there_and_each_trained_one_has_five_seeds(grid):
    assert list(grid.runs) == list(VARIANTS)
    fewer = {name: len(runs) for name, runs in grid.runs.items() if VARIANTS[name].trained and len(runs) < 5}
    assert not fewer


def test_every_difference_that_is_told_is_over_five_seeds(grid):
    """Those of the claims, and what follows the seed model against that model and against its control."""
    claims = [claim for section in load_claims()["claims"].values() for claim in section]
    tests = [test for claim in claims for test in claim.get("tests", []) if not test.get("under")]
    pairs = {(test["first"], test["second"]) for test in tests}
    after = [name for name, row in VARIANTS.items() if row.pre and row.preferred]
    pairs |= {(name, base) for name in after for base in ("sft_pre", "continued") if name != base}
    shared = {pair: len(grid.together("MRR@16", *pair)[0]) for pair in pairs}
    assert len(shared) > 25 and min(shared.values()) >= 5, shared


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


def test_every_row_that_a_claim_names_was_run():
    runs = {}
    for claims in load_claims()["claims"].values():
        for claim in claims:
            for test in claim.get("tests", []):
                under = test.get("under", "")
                if under not in runs:
                    runs[under] = {record["variant"] for record in read_records(REFERENCE / under)}
                assert {test["first"], test["second"]} <= runs[under], claim["id"]


# ---------------------------------------------------------------- fresh markets
@pytest.fixture(scope="module")
def markets():
    return [Grid(read_records(folder), draws=200) for folder in sorted(REFERENCE.glob("market-*"))]


def test_fresh_markets_are_of_other_seeds_and_ran_the_same_rows(markets):
    runs = [[record for seeds in market.runs.values() for record in seeds.values()] for market in markets]
    seeds = [{record["market_changes"].get("seed") for record in records} for records in runs]
    assert len(markets) >= 3 and all(len(found) == 1 for found in seeds), seeds
    assert len(set.union(*seeds)) == len(markets) and not {0, None} & set.union(*seeds)
    assert len({record["log"] for records in runs for record in records}) == len(markets)
    assert len({tuple(market.runs) for market in markets}) == 1
    for records in runs:
        for record in records:
            assert record["profile"] == "lite"
            assert record["changes"] == _as_json(VARIANTS[record["variant"]].changes), record["variant"]


def test_no_system_exceeds_the_ceiling_of_a_fresh_market(markets):
    for market in markets:
        for name in set(market.runs) - {"ceiling", "imitation", "preference"}:
            for metric in ("HR@16", "MRR@16"):
                assert market.share(name, "ceiling", metric).low <= 100, (name, metric)
            assert market.difference("preference", name, "replay clicks").high > 0, name


# ---------------------------------------------------------------- updates
@pytest.fixture(scope="module")
def updates():
    return read_records(REFERENCE / FOLDER)


def test_every_schedule_was_followed_with_three_seeds(updates):
    runs = Grid(updates, draws=1).runs
    assert set(runs) == set(variants())
    for name, seeds in runs.items():
        fixed = schedule_of(name)[0] in FIXED
        assert len(seeds) == 1 if fixed else len(seeds) >= 3, name
        assert all(bool(record["parameters"]) != fixed for record in seeds.values()), name
    assert len({tuple(seeds) for name, seeds in runs.items() if schedule_of(name)[0] not in FIXED}) == 1


def test_updates_come_from_one_code_one_log_and_one_set_of_libraries(updates):
    for key in ("code", "log", "profile", "libraries", "days"):
        assert len({str(record[key]) for record in updates}) == 1, key
    assert len({record["key"] for record in updates}) == len(updates)


def test_updates_hold_what_slices_read_of_all_days(updates):
    grid, plan = Grid(updates, draws=100), PLANS["lite"]
    answers, never = answers_of(updates), updates[0]["clicks"]["request_id"]
    assert len(never) == plan.days * plan.clicks and len(answers) == len(never) * len(updates)
    rows = {where: int(in_slice(grid.columns["clicks"], where).sum()) for where in SLICES}
    parts = (BANDS, ("seen", "unseen"), tuple(f"prefix {band}" for band in BANDS), ("all",), ("click",))
    assert all(sum(rows[name] for name in names) == len(never) for names in parts), rows
    assert all(0 < rows[name] < len(never) for name in ("order", "unseen", "random", "tail", "prefix tail")), rows
    ages = answers.group_by("schedule", maintain_order=True).agg(ages=pl.col("age").unique().sort())
    ages = dict(ages.iter_rows())
    assert ages["daily"] == [0] and ages["three_days"] == [0, 1, 2] and ages["never"] == list(range(plan.days))
    shown = decay(answers, draws=100)
    assert len(shown) == 2 * (len(variants()) - 3) and shown["decay"].is_finite().all()


# ---------------------------------------------------------------- rounds
def test_every_arm_went_its_rounds_with_three_seeds_of_one_code_and_log():
    records = read_records(REFERENCE / ROUNDS)
    runs = Grid(records, draws=1).runs
    assert set(runs) == set(ARMS) and {tuple(seeds) for seeds in runs.values()} == {(0, 1, 2)}
    walked = {tuple(row["round"] for row in record["rounds"]) for record in records if ARMS[record["variant"]].learns}
    assert walked == {tuple(range(5))}
    for key in ("code", "log", "profile", "libraries"):
        assert len({str(record[key]) for record in records}) == 1, key
    assert len({record["key"] for record in records}) == len(records)


def _as_json(value):
    """As a record holds it: tuples are lists there."""
    if isinstance(value, dict):
        return {key: _as_json(held) for key, held in value.items()}
    return [_as_json(held) for held in value] if isinstance(value, tuple) else value
