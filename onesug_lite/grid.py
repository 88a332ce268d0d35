"""Run notebooks: the book's chapters, the table's grid, and the refresh of what is committed.

``python -m onesug_lite.grid chapters|table|refresh --help`` lists the options. A grid is a joblib loop over
(variant, seed) that runs one parameterised notebook by papermill; each run leaves one JSON record.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import joblib
import nbformat
import papermill
import typer
from filelock import FileLock, Timeout
from nbclient import NotebookClient
from tqdm import tqdm

from onesug_lite.record_keys import NOTEBOOKS, RUN, record_key
from onesug_lite.records import Grid, committed_records, read_records
from onesug_lite.variants import VARIANTS, variant

AHEAD = NOTEBOOKS.parent / "build" / "records"  # where the chapters look for fresh ones

app = typer.Typer(add_completion=False, help="Run chapters, the grid of the tables, or refresh the notebooks.")


class GridError(ValueError):
    """A notebook cannot be run as asked."""


def run_notebook(source: Path, target: Path, parameters: dict, progress: bool = True) -> Path:
    """Execute a notebook by papermill in its own folder.

    Args:
        source: notebook with a ``parameters`` cell.
        target: executed copy; it appears when the run ends, also when a cell failed.
        parameters: values for names of the ``parameters`` cell.
        progress: show a bar over the cells.

    Raises:
        GridError: no such notebook, or a parameter that its ``parameters`` cell does not name (papermill alone would
            only warn and run with the default).
        papermill.PapermillExecutionError: a cell failed.
    """
    source, target = Path(source), Path(target).resolve()
    if not source.is_file():
        raise GridError(f"no notebook '{source}'; run from a checkout of the project")
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise GridError(f"{source.name} has no parameter '{unknown[0]}'; expected one of {', '.join(sorted(known))}")
    target.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(source), str(target), parameters, cwd=str(source.parent), progress_bar=progress, log_output=False
    )
    return target


def chapter_paths() -> list[Path]:
    """The book's chapters in order: notebooks named by two digits, then those of the market, ``m1_`` and on."""
    return sorted(path for path in NOTEBOOKS.glob("*.ipynb") if re.match(r"(\d\d|m\d)_", path.name))


def run_table(
    out: Path,
    profile: str = "lite",
    seeds: int = 1,
    jobs: int = 1,
    names: list[str] | None = None,
    changes: Mapping[str, object] | None = None,
    market: Mapping[str, object] | None = None,
    **parameters,
) -> list[dict]:
    """One record for each (variant, seed), sorted by the table's order and seed.

    What variants share is built once: the store locks a stage while one process builds it. A record that is there and
    was made with the same settings, code and seed (see :func:`record_key`) is not made again, so that a killed grid
    goes on where it was, and one changed row is the only one that runs.

    Args:
        out: folder of the records, ``<variant>-seed<k>.json``; the executed notebooks land in ``runs/`` below it.
        profile: sizes.
        seeds: number of model seeds, 0 to seeds - 1.
        jobs: processes at a time (joblib; another backend is chosen by ``joblib.parallel_config``).
        names: variants; all by default. Those without training run with seed 0 alone.
        changes: settings of all rows that differ from the profile's, ``stage.field`` -> value; what a row changes
            itself comes on top.
        market: knobs of the market that differ from the profile's.
        **parameters: further parameters of the notebook.

    Raises:
        GridError: unknown parameter.
        ValueError: unknown variant.
    """
    rows = [variant(name).name for name in names or VARIANTS]
    out = Path(out).resolve()
    # what nothing is learned for is the same with every seed
    tasks = [(name, seed) for seed in range(seeds) for name in rows if seed == 0 or variant(name).trained]
    # what others start from comes first, so that no process waits for what its neighbour is training
    turns = sorted(tasks, key=lambda task: (task[1], variant(task[0]).preferred, len(variant(task[0]).changes) > 1))

    def run(name: str, seed: int, key: str, wait: bool) -> dict | None:
        values = {"variant": name, "seed": seed, "profile": profile, "key": key}
        values |= {"changes": dict(changes or {}), "market_changes": dict(market or {})} | parameters
        with suppress(Timeout):
            return kept_or_run(RUN, out / f"{name}-seed{seed}.json", values, wait)

    bar = tqdm(total=len(tasks), desc="grid", unit="run", mininterval=0)
    keys = {task: record_key(*task, profile, changes, market) for task in turns}
    work, made = joblib.Parallel(n_jobs=jobs, return_as="generator"), {}
    # what another process is making is left to it, until nothing else is to be done: two chapters share the work
    for wait in (False, True):
        left = [task for task in turns if task not in made]
        for task, record in zip(left, work(joblib.delayed(run)(*task, keys[task], wait) for task in left), strict=True):
            if record is not None:
                made[task] = record
                bar.update()
    bar.close()
    return [made[task] for task in tasks]


def kept_or_run(notebook: str, record: Path, values: dict, wait: bool = True) -> dict:
    """The record of one run: the one that is there if it was made with the same key, else a new one.

    Args:
        notebook: name of the one that writes such records.
        record: JSON file; the executed notebook lands in ``runs/`` beside it.
        values: parameters of the notebook, ``key`` among them.
        wait: for another process that is making this record.

    Raises:
        GridError: unknown parameter.
        filelock.Timeout: another process is making this record, and ``wait`` is false.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(record.with_name(f".{record.stem}.lock"), timeout=-1 if wait else 0):
        with suppress(OSError, ValueError):
            made = json.loads(record.read_text(encoding="utf-8"))
            if made.get("key") == values["key"]:
                return made
        executed = record.parent / "runs" / f"{record.stem}.ipynb"
        run_notebook(NOTEBOOKS / notebook, executed, values | {"record": str(record)}, progress=False)
        return json.loads(record.read_text(encoding="utf-8"))


class Sources(NamedTuple):
    """What a result chapter is drawn from.

    Attributes:
        fresh: records of the run that the chapter has just made or found.
        grid: the committed reference where there is one, else the fresh records.
        name: ``reference`` or ``fresh``, whichever ``grid`` is.
        folder: of the records of ``grid``; tables of other settings lie in folders below it.
    """

    fresh: Grid
    grid: Grid
    name: str
    folder: Path

    def under(self, name: str) -> Grid | None:
        """Records of other settings or another market; None where there are none."""
        records = read_records(self.folder / name)
        return Grid(records) if records else None


def chapter_records(build: str | Path, profile: str, seeds: int = 1, reference: str | Path = "") -> Sources:
    """Run what is missing of the table, and read the committed reference beside it.

    Args:
        build: folder of the store; the fresh records land in ``records/PROFILE`` below it.
        profile: sizes.
        seeds: of the fresh run.
        reference: folder of the committed records of this profile; one that is not there means none.
    """
    folder = Path(build) / "records" / profile
    fresh = Grid(run_table(folder, profile, seeds, jobs=2, build=str(build)))
    committed = committed_records(reference, profile)
    if committed:
        return Sources(fresh, Grid(committed), "reference", Path(reference))
    return Sources(fresh, fresh, "fresh", folder)


@contextmanager
def _building_ahead(profile: str) -> Iterator[None]:
    """Run the table's grid in a second process meanwhile, so that the second core trains what later chapters read.

    Store and records keep the two apart: what one makes, the other waits for. What fails there fails again, and is
    reported, in the chapter that needs it.
    """
    command = [sys.executable, "-m", "onesug_lite.grid", "table", "--profile", profile, "--seeds", "1"]
    with subprocess.Popen(
        [*command, "--out", str(AHEAD)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as ahead:
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(ahead.pid, signal.SIGTERM)


@app.command()
def chapters(profile: str = "lite", out: Path = Path("build/book"), seed: int = 0) -> None:
    """Run every chapter by papermill; executed copies land in OUT/notebooks."""
    with _building_ahead(profile):
        for path in chapter_paths():
            typer.echo(f"chapter {path.stem} ({profile})", err=True)
            run_notebook(path, out / "notebooks" / path.name, {"profile": profile, "seed": seed})


@contextmanager
def engine(name: str = "local", address: str = "", jobs: int = 1) -> Iterator[None]:
    """Where the runs of a grid go: joblib loops inside it are spread over processes of this machine or over a cluster.

    Args:
        name: ``local``, or ``dask`` for a cluster whose machines share this checkout's folders.
        address: of the cluster's scheduler, such as ``tcp://10.0.0.5:8786``; empty: a cluster of ``jobs`` processes is
            started here.
        jobs: processes of that cluster.

    Raises:
        GridError: no such engine, or nothing answers at the address.
    """
    if name == "local" and not address:
        yield
        return
    if name != "dask":
        raise GridError(
            f"engine is '{name}'{' with an address' * bool(address)}; expected local, or dask for a cluster"
        )
    from distributed import Client

    try:
        client = Client(address) if address else Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    except (OSError, ValueError) as error:
        raise GridError(f"no dask scheduler answers at '{address}' ({error}); start one: dask scheduler") from error
    with client, joblib.parallel_config("dask"):
        yield


@app.command()
def table(
    profile: str = "lite",
    seeds: int = 3,
    jobs: int = 1,
    out: Path = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="a row; may be given several times")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="train.steps=300: a setting of all rows")] = None,
    market: Annotated[list[str] | None, typer.Option(help="sessions=25000: a knob of the market")] = None,
    under: Annotated[str, typer.Option(help="folder below OUT/PROFILE, for other settings or another market")] = "",
    engine_name: Annotated[str, typer.Option("--engine", help="local or dask")] = "local",
    address: Annotated[str, typer.Option(help="of a dask scheduler")] = "",
) -> None:
    """Run the grid of the results table and leave one JSON record a run in OUT/PROFILE."""
    changes, knobs = _assigned(change), _assigned(market)
    if (changes or knobs) and not under:
        raise typer.BadParameter("records of other settings need a folder of their own: give --under NAME")
    folder = out / profile / under
    with engine(engine_name, address, jobs):
        run_table(folder, profile, seeds, -1 if address else jobs, only, changes, knobs)
    typer.echo(f"records: {folder}")


def _assigned(pairs: list[str] | None) -> dict[str, object]:
    """``name=value`` arguments, values as JSON; what is no JSON is text."""
    found: dict[str, object] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{pair}' assigns nothing; expected NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@app.command()
def refresh(
    profile: str = "lite",
    only: Annotated[
        list[str] | None, typer.Option(help="a notebook, as 12_latency; may be given several times")
    ] = None,
) -> None:
    """Execute the committed notebooks in place and keep their outputs, without progress lines and machine traces."""
    os.environ["ONESUG_PROFILE"] = profile
    paths = [*chapter_paths(), *sorted(NOTEBOOKS.glob("*_run.ipynb"))]
    unknown = sorted(set(only or ()) - {path.stem for path in paths})
    if unknown:
        raise typer.BadParameter(f"no notebook '{unknown[0]}'; expected one of {', '.join(p.stem for p in paths)}")
    for path in paths if not only else [path for path in paths if path.stem in only]:
        typer.echo(f"refresh {path.name} ({profile})", err=True)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
        notebook.metadata.pop("widgets", None)
        temporary = path.with_suffix(".new")
        nbformat.write(notebook, temporary)
        os.replace(temporary, path)


def _is_progress(output: dict) -> bool:
    """Whether an output is a progress line or bar of whoever ran the notebook."""
    return output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


if __name__ == "__main__":
    app()
