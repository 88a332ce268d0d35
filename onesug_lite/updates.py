"""Schedules of retraining: the same suggester updated every day, every three days or never, on a log that drifts.

Each morning a suggester may be updated with the log of the days before, then it answers that day's requests, and the
rank of what was clicked is kept request by request. What an update gives is not only freshness: a generator that is
trained on for some steps also becomes better at what it knew, and a cascade that is built anew draws new weights. So
there is a control that is updated every day as well, but on the days before the first one, and learns nothing new.
Steps are counted a day: an update that comes every three days takes three times as many.

**Age** is the number of whole days between the last day that was learnt from and the day that is answered. What a
schedule loses is worked out in :mod:`onesug_lite.decay`, apart from what is trained here.

Source: paper, daily updates [third-party notes]; controls: ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from onesug_lite.folders import replacing
from onesug_lite.generator_learner import UpdateConfig
from onesug_lite.learners import Learner, first_answered, learner_of, made_of, past
from onesug_lite.log import Log, clicked
from onesug_lite.metrics import ranks


@dataclass(frozen=True)
class Schedule:
    """When a system is updated, by what and from what.

    Attributes:
        name: key in frames and files.
        label: how figures call it.
        every: days from one update to the next; 0: never.
        stages: of an update, each with the number of latest days that it learns from, None for all.
        fresh: whether new days are learnt from; else all updates learn from the days before the first one.

    Raises:
        ValueError: a negative number of days.
    """

    name: str
    label: str
    every: int
    stages: tuple[tuple[str, int | None], ...] = ()
    fresh: bool = True

    def __post_init__(self):
        if self.every < 0:
            raise ValueError(f"schedule '{self.name}': every is {self.every}; expected 0 (never) or more days")

    def due(self, number: int) -> bool:
        """Whether there is an update before the ``number``-th answered day, 0 the first: that one needs none."""
        return bool(self.every) and number > 0 and number % self.every == 0


RECENT = 3
"""Days that the preference stage is refreshed on (paper: three)."""


def _plain(stages: tuple[tuple[str, int | None], ...]) -> tuple[Schedule, ...]:
    return (
        Schedule("never", "never", 0),
        Schedule("three_days", "every three days", 3, stages),
        Schedule("daily", "daily", 1, stages),
    )


_FULL = (("search", None), ("supervised", None))
SCHEDULES: dict[str, tuple[Schedule, ...]] = {
    "popularity": _plain((("counts", None),)),
    "cascade": (
        *_plain((("rankers", None),)),
        Schedule("old_days", "daily, old days (control)", 1, (("rankers", None),), fresh=False),
    ),
    "generator": (
        *_plain(_FULL),
        Schedule("old_days", "daily, old days (control)", 1, (("supervised", None),), fresh=False),
        Schedule("index", "daily, related queries alone", 1, (("search", None),)),
        Schedule("preference", f"daily, preference on {RECENT} days", 1, (("preference", RECENT),)),
        Schedule("recent", f"daily, clicks of {RECENT} days (control)", 1, (("supervised", RECENT),)),
    ),
}
"""Schedules by system; ``daily`` is the reference of each."""


def day_rows(log: Log, day: date, size: int) -> pl.DataFrame:
    """The clicks of one day, or a fixed sample of them that no seed of a model changes.

    Args:
        log: holds the day.
        day: which.
        size: rows at most.

    Raises:
        ValueError: the day has no click.
    """
    requests = log.requests.filter(pl.col("time").dt.date() == day)
    of_day = Log(requests, log.candidates.filter(pl.col("request_id").is_in(requests["request_id"].implode())))
    rows = clicked(of_day)
    if rows.is_empty():
        raise ValueError(f"no click on {day}; choose days of the log, or a larger one")
    rng = np.random.default_rng(day.toordinal())
    return rows[np.sort(rng.choice(len(rows), min(size, len(rows)), replace=False))]


def follow(
    learner: Learner, log: Log, days: list[date], schedule: Schedule, evaluated: int, seed: int, work: Path
) -> pl.DataFrame:
    """Let a suggester answer days one after the other, updated as a schedule says.

    A day that was finished under ``work`` is not answered again, and an update that was finished is not trained again:
    the result is that of a run without interruption.

    Args:
        learner: trained on days before the first one.
        log: holds ``days`` and those before. Of each day a suggester sees the requests, never what became of them.
        days: the days to answer, each after the one before.
        schedule: when it is updated and from what.
        evaluated: clicks of a day that are answered, at most.
        seed: of the updates.
        work: folder that outlives an interruption.

    Returns:
        A row a click: ``day``, ``number`` (0 for the first), ``age``, ``request_id``, ``query`` and ``rank``
        (0 is absent).
    """
    updated, parts = 0, []
    for number, day in enumerate(days):
        file, folder = work / f"answers-{number:03}.parquet", work / f"learner-{number:03}"
        if schedule.due(number):
            updated = number
            if not file.is_file():
                if folder.is_dir():
                    learner = learner.load(folder)
                else:
                    learner = _update(learner, log, days, number, schedule, seed, work)
                    with replacing(folder) as new:
                        learner.save(new)
            elif folder.is_dir():
                learner = learner.load(folder)
        if file.is_file():
            parts.append(pl.read_parquet(file))
            continue
        rows = day_rows(log, day, evaluated)
        answers = learner(rows.select("prefix", "history", "profile", "user_id"))
        part = rows.select(
            day=pl.lit(day), number=pl.lit(number), age=pl.lit(number - updated if schedule.fresh else number),
            request_id="request_id", query="query", rank=pl.Series(ranks(answers, rows["query"].to_list())),
        )  # fmt: skip
        _write(part, file)
        parts.append(part)
    return pl.concat(parts)


def _update(
    learner: Learner, log: Log, days: list[date], number: int, schedule: Schedule, seed: int, work: Path
) -> Learner:
    """All stages of the update before the ``number``-th day."""
    day = days[number] if schedule.fresh else days[0]
    for place, (stage, window) in enumerate(schedule.stages):
        own = int(np.random.default_rng([seed, number, place]).integers(2**31))
        learner = learner.updated(stage, past(log, day, window), day, own, work / "training", schedule.every)
    return learner


def _write(frame: pl.DataFrame, file: Path) -> None:
    """The file is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}")
    frame.write_parquet(new)
    new.replace(file)


def schedules_of(system: str, names: Collection[str] = ()) -> list[Schedule]:
    """Some schedules of a system, in their order.

    Args:
        system: one of :data:`onesug_lite.learners.SYSTEMS`.
        names: of the schedules; all by default.

    Raises:
        ValueError: no such system or schedule.
    """
    if system not in SCHEDULES:
        raise ValueError(f"system is '{system}'; expected one of {', '.join(SCHEDULES)}")
    known = {schedule.name: schedule for schedule in SCHEDULES[system]}
    for name in names:
        if name not in known:
            raise ValueError(f"no schedule '{name}' of the {system}; expected one of {', '.join(known)}")
    return [schedule for name, schedule in known.items() if not names or name in names]


def followed(
    roads: Sequence,
    system: str,
    days: int,
    evaluated: int,
    config: UpdateConfig | None = None,
    names: Collection[str] = (),
) -> pl.DataFrame:
    """Schedules of one system, each from the store or run and kept there; an interrupted run resumes by day.

    Args:
        roads: a :class:`onesug_lite.pipeline.Pipeline` a seed, of one log, whose held-out days are those to answer.
        system: one of :data:`onesug_lite.learners.SYSTEMS`.
        days: how many days are answered, from the first held-out one on.
        evaluated: clicks of a day that are answered, at most.
        config: size of an update of the generator.
        names: of the schedules; all by default.

    Raises:
        ValueError: no such system or schedule.

    Returns:
        As :func:`follow`, with ``system``, ``schedule``, ``label`` and ``seed`` before it.
    """
    parts, schedules = [], schedules_of(system, names)
    for road in roads:
        made = made_of(road, system, config)
        first = first_answered(road)
        wanted = [first + timedelta(days=number) for number in range(days)]
        for schedule in schedules:

            def build(out: Path, work: Path, schedule=schedule, road=road, wanted=wanted) -> None:
                learner = learner_of(road, system, config)
                found = follow(learner, road.log, wanted, schedule, evaluated, road.seed, work)
                found.write_parquet(out / "answers.parquet")

            settings = {"schedule": repr(schedule), "days": days, "evaluated": evaluated}
            folder = road.store.get(
                f"updates_{system}_{schedule.name}", settings, made, ["updates", "generator_learner"], build
            )
            named = {"system": system, "schedule": schedule.name, "label": schedule.label, "seed": road.seed}
            columns = [pl.lit(value).alias(name) for name, value in named.items()]
            parts.append(pl.read_parquet(folder / "answers.parquet").select(*columns, pl.all()))
    return pl.concat(parts)
