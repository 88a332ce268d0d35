"""Running updates: systems and their schedules under several model seeds, a record each.

``python -m onesug_lite.update_grid --profile lite --seeds 3`` runs ``notebooks/update_run.ipynb`` for each system,
schedule and seed; :mod:`onesug_lite.decay` says what the records say together. A run that was interrupted goes on: a
finished record is kept, and a schedule that was cut short goes on from the day that it had reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import joblib
import typer
from tqdm import tqdm

from onesug_lite.decay import FOLDER
from onesug_lite.generator_learner import UpdateConfig
from onesug_lite.grid import kept_or_run
from onesug_lite.learners import with_recipe
from onesug_lite.profiles import sizes
from onesug_lite.record_keys import study_code
from onesug_lite.store import fingerprint
from onesug_lite.updates import SCHEDULES, Schedule, schedules_of

RUN = "update_run.ipynb"
FIXED = ("popularity",)
"""Systems that learn no parameters: all their seeds are one."""


@dataclass(frozen=True)
class Plan:
    """How large the chapter on updates is at a profile: a small market of its own, and long held-out days.

    Attributes:
        sizes: profile of the market and of all that is trained.
        market: knobs of the market that differ from that profile's.
        changes: settings of the road that differ, ``stage.field`` -> value.
        days: that are answered, from the first held-out one on.
        clicks: of a day that are answered, at most.
        update: what a day is worth in an update of the generator.
    """

    sizes: str
    days: int
    clicks: int
    update: UpdateConfig = UpdateConfig()
    market: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)


PLANS = {
    "smoke": Plan(
        "smoke",
        days=2,
        clicks=30,
        update=UpdateConfig(4, 4, 64),
        changes={"cascade.prerank_requests": 300, "cascade.rank_requests": 300},
    ),
    "lite": Plan(
        "smoke",
        days=10,
        clicks=150,
        market={"sessions": 12_000, "shoppers": 1_700},
        changes={"cascade.prerank_requests": 1_500, "cascade.rank_requests": 3_000, "train.steps": 400}
        | {"test_days": 10, "validation_days": 0},
    ),
    "full": Plan(
        "lite",
        days=10,
        clicks=1_000,
        update=UpdateConfig(100, 60),
        changes={"test_days": 10, "validation_days": 0},
    ),
}
"""By profile."""


def variants() -> list[str]:
    """Every system with every schedule of its own, ``<system>-<schedule>``, as records name them."""
    return [f"{system}-{schedule.name}" for system, schedules in SCHEDULES.items() for schedule in schedules]


def schedule_of(variant: str) -> tuple[str, Schedule]:
    """System and schedule behind the name of a record.

    Raises:
        ValueError: no such system or schedule.
    """
    system, _, name = variant.partition("-")
    return system, schedules_of(system, [name])[0]


@cache
def update_code() -> str:
    """Fingerprint (16 hex digits) of what all records of updates share: the code of both packages and the run."""
    return study_code("updates", RUN, ["updates", "generator_learner"])


def update_key(variant: str, seed: int, profile: str) -> str:
    """Fingerprint (16 hex digits) of all that a record depends on: settings, code and libraries.

    Args:
        variant: system and schedule.
        seed: of the models.
        profile: one of :data:`PLANS`.

    Raises:
        ValueError: unknown system, schedule or profile.
    """
    plan, (system, schedule) = plan_of(profile), schedule_of(variant)
    told = {"profile": profile, "system": system, "schedule": asdict(schedule), "seed": seed, "plan": asdict(plan)}
    told["resolved"] = asdict(with_recipe(sizes(plan.sizes).changed(plan.changes)))
    return fingerprint("update", told, {"code": update_code()}, [])[0]


def plan_of(profile: str) -> Plan:
    """One of :data:`PLANS`.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in PLANS:
        raise ValueError(f"unknown profile '{profile}'; expected one of {', '.join(PLANS)}")
    return PLANS[profile]


def run_updates(
    out: str | Path,
    profile: str = "lite",
    seeds: int = 1,
    jobs: int = 1,
    names: Sequence[str] = (),
    **parameters,
) -> list[dict]:
    """One record for each system with a schedule and each seed; one that is there, of the same settings, is kept.

    A system's schedules run in one notebook, which loads its models once.

    Args:
        out: folder of the records, ``<system>-<schedule>-seed<k>.json``; executed notebooks land in ``runs/`` below.
        profile: sizes.
        seeds: number of model seeds, 0 to seeds - 1; of systems without parameters the first alone.
        jobs: processes at a time (joblib).
        names: systems with their schedules; all by default.
        **parameters: further parameters of the notebook, ``build`` for one.

    Returns:
        The records, by seed and then in the order of the names.

    Raises:
        GridError: unknown parameter.
        ValueError: unknown system, schedule or profile.
    """
    out, asked = Path(out).resolve(), {}
    for name in names or variants():
        asked.setdefault(schedule_of(name)[0], []).append(name)
    tasks = [(system, seed) for seed in range(seeds) for system in asked if not seed or system not in FIXED]
    keys = {(name, seed): update_key(name, seed, profile) for system, seed in tasks for name in asked[system]}

    def run(system: str, seed: int) -> list[dict]:
        own = {name: keys[name, seed] for name in asked[system]}
        return kept_or_run_each(RUN, out, own, {"seed": seed, "profile": profile} | parameters)

    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    made = work(joblib.delayed(run)(*task) for task in tasks)
    bar = tqdm(made, total=len(tasks), desc="updates", unit="run", mininterval=0)
    return [record for records in bar for record in records]


def kept_or_run_each(notebook: str, out: Path, keys: Mapping[str, str], values: dict) -> list[dict]:
    """Records of several variants and one seed; the run of the first that is missing leaves those after it as well.

    Args:
        notebook: name of the one that writes such records; its parameter ``also`` names the other variants.
        out: folder of the records, ``<variant>-seed<k>.json``.
        keys: variant -> key, in the order of the run.
        values: further parameters of the notebook, ``seed`` among them.

    Raises:
        GridError: unknown parameter.
    """
    left, found = dict(keys), []
    for name, key in keys.items():
        del left[name]
        told = values | {"variant": name, "key": key, "also": dict(left)}
        found.append(kept_or_run(notebook, out / f"{name}-seed{values['seed']}.json", told))
    return found


def main(
    profile: str = "lite",
    seeds: int = 3,
    jobs: int = 1,
    out: Path = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="SYSTEM-SCHEDULE; may be given several times")] = None,
) -> None:
    """Let systems answer days under each schedule of updates; leave one JSON record a run in OUT/PROFILE/updates."""
    folder = out / profile / FOLDER
    run_updates(folder, profile, seeds, jobs, only or ())
    typer.echo(f"records: {folder}")


if __name__ == "__main__":
    typer.run(main)
