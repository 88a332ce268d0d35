"""Running notebooks: unknown parameters, failing cells, records."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from typer.testing import CliRunner

from onesug_lite import grid
from onesug_lite.grid import GridError, chapter_paths, engine, run_notebook, run_table
from onesug_lite.record_keys import NOTEBOOKS, RUN, code_key, record_key
from onesug_lite.records import Grid, read_records
from onesug_lite.variants import VARIANTS

TRUTH = ("ceiling", "imitation", "preference")


def _notebook(path, *sources: str):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def test_a_run_loads_nothing_that_it_does_not_need():
    """Every run is a process of its own: what takes seconds to import is paid once a record."""
    first = next(cell for cell in nbformat.read(NOTEBOOKS / RUN, as_version=4).cells if cell.cell_type == "code")
    code = first.source + "\nprint(sorted({'matplotlib', 'nbformat', 'pandas', 'seaborn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_unknown_parameter_is_an_error(tmp_path):
    with pytest.raises(
        GridError,
        match="has no parameter 'bean'; expected one of build, changes, key, market_changes, profile",
    ):
        run_notebook(NOTEBOOKS / RUN, tmp_path / "out.ipynb", {"bean": 3})
    assert not (tmp_path / "out.ipynb").exists()


def test_every_chapter_takes_the_common_parameters():
    numbers = [f"{number:02d}" for number in range(1, 13)]
    assert [path.name[:2] for path in chapter_paths()] == [*numbers, "m1", "m2", "m3"]
    for path in chapter_paths():
        assert {"profile", "seed", "build"} <= set(papermill.inspect_notebook(str(path)))


def test_missing_notebook_is_named(tmp_path):
    with pytest.raises(GridError, match="no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "out.ipynb", {})


def test_failing_cell_fails_the_run(tmp_path):
    source = _notebook(tmp_path / "in.ipynb", "x = 1", "assert x == 2, 'x is not two'")
    with pytest.raises(papermill.PapermillExecutionError, match="x is not two"):
        run_notebook(source, tmp_path / "out.ipynb", {"x": 3}, progress=False)


@pytest.fixture(scope="module")
def made_here(market, tmp_path_factory):
    """Folder and records of what trains nothing, made in this process's own way."""
    folder = tmp_path_factory.mktemp("here")
    return folder, run_table(folder, "smoke", seeds=1, names=["popularity", *TRUTH])


def test_records_of_one_run(made_here, tmp_path, monkeypatch):
    folder, records = made_here
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert [(r["variant"], r["seed"], r["profile"]) for r in records] == [
        (name, 0, "smoke") for name in ("popularity", *TRUTH)
    ]
    popularity, ceiling, imitation, preference = records
    for record in records:
        for section in {"clicks", "replay"} & set(record):
            assert len({len(column) for column in record[section].values()}) == 1
        assert record["key"] == record_key(record["variant"], 0, "smoke") and record["code"] == code_key()
    assert popularity["clicks"]["request_id"] == ceiling["clicks"]["request_id"]
    expected = np.mean(ceiling["expected"]["reciprocal"])
    assert np.mean([1 / rank if rank else 0 for rank in popularity["clicks"]["rank"]]) < expected
    worth = [np.mean(record["replay"]["click"]) for record in (popularity, imitation, preference)]
    assert worth == sorted(worth) and imitation["replay"]["request_id"] == popularity["replay"]["request_id"]
    assert Grid(read_records(tmp_path)).has("ceiling", "MRR@16")

    # what is there is not made again; what was killed half way, or is of other settings, is
    monkeypatch.setattr(
        grid, "run_notebook", lambda source, target, parameters, **_: made.append(parameters["variant"])
    )
    made = []
    assert run_table(tmp_path, "smoke", seeds=2, names=["popularity", *TRUTH]) == records and made == []
    (tmp_path / "ceiling-seed0.json").write_text('{"key": "')
    with pytest.raises(ValueError):
        run_table(tmp_path, "smoke", names=["popularity", "ceiling"])
    assert made == ["ceiling"]
    other = replace(VARIANTS["popularity"], changes={"decode.beams": 20})
    monkeypatch.setitem(VARIANTS, "popularity", other)
    made.clear()
    run_table(tmp_path, "smoke", names=["popularity"])
    assert made == ["popularity"]


def test_two_that_ask_for_a_record_at_once_make_it_once(tmp_path, monkeypatch):
    made = []

    def run(source, target, parameters, **_):
        made.append(parameters["key"])
        time.sleep(0.3)
        Path(parameters["record"]).write_text(json.dumps({"key": parameters["key"]}))

    monkeypatch.setattr(grid, "run_notebook", run)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(grid.kept_or_run, "x.ipynb", tmp_path / "new" / "a.json", {"key": "k"}) for _ in range(3)]
    assert [each.result() for each in asked] == [{"key": "k"}] * 3 and made == ["k"]


def test_two_tables_at_once_share_the_work(tmp_path, monkeypatch):
    names, made = ["popularity", "sft", "sft_pre", "onesug", "mca", "known"], []

    def run(source, target, parameters, **_):
        made.append((parameters["variant"], threading.get_ident()))
        time.sleep(0.3)
        record = {"key": parameters["key"], "variant": parameters["variant"]}
        Path(parameters["record"]).write_text(json.dumps(record))

    monkeypatch.setattr(grid, "run_notebook", run)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(run_table, tmp_path, "smoke", names=names) for _ in range(2)]
    for table in asked:
        assert [record["variant"] for record in table.result()] == names
    assert sorted(name for name, _ in made) == sorted(names), "a record was made twice"
    shares = Counter(thread for _, thread in made)
    assert len(shares) == 2 and min(shares.values()) >= 2, "one waited for the other instead of making what was left"


def test_one_changed_row_changes_its_own_key_alone(monkeypatch):
    before = {name: record_key(name, 0, "smoke") for name in VARIANTS}
    assert len(set(before.values())) == len(VARIANTS)
    row = VARIANTS["onesug"]
    monkeypatch.setitem(VARIANTS, "onesug", replace(row, changes=row.changes | {"preference.delta": -0.4}))
    after = {name: record_key(name, 0, "smoke") for name in VARIANTS}
    assert [name for name in VARIANTS if before[name] != after[name]] == ["onesug"]
    assert record_key("onesug", 1, "smoke") != after["onesug"] != record_key("onesug", 0, "lite")


def test_a_dask_cluster_of_two_workers_makes_the_same_records(made_here, tmp_path):
    distributed = pytest.importorskip("distributed")
    names = ["popularity", "imitation"]
    here = [record for record in made_here[1] if record["variant"] in names]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with engine("dask", cluster.scheduler_address):
            there = run_table(tmp_path / "there", "smoke", jobs=-1, names=names)
        with distributed.Client(cluster.scheduler_address) as client:
            done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert sum(done.values()) >= len(names)  # the workers did it, not this process
    measured = {"seconds", "run_seconds", "peak_memory_mb"}
    for one, other in zip(here, there, strict=True):
        assert {k: v for k, v in one.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }


@pytest.mark.parametrize(
    "name, address, says",
    [
        ("ray", "", "engine is 'ray'; expected local, or dask"),
        ("local", "tcp://127.0.0.1:1", "engine is 'local' with an address"),
        ("dask", "here", "no dask scheduler answers at 'here'"),
    ],
)
def test_an_engine_that_is_not_there_is_named(name, address, says):
    with pytest.raises(GridError, match=says), engine(name, address):
        pass


def test_settings_and_market_count_in_the_key():
    """Else a table of other settings would take the records that lie there for its own."""
    plain = record_key("sft", 0, "smoke")
    others = [
        record_key("sft", 0, "smoke", {"train.steps": 3}),
        record_key("sft", 0, "smoke", market={"sessions": 3000}),
        record_key("sft", 1, "smoke"),
        record_key("sft_pre", 0, "smoke"),
    ]
    assert len({plain, *others}) == 5 and record_key("sft", 0, "smoke", {}, {}) == plain


def test_the_command_runs_in_processes_and_changes_settings_and_market(tmp_path):
    """As ``make grid`` starts it: what is sent to a process must not depend on the name of the module."""
    told = ["--profile", "smoke", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path), "--only", "popularity"]
    more = ["--only", "imitation", "--market", "sessions=3000", "--set", "evaluated=50", "--under", "small"]
    here = {"cwd": NOTEBOOKS.parent, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-m", "onesug_lite.grid", "table", *told, *more], **here)
    assert done.returncode == 0, done.stderr
    imitation, popularity = read_records(tmp_path / "smoke" / "small")
    assert popularity["market_changes"] == {"sessions": 3000} and len(popularity["clicks"]["rank"]) == 50
    assert imitation["log"] == popularity["log"]
    done = subprocess.run([sys.executable, "-m", "onesug_lite.grid", "table", *told, "--set", "evaluated=50"], **here)
    assert done.returncode == 2 and "need a folder of their own" in done.stderr


def test_one_notebook_alone_is_refreshed_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "NOTEBOOKS", tmp_path)
    monkeypatch.setenv("ONESUG_PROFILE", "lite")
    sources = ("import os, sys", "print(os.environ['ONESUG_PROFILE']); print('bar', file=sys.stderr)")
    one, other = (_notebook(tmp_path / f"{name}.ipynb", *sources) for name in ("01_a", "x_run"))
    before = other.read_bytes()
    assert CliRunner().invoke(grid.app, ["refresh", "--profile", "smoke", "--only", "01_a"]).exit_code == 0
    outputs = nbformat.read(one, as_version=4).cells[1].outputs
    assert [output["text"] for output in outputs] == ["smoke\n"] and other.read_bytes() == before
    refused = CliRunner().invoke(grid.app, ["refresh", "--only", "02_b"])
    assert refused.exit_code == 2 and "02_b" in refused.output and "x_run" in refused.output
