"""Size and speed of the market: pools of millions, hundreds of candidates for a short prefix, any joblib backend."""

import joblib
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from data_synth import PROFILES, build_world, market_config, write_market
from data_synth.__main__ import app
from data_synth.catalogue_building import build_catalogue
from data_synth.counts import find_rows
from data_synth.keystrokes import prefix_keys
from data_synth.world import play_shard


@pytest.mark.parametrize(("profile", "least"), [("smoke", 10_000), ("lite", 100_000), ("full", 10_000_000)])
def test_pool_is_as_large_as_promised_and_its_texts_differ(profile, least):
    catalogue = build_catalogue(PROFILES[profile], np.random.default_rng(0))
    assert catalogue.size >= least
    some = np.unique(np.random.default_rng(1).integers(catalogue.size, size=20_000))
    texts = catalogue.texts(some).to_pylist()
    assert len(set(texts)) == some.size
    np.testing.assert_array_equal(catalogue.join(catalogue.split(some)), some)


def test_a_short_prefix_has_hundreds_of_candidates_and_sixteen_are_shown():
    config = market_config("lite", sessions=4_000, shoppers=800)
    world = build_world(config)
    _, days = play_shard(world, 0)
    day = next(days)
    short = day.batch.length <= 3
    index = world.indexes[0]
    row = find_rows(index, prefix_keys(day.batch.points[short]), day.batch.length[short])
    known = np.diff(index.start)[row]
    assert np.median(known) >= 100
    assert (day.page.shown[short] >= 0).sum(axis=1).max() == 16


def test_another_joblib_backend_writes_the_same_bytes(tmp_path):
    config = market_config("smoke", sessions=640, shoppers=80, pilot_sessions=600, shard_sessions=160)
    write_market(config, tmp_path / "alone")
    with joblib.parallel_config(backend="threading"):
        write_market(config, tmp_path / "threads", jobs=3)
    files = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.parquet"))
    assert len(files) == 4 * 4 + 1
    for file in files:
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "threads" / file).read_bytes(), file


BROKEN = {
    "not_utf8": b"caf\xe9 cups,3\n",
    "nul": b"red\x00shoes,3\n",
    "blank": b"   ,3\n",
    "too_long": b"x" * 5_000 + b",3\n",
    "formula": b'"=HYPERLINK(""http://x"")",3\n',
    "control_token": b"<s> shoes </s>,3\n",
    "bad_count": b"blue shoes,-1\n",
}


def test_a_list_with_broken_rows_becomes_a_log_and_its_report_counts_them(tmp_path):
    colours, stuffs = ("red", "blue", "grey", "green", "pink"), ("wool", "silk", "oak", "steel", "cotton", "glass")
    things = (
        "lamp",
        "chair",
        "shoe",
        "coat",
        "bag",
        "cup",
        "ring",
        "desk",
        "rug",
        "mug",
        "bowl",
        "hat",
        "belt",
        "sock",
    )
    good = [f"{colour} {stuff} {thing}" for colour in colours for stuff in stuffs for thing in things]
    times = dict(zip(BROKEN, range(2, 2 + len(BROKEN)), strict=True))
    path = tmp_path / "list.csv"
    with open(path, "wb") as stream:
        stream.write(b"query,count\n")
        for number, query in enumerate(good):
            stream.write(f"{query},{1 + number % 7}\n".encode())
        stream.write(f"{good[0].upper()},5\n".encode())  # a duplicate once lowered
        for kind, count in times.items():
            stream.write(BROKEN[kind] * count)
    asked = [
        "--queries",
        path,
        "--profile",
        "smoke",
        "--sessions",
        1_000,
        "--shoppers",
        100,
        "--set",
        "pilot_sessions=900",
    ]
    done = CliRunner().invoke(app, [str(part) for part in [*asked, "--out", tmp_path / "market"]])
    assert done.exit_code == 0, done.output
    for kind, count in times.items():
        line = next(line for line in done.output.splitlines() if line.split()[:1] == [kind])
        assert int(line.split()[1]) == count, kind
    assert f"{len(good) + 1} kept, 1 of them duplicates; {sum(times.values())} refused" in done.output
    shown = pl.read_parquet(tmp_path / "market" / "log" / "candidates")["query"].unique()
    assert len(shown) > 200 and set(shown) <= set(good)

    refused = CliRunner().invoke(app, [str(part) for part in [*asked, "--strict", "--out", tmp_path / "strict"]])
    assert refused.exit_code == 2 and f"line {len(good) + 3}: not_utf8" in refused.output
    assert not (tmp_path / "strict").exists()
