"""``python -m data_synth``: what it writes, and what it says when asked for something it cannot do."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from data_synth.__main__ import app

SMALL = ["--profile", "smoke", "--sessions", "640", "--shoppers", "50", "--queries", "1500"]


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_writes_a_market_and_says_what_is_in_it(tmp_path):
    code, output = run(*SMALL, "--seed", 3, "--out", tmp_path / "market")
    assert code == 0, output
    assert "640 requests" in output and "click_rate" in output
    assert (tmp_path / "market" / "log" / "requests.parquet").is_file()
    config = json.loads((tmp_path / "market" / "config.json").read_text())["config"]
    assert (config["seed"], config["sessions"], config["days"]) == (3, 640, 30)


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
    before = (out / "log" / "candidates.parquet").read_bytes()
    code, output = run(*SMALL, "--seed", 1, "--out", out)
    assert code == 2 and "already holds a market" in output and "--force" in output
    assert (out / "log" / "candidates.parquet").read_bytes() == before
    assert run(*SMALL, "--seed", 1, "--out", out, "--force")[0] == 0
    assert (out / "log" / "candidates.parquet").read_bytes() != before
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
        (["--days", "2"], "days is 2; expected a value from 3"),
        (["--sessions", "0"], "sessions is 0"),
        (["--queries", "99999999"], "queries is 99999999"),
        (["--queries", "900000"], "lexicon serves up to"),
        (["--profile", "huge"], "expected one of smoke, lite, full"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    code, output = run("--profile", "smoke", *arguments, "--out", tmp_path / "market")
    assert code == 2 and message in output
    assert list(tmp_path.iterdir()) == []
