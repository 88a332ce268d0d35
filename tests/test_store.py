"""The store: built once, never half there, safe against damage, a second process and Ctrl-C."""

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from onesug_lite.store import Store, StoreError, code_fingerprint, fingerprint, verify


@dataclass(frozen=True)
class Config:
    size: int = 3


def write(out: Path, work: Path) -> None:
    (out / "numbers.txt").write_text("1 2 3")


def never(out: Path, work: Path) -> None:
    raise AssertionError("built a second time")


def get(store: Store, build=write, config=Config(), inputs=None) -> Path:
    return store.get("stage", config, inputs or {"log": "abc"}, ["metrics"], build)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path, announce=lambda line: None)


def test_second_time_is_read_not_built(store):
    assert get(store) == get(store, build=never)


def test_config_and_inputs_change_the_entry(store):
    entries = {get(store), get(store, config=Config(4)), get(store, inputs={"log": "abd"})}
    assert len(entries) == 3


def test_code_of_imported_modules_counts():
    assert {"onesug_lite.pipeline", "onesug_lite.log", "onesug_lite.decode"} <= set(code_fingerprint(["pipeline"]))
    assert "onesug_lite.decode" not in code_fingerprint(["log"])


def test_fingerprint_names_its_parts():
    key, record = fingerprint("stage", Config(), {"log": "abc"}, ["metrics"])
    assert len(key) == 16 and record["config"] == {"size": 3} and "torch" in record["libraries"]


@pytest.mark.parametrize("damage", ["cut", "alter", "remove", "manifest"])
def test_damage_is_named_set_aside_and_built_again(store, damage):
    entry = get(store)
    path = entry / ("manifest.json" if damage == "manifest" else "numbers.txt")
    if damage == "remove":
        path.unlink()
    else:
        path.write_text({"cut": "1 2", "alter": "1 2 4", "manifest": '{"files"'}[damage])
    with pytest.raises(StoreError, match=entry.name):
        verify(entry)
    with pytest.warns(UserWarning, match="built again"):
        assert get(store) == entry
    assert (entry / "numbers.txt").read_text() == "1 2 3"
    assert len(list(store.root.glob("damaged-*"))) == 1, "the damaged entry is kept for a look"


def test_interrupted_build_leaves_no_entry_and_keeps_its_work(store):
    def interrupted(out: Path, work: Path) -> None:
        (work / "checkpoint").write_text("half way")
        (out / "numbers.txt").write_text("1")
        raise KeyboardInterrupt

    def resumed(out: Path, work: Path) -> None:
        assert (work / "checkpoint").read_text() == "half way"
        assert not (out / "numbers.txt").exists(), "the half-written result is gone"
        write(out, work)

    with pytest.raises(KeyboardInterrupt):
        get(store, build=interrupted)
    assert not list(store.root.glob("stage-*"))
    entry = get(store, build=resumed)
    assert (entry / "numbers.txt").read_text() == "1 2 3"
    assert not list(store.root.glob(".work-*")), "checkpoints go when the result is there"


def _slow(out: Path, work: Path) -> None:
    with open(out.parent / "builders.log", "a") as stream:
        stream.write("built\n")
    time.sleep(0.5)
    write(out, work)


def _in_another_process(root: Path, lines) -> None:
    lines.put(get(Store(root, announce=lambda line: None), build=_slow).name)


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    names = context.Queue()
    processes = [context.Process(target=_in_another_process, args=(tmp_path, names)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {names.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert (tmp_path / "builders.log").read_text() == "built\n"
