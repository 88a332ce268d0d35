"""The synthetic market: what its log must hold, what it must not hold, and the habits it must show."""

import ast
import hashlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import data_synth
from data_synth import (
    PROFILES,
    MarketConfig,
    MarketError,
    build_world,
    describe_market,
    open_market,
    write_market,
)
from data_synth.exposure import believed_popularity, expose, recall_table
from data_synth.keystrokes import misspellings, prefix_rows, type_prefixes
from data_synth.market import draw_searches, live
from data_synth.responses import click_probability, respond
from data_synth.shoppers import draw_intents, taste_weights

SMOKE = PROFILES["smoke"]
TINY = replace(SMOKE, sessions=600, shoppers=60, queries=1_500, new_queries=60)
CLICKS = ["order", "item_click", "query_click"]


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return write_market(SMOKE, tmp_path_factory.mktemp("market") / "smoke")


@pytest.fixture(scope="module")
def requests(market) -> pl.DataFrame:
    return pl.read_parquet(market / "log" / "requests.parquet")


@pytest.fixture(scope="module")
def candidates(market) -> pl.DataFrame:
    return pl.read_parquet(market / "log" / "candidates.parquet")


@pytest.fixture(scope="module")
def queries(market) -> pl.DataFrame:
    return pl.read_parquet(market / "truth" / "queries.parquet")


@pytest.fixture(scope="module")
def world():
    return build_world(SMOKE)


# The contract of the log


def test_tables_follow_the_contract(requests, candidates):
    assert dict(requests.schema) == {
        "request_id": pl.Int64,
        "session_id": pl.Int64,
        "user_id": pl.Int64,
        "time": pl.Datetime("us"),
        "prefix": pl.String,
        "profile": pl.List(pl.String),
        "history": pl.List(pl.String),
    }
    assert dict(candidates.schema) == {
        "request_id": pl.Int64,
        "query": pl.String,
        "position": pl.Int8,
        "behaviour": pl.String,
        "revenue": pl.Float32,
    }
    assert requests["request_id"].is_unique().all()
    assert requests.drop("profile", "history").null_count().sum_horizontal().item() == 0
    assert candidates.drop("position").null_count().sum_horizontal().item() == 0


def test_the_method_accepts_the_log(market):
    log = pytest.importorskip("onesug_lite.log")
    read = log.read_log(market / "log")
    parts = log.split_by_time(read, validation_days=1, test_days=2)
    days = [part.requests["time"].dt.date().n_unique() for part in parts]
    assert days == [29, 1, 2]
    assert log.clicked(parts.train).height > 1_000


def test_positions_and_behaviours(candidates):
    shown = candidates.filter(pl.col("position").is_not_null())
    positions = shown.group_by("request_id").agg(pl.col("position").sort())["position"]
    assert positions.list.len().unique().to_list() == [SMOKE.shown]
    assert all(row == list(range(1, 17)) for row in positions.to_list())
    hidden = candidates.filter(pl.col("position").is_null())
    assert hidden["behaviour"].unique().to_list() == ["not_shown"]
    assert hidden.height == SMOKE.sessions * SMOKE.not_shown
    assert sorted(shown["behaviour"].unique()) == ["item_click", "order", "query_click", "show"]
    assert candidates.select("request_id", "query").is_unique().all()
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS))
    assert clicks["request_id"].is_unique().all()


def test_revenue_belongs_to_orders(candidates):
    paid = candidates.filter(pl.col("revenue") > 0)
    assert paid["behaviour"].unique().to_list() == ["order"]
    assert paid.height == (candidates["behaviour"] == "order").sum() > 100


def test_days_and_order_of_time(requests):
    assert requests["time"].is_sorted() and requests["request_id"].is_sorted()
    per_day = requests.group_by(pl.col("time").dt.date()).len().sort("time")
    assert per_day.height == SMOKE.days + SMOKE.test_days
    assert per_day["len"].min() > 0.7 * SMOKE.sessions / per_day.height
    hours = requests["time"].dt.hour().value_counts()
    assert hours.height == 24  # spread over the day, not at midnight


def test_prefixes_are_short_and_tidy(requests):
    prefix = requests["prefix"]
    assert prefix.str.len_chars().min() >= 1 and prefix.str.len_chars().max() <= SMOKE.max_prefix
    assert (prefix == prefix.str.strip_chars()).all()
    assert prefix.str.len_chars().median() in (3.0, 4.0, 5.0)


def test_truth_stays_out_of_the_log(requests, candidates, queries, market):
    truth = set()
    for path in (market / "truth").glob("*.parquet"):
        truth |= set(pl.read_parquet_schema(path))
    shared = (set(requests.columns) | set(candidates.columns)) & truth
    assert shared == {"request_id", "query", "user_id"}  # keys, and nothing else
    assert {"intent", "quality", "attraction", "popularity", "clickbait", "department_taste"} <= truth
    assert sorted(path.name for path in (market / "log").iterdir()) == [
        "candidates.parquet",
        "requests.parquet",
    ]


def test_new_queries_wait_for_the_test_days(requests, candidates, queries):
    new = queries.filter("new")["query"].implode()
    day = pl.col("time").dt.date() - requests["time"].dt.date().min()
    rows = candidates.join(requests.with_columns(day=day.dt.total_days()), on="request_id")
    early, late = rows.filter(pl.col("day") < SMOKE.days), rows.filter(pl.col("day") >= SMOKE.days)
    assert early.filter(pl.col("query").is_in(new)).height == 0
    seen = early.explode("history", empty_as_null=True).filter(pl.col("history").is_in(new)).height
    assert seen == 0
    fresh = late.filter(pl.col("query").is_in(new))
    assert fresh["position"].is_not_null().sum() > 50
    assert fresh["behaviour"].is_in(CLICKS).sum() > 0


# Determinism


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_same_bytes_whatever_the_hash_seed(tmp_path):
    program = (
        "import sys; from pathlib import Path; from dataclasses import replace; import data_synth as d\n"
        "d.write_market(replace(d.PROFILES['smoke'], sessions=600, shoppers=60, queries=1500, "
        "new_queries=60, seed=int(sys.argv[2])), Path(sys.argv[1]))"
    )
    digests = []
    for number, (hash_seed, seed) in enumerate([("1", "7"), ("2", "7"), ("1", "8")]):
        out = tmp_path / str(number)
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "POLARS_MAX_THREADS": hash_seed}
        subprocess.run([sys.executable, "-c", program, str(out), seed], check=True, env=environment)
        digests.append(_digest(out / "log") + _digest(out / "truth"))
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_market_knows_nothing_of_models():
    program = (
        "import sys, data_synth, data_synth.__main__\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    forbidden = {"torch", "transformers", "sentence_transformers", "onesug_lite"}
    assert not forbidden & set(loaded.split())
    for path in Path(data_synth.__file__).parent.glob("*.py"):  # inside functions too
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not forbidden & {name.partition(".")[0] for name in names}, path


# The habits of the market


def test_click_rate_and_prefix_match(market):
    found = describe_market(market)
    assert found["requests"] == found["sessions"] == SMOKE.sessions
    assert found["days"] == SMOKE.days + SMOKE.test_days
    assert 0.55 < found["click_rate"] < 0.9  # a small pool is easier to serve than the lite one
    assert 0.62 < found["starts_with"] < 0.78
    assert 0.02 < found["order_rate"] < found["click_rate"]
    assert found["clicks"] == round(found["click_rate"] * found["requests"])


def test_position_bias(world):
    """The same candidates are clicked less often lower down, whatever their relevance."""
    rng = np.random.default_rng(0)
    intents = rng.choice(world.catalogue.known, 20_000)
    shown = rng.choice(world.catalogue.known, (20_000, 16))
    place = rng.integers(16, size=20_000)
    shown[np.arange(20_000), place] = intents
    tier = rng.integers(3, size=20_000)
    answers = respond(SMOKE, world.catalogue, intents, tier, shown, rng)
    found = answers.place == place
    assert found[place == 0].mean() > found[place == 8].mean() + 0.1 > found[place == 15].mean() + 0.15
    assert (answers.read[answers.place >= 0] == answers.place[answers.place >= 0] + 1).all()


def test_position_bias_shows_in_the_log(candidates):
    shown = candidates.filter(pl.col("position").is_not_null())
    rate = shown.group_by("position").agg(pl.col("behaviour").is_in(CLICKS).mean()).sort("position")["behaviour"]
    assert rate[0] > 2 * rate[7] > 2 * rate[15]


def test_clickbait_attracts_and_disappoints(candidates, queries):
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS)).join(queries, on="query")
    rate = clicks.group_by("clickbait").agg((pl.col("behaviour") == "order").mean(), pl.len()).sort("clickbait")
    honest, bait = rate["behaviour"].to_list()
    assert bait < 0.5 * honest
    share = rate["len"][1] / rate["len"].sum()
    assert share > SMOKE.clickbait  # over-represented among clicks


def test_intents_are_clicked_rather_than_near_matches(market, candidates):
    intents = pl.read_parquet(market / "truth" / "intents.parquet")
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS)).join(intents, on="request_id")
    exact = (clicks["query"] == clicks["intent"]).mean()
    assert 0.6 < exact < 0.95  # some shoppers settle for a near match
    assert set(intents["form"]) == {"written", "synonym", "reordered", "misspelt"}


def test_history_is_the_shoppers_own_and_in_time_order(requests, candidates, market):
    """A search of one day ends in the next day's history: the click, or what was in mind without one."""
    intents = pl.read_parquet(market / "truth" / "intents.parquet")
    clicks = candidates.filter(pl.col("behaviour").is_in(CLICKS)).select("request_id", "query")
    rows = (
        requests.join(intents, on="request_id")
        .join(clicks, on="request_id", how="left", maintain_order="left")
        .with_columns(searched=pl.coalesce("query", "intent"), day=pl.col("time").dt.date())
        .sort("user_id", "time", "request_id")
    )
    checked = 0
    for (_,), own in rows.group_by("user_id", maintain_order=True):
        for day in own["day"].unique().sort().to_list()[1:]:
            past = own.filter(pl.col("day") < day)["searched"].to_list()[-SMOKE.history_length :]
            for history in own.filter(pl.col("day") == day)["history"].to_list():
                assert history[-len(past) :] == past
                checked += 1
        if checked > 500:
            break
    assert checked > 500
    lengths = requests["history"].list.len()
    assert lengths.max() == SMOKE.history_length
    assert 0 < (lengths < SMOKE.history_length).mean() < 0.2  # cold shoppers
    assert 0 < requests["profile"].is_null().mean() < 0.15


def test_taste_is_exact(world):
    """Drawn intents follow the closed form: department shares and the favourite brand's share."""
    rows = np.array([3])
    weights = taste_weights(SMOKE, world.catalogue, world.shoppers, rows, slice(0, world.catalogue.known))
    assert weights.sum() == pytest.approx(1.0)
    by_department = np.bincount(world.catalogue.department[: world.catalogue.known], weights[0])
    np.testing.assert_allclose(by_department, world.shoppers.department_taste[3], atol=1e-9)
    count = 40_000
    drawn = draw_intents(
        SMOKE,
        world.catalogue,
        world.shoppers,
        np.ones_like(world.trends),
        np.full(count, 3),
        np.full(count, -1),
        np.random.default_rng(1),
    )
    share = np.bincount(drawn, minlength=weights.shape[1]) / count
    assert np.abs(share - weights[0]).max() < 6 * np.sqrt(weights[0].max() / count)
    flat = taste_weights(
        replace(SMOKE, brand_boost=1.0),
        world.catalogue,
        world.shoppers,
        rows,
        slice(0, world.catalogue.known),
    )
    department = world.shoppers.department_taste[3].argmax()
    own = world.catalogue.brand[: world.catalogue.known] == world.shoppers.favourite_brand[3, department]
    assert weights[0][own].sum() > 1.5 * flat[0][own].sum()


def test_profile_is_right_about_as_often_as_promised(world):
    codes = world.shoppers.profile_codes
    there = codes[:, 0] >= 0
    right = (codes[there, 0] == world.shoppers.audience[there]).mean()
    # True 80 times in 100, and by chance in a quarter of the rest.
    assert right == pytest.approx(0.85, abs=0.07)


def test_typing_probabilities_are_exact(world):
    """Prefixes typed for one query occur as often as the tables say."""
    query = int(np.flatnonzero(world.catalogue.brand[: world.catalogue.known] > 0)[11])
    prefix, _ = type_prefixes(world.typing, np.full(30_000, query), np.random.default_rng(2))
    table = prefix_rows(world.typing, np.arange(len(world.typing.prefixes)), slice(0, world.catalogue.text.size))
    own = table.filter(pl.col("query") == query)
    assert own["probability"].sum() == pytest.approx(1.0)
    share = np.bincount(prefix, minlength=len(world.typing.prefixes))[own["prefix"].to_numpy()] / 30_000
    np.testing.assert_allclose(share, own["probability"].to_numpy(), atol=0.015)


def test_misspellings_differ_from_the_word():
    rng = np.random.default_rng(0)
    for word in ("apple", "shoes", "tea", "aaa", "100"):
        for wrong in misspellings(word, rng) + misspellings(word, rng):
            assert wrong != word and wrong[0] == word[0]
    assert misspellings("4k", rng) == ["", ""]


def test_exposure_sees_history_and_leaves_places_to_chance(world):
    rng = np.random.default_rng(3)
    code = world.typing.prefixes.index_of("b")
    popularity = believed_popularity(SMOKE, world.catalogue, rng)
    recall = recall_table(SMOKE, world.typing, np.array([code]), popularity, slice(0, world.catalogue.known), rng)
    assert (recall.candidates >= 0).all()
    assert all(np.unique(row).size == SMOKE.recalled for row in recall.candidates)
    department = int(np.bincount(world.catalogue.department[recall.candidates[0]]).argmax())
    of_it = np.flatnonzero(world.catalogue.department[: world.catalogue.known] == department)[:8]
    other = np.flatnonzero(world.catalogue.department[: world.catalogue.known] != department)[:8]
    profile, prefix = np.full((200, 5), -1), np.full(200, code)

    def share(history):
        page = expose(
            SMOKE,
            world.catalogue,
            recall,
            prefix,
            np.tile(history, (200, 1)),
            profile,
            world.trends[0],
            np.random.default_rng(4),
        )
        listed = np.concatenate([page.shown, page.not_shown], axis=1)
        assert all(np.unique(row).size == row.size for row in listed)
        assert page.shown.shape == (200, 16) and page.not_shown.shape == (200, 4)
        assert np.unique(page.shown, axis=0).shape[0] > 150  # exploration differs from request to request
        return (world.catalogue.department[page.shown] == department).mean()

    assert share(of_it) > share(other) + 0.1


def test_few_candidates_are_filled_up_from_a_shorter_prefix(world):
    rng = np.random.default_rng(5)
    lengths = world.typing.prefixes.str.len_chars().to_numpy()
    long = np.flatnonzero(lengths == SMOKE.max_prefix)[:50]
    popularity = believed_popularity(SMOKE, world.catalogue, rng)
    recall = recall_table(SMOKE, world.typing, long, popularity, slice(0, world.catalogue.known), rng)
    assert (recall.candidates >= 0).all() and np.isfinite(recall.score).all()
    assert all(np.unique(row).size == SMOKE.recalled for row in recall.candidates)
    assert (recall.candidates < world.catalogue.known).all()


def test_an_empty_place_is_never_clicked(world):
    intents = np.arange(500)
    shown = np.full((500, 16), -1)
    shown[:, 5] = intents
    assert (click_probability(SMOKE, world.catalogue, intents, shown)[:, :5] == 0).all()
    answers = respond(SMOKE, world.catalogue, intents, np.zeros(500, int), shown, np.random.default_rng(0))
    assert set(answers.place.tolist()) == {-1, 5}


# The words


def test_lexicon_is_rich_and_free_of_slips(world):
    words = world.catalogue.vocabulary
    assert len(words.departments) >= 12
    assert np.bincount(words.type_department).min() >= 10
    assert len(set(words.types)) == len(words.types)
    assert len(set(words.brands)) == len(words.brands)
    assert np.mean([bool(synonym) for synonym in words.synonyms]) > 0.6
    for name in [*words.types, *words.synonyms, *words.brands, *words.attributes, *words.modifiers]:
        assert name == " ".join(name.split()) and name.isascii() and name == name.lower(), name
    assert len(words.shared) >= 12
    for brand in words.shared:
        homes = {
            int(department)
            for name, department in zip(words.types, words.type_department, strict=True)
            if name == brand
        }
        own = int(words.brand_department[words.brands.index(brand)])
        assert homes and own not in homes, brand


def test_queries_are_distinct_and_sorted_by_type(world):
    catalogue = world.catalogue
    assert len(set(catalogue.text.tolist())) == SMOKE.queries + SMOKE.new_queries
    assert (np.diff(catalogue.type[: catalogue.known]) >= 0).all()
    assert (np.diff(catalogue.type[catalogue.known :]) >= 0).all()
    assert np.unique(catalogue.type[: catalogue.known]).size == len(catalogue.vocabulary.types)
    launched = catalogue.vocabulary.brand_launch[catalogue.brand]
    assert not launched[: catalogue.known].any() and launched[catalogue.known :].mean() == pytest.approx(0.5, 0.1)


def test_lite_is_as_large_as_it_says():
    lite = PROFILES["lite"]
    assert lite == MarketConfig() and lite.sessions == 240_000
    catalogue = build_world(replace(lite, shoppers=10)).catalogue
    assert len(set(catalogue.text.tolist())) >= 40_000


# Knobs and folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sessions": -5}, "sessions is -5; expected"),
        ({"sessions": 10}, "expected at least 64"),
        ({"days": 2}, "days is 2; expected a value from 3"),
        ({"test_days": 0}, "test_days is 0"),
        ({"sessions": 1e5}, r"sessions is 100000.0 \(float\); expected int"),
        ({"sessions": True}, "sessions is True"),
        ({"patience": float("nan")}, "patience is nan"),
        ({"misspell": 0.9}, "synonym \\+ reorder \\+ misspell"),
        ({"shown": 17}, "shown is 17; expected a value from 1 to 16"),
        ({"exploration": 9, "shown": 8}, "exploration is 9"),
        ({"recalled": 18}, "recalled is 18; expected at least"),
        ({"seed": -1}, "seed is -1"),
        ({"zipf": "steep"}, "zipf is 'steep'"),
    ],
)
def test_bad_knobs(change, message):
    with pytest.raises(MarketError, match=message):
        replace(MarketConfig(), **change)


def test_every_knob_is_checked():
    from data_synth.config import _RANGES

    assert set(_RANGES) == {field.name for field in fields(MarketConfig)}
    for name, (low, high) in _RANGES.items():
        for value in (low - 1, high + 1):
            with pytest.raises(MarketError, match=name):
                replace(MarketConfig(), **{name: type(getattr(MarketConfig(), name))(value)})


def test_more_queries_than_words_serve():
    with pytest.raises(MarketError, match="lexicon serves up to"):
        build_world(replace(TINY, queries=10**6))
    with pytest.raises(MarketError, match="new_queries is 5; expected 0 or at least"):
        build_world(replace(TINY, new_queries=5))


@pytest.mark.parametrize(
    "change",
    [
        {"new_queries": 0},
        {"history_length": 0},
        {"not_shown": 0, "exploration": 0},
        {"exploration": 16},
        {"patience": 0.0},
        {"patience": 1.0},
        {"missing_profile": 1.0, "cold_shoppers": 1.0},
        {"shown": 3, "days": 3, "test_days": 1},
        {"synonym": 0.0, "reorder": 0.0, "misspell": 0.0, "max_prefix": 1},
        {"shoppers": 1, "clickbait": 1.0, "stale_days": 366},
    ],
)
def test_knobs_at_their_ends_still_give_a_log(change, tmp_path):
    config = replace(TINY, **change)
    out = write_market(config, tmp_path / "market")
    log = pytest.importorskip("onesug_lite.log")
    assert log.read_log(out / "log").requests.height == config.sessions
    if config.patience == 0.0:
        shown = pl.read_parquet(out / "log" / "candidates.parquet").filter(pl.col("behaviour").is_in(CLICKS))
        assert set(shown["position"]) == {1}


def test_open_market_builds_once(tmp_path):
    first = open_market(TINY, tmp_path)
    stamp = (first / "log" / "candidates.parquet").stat().st_mtime_ns
    assert open_market(TINY, tmp_path) == first
    assert (first / "log" / "candidates.parquet").stat().st_mtime_ns == stamp
    assert open_market(replace(TINY, seed=1), tmp_path) != first
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "log", "truth"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data_synth.market._write_truth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_market(TINY, tmp_path / "market")
    assert list(tmp_path.iterdir()) == []


def test_days_can_be_lived_without_writing():
    world = build_world(TINY)
    searches = draw_searches(world)
    seen = np.concatenate([day.rows for day in live(world, searches)])
    np.testing.assert_array_equal(seen, np.arange(TINY.sessions))
