"""Running rounds of feedback: every arm under several model seeds, a record each.

``python -m onesug_lite.round_grid --profile lite --seeds 3`` runs ``notebooks/round_run.ipynb`` once a seed, in the
small daily market of the chapter on updates; :mod:`onesug_lite.rounds` says what an arm is. A record that is there is
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import joblib
import typer
from tqdm import tqdm

from onesug_lite.learners import with_recipe
from onesug_lite.profiles import sizes
from onesug_lite.record_keys import study_code
from onesug_lite.records import committed_records
from onesug_lite.rounds import ARMS, FOLDER, arm_of
from onesug_lite.store import fingerprint
from onesug_lite.update_grid import kept_or_run_each, plan_of

RUN = "round_run.ipynb"


@dataclass(frozen=True)
class Size:
    """How large the rounds are at a profile. The market, the models and the size of an update are chapter 11's.

    Attributes:
        rounds: days that are answered and learnt from, one after the other, from the first held-out one on.
        sessions: searches of such a day.
        met: searches of the days after them, which every model serves.
        clicks: logged clicks of the days after them that every model is asked about, at most.
    """

    rounds: int
    sessions: int
    met: int
    clicks: int


SIZES = {"smoke": Size(2, 20, 24, 20), "lite": Size(4, 400, 500, 400), "full": Size(5, 4_000, 6_000, 3_000)}
"""By profile."""


def size_of(profile: str) -> Size:
    """One of :data:`SIZES`.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in SIZES:
        raise ValueError(f"unknown profile '{profile}'; expected one of {', '.join(SIZES)}")
    return SIZES[profile]


@cache
def round_code() -> str:
    """Fingerprint (16 hex digits) of what all records of rounds share: the code of both packages and the run."""
    return study_code("rounds", RUN, ["rounds"])


def round_key(name: str, seed: int, profile: str, parameters: Mapping[str, object] | None = None) -> str:
    """Fingerprint (16 hex digits) of all that a record depends on: settings, code and libraries.

    Args:
        name: one of :data:`onesug_lite.rounds.ARMS`.
        seed: of the models.
        profile: one of :data:`SIZES`.
        parameters: further parameters of the notebook.

    Raises:
        ValueError: unknown arm or profile.
    """
    plan, arm = plan_of(profile), arm_of(name)
    told = {"arm": [name, arm.learns, dict(arm.changes)], "seed": seed, "profile": profile}
    told |= {"size": asdict(size_of(profile)), "update": asdict(plan.update), "market": dict(plan.market)}
    told["resolved"] = asdict(with_recipe(sizes(plan.sizes).changed(plan.changes)))
    told["parameters"] = {setting: value for setting, value in (parameters or {}).items() if setting != "build"}
    return fingerprint("round", told, {"code": round_code()}, [])[0]


def run_rounds(out: str | Path, profile: str = "lite", seeds: int = 1, jobs: int = 1, **parameters) -> list[dict]:
    """One record for each arm and seed; one that is there, made with the same settings, is kept.

    A seed's arms run in one notebook: they start from one model, which is examined once.

    Args:
        out: folder of the records, ``<arm>-seed<k>.json``; executed notebooks land in ``runs/`` below it.
        profile: sizes.
        seeds: number of model seeds, 0 to seeds - 1; shoppers stay the same.
        jobs: processes at a time (joblib).
        **parameters: further parameters of the notebook, ``build`` for one.

    Raises:
        GridError: unknown parameter.
        ValueError: unknown profile.
    """
    size_of(profile)  # an unknown profile is said before anything runs
    out = Path(out).resolve()
    keys = {seed: {name: round_key(name, seed, profile, parameters) for name in ARMS} for seed in range(seeds)}

    def run(seed: int) -> list[dict]:
        return kept_or_run_each(RUN, out, keys[seed], {"seed": seed, "profile": profile} | parameters)

    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    bar = tqdm(work(joblib.delayed(run)(seed) for seed in keys), total=seeds, desc="rounds", unit="seed", mininterval=0)
    return [record for records in bar for record in records]


def chapter_rounds(build: str | Path, profile: str, reference: str | Path = "") -> tuple[list[dict], str]:
    """The committed records of a profile where there are any, else those of a fresh run of one seed.

    Args:
        build: folder of the store; fresh records land in ``records/PROFILE/rounds`` below it.
        profile: sizes.
        reference: folder of the committed records of the grid.

    Returns:
        The records, and ``reference`` or ``fresh``.
    """
    committed = committed_records(reference, profile, FOLDER)
    if committed:
        return committed, "reference"
    return run_rounds(Path(build) / "records" / profile / FOLDER, profile, build=str(build)), "fresh"


def main(profile: str = "lite", seeds: int = 3, jobs: int = 1, out: Path = Path("results")) -> None:
    """Let the seed model and its successors answer day after day; leave a JSON record an arm in OUT/PROFILE/rounds."""
    folder = out / profile / FOLDER
    run_rounds(folder, profile, seeds, jobs)
    typer.echo(f"records: {folder}")


if __name__ == "__main__":
    typer.run(main)
