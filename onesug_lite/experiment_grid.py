"""Running experiments in the market: pairs of systems under several model seeds, a record each.

``python -m onesug_lite.experiment_grid --profile lite --seeds 3`` runs ``notebooks/experiment_run.ipynb`` for each pair
and seed; :mod:`onesug_lite.experiments` says what a record holds and what they say together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import joblib
import typer
from tqdm import tqdm

from onesug_lite.experiments import FOLDER, PAIRS
from onesug_lite.grid import kept_or_run
from onesug_lite.profiles import sizes
from onesug_lite.record_keys import code_key, record_key, run_code
from onesug_lite.store import fingerprint, source_checksums

RUN = "experiment_run.ipynb"

SESSIONS = {"smoke": 60, "lite": 400, "full": 10_000}
"""Searches that both systems meet: half a minute a pair and seed on one core, but for ``full``."""
JUDGED = {"smoke": 40, "lite": 500, "full": 500}
"""Requests on which the market's truth says which list is better."""


@cache
def experiment_code() -> str:
    """Fingerprint (16 hex digits) of what all records of experiments share: the code of both packages and the run."""
    run, imported = run_code(RUN)
    told = {"run": run, "market": source_checksums(imported)}
    return fingerprint("experiments", told, {"grid": code_key()}, ["metrics"])[0]


def experiment_key(first: str, second: str, seed: int, profile: str, parameters: Mapping[str, object]) -> str:
    """Fingerprint (16 hex digits) of all that a record depends on: settings, code and libraries.

    Args:
        first: system.
        second: system.
        seed: of the models.
        profile: sizes.
        parameters: of the run, beside these.

    Raises:
        ValueError: unknown system or profile.
    """
    told = {"pair": [first, second], "sessions": SESSIONS.get(profile), "judged": JUDGED.get(profile)}
    told["parameters"] = {name: value for name, value in parameters.items() if name != "build"}
    inputs = {name: record_key(name, seed, profile) for name in (first, second)} | {"code": experiment_code()}
    return fingerprint("experiment", told, inputs, [])[0]


def run_experiments(
    out: str | Path,
    profile: str = "lite",
    seeds: int = 1,
    jobs: int = 1,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    **parameters,
) -> list[dict]:
    """One record for each (pair, seed), by seed and pair; one that is there, made with the same settings, is kept.

    Models that the grid has trained are read from the store, others are trained on the way.

    Args:
        out: folder of the records, ``<first>-<second>-seed<k>.json``; the executed notebooks land in ``runs/`` below.
        profile: sizes.
        seeds: number of model seeds, 0 to seeds - 1.
        jobs: processes at a time (joblib).
        pairs: names of first and second system.
        **parameters: further parameters of the notebook, ``sessions`` for one.

    Raises:
        GridError: unknown parameter.
        ValueError: unknown system or profile.
    """
    sizes(profile)  # an unknown profile is said before anything runs
    out = Path(out).resolve()
    tasks = [(*pair, seed) for seed in range(seeds) for pair in pairs]

    def run(first: str, second: str, seed: int, key: str) -> dict:
        values = {"first": first, "second": second, "seed": seed, "profile": profile, "key": key} | parameters
        return kept_or_run(RUN, out / f"{first}-{second}-seed{seed}.json", values)

    keys = [experiment_key(*task, profile, parameters) for task in tasks]
    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    made = work(joblib.delayed(run)(*task, key) for task, key in zip(tasks, keys, strict=True))
    return list(tqdm(made, total=len(tasks), desc="experiments", unit="run", mininterval=0))


def main(
    profile: str = "lite",
    seeds: int = 3,
    jobs: int = 1,
    out: Path = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="FIRST-SECOND; may be given several times")] = None,
) -> None:
    """Let pairs of systems serve the market's shoppers and leave one JSON record a run in OUT/PROFILE/experiments."""
    pairs = [tuple(pair.split("-")) for pair in only] if only else PAIRS
    if any(len(pair) != 2 for pair in pairs):
        raise typer.BadParameter("a pair is FIRST-SECOND, for example onesug-online_mca")
    folder = out / profile / FOLDER
    run_experiments(folder, profile, seeds, jobs, pairs)
    typer.echo(f"records: {folder}")


if __name__ == "__main__":
    typer.run(main)
