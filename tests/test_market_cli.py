"""``python -m data_synth``: what it writes, and what it says when asked for something it cannot do."""

import json
import subprocess
import sys

import polars as pl
import pytest
from typer.testing import CliRunner

from data_synth.__main__ import app

SMALL = ["--profile", "smoke", "--sessions", "320", "--shoppers", "50", "--days", "6", "--jobs", "1"]
SMALL += ["--set", "pilot_sessions=500"]


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_writes_a_market_and_says_what_is_in_it(tmp_path):
    out = tmp_path / "market"
    more = ["--seed", 3, "--world", "production", "--locale", "zh", "--set", "patience=1", "--set", "not_shown=2"]
    code, output = run(*SMALL, *more, "--out", out)
    assert code == 0, output
    requests = pl.read_parquet(out / "log" / "requests" / "shard-00000.parquet")
    assert f"{requests.height:,} requests in" in output
    shown = dict(line.split() for line in output.splitlines()[1:])
    assert set(shown) >= {"click_rate", "order_rate", "starts_with", "sessions", "prefix_length"}
    assert int(shown["sessions"]) == 320 == requests["session_id"].n_unique()
    config = json.loads((out / "config.json").read_text())["config"]
    names = ("seed", "sessions", "days", "policy", "locale", "patience", "not_shown", "types")
    assert [config[name] for name in names] == [3, 320, 6, "production", "zh", 1.0, 2, 4]
    assert set(requests["policy"]) <= {"production", "random"}


def test_writes_one_shard_alone(tmp_path):
    code, output = run(*SMALL, "--set", "shard_sessions=64", "--shard", 1, "--shard", 4, "--out", tmp_path / "market")
    assert code == 0, output
    files = [path.name for path in sorted((tmp_path / "market" / "log" / "requests").iterdir())]
    assert files == ["shard-00001.parquet", "shard-00004.parquet"]


def test_makes_a_market_of_a_list_of_queries(tmp_path):
    queries = [f"{word} {thing}" for word in ("red", "blue", "old", "new", "tiny", "=1+1") for thing in
               ("lamp", "mug", "rug", "desk", "sofa", "shelf", "vase", "clock", "bowl", "chair", "stool")]  # fmt: skip
    (tmp_path / "queries.csv").write_text("query\n" + "\n".join(queries))
    code, output = run(*SMALL, "--queries", tmp_path / "queries.csv", "--out", tmp_path / "market")
    assert code == 0, output
    assert "66 rows: 55 kept" in output and "11 refused" in output
    listed = pl.read_parquet(tmp_path / "market" / "log" / "candidates" / "*.parquet")["query"]
    assert set(listed) <= set(queries) and listed.n_unique() > 40
    code, output = run(*SMALL, "--queries", tmp_path / "queries.csv", "--strict", "--out", tmp_path / "strict")
    assert code == 2 and "line 57: formula" in output and not (tmp_path / "strict").exists()


def test_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data_synth", "--sessions", "-5", "--out", str(tmp_path / "market")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error: sessions is -5; expected" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "market").exists()


def test_replaces_only_a_market_and_only_when_told(tmp_path):
    out = tmp_path / "market"
    out.mkdir()  # an empty folder will do
    assert run(*SMALL, "--out", out)[0] == 0
    log = out / "log" / "candidates" / "shard-00000.parquet"
    before = log.read_bytes()
    code, output = run(*SMALL, "--seed", 1, "--out", out)
    assert code == 2 and "already holds a market" in output and "--force" in output
    assert log.read_bytes() == before
    assert run(*SMALL, "--seed", 1, "--out", out, "--force")[0] == 0
    assert log.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


def test_never_touches_a_folder_of_someone_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, output = run(*SMALL, "--out", tmp_path, "--force")
    assert code == 2 and "not a market" in output
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    code, output = run(*SMALL, "--out", tmp_path / "thesis.txt", "--force")
    assert code == 2 and "is not a folder" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--days", "2"], "error: days is 2; expected a value from 3"),
        (["--sessions", "0"], "error: sessions is 0; expected a value from 1"),
        (["--seed", "-1"], "error: seed is -1"),
        (["--jobs", "0"], "error: --jobs is 0; expected 1 or more"),
        (["--profile", "huge"], "error: profile is 'huge'; expected one of smoke, lite, full"),
        (["--world", "fair"], "error: world is 'fair'; expected one of selective, production, few_candidates"),
        (["--locale", "fr"], "error: locale is 'fr'; expected one of en, zh"),
        (["--set", "colour=red"], "error: --set got 'colour=red'; expected name=value with a knob of the market"),
        (["--set", "patience"], "error: --set got 'patience'; expected name=value"),
        (["--set", "types=many"], "error: --set types is 'many'; expected int"),
        (["--set", "types=4.5"], "error: --set types is '4.5'; expected int"),
        (["--set", "patience=often"], "error: --set patience is 'often'; expected float"),
        (["--set", "patience=1.5"], "error: patience is 1.5; expected a value from 0 to 1"),
        (["--shard", "1"], "error: shard is 1; the market has 1, numbered from 0"),
        (["--locale", "zh", "--set", "types=12"], "error: types is 12; department '手机数码' has 8: lower types"),
        (["--queries", "absent.csv"], "absent.csv"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    code, output = run(*SMALL, *arguments, "--out", tmp_path / "market")
    assert code == 2 and message in output
    assert "Traceback" not in output and list(tmp_path.iterdir()) == []
