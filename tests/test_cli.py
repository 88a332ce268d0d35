"""The command line, as a user meets it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, STORE
from typer.testing import CliRunner

from onesug_lite.cli import _words, app


@pytest.fixture(scope="module")
def model(road, tmp_path_factory):
    return road.policy("onesug").save(tmp_path_factory.mktemp("cli") / "model")


def run(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_train_then_suggest(market, road, tmp_path):
    road.policy("sft")  # trained before, so that this only exports
    trained = run(
        "train",
        market / "log",
        "--out",
        tmp_path / "m",
        "--variant",
        "sft",
        "--size",
        "smoke",
        "--store",
        STORE,
    )
    assert trained.exit_code == 0, trained.output
    shown = run("suggest", "appl", "--history", "green tea, apple juice", "--model", tmp_path / "m")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert 1 <= len(lines) <= 16 and lines[0].split()[0] == "1"


def test_suggest_is_the_policy(model, road):
    shown = run("suggest", "app", "--history", "green tea", "--profile", "women", "--model", model, "--count", 3)
    expected = road.policy("onesug").suggest("app", ["green tea"], ["women"])[:3]
    assert [line.split(maxsplit=2)[2] for line in shown.output.splitlines()] == [query for query, _ in expected]


def test_a_history_may_hold_chinese_commas():
    assert _words("绿茶，苹果汁、梨, tea ,") == ["绿茶", "苹果汁", "梨", "tea"]


def test_evaluate_prints_the_table(market, road):
    shown = run("evaluate", market / "log", "--variant", "popularity", "--size", "smoke", "--store", STORE)
    assert shown.exit_code == 0, shown.output
    assert "popularity completion" in shown.output and "[" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("suggest", "  ", "--model", "MODEL"), "prefix"),
        (("suggest", "app", "--model", "nowhere"), "onesug train"),
        (("train", "nowhere", "--size", "smoke"), "requests.parquet"),
        (("train", "LOG", "--size", "tiny"), "unknown profile 'tiny'"),
        (("train", "LOG", "--size", "smoke", "--variant", "gpt"), "unknown variant 'gpt'"),
        (("train", "LOG", "--size", "smoke", "--variant", "popularity"), "nothing to train"),
        (("evaluate", "nowhere", "--size", "smoke"), "requests.parquet"),
    ],
)
def test_bad_input_is_named_and_exits_2(model, market, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": model, "LOG": market / "log"}
    result = run(*(names.get(part, part) for part in arguments))
    assert result.exit_code == 2 and message in result.output, result.output
    assert "Traceback" not in result.output


def test_ctrl_c_in_training_resumes(market, road, tmp_path):
    """SIGINT while the generator trains: exit 130, no entry half there, the next call goes on from the checkpoint."""
    road.split  # noqa: B018  the log is there
    store = tmp_path / "store"
    command = [
        sys.executable,
        "-m",
        "onesug_lite.cli",
        "train",
        str(market / "log"),
        "--out",
        str(tmp_path / "m"),
    ]
    command += ["--variant", "sft", "--size", "smoke", "--store", str(store)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not list(store.glob(".work-supervised-*/**/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from the last checkpoint" in output
    assert not list(store.glob("supervised-*")) and not (tmp_path / "m").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "going on from its last checkpoint" in again.stderr
    whole = (road.supervised(pre=False).folder / "generator" / "model.safetensors").read_bytes()
    assert (tmp_path / "m" / "generator" / "model.safetensors").read_bytes() == whole, "as if never interrupted"
