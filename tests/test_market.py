"""The synthetic market: what its log must hold, what it must not hold, and the habits it must show."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import chisquare

import data_synth
from data_synth import (
    PRESETS,
    PROFILES,
    MarketConfig,
    MarketError,
    build_world,
    knob_rows,
    market_config,
    open_market,
    play_shard,
    shard_count,
    write_market,
    write_shard,
)
from data_synth.catalogue import Catalogue, Parts, Pool, period_of
from data_synth.catalogue_building import build_catalogue
from data_synth.counts import add_counts, build_index, find_rows
from data_synth.keystrokes import (
    FORMS,
    HEAD,
    MISSPELT,
    WRITTEN,
    draw_forms,
    form_probability,
    heads,
    misspell,
    prefix_keys,
    prefix_texts,
    text_keys,
    typed_texts,
)
from data_synth.lexicon import EVENT, SLOTS, read_lexicon
from data_synth.market import fingerprint
from data_synth.policies import Batch, builtin_policy, distinct_draws, request_frame, text_policy
from data_synth.responses import (
    BEHAVIOURS,
    click_places,
    click_probability,
    outcome_probability,
    price,
    respond,
)
from data_synth.sessions import day_sessions
from data_synth.shoppers import draw_intents, profile_codes, profile_texts
from onesug_lite.log import CANDIDATE_SCHEMA, REQUEST_SCHEMA, clicked, split_by_time
from onesug_lite.log_files import read_log

ROOT = Path(__file__).resolve().parents[1]
SMOKE = market_config("smoke", shard_sessions=2_000)  # three shards
TINY_CHANGES = dict(sessions=480, shoppers=60, pilot_sessions=500, shard_sessions=128, days=6, test_days=2)
TINY = market_config("smoke", **TINY_CHANGES)
CLICKS = ["order", "item_click", "query_click"]
DATE = pl.col("time").dt.date()


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return write_market(SMOKE, tmp_path_factory.mktemp("market") / "smoke")


@pytest.fixture(scope="module")
def log(market):
    return read_log(market / "log")


@pytest.fixture(scope="module")
def requests(log) -> pl.DataFrame:
    """The log's requests beside the truth of each."""
    return log.requests


@pytest.fixture(scope="module")
def candidates(log) -> pl.DataFrame:
    return log.candidates


@pytest.fixture(scope="module")
def truth(market) -> pl.DataFrame:
    return pl.read_parquet(market / "truth" / "requests" / "*.parquet")


@pytest.fixture(scope="module")
def queries(market) -> pl.DataFrame:
    return pl.read_parquet(market / "truth" / "queries.parquet")


@pytest.fixture(scope="module")
def world():
    return build_world(SMOKE)


@pytest.fixture(scope="module")
def shard(world):
    """Shoppers and days of the first shard."""
    shoppers, days = play_shard(world, 0)
    return shoppers, list(days)


def p_value(observed, expected) -> float:
    """Of counts against what they should come to, chi-square with rare cells taken together."""
    observed, expected = np.ravel(observed).astype(float), np.ravel(expected).astype(float)
    assert observed[expected <= 0].sum() == 0, "something happened that cannot"
    assert expected.sum() == pytest.approx(observed.sum(), rel=1e-6)
    order = np.argsort(expected)
    rare = np.searchsorted(np.cumsum(expected[order]), 10) + 1 if expected[order[0]] < 10 else 1
    rare = max(rare, int((expected < 10).sum()))
    start = np.r_[0, np.arange(rare, expected.size)]
    seen, wanted = (np.add.reduceat(cells[order], start) for cells in (observed, expected))
    return chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue


def some(batch: Batch, rows) -> Batch:
    return Batch(batch.day, *(part[rows] for part in batch[1:]))


# The contract of the log


def test_the_method_accepts_the_log(log, market):
    assert dict(log.requests.schema) == REQUEST_SCHEMA | {"policy": pl.String}
    assert dict(log.candidates.schema) == CANDIDATE_SCHEMA | {"propensity": pl.Float32}
    assert log.requests["session_id"].n_unique() == SMOKE.sessions
    assert log.requests.drop("profile").null_count().sum_horizontal().item() == 0
    days = [part.requests["time"].dt.date().n_unique() for part in split_by_time(log, validation_days=1, test_days=2)]
    assert days == [SMOKE.days - 1, 1, 2]
    assert clicked(log).height > 2_000


def test_files_are_shards_and_hold_no_column_but_the_contract_s(market):
    names = [f"shard-{number:05d}.parquet" for number in range(3)]
    assert sorted(path.relative_to(market / "log").as_posix() for path in (market / "log").rglob("*.*")) == [
        f"{table}/{name}" for table in ("candidates", "requests") for name in names
    ]
    columns = {"requests": [*REQUEST_SCHEMA, "policy"], "candidates": [*CANDIDATE_SCHEMA, "propensity"]}
    for table, expected in columns.items():
        for name in names:
            schema = pq.read_schema(market / "log" / table / name)
            assert schema.names == expected and schema.metadata is None
    truth = set()
    for path in (market / "truth").rglob("*.parquet"):
        truth |= set(pq.read_schema(path).names)
    assert truth & set(sum(columns.values(), [])) == {"request_id", "query", "user_id"}  # keys, and nothing else
    assert {"intent", "quality", "attraction", "clickbait", "department_taste", "read"} <= truth


def test_a_row_group_holds_a_day(market):
    for number in range(3):
        name = f"shard-{number:05d}.parquet"
        files = [pq.ParquetFile(market / "log" / table / name) for table in ("requests", "candidates")]
        assert [file.num_row_groups for file in files] == [SMOKE.days + SMOKE.test_days] * 2
        last = None
        for day in range(files[0].num_row_groups):
            ids, times = (files[0].metadata.row_group(day).column(place).statistics for place in (0, 3))
            start = np.datetime64("2025-06-01") + day
            assert start <= np.datetime64(times.min, "us") <= np.datetime64(times.max, "us") < start + 1
            assert last is None or ids.min == last + 1
            of_candidates = files[1].metadata.row_group(day).column(0).statistics
            assert (of_candidates.min, of_candidates.max) == (ids.min, ids.max)
            last = ids.max
        rows = pl.from_arrow(files[0].read(["request_id", "session_id"]))
        assert rows["request_id"].is_sorted() and rows["session_id"].is_sorted()


def test_positions_and_behaviours(requests, candidates):
    shown = candidates.filter(pl.col("position").is_not_null())
    positions = shown.group_by("request_id").agg(pl.col("position").sort())
    assert positions["position"].unique().to_list() == [list(range(1, SMOKE.shown + 1))]
    assert positions.height > 0.99 * requests.height  # nothing is known of a first letter that nobody typed before
    assert shown["propensity"].is_between(0, 1, closed="right").all()
    hidden = candidates.filter(pl.col("position").is_null())
    assert hidden["behaviour"].unique().to_list() == ["not_shown"]
    assert hidden["propensity"].null_count() == hidden.height == positions.height * SMOKE.not_shown
    assert set(shown["behaviour"]) == {*CLICKS, "show"}
    paid = candidates.filter(pl.col("revenue") > 0)
    assert paid["behaviour"].unique().to_list() == ["order"]
    assert paid.height == (candidates["behaviour"] == "order").sum() > 100


def test_a_session_is_one_search(requests, candidates, truth):
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS)).select("request_id", clicked="query")
    assert clicks["request_id"].is_unique().all()
    rows = requests.join(truth, on="request_id").join(clicks, on="request_id", how="left").sort("request_id")
    one = rows.group_by("session_id", maintain_order=True).agg(
        pl.col("user_id", "policy", "intent").n_unique().name.prefix("one_"),
        pl.col("history").n_unique().alias("one_history"),
        within=pl.col("time").last() - pl.col("time").first(),
        ascends=(pl.col("time").diff().dt.total_microseconds() > 0).all(),
        clicks=pl.col("clicked").count(),
        clicked_last=pl.col("clicked").last(),
        ends=pl.col("searched").count(),
        searched_last=pl.col("searched").last(),
        mended=(pl.col("form").n_unique() > 1),
        forms=pl.col("form").unique(maintain_order=True),
        typed_on=pl.struct("prefix", before=pl.col("prefix").shift()).map_elements(
            lambda pair: pair["before"] is None or pair["prefix"].startswith(pair["before"]), return_dtype=pl.Boolean
        ),
    )
    assert one.select(pl.col("^one_.*$").max() == 1).unpivot()["value"].all()
    assert one["ascends"].all() and one["within"].max().total_seconds() < 60
    assert one["clicks"].max() == 1 and one["ends"].max() == 1
    ended = one.filter(pl.col("clicks") == 1)
    assert ended["clicked_last"].null_count() == 0  # nothing comes after a click
    assert (ended["clicked_last"] == ended["searched_last"]).all()
    assert one.filter(pl.col("ends") == 1)["searched_last"].null_count() == 0
    entered = rows.filter(pl.col("searched").is_not_null() & pl.col("clicked").is_null())
    assert (entered["searched"] == entered["intent"]).all() and entered.height > 500
    left = (one["ends"] == 0).mean()
    assert 0.05 < left < 0.25  # some give up
    assert one.filter(~pl.col("mended"))["typed_on"].list.all().all()
    mended = one.filter("mended")
    assert mended.height > 50 and mended["forms"].to_list() == [["misspelt", "written"]] * mended.height
    assert not mended["typed_on"].list.all().all()


def test_ids_are_unique_over_shards(market, requests):
    assert requests["request_id"].is_unique().all()
    shards = [pl.read_parquet(path) for path in sorted((market / "log" / "requests").glob("*.parquet"))]
    for column in ("request_id", "session_id", "user_id"):
        sets = [set(part[column]) for part in shards]
        assert sum(map(len, sets)) == len(set.union(*sets)) and all(len(found) > 100 for found in sets)
    shoppers = pl.read_parquet(market / "truth" / "shoppers" / "*.parquet")
    assert shoppers["user_id"].is_unique().all() and shoppers.height == SMOKE.shoppers
    assert set(requests["user_id"]) <= set(shoppers["user_id"])


def test_days_and_hours(requests):
    searches = requests.group_by("session_id").agg(pl.col("time").min())
    per_day = searches.group_by(DATE).len().sort("time")
    assert per_day.height == SMOKE.days + SMOKE.test_days
    assert per_day["len"].min() > 0.8 * SMOKE.sessions / per_day.height
    hours = searches["time"].dt.hour().value_counts().sort("time")
    assert hours.height == 24 and hours["time"][hours["count"].arg_max()] in range(17, 22)  # evenings


def test_prefixes_are_short_and_tidy(requests):
    prefix = requests["prefix"]
    assert prefix.str.len_chars().min() == 1 and prefix.str.len_chars().max() == SMOKE.max_prefix
    assert (prefix == prefix.str.strip_chars()).all()
    assert prefix.str.len_chars().median() in (4.0, 5.0, 6.0)


def test_history_is_the_shopper_s_own_and_in_time_order(requests, truth):
    """A search of one day ends in the next day's history: the click, or what was typed to the end."""
    rows = requests.join(truth, on="request_id").sort("user_id", "request_id").with_columns(day=DATE)
    checked = grown = 0
    for _, own in rows.group_by("user_id", maintain_order=True):
        first = own["history"][0].to_list()
        for day in own["day"].unique().sort().to_list()[1:]:
            past = first + own.filter(pl.col("day") < day)["searched"].drop_nulls().to_list()
            now = own.filter(pl.col("day") == day)["history"].unique().to_list()
            assert now == [past[-SMOKE.history_length :]]
            checked, grown = checked + 1, grown + (now != [first])
        if checked > 800:
            break
    assert checked > 800 and grown > 700
    lengths = requests["history"].list.len()
    assert lengths.max() == SMOKE.history_length
    assert 0 < (lengths < SMOKE.history_length).mean() < 0.2  # cold shoppers
    assert 0 < (requests["profile"].list.len() == 0).mean() < 0.1


def test_launches_of_the_test_days_are_unheard_of_before(requests, candidates, truth, queries):
    new = queries.filter(pl.col("born") == SMOKE.days)["query"].implode()
    day = (DATE - DATE.min()).dt.total_days()
    rows = requests.join(truth, on="request_id").with_columns(day=day, new=pl.col("intent").is_in(new))
    assert rows.filter(pl.col("day") < SMOKE.days)["new"].sum() == 0
    fresh = rows.filter(pl.col("day") >= SMOKE.days)
    assert fresh["new"].sum() > 5 and fresh["new"].mean() < 0.3
    assert candidates["query"].is_in(new).sum() == 0  # nobody has searched them yet, so no list can show them
    assert (
        rows.filter(pl.col("history").list.eval(pl.element().is_in(new)).list.any() & (pl.col("day") < 31)).height == 0
    )


# Who knows what


def test_the_market_knows_nothing_of_models():
    forbidden = {"torch", "transformers", "sentence_transformers", "onesug_lite"}
    modules = sorted(Path(data_synth.__file__).parent.rglob("*.py"))
    program = f"import sys, {', '.join('data_synth.' + path.stem for path in modules)}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert {"data_synth.oracle", "data_synth.__main__"} <= set(loaded.split())
    assert not forbidden & {name.partition(".")[0] for name in loaded.split()}
    for path in modules:  # inside functions too
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not forbidden & {name.partition(".")[0] for name in names}, path


# Determinism


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_bytes_whatever_the_hash_seed_and_the_threads(tmp_path):
    program = (
        "import sys; from pathlib import Path; import data_synth as d\n"
        f"d.write_market(d.market_config('smoke', seed=int(sys.argv[2]), **{TINY_CHANGES}), Path(sys.argv[1]))"
    )
    found = []
    for number, (threads, seed) in enumerate([("1", "7"), ("2", "7"), ("1", "8")]):
        out = tmp_path / str(number)
        names = ("PYTHONHASHSEED", "POLARS_MAX_THREADS", "OMP_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        subprocess.run([sys.executable, "-c", program, str(out), seed], check=True, env=environment)
        found.append(digests(out))
    assert found[0] == found[1] and len(found[0]) == 4 * shard_count(TINY) + 2
    assert found[0].keys() == found[2].keys()
    assert all(found[0][name] != found[2][name] for name in found[0])


def test_same_bytes_whoever_writes_which_shard(tmp_path):
    """One worker or four, shards in any order, or one shard alone."""
    whole = digests(write_market(TINY, tmp_path / "one"))
    assert digests(write_market(TINY, tmp_path / "four", jobs=4)) == whole
    tiny, last = build_world(TINY), shard_count(TINY) - 1
    for number in range(last, -1, -1):
        assert write_shard(tiny, number, tmp_path / "backwards") > 100
    backwards = digests(tmp_path / "backwards")
    assert backwards == {name: whole[name] for name in backwards} and len(backwards) == 4 * (last + 1)
    alone = digests(write_market(TINY, tmp_path / "alone", shards=[2]))
    assert alone == {name: whole[name] for name in alone}
    assert sorted(name for name in alone if name.startswith("log")) == [
        f"log/{table}/shard-00002.parquet" for table in ("candidates", "requests")
    ]


# What shoppers have in mind


def taste(config, catalogue: Catalogue, shoppers, one: int, day: int) -> np.ndarray:
    """(Q,) probability of every query for one shopper on one day, from the tables."""
    parts, period = catalogue.split(np.arange(catalogue.size)), int(period_of(config, day))
    row, department = catalogue.row[parts.type], catalogue.type_department[parts.type]
    tier = shoppers.tier[one]
    brand = catalogue.brand[period, row, tier, shoppers.favourite_brand[one, department], parts.brand]
    attribute = shoppers.favourite_attribute[one, catalogue.type_shelf[parts.type]]
    return (
        shoppers.department_taste[one, department]
        * catalogue.type_share[day, parts.type]
        * brand
        * catalogue.style[row, parts.style]
        * catalogue.attribute[row, attribute, parts.attribute]
        * catalogue.modifier[period, row, shoppers.audience[one], tier, parts.modifier]
    )


def test_intents_follow_the_closed_form(world, shard):
    shoppers, catalogue, one, day, count = shard[0], world.catalogue, 3, 17, 60_000
    probability = taste(SMOKE, catalogue, shoppers, one, day)
    assert probability.sum() == pytest.approx(1.0)
    drawn = draw_intents(
        SMOKE, catalogue, shoppers, np.full(count, one), day, np.empty((count, 0), int), np.random.default_rng(1)
    )
    seen = np.bincount(drawn, minlength=catalogue.size)
    assert p_value(seen, count * probability) > 1e-4
    department = catalogue.type_department[np.arange(catalogue.size) // catalogue.split_base]
    assert p_value(np.bincount(department, seen), count * shoppers.department_taste[one]) > 1e-4
    assert p_value(seen, count * taste(SMOKE, catalogue, shoppers, one, 0)) < 1e-4  # it tells the days apart
    other = int(np.argmax(shoppers.favourite_brand[:, 0] != shoppers.favourite_brand[one, 0]))
    assert p_value(seen, count * taste(SMOKE, catalogue, shoppers, other, day)) < 1e-4  # and the shoppers


def test_favourites_are_as_much_likelier_as_the_knobs_say(world):
    """Odds of each word against none, for those who favour it and those who favour nothing."""
    catalogue = world.catalogue
    brands = np.arange(1, catalogue.sizes[1])
    brand = catalogue.brand[0] / catalogue.brand[0][..., :1]  # (rows, tiers, favourite, brand)
    there = brand[:, :, 0, 1:] > 0
    np.testing.assert_allclose(
        brand[:, :, brands, brands][there], SMOKE.brand_boost * brand[:, :, 0, 1:][there], rtol=1e-9
    )
    attributes = np.arange(1, catalogue.sizes[3])
    attribute = catalogue.attribute / catalogue.attribute[..., :1]
    np.testing.assert_allclose(
        attribute[:, attributes, attributes], SMOKE.attribute_boost * attribute[:, 0, 1:], rtol=1e-9
    )
    modifier = catalogue.modifier[0] / catalogue.modifier[0][..., :1]  # (rows, audiences, tiers, modifier)
    tags = np.array([word.tag for word in catalogue.words["modifier"]]).reshape(-1, catalogue.sizes[4])
    tags = tags[catalogue.type_department]
    for names, axis, boost in (
        (catalogue.lexicon.audiences, 1, SMOKE.audience_boost),
        (catalogue.lexicon.tiers, 2, SMOKE.price_boost),
    ):
        for number, name in enumerate(names):
            row, word = np.nonzero(tags == name)
            if row.size:
                own, other = (np.take(modifier, place, axis) for place in (number, number - 1))
                np.testing.assert_allclose(own[row, :, word], boost**2 * other[row, :, word], rtol=1e-9)
    assert (tags != "").sum() > catalogue.type_department.size


def test_repeats_come_at_the_configured_rate(world, shard):
    count, catalogue = 40_000, world.catalogue
    probability = taste(SMOKE, catalogue, shard[0], 5, 9)
    past = np.flatnonzero(probability > 0)[:: catalogue.size // 40][:5]
    history = np.tile(np.r_[-1, -1, -1, past], (count, 1))  # what is known stands at the end
    drawn = draw_intents(SMOKE, catalogue, shard[0], np.full(count, 5), 9, history, np.random.default_rng(2))
    chance = SMOKE.repeat / past.size + (1 - SMOKE.repeat) * probability[past]
    seen = np.array([(drawn == query).sum() for query in past])
    assert p_value(np.r_[seen, count - seen.sum()], count * np.r_[chance, 1 - chance.sum()]) > 1e-4
    cold = draw_intents(
        SMOKE, catalogue, shard[0], np.full(count, 5), 9, np.full((count, 8), -1), np.random.default_rng(2)
    )
    seen = np.array([(cold == query).sum() for query in past])
    assert (cold >= 0).all() and seen.sum() < 0.1 * SMOKE.repeat * count


def test_profiles_are_right_about_as_often_as_promised(world):
    config = replace(SMOKE, profile_reliability=0.6)
    shoppers = data_synth.shoppers.draw_shoppers(config, world.catalogue, 20_000, np.random.default_rng(3))
    told = shoppers.profile[:, 0] >= 0
    assert (~told).mean() == pytest.approx(config.missing_profile, abs=0.006)
    assert (shoppers.profile[~told] == -1).all()
    for column, true, of in ((0, shoppers.audience, 4), (1, shoppers.tier, 3)):
        right = (shoppers.profile[told, column] == true[told]).mean()
        assert right == pytest.approx(0.6 + 0.4 / of, abs=0.015)  # and by chance where it is not told truly
    texts = profile_texts(world.catalogue, shoppers.profile[:200]).to_pylist()
    np.testing.assert_array_equal(profile_codes(world.catalogue, texts), shoppers.profile[:200])


def test_taste_drifts_with_the_week_and_slowly():
    def shares(**changes):
        config = market_config("smoke", launched=0.0, retired=0.0, **changes)
        return np.log(build_catalogue(config, np.random.default_rng(0)).type_share[: config.days])

    flat = shares(trend=0.0, season=0.0)
    np.testing.assert_allclose(flat, np.broadcast_to(flat[0], flat.shape), atol=1e-9)
    weekly = shares(trend=0.0)
    np.testing.assert_allclose(weekly[7:], weekly[:-7], atol=1e-9)
    assert np.abs(weekly[3:] - weekly[:-3]).mean() > 0.1
    slow = shares(season=0.0)
    near, far = (np.abs(slow[gap:] - slow[:-gap]).mean() for gap in (1, 15))
    assert 0 < near < 0.5 * far


def test_events_peak(world):
    """The odds of an event's words, against none, go up to what the knob says in one period and down again."""
    catalogue = build_catalogue(market_config("smoke", modifiers=12), np.random.default_rng(0))
    tags = np.array([word.tag for word in catalogue.words["modifier"]]).reshape(-1, catalogue.sizes[4])
    row, word = np.nonzero(tags[catalogue.type_department] == EVENT)
    odds = (catalogue.modifier / catalogue.modifier[..., :1])[:, row, 0, 0, word]  # (periods, events)
    height = odds.max(axis=0) / odds.min(axis=0)
    assert row.size > 50 and (height > 0.9 * SMOKE.event / 0.3).all()
    other = np.flatnonzero(catalogue.modifier[0, 0, 0, 0] > 0)[1]
    plain = (catalogue.modifier / catalogue.modifier[..., :1])[:, :, 0, 0, other]
    kept = tags[catalogue.type_department][:, other] != EVENT
    np.testing.assert_allclose(plain[:, kept], np.broadcast_to(plain[0, kept], plain[:, kept].shape), rtol=1e-9)


def test_brands_are_wanted_only_while_they_exist():
    """With no repeats, a brand is in nobody's mind before its launch nor after its end."""
    config = market_config("smoke", sessions=3_000, pilot_sessions=500, brands=8, launched=0.3, retired=0.3, repeat=0.0)
    world = build_world(config)
    catalogue = world.catalogue
    first = np.searchsorted(catalogue.type_department, np.arange(catalogue.department_share.size))
    alive = catalogue.brand[:, first, 0, 0] > 0  # (periods, D, B)
    changes = np.diff(alive.astype(int), axis=0)
    assert alive[:, :, 0].all() and (np.abs(changes).sum(axis=0) <= 1).all()  # nobody comes twice
    assert ((changes == 1).sum(axis=(0, 2)) == 3).all() and ((changes == -1).sum(axis=(0, 2)) == 2).all()
    test = int(period_of(config, config.days))
    assert ((changes[test - 1] == 1).sum(axis=1) >= 1).all()  # one in each department on the first test day
    came = gone = 0
    for day in play_shard(world, 0)[1]:
        parts = catalogue.split(day.intent)
        department, period = catalogue.type_department[parts.type], int(period_of(config, day.day))
        assert alive[period, department, parts.brand].all()
        assert (catalogue.born(config, day.intent) <= day.day).all()
        came += (~alive[0, department, parts.brand]).sum()
        gone += (~alive[-1, department, parts.brand]).sum()
    assert came > 100 and gone > 100
    late = catalogue.born(config, np.arange(catalogue.size))
    assert set(late[late > 0]) <= {day for day in range(32) if period_of(config, day) != period_of(config, day - 1)}


# Typing


def test_forms_are_as_likely_as_the_knobs_say(world):
    catalogue, count = world.catalogue, 30_000
    synonym, nickname = (
        [place for place, word in enumerate(catalogue.words[slot]) if word.other] for slot in ("type", "brand")
    )
    brands, department = catalogue.sizes[1], catalogue.type_department
    kind = next(kind for kind in synonym if any(row // brands == department[kind] for row in nickname))
    brand = next(row % brands for row in nickname if row // brands == department[kind])
    rich, plain = (int(catalogue.join(Parts(kind, *rest))) for rest in ((brand, 1, 0, 0), (0, 0, 0, 0)))
    share = [SMOKE.synonym, SMOKE.reorder, SMOKE.misspell, SMOKE.alias]
    probability = form_probability(world.typing, catalogue, np.array([rich, plain]))
    bare = SMOKE.synonym, 0, SMOKE.misspell, 0  # nothing to put after the type, no brand to nickname
    np.testing.assert_allclose(probability, [[1 - sum(share), *share], [1 - sum(bare), *bare]])
    for query, row in zip((rich, plain), probability, strict=True):
        form, script = draw_forms(world.typing, catalogue, np.full(count, query), np.random.default_rng(4))
        assert p_value(np.bincount(form, minlength=len(FORMS)), count * row) > 1e-4 and not script.any()
    texts = [typed_texts(world.typing, catalogue, np.array([rich]), form, 0)[0].as_py() for form in range(5)]
    word = {slot: catalogue.words[slot][row] for slot, row in catalogue.word_rows(
        catalogue.split(np.array(rich))).items()}  # fmt: skip
    of_type, of_brand, style = (word[slot] for slot in ("type", "brand", "style"))
    assert texts[0] == f"{of_brand.text} {style.text} {of_type.text}" == catalogue.texts(np.array([rich]))[0].as_py()
    assert texts[1] == f"{of_brand.text} {style.text} {of_type.other}"
    assert texts[2] == f"{of_type.text} {of_brand.text} {style.text}"
    assert texts[3] != texts[0] and texts[3].endswith(f" {style.text} {of_type.text}")
    assert texts[4] == f"{of_brand.other} {style.text} {of_type.text}"


def test_chinese_is_typed_in_two_scripts():
    config = market_config("smoke", **TINY_CHANGES, locale="zh", pinyin=0.3)
    world = build_world(config)
    query = np.full(20_000, world.catalogue.find(["苹果手机"])[0])
    _, script = draw_forms(world.typing, world.catalogue, query, np.random.default_rng(0))
    assert script.mean() == pytest.approx(0.3, abs=0.015)
    texts = [typed_texts(world.typing, world.catalogue, query[:1], WRITTEN, number)[0].as_py() for number in (0, 1)]
    assert texts == ["苹果手机", "pingguoshouji"]
    prefixes = [prefix_texts(day.batch.points, day.batch.length) for day in play_shard(world, 0)[1]]
    latin = np.array([text.isascii() for text in np.concatenate(prefixes)])
    assert 0.2 < latin.mean() < 0.8


def test_misspellings_differ_from_the_word():
    rng = np.random.default_rng(0)
    for word in ("apple", "running shoes", "tea", "aaa", "100", "4k", "tv stand"):
        for _ in range(40):
            wrong = misspell(word, rng)
            assert wrong != word and wrong[0] == word[0] and wrong.partition(" ")[2] == word.partition(" ")[2]
    assert misspell("手机", rng, {"手": ["首"], "机": []}) == "首机"


def test_prefix_keys_stand_for_stripped_prefixes(world):
    """All prefixes of the pool in two forms: equal texts have equal keys, different ones different keys."""
    catalogue = world.catalogue
    queries = np.arange(catalogue.size)[::2]
    texts, keys = [], []
    for form in (WRITTEN, MISSPELT):
        points, length = heads(typed_texts(world.typing, catalogue, queries, form, 0))
        found = prefix_keys(points)
        for stop in range(1, HEAD + 1):
            there = length >= stop
            texts.append(prefix_texts(points[there], np.full(there.sum(), stop)))
            keys.append(found[there, stop - 1])
    texts, keys = np.concatenate(texts), np.concatenate(keys)
    assert not (np.char.str_len(texts) == 0).any() and (np.char.strip(texts[::97]) == texts[::97]).all()
    distinct, where = np.unique(texts, return_inverse=True)
    own = text_keys(distinct.tolist())
    np.testing.assert_array_equal(own[where], keys)
    assert np.unique(own).size == distinct.size > 5_000
    blank, same = text_keys(["red "]), text_keys(["red"])
    points, _ = heads(pa.array(["red shoes"]))
    assert prefix_keys(points)[0, 3] == prefix_keys(points)[0, 2] == same[0] == blank[0]


@pytest.mark.parametrize("burst", [1.0, 2.5])
def test_requests_come_after_every_burst(world, burst):
    """Nobody looks: a character ends a burst with the same probability wherever it stands."""
    config = replace(SMOKE, glance=0.0, give_up=0.0, burst=burst, misspell=0.0, sessions=2_000)
    typing = data_synth.keystrokes.build_typing(config, world.catalogue, np.random.default_rng(0))
    days = list(play_shard(world._replace(config=config, typing=typing), 0)[1])
    length = np.concatenate([day.batch.length for day in days])
    final = np.concatenate([(day.final_points > 0).sum(axis=1) for day in days])
    ends = np.concatenate([np.r_[day.session[1:] != day.session[:-1], True] for day in days])
    long = final == HEAD
    sessions = (long & ends).sum()
    assert sessions > 1_000
    for stop in range(1, HEAD):  # at the end of the text a first burst is cut short
        share = (long & (length == stop)).sum() / sessions
        assert abs(share - 1 / burst) <= 4 * np.sqrt((1 / burst) * (1 - 1 / burst) / sessions)
    assert all((day.responses.place == -1).all() and (day.responses.read == 0).all() for day in days)
    searched = np.concatenate([day.searched for day in days])
    np.testing.assert_array_equal(searched[ends], np.concatenate([day.intent for day in days])[ends])
    assert (searched[~ends] == -1).all()


# The logging policies


def test_index_counts_searches_as_a_plain_count_would(world):
    """Two rounds of searches, the older at the weight the memory leaves, against a dictionary of prefixes."""
    config, catalogue, rng = replace(SMOKE, recalled=24), world.catalogue, np.random.default_rng(6)
    pick = rng.choice(np.flatnonzero(taste(SMOKE, catalogue, play_shard(world, 0)[0], 2, 3) > 1e-5), 60)
    counts, plain = None, defaultdict(Counter)
    for _ in range(2):
        drawn = rng.choice(pick, 400)
        texts = catalogue.texts(drawn)
        counts = add_counts(counts, heads(texts)[0], drawn, 0.5)
        for table in plain.values():
            for query in table:
                table[query] *= 0.5
        for text, query in zip(texts.to_pylist(), drawn.tolist(), strict=True):
            for stop in range(1, min(len(text), HEAD) + 1):
                if text[stop - 1] != " ":
                    plain[text[:stop]][query] += 1
    index = build_index(config, catalogue, counts)
    assert index.keys.size == len(plain) and (np.diff(index.keys.astype(object)) > 0).all()
    prefixes = sorted(plain)
    points, length = heads(pa.array(prefixes))
    rows = find_rows(index, prefix_keys(points), length)
    for prefix, row in zip(prefixes, rows, strict=True):
        own = sorted(plain[prefix].items(), key=lambda pair: (-pair[1], pair[0]))[: config.recalled]
        at = slice(index.start[row], index.start[row] + len(own))
        assert index.query[at].tolist() == [query for query, _ in own]
        np.testing.assert_allclose(np.exp(index.score[at]), [weight for _, weight in own], rtol=1e-5)
    longer = pa.array(["~~", "b~~~"])  # falls back to the longest prefix that was ever typed
    rows = find_rows(index, prefix_keys(heads(longer)[0]), np.array([2, 4]))
    assert rows[0] == -1 and index.keys[rows[1]] == text_keys(["b"])[0]


def test_rows_of_the_index_are_full_and_free_of_repeats(world):
    least = SMOKE.shown + SMOKE.not_shown + SMOKE.exploration
    for index in world.indexes:
        width = np.diff(index.start)
        assert least <= width.min() and width.max() == SMOKE.recalled
        row = np.repeat(np.arange(width.size), width)
        assert np.unique(row * world.catalogue.size + index.query).size == index.query.size
        assert (np.diff(index.score)[np.diff(row) == 0] <= 0).all()  # best first
        department = world.catalogue.type_department[index.query // world.catalogue.split_base]
        assert (index.department == department).all()


def test_a_pool_too_small_for_a_list_leaves_places_empty():
    texts = [f"{word} {thing}" for thing in ("lamp", "mug", "rug") for word in ("red", "blue", "old", "new")]
    pool = Pool(texts, np.arange(12, 0, -1), np.repeat([0, 1], 6), np.arange(12) // 4, ["one", "two"])
    world = build_world(market_config("smoke", **TINY_CHANGES | {"launched": 0.0, "retired": 0.0}), pool)
    for day in play_shard(world, 0)[1]:
        shown = day.page.shown
        assert ((shown >= 0).sum(axis=1) <= 12).all() and ((shown >= 0).sum(axis=1) > 8).all()
        listed = np.where(shown < 0, -1 - np.arange(shown.shape[1]), shown)
        assert (np.diff(np.sort(listed, axis=1), axis=1) > 0).all()
        chosen = np.take_along_axis(shown, np.maximum(day.responses.place, 0)[:, None], axis=1)[:, 0]
        assert (chosen[day.responses.place >= 0] >= 0).all()


def test_no_page_holds_a_query_twice(world, shard):
    for name in ("popularity", "production", "random"):
        answer = builtin_policy(SMOKE, world.catalogue, world.indexes[4], name)
        page = answer(shard[1][15].batch, np.random.default_rng(0))
        listed = np.sort(np.concatenate([page.shown, page.not_shown], axis=1), axis=1)
        assert listed.shape[1] == SMOKE.shown + SMOKE.not_shown
        assert listed.min() >= 0 and (np.diff(listed, axis=1) > 0).all()


def test_popularity_shows_the_most_counted_in_their_order(world, shard):
    batch = shard[1][15].batch
    index = world.indexes[int(period_of(SMOKE, 15))]
    row = find_rows(index, prefix_keys(batch.points), batch.length)
    top = index.query[index.start[row][:, None] + np.arange(16)]
    sure = builtin_policy(replace(SMOKE, exploration=0), world.catalogue, index, "popularity")
    page = sure(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(page.shown, top)
    assert (page.propensity == 1).all()
    page = builtin_policy(SMOKE, world.catalogue, index, "popularity")(batch, np.random.default_rng(0))
    for shown, best in zip(page.shown, top, strict=True):
        kept = shown[np.isin(shown, best[: SMOKE.shown - SMOKE.exploration])]
        np.testing.assert_array_equal(kept, best[: SMOKE.shown - SMOKE.exploration])


def test_production_lifts_what_history_and_profile_tell_of(world):
    """The same prefix, after searches in one department or in another, and with the profile alone."""
    catalogue, index = world.catalogue, world.indexes[4]
    row = find_rows(index, text_keys(["b"])[:, None].repeat(HEAD, axis=1), np.array([1]))[0]
    own = index.department[index.start[row] : index.start[row + 1]]
    department, other = np.argsort(np.bincount(own, minlength=12))[[-1, -4]]
    points, _ = heads(pa.array(["b"] * 100))

    def share(name, past=None, told=None):
        history, profile = np.full((100, 8), -1), np.full((100, 5), -1)
        if past is not None:
            kinds = np.flatnonzero(catalogue.type_department == past)[np.arange(8) % 8]
            history[:] = kinds * catalogue.split_base
        if told is not None:
            profile[:] = [0, 0, told, 1, 0]
        batch = Batch(15, points, np.ones(100, int), history, profile)
        page = builtin_policy(SMOKE, catalogue, index, name)(batch, np.random.default_rng(4))
        assert np.unique(page.shown, axis=0).shape[0] > 80  # places left to chance differ
        return (catalogue.type_department[page.shown // catalogue.split_base] == department).mean()

    assert share("production", past=department) > share("production", past=other) + 0.2
    assert share("production", told=department) > share("production", told=other) + 0.1
    assert share("popularity", past=department) == pytest.approx(share("popularity", past=other))


def test_distinct_draws_are_even():
    draws = distinct_draws(np.full(30_000, 7), 3, np.random.default_rng(0))
    assert (np.diff(np.sort(draws, axis=1), axis=1) > 0).all() and draws.max() == 6
    code = draws @ [49, 7, 1]
    possible = np.array([a * 49 + b * 7 + c for a in range(7) for b in range(7) for c in range(7)
                         if len({a, b, c}) == 3])  # fmt: skip
    seen = np.bincount(code, minlength=343)[possible]
    assert seen.sum() == 30_000 and p_value(seen, np.full(210, 30_000 / 210)) > 1e-4
    few = distinct_draws(np.array([1, 2]), 4, np.random.default_rng(0))
    assert [sorted(row[row < among]) for row, among in zip(few, (1, 2), strict=True)] == [[0], [0, 1]]


@pytest.mark.parametrize("name", ["popularity", "production", "random"])
def test_propensities_are_how_often_a_query_stands_at_a_place(world, shard, name):
    count = 12_000
    config = replace(SMOKE, recalled=40, exploration=3)
    index = build_index(config, world.catalogue, _pilot_counts(world))
    answer = builtin_policy(config, world.catalogue, index, name)
    batch = some(shard[1][15].batch, np.full(count, 11))
    page = answer(batch, np.random.default_rng(8))
    queries, code = np.unique(page.shown, return_inverse=True)
    code = code.reshape(page.shown.shape) * 16 + np.arange(16)
    seen = np.bincount(code.ravel(), minlength=queries.size * 16)
    logged = np.zeros(seen.size)
    logged[code.ravel()] = page.propensity.ravel()
    assert (logged[code] == page.propensity).all()  # a query has one propensity at a place
    np.testing.assert_allclose(logged.reshape(-1, 16).sum(axis=0), 1.0, atol=0.01)
    expected = logged * count
    assert p_value(seen, expected * seen.sum() / expected.sum()) > 1e-4
    assert p_value(seen, np.full(seen.size, seen.mean())) < 1e-4 or name == "random"


def _pilot_counts(world):
    rng = np.random.default_rng(7)
    shoppers = data_synth.shoppers.draw_shoppers(SMOKE, world.catalogue, 300, rng)
    drawn = draw_intents(
        SMOKE, world.catalogue, shoppers, rng.integers(300, size=6_000), 0, np.empty((6_000, 0), int), rng
    )
    return add_counts(None, heads(world.catalogue.texts(drawn))[0], drawn, 1.0)


def test_the_random_slice_has_its_share_and_its_name(requests):
    sessions = requests.group_by("session_id").agg(pl.col("policy").first())
    share = (sessions["policy"] == "random").mean()
    sigma = np.sqrt(SMOKE.random_share * (1 - SMOKE.random_share) / sessions.height)
    assert abs(share - SMOKE.random_share) < 4 * sigma
    assert set(sessions["policy"]) == {"popularity", "random"}


def test_the_random_slice_tells_what_another_policy_would_earn():
    """Lists of one place, so that the propensity of the place is that of the list: an unbiased off-policy estimate."""
    config = market_config(
        "smoke", sessions=5_000, pilot_sessions=2_000, days=6, test_days=2, random_share=1.0, shown=1,
        exploration=0, not_shown=0, recalled=24, glance=1.0, satisficing=2.0,
    )  # fmt: skip
    world, rng = build_world(config), np.random.default_rng(9)
    shoppers, days = play_shard(world, 0)
    weighted, replayed, naive, session = [], [], [], []
    for day in days:
        main, _ = world.policies(int(period_of(config, day.day)))
        target = main(day.batch, rng).shown
        click = day.responses.place >= 0
        weighted.append(click * (day.page.shown == target)[:, 0] / day.page.propensity[:, 0])
        answers = respond(config, world.catalogue, day.intent, shoppers.tier[day.who], target, rng)
        replayed.append(answers.place >= 0)
        naive.append(click)
        session.append(day.session)
    weighted, replayed, naive = (np.concatenate(part).astype(float) for part in (weighted, replayed, naive))
    session = np.concatenate(session)

    def distance(estimate):
        """From the replayed click rate, in standard errors over sessions."""
        sums = np.bincount(session, estimate - replayed)
        return sums.sum() / np.sqrt((sums**2).sum())

    assert abs(distance(weighted)) < 3.5
    assert abs(distance(naive)) > 5 and abs(distance(weighted / 2)) > 4 and abs(distance(1.5 * weighted)) > 3.5


def test_a_policy_of_strings_can_be_plugged_in(tmp_path):
    config = market_config("smoke", **TINY_CHANGES | {"sessions": 1_200, "shard_sessions": 1_200, "satisficing": 3.0})
    world, frames = build_world(config), []
    popular = world.catalogue.texts(np.unique(world.indexes[-1].query)).to_pylist()
    popular = [text for text in popular if text.startswith(("b", "s"))][:9]

    def suggest(frame):
        frames.append(frame)
        return [["no such query", *popular] if prefix < "p" else [] for prefix in frame["prefix"]]

    play = world.play(text_policy(world.catalogue, suggest))
    days = list(play_shard(world, 0, play)[1])
    assert frames[0].schema == {"prefix": pl.String, "history": pl.List(pl.String), "profile": pl.List(pl.String)}
    places = np.concatenate([day.responses.place[~day.at_random] for day in days])
    assert set(places.tolist()) - {-1} and 0 not in places  # known strings are clicked, unknown ones never
    assert max(places) < 10  # nor empty places
    day = days[3]
    asked = prefix_texts(day.batch.points, day.batch.length)
    empty = (day.page.shown < 0).all(axis=1)
    np.testing.assert_array_equal(empty[~day.at_random], (asked >= "p")[~day.at_random])
    assert write_shard(world, 0, tmp_path, play) == sum(day.who.size for day in days)
    read = read_log(tmp_path / "log")
    assert set(read.requests["policy"]) == {"plugged_in", "random"}
    shown = read.candidates.join(read.requests.filter(pl.col("policy") == "plugged_in"), on="request_id")
    assert set(shown["query"]) == set(popular) and shown["position"].min() == 2
    frame = request_frame(world.catalogue, day.batch)  # a policy reads what the log tells
    own = read.requests.filter(pl.date(2025, 6, 4) == DATE).sort("request_id")
    for column in frame.columns:
        assert own[column].to_list() == [[] if found is None else found for found in frame[column].to_list()]


# Responses


def page_of(catalogue: Catalogue, intent: int) -> np.ndarray:
    """Places of all kinds: near and nearer matches, another type, another department, the intent itself, and none."""
    parts = catalogue.split(np.array(intent))
    near = [parts._replace(**{slot: (getattr(parts, slot) + 1) % size})
            for slot, size in zip(SLOTS[1:], catalogue.sizes[1:], strict=True)]  # fmt: skip
    rows = [int(catalogue.join(other)) for other in near]
    far = (intent + catalogue.split_base) % catalogue.size, (intent + catalogue.size // 2) % catalogue.size
    return np.array([far[0], rows[0], -1, rows[1], intent, rows[2], far[1], rows[3]])


@pytest.mark.parametrize("examination", ["cascade", "position"])
def test_clicks_fall_where_the_closed_form_says(world, examination):
    config = replace(SMOKE, examination=examination, satisficing=3.0, patience=0.8, intent_click=0.6)
    intent, count = 4_321, 60_000
    page = page_of(world.catalogue, intent)
    shown = np.tile(page, (count, 1))
    rng, tier = np.random.default_rng(0), np.zeros(count, int)
    looks = rng.random(count) < 0.7
    answers = respond(config, world.catalogue, np.full(count, intent), tier, shown, rng, looks)
    share = click_places(config, click_probability(config, world.catalogue, np.array([intent]), page[None]))[0]
    seen = np.bincount(answers.place[looks] + 1, minlength=page.size + 1)
    assert p_value(seen, looks.sum() * np.r_[1 - share.sum(), share]) > 1e-4
    other = replace(config, examination="position" if examination == "cascade" else "cascade")
    wrong = click_places(other, click_probability(other, world.catalogue, np.array([intent]), page[None]))[0]
    assert p_value(seen, looks.sum() * np.r_[1 - wrong.sum(), wrong]) < 1e-4  # the two ways of reading differ
    assert (answers.place[~looks] == -1).all() and (answers.read[~looks] == 0).all()
    found = answers.place >= 0
    if examination == "cascade":
        np.testing.assert_array_equal(answers.read[found], answers.place[found] + 1)
        assert (answers.read[looks & ~found] >= 1).all() and answers.read.max() == page.size
    assert seen[0] > 0 and seen[3] == 0  # the empty place


def test_reading_is_as_the_knobs_say(world):
    """The intent alone on a page: read with the k-th power of patience, or of the place."""
    intent, count, tier = np.full(40_000, 77), 40_000, np.zeros(40_000, int)
    for config in (replace(SMOKE, patience=0.7), replace(SMOKE, examination="position", position_decay=0.5)):
        for place in (0, 1, 3, 8):
            shown = np.full((count, 16), -1)
            shown[:, place] = intent
            clicks = respond(config, world.catalogue, intent, tier, shown, np.random.default_rng(place)).place >= 0
            read = 0.7**place if config.examination == "cascade" else (place + 1) ** -0.5
            assert p_value([clicks.sum(), (~clicks).sum()], count * np.r_[0.9 * read, 1 - 0.9 * read]) > 1e-4


def test_position_bias_shows_in_the_log(candidates, requests):
    """Among the places of chance too, where no ranking puts the better queries first."""
    shown = candidates.filter(pl.col("position").is_not_null())
    rate = shown.group_by("position").agg(pl.col("behaviour").is_in(CLICKS).mean()).sort("position")["behaviour"]
    assert rate[0] > 2 * rate[7] > 2 * rate[15]
    slot = requests.filter(pl.col("policy") == "random").select("request_id")
    halves = shown.join(slot, on="request_id").group_by(pl.col("position") > 8).agg(
        pl.col("behaviour").is_in(CLICKS).sum()
    ).sort("position")["behaviour"]  # fmt: skip
    assert halves[0] > halves[1]


def test_shoppers_settle_for_near_matches(world):
    catalogue, rng = world.catalogue, np.random.default_rng(0)
    intents = rng.integers(catalogue.size, size=2_000)
    shown = np.stack([page_of(catalogue, intent) for intent in intents])

    def probability(**changes):
        return click_probability(replace(SMOKE, **changes), catalogue, intents, shown)

    exact, empty = shown == intents[:, None], shown < 0
    assert (probability()[exact] == np.float32(SMOKE.intent_click)).all() and not probability()[empty].any()
    assert not probability(satisficing=0.0)[~exact].any()
    rest = ~exact & ~empty
    np.testing.assert_allclose(probability(satisficing=0.4)[rest], probability()[rest] / 2, rtol=1e-5)
    mean = (
        probability(clickbait=0.0) / catalogue.attraction(np.maximum(shown, 0), replace(SMOKE, clickbait=0.0))
    ).mean(0)
    near, far = mean[[1, 3, 5, 7]], mean[[0, 6]]
    assert near.min() > 5 * far.max() and near[2] > near[0]  # the brand counts for more than the attribute
    answers = respond(replace(SMOKE, satisficing=10.0), catalogue, intents, np.zeros(2_000, int), shown, rng)
    found = answers.place >= 0
    assert (shown[found, answers.place[found]] != intents[found]).mean() > 0.3


def test_clickbait_attracts_and_disappoints(market, candidates, queries, world):
    shown = candidates.filter(pl.col("position").is_not_null()).join(queries, on="query")
    clicks = shown.filter(pl.col("behaviour").is_in(CLICKS))
    rate = clicks.group_by("clickbait").agg((pl.col("behaviour") == "order").mean(), pl.len()).sort("clickbait")
    honest, bait = rate["behaviour"].to_list()
    assert bait < 0.4 * honest
    assert rate["len"][1] / clicks.height > 1.2 * shown["clickbait"].mean()  # over-represented among clicks
    assert queries["clickbait"].mean() == pytest.approx(SMOKE.clickbait, abs=0.01)
    catalogue, every = world.catalogue, np.arange(world.catalogue.size)
    bait = catalogue.is_bait(every, SMOKE.clickbait)
    attraction, quality = catalogue.attraction(every, SMOKE), catalogue.quality(every, SMOKE)
    assert attraction[bait].min() > 2 * attraction[~bait].max() and quality[bait].max() < quality[~bait].min()
    assert attraction[~bait].mean() == pytest.approx(1.0, abs=0.02)
    assert not catalogue.is_bait(every, 0.0).any() and catalogue.is_bait(every, 1.0).all()


def test_outcomes_come_as_often_as_the_closed_form_says(world):
    count, catalogue = 60_000, world.catalogue
    config = replace(SMOKE, satisficing=10.0)
    parts = Parts(7, 2, 1, 0, 0)
    intent = int(catalogue.join(parts))
    for clicked_query, tier in ((intent, 0), (intent, 2), (int(catalogue.join(parts._replace(style=0))), 1)):
        shown, wants = np.full((count, 1), clicked_query), np.full(count, intent)
        answers = respond(config, catalogue, wants, np.full(count, tier), shown, np.random.default_rng(tier))
        item, order = outcome_probability(
            config, catalogue, np.array([intent]), np.array([clicked_query]), np.array([tier])
        )
        found = answers.place == 0
        names = [BEHAVIOURS.index(name) for name in ("query_click", "item_click", "order")]
        seen = np.array([(answers.behaviour[found] == name).sum() for name in names])
        expected = found.sum() * np.r_[1 - item, item - order, order]
        assert p_value(seen, expected) > 1e-4
        assert (answers.behaviour[~found] == BEHAVIOURS.index("show")).all()
        assert ((answers.revenue > 0) == (answers.behaviour == BEHAVIOURS.index("order"))).all()
        typical = price(catalogue, np.array([clicked_query]))[0]
        paid = answers.revenue[answers.revenue > 0]
        assert np.median(paid) == pytest.approx(typical, rel=0.02) and paid.std() / typical == pytest.approx(
            0.1, rel=0.1
        )
    near = catalogue.join(parts._replace(style=0))
    item, order = outcome_probability(config, catalogue, np.array([intent]), np.array([near]), np.array([1]))
    assert 0 < order[0] < item[0] < 1


def test_shoppers_click_what_they_want(candidates, truth):
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS)).join(truth, on="request_id")
    exact = (clicks["query"] == clicks["intent"]).mean()
    assert 0.25 < exact < 0.9  # some settle for a near match
    assert set(truth["form"]) == set(FORMS)


# The words


def texts_of(lexicon, slot: str) -> list[list[str]]:
    """The lists of a slot's words, one a department or shelf."""
    if slot in ("brand", "modifier"):
        return [[word.text for word in getattr(part, slot + "s")] for part in lexicon.departments]
    return [
        [word.text for word in getattr(shelf, slot + "s")] for part in lexicon.departments for shelf in part.shelves
    ]


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_lexicon_is_rich_and_free_of_slips(locale):
    lexicon = read_lexicon(locale)
    assert lexicon.locale == locale and len(lexicon.departments) == 12
    assert all(len(part.shelves) == 2 and part.price > 0 for part in lexicon.departments)
    largest = PROFILES["full" if locale == "en" else "lite"]
    for slot in SLOTS:
        sizes = {len(words) for words in texts_of(lexicon, slot)}
        assert len(sizes) == 1 and sizes.pop() >= getattr(largest, slot + "s"), slot
        for words in texts_of(lexicon, slot):
            assert len(set(words)) == len(words), words
    words = [word for part in lexicon.departments for group in (part.brands, part.modifiers, *sum(
        (list(shelf) for shelf in part.shelves), [])) for word in group]  # fmt: skip
    for name in [text for word in words for text in (word.text, word.other) if text]:
        assert name == " ".join(name.split()) == name.lower(), name
        assert name.isascii() if locale == "en" else " " not in name, name
    assert all(word.other != word.text for word in words)
    types = [name for group in texts_of(lexicon, "type") for name in group]
    synonyms = [word.other for part in lexicon.departments for shelf in part.shelves for word in shelf.types]
    named = [name for name in types + synonyms if name]
    assert len(set(named)) == len(named)
    assert np.mean([bool(name) for name in synonyms]) > 0.5
    brands = [name for group in texts_of(lexicon, "brand") for name in group]
    nicknames = [word.other for part in lexicon.departments for word in part.brands if word.other]
    assert len(set(brands + nicknames)) == len(brands + nicknames) and len(nicknames) > 0.15 * len(brands)
    tags = Counter(word.tag for part in lexicon.departments for word in part.modifiers if word.tag)
    assert set(tags) <= {EVENT, *lexicon.audiences, *lexicon.tiers}
    assert tags[EVENT] >= 12 and len(tags) >= 5


@pytest.mark.parametrize("locale", ["en", "zh"])
def test_starred_brands_share_their_name_with_a_type_elsewhere(locale):
    lexicon = read_lexicon(locale)
    home = {word.text: number for number, part in enumerate(lexicon.departments) for shelf in part.shelves
            for word in shelf.types}  # fmt: skip
    starred = 0
    for number, part in enumerate(lexicon.departments):
        for word in part.brands:
            assert word.shared == (word.text in home), word
            if word.shared:
                starred += 1
                assert home[word.text] != number, word
    assert starred >= 10
    small = build_catalogue(market_config("smoke", locale=locale), np.random.default_rng(0))
    named = {word.text for word in small.words["type"]} & {word.text for word in small.words["brand"]} - {""}
    assert named  # an apple is a phone and a fruit in the smallest market too


@pytest.mark.parametrize(("locale", "profile"), [("en", "smoke"), ("en", "lite"), ("zh", "smoke"), ("zh", "lite")])
def test_every_query_has_a_text_of_its_own(locale, profile):
    catalogue = build_catalogue(market_config(profile, locale=locale), np.random.default_rng(0))
    texts = catalogue.texts(np.arange(catalogue.size))
    assert texts.null_count == 0 and pc.count_distinct(texts).as_py() == catalogue.size
    assert (profile, catalogue.size) in {("smoke", 28_800), ("lite", 254_016)}
    rng = np.random.default_rng(1)
    queries = rng.integers(catalogue.size, size=500)
    np.testing.assert_array_equal(catalogue.join(catalogue.split(queries)), queries)
    found = catalogue.find([*catalogue.texts(queries).to_pylist(), "no such query", ""])
    np.testing.assert_array_equal(found, np.r_[queries, -1, -1])


def test_a_pool_beyond_listing_is_not_looked_up_in(world):
    large = world.catalogue._replace(sizes=(288, 26, 9, 12, 13))
    with pytest.raises(MarketError, match=r"the pool has 10,513,152 queries; texts can be looked up among 3 million"):
        large.find(["apple"])


def _lexicon_with(tmp_path, monkeypatch, change) -> None:
    held = yaml.safe_load((Path(data_synth.__file__).parent / "lexicon_en.yaml").read_text(encoding="utf-8"))
    change(held)
    (tmp_path / "lexicon_en.yaml").write_text(yaml.safe_dump(held, allow_unicode=True), encoding="utf-8")
    monkeypatch.setattr("data_synth.lexicon.__file__", str(tmp_path / "lexicon.py"))


def test_a_malformed_lexicon_is_refused(tmp_path, monkeypatch):
    _lexicon_with(tmp_path, monkeypatch, lambda held: None)
    assert read_lexicon("en").departments[0].modifiers[0] == ("for kids", "", "kids", False)
    _lexicon_with(tmp_path, monkeypatch, lambda held: held["departments"][3]["modifiers"].append("for dogs@dogs"))
    with pytest.raises(MarketError, match=r"lexicon_en.yaml: modifier tag 'dogs'; expected one of budget, event, kids"):
        read_lexicon("en")
    _lexicon_with(tmp_path, monkeypatch, lambda held: held["order"].remove("style"))
    with pytest.raises(MarketError, match="order is .*; expected type, brand, style, attribute, modifier, each once"):
        read_lexicon("en")
    with pytest.raises(MarketError, match="no words for locale 'fr': lexicon_fr.yaml is missing"):
        read_lexicon("fr")


@pytest.mark.parametrize(
    ("locale", "change", "message"),
    [
        ("zh", {"types": 12}, "types is 12; department '手机数码' has 8: lower types or add words to the lexicon"),
        ("zh", {"brands": 26}, "brands is 26; department '手机数码' has 12"),
        ("zh", {"styles": 8}, "styles is 8; department '手机数码' has 5"),
    ],
)
def test_more_words_than_the_lexicon_has(locale, change, message):
    with pytest.raises(MarketError, match=message):
        build_world(market_config("smoke", locale=locale, **change))


# Knobs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sessions": -5}, "sessions is -5; expected a value from 1"),
        ({"sessions": 10}, "expected at least 64, two for each of the 30 \\+ 2 days"),
        ({"days": 2}, "days is 2; expected a value from 3"),
        ({"test_days": 0}, "test_days is 0"),
        ({"sessions": 1e5}, r"sessions is 100000.0 \(float\); expected int"),
        ({"sessions": True}, "sessions is True"),
        ({"patience": float("nan")}, "patience is nan"),
        ({"misspell": 0.9}, "synonym \\+ reorder \\+ misspell \\+ alias is 1.5; expected at most 1"),
        ({"shown": 17}, "shown is 17; expected a value from 1 to 16"),
        ({"exploration": 8, "shown": 7}, "exploration is 8; expected at most shown = 7"),
        ({"recalled": 18}, "recalled is 18; expected a value from 24"),
        ({"seed": -1}, "seed is -1"),
        ({"zipf": "steep"}, r"zipf is 'steep' \(str\); expected float"),
        ({"locale": "fr"}, "locale is 'fr'; expected one of en, zh"),
        ({"policy": "best"}, "policy is 'best'; expected one of popularity, production, random"),
        ({"examination": 3}, r"examination is 3 \(int\); expected str"),
    ],
)
def test_bad_knobs(change, message):
    with pytest.raises(MarketError, match=message):
        replace(MarketConfig(), **change)


def test_every_knob_is_checked():
    for knob in fields(MarketConfig):
        valid = knob.metadata["valid"]
        if isinstance(knob.default, str):
            with pytest.raises(MarketError, match=f"{knob.name} is 'x'; expected one of"):
                replace(MarketConfig(), **{knob.name: "x"})
            continue
        for value in (valid[0] - 1, valid[1] + 1):
            with pytest.raises(MarketError, match=f"{knob.name} is .*; expected a value from"):
                replace(MarketConfig(), **{knob.name: type(knob.default)(value)})
    assert replace(MarketConfig(), patience=1) == replace(MarketConfig(), patience=1.0)


def test_named_sizes_and_worlds():
    assert market_config() == MarketConfig() == PROFILES["lite"]
    assert market_config("smoke", "production", seed=3) == replace(
        PROFILES["smoke"], policy="production", burst=3.0, memory=0.5, seed=3
    )
    assert set(PROFILES) == {"smoke", "lite", "full"} and PRESETS["selective"] == {}
    for profile in PROFILES:  # they differ in size alone
        changed = {knob.name for knob in fields(MarketConfig)
                   if getattr(PROFILES[profile], knob.name) != knob.default}  # fmt: skip
        assert changed <= {"sessions", "shoppers", "pilot_sessions", *(slot + "s" for slot in SLOTS)}
    for arguments, message in (
        (("huge",), "profile is 'huge'; expected one of smoke, lite, full"),
        (("smoke", "fair"), "world is 'fair'; expected one of selective, production, few_candidates"),
    ):
        with pytest.raises(MarketError, match=message):
            market_config(*arguments)
    with pytest.raises(MarketError, match="there is no knob 'colour'; knob_rows"):
        market_config(colour="red")


def test_every_knob_says_what_it_means_and_according_to_whom():
    rows = knob_rows()
    assert [row["knob"] for row in rows] == [knob.name for knob in fields(MarketConfig)]
    for row in rows:
        assert len(row["reads"]) > 10 and row["default"] and row["valid"], row
        assert row["plausible"] or row["source"] in ("ours", "hofmann2014eye"), row
    known = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.M))
    cited = {row["source"] for row in rows if row["source"] != "ours" and not row["source"].startswith("paper")}
    assert cited <= known and len(cited) >= 7


@pytest.mark.parametrize(
    "change",
    [
        {"history_length": 0},
        {"not_shown": 0, "exploration": 0},
        {"exploration": 8, "not_shown": 8, "recalled": 24},
        {"patience": 0.0},
        {"patience": 1.0},
        {"missing_profile": 1.0, "cold_shoppers": 1.0},
        {"shown": 1, "exploration": 1, "days": 3, "test_days": 1},
        {"synonym": 0.0, "reorder": 0.0, "misspell": 0.0, "alias": 0.0, "max_prefix": 1},
        {"shoppers": 1, "clickbait": 1.0, "random_share": 1.0},
        {"misspell": 1.0, "synonym": 0.0, "reorder": 0.0, "alias": 0.0, "notice": 1.0},
        {"launched": 0.5, "retired": 0.5, "period_days": 1, "memory": 0.0},
        {"policy": "production", "examination": "position", "position_decay": 4.0, "burst": 6.0},
    ],
)
def test_knobs_at_their_ends_still_give_a_log(change, tmp_path):
    config = market_config("smoke", **TINY_CHANGES | {"shard_sessions": 1_000} | change)
    read = read_log(write_market(config, tmp_path / "market") / "log")
    assert read.requests["session_id"].n_unique() == config.sessions
    if config.patience == 0.0:
        assert set(read.candidates.filter(pl.col("behaviour").is_in(CLICKS))["position"]) == {1}


def test_days_without_a_search_do_no_harm(tmp_path):
    """Shards too thin for a search a day."""
    config = market_config("smoke", sessions=250, days=120, pilot_sessions=500, shard_sessions=64, period_days=60)
    assert (day_sessions(config, 62) == 0).sum() > 50
    read = read_log(write_market(config, tmp_path / "market", shards=[1]) / "log")
    assert read.requests["session_id"].n_unique() in (62, 63)


# Folders


def test_open_market_builds_once(tmp_path):
    first = open_market(TINY, tmp_path, jobs=1)
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "log", "truth"]
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert open_market(TINY, tmp_path, jobs=1) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == stamps
    other = open_market(replace(TINY, seed=1), tmp_path, jobs=1)
    assert other != first and json.loads((other / "config.json").read_text())["config"]["seed"] == 1


def test_the_name_of_a_market_hangs_on_the_code_and_the_words(tmp_path, monkeypatch):
    package = tmp_path / "data_synth"
    shutil.copytree(Path(data_synth.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("data_synth.market.__file__", str(package / "market.py"))
    used, waiting = set(), ["market"]  # every module that writing a market imports
    while waiting:
        name = waiting.pop()
        used.add(name)
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                waiting += {node.module} - used
    names = [fingerprint({"seed": 0}), fingerprint({"seed": 1})]
    for changed in sorted(f"{name}.py" for name in used) + ["lexicon_zh.yaml"]:
        with (package / changed).open("a") as file:
            file.write("# a change\n")
        names.append(fingerprint({"seed": 0}))
    assert len(used) > 8 and len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["write_queries", "truth_table"])
def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch, name):
    calls = []

    def interrupted(*_):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"data_synth.market.{name}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_market(TINY, tmp_path / "market")
    assert calls and list(tmp_path.iterdir()) == []


def test_an_interrupted_shard_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    world = build_world(TINY)
    monkeypatch.setattr("data_synth.market.shopper_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shard(world, 0, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_market_is_replaced_only_by_force_and_only_when_the_new_one_is_there(tmp_path, monkeypatch):
    out = write_market(TINY, tmp_path / "market")
    before = digests(out)
    with pytest.raises(MarketError, match="already holds a market; choose another folder, or --force"):
        write_market(replace(TINY, seed=1), out)
    with monkeypatch.context() as broken:
        broken.setattr("data_synth.market.write_queries", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_market(replace(TINY, seed=1), out, force=True)
    assert digests(out) == before
    rename = os.rename

    def refused(old, new):
        if new == out and Path(old).name == "market":
            raise OSError("no room")
        rename(old, new)

    with monkeypatch.context() as broken:
        broken.setattr("os.rename", refused)
        with pytest.raises(OSError, match="no room"):
            write_market(replace(TINY, seed=1), out, force=True)
    assert digests(out) == before
    write_market(replace(TINY, seed=1), out, force=True)
    assert digests(out) != before and [path.name for path in tmp_path.iterdir()] == ["market"]


def test_a_folder_of_someone_else_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MarketError, match="holds files that are not a market; expected an empty or a new folder"):
        write_market(TINY, tmp_path, force=True)
    with pytest.raises(MarketError, match="is not a folder"):
        write_market(TINY, tmp_path / "thesis.txt", force=True)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(MarketError, match="is not a folder"):
        write_market(TINY, tmp_path / "link", force=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and len(list(tmp_path.iterdir())) == 2


def test_a_shard_that_does_not_exist(tmp_path):
    with pytest.raises(MarketError, match="shard is 4; the market has 4, numbered from 0"):
        write_market(TINY, tmp_path / "market", shards=[0, 4])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MarketError, match="shard is -1; the market has 3"):
        play_shard(build_world(replace(TINY, shard_sessions=160)), -1)
