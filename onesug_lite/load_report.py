"""What a load run shows, and whether latency and memory stayed flat.

**Flat** is what the last third of a run says of the middle one; in both the same release serves and its memories are
full.

- *Latency*, a quantile of the service time: the ratio, last third to middle third. Flat when the whole of its 95 %
  interval lies below 1.1, grown when the whole lies above; else nothing can be told, as on a machine with other work.
  The interval comes from blocks, a sixtieth of the run each, resampled within their third. A service time is taken
  relative to the yardstick of its block (the median time of a fixed piece of work, see :mod:`onesug_lite.load`), so
  that a machine which gets slower itself is not taken for a service that does.
- *Memory*, the mean of the resident megabytes: grown when it is more by over 1 %, else flat.

Source: ours.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from onesug_lite.latency import quantiles
from onesug_lite.load import BLOCKS, Run
from onesug_lite.traffic import Arrivals, Traffic

FLAT, GREW, OPEN = "flat", "grew", "cannot be told"

SLOWER = 0.1
"""By how much the last third may be slower than the middle one."""

LARGER = 0.01
"""By how much the memory of the last third may exceed that of the middle one."""


class Change(NamedTuple):
    """The last third of a run against the middle one.

    Attributes:
        middle: of the middle third.
        last: of the last third.
        ratio: last / middle.
        low: lower end of the ratio's 95 % interval; equals ``ratio`` where no interval is drawn.
        high: upper end.
        verdict: :data:`FLAT`, :data:`GREW` or :data:`OPEN`.
    """

    middle: float
    last: float
    ratio: float
    low: float
    high: float
    verdict: str


def latency_change(
    answers: pl.DataFrame, seconds: float, q: float, rng: np.random.Generator, draws: int = 1000
) -> Change:
    """How a quantile of the sound requests' service time changed; the rule is in the module's text.

    Args:
        answers: of a run.
        seconds: length of the run.
        q: per cent, as 50 or 99.
        rng: of the resampling.
        draws: resamples.

    Returns:
        The change; milliseconds are those of a machine that takes for the yardstick what this one did in the median.

    Raises:
        ValueError: a third of the run has no sound request.
    """
    answers = answers.with_columns(block=(pl.col("at") / seconds * BLOCKS).cast(pl.Int64))
    slow = pl.col("yardstick").median().over("block") / pl.col("yardstick").median()
    sound = answers.with_columns(service=pl.col("service") / slow).filter(~pl.col("hostile")).sort("service")
    block = sound["block"].to_numpy()
    third = BLOCKS // 3
    found, drawn = [], []
    for first in (third, 2 * third):
        rows = (block >= first) & (block < first + third)
        values = sound["service"].to_numpy()[rows]  # (N,) sorted
        if not len(values):
            raise ValueError(f"no sound request came in a third of the {seconds:g} s; make the run longer")
        found.append(np.percentile(values, q))
        times = rng.multinomial(third, np.full(third, 1 / third), draws)  # (draws, third) how often each block is drawn
        up_to = times[:, block[rows] - first].cumsum(axis=1)  # (draws, N)
        drawn.append(values[(up_to < up_to[:, -1:] * q / 100).sum(axis=1).clip(max=len(values) - 1)])
    ratio = found[1] / found[0]
    low, high = np.quantile(np.array(drawn[1]) / np.array(drawn[0]), [0.025, 0.975])
    return Change(*map(float, (*found, ratio, low, high)), _verdict(low, high, SLOWER))


def machine_change(answers: pl.DataFrame, seconds: float) -> float:
    """How much longer the yardstick took in the last third of a run than in the middle one: the ratio of medians."""
    middle, last = (third["yardstick"].median() for third in _thirds(answers, seconds))
    return last / middle


def _thirds(frame: pl.DataFrame, seconds: float) -> list[pl.DataFrame]:
    """The rows of a run's middle third and of its last one."""
    part = pl.col("at") / seconds * 3
    return [frame.filter(part >= first, part < first + 1) for first in (1, 2)]


def _verdict(low: float, high: float, allowed: float) -> str:
    return FLAT if high <= 1 + allowed else GREW if low > 1 + allowed else OPEN


def memory_change(memory: pl.DataFrame, seconds: float) -> Change:
    """How the mean resident megabytes changed; the rule is in the module's text.

    Args:
        memory: of a run.
        seconds: length of the run.
    """
    middle, last = (float(third["megabytes"].mean()) for third in _thirds(memory, seconds))
    ratio = last / middle
    return Change(middle, last, ratio, ratio, ratio, _verdict(ratio, ratio, LARGER))


@dataclass(frozen=True)
class Report:
    """What a run showed; times in milliseconds, memory in megabytes."""

    seconds: float
    requests: int
    hostile: int
    distinct: int
    compared: int  # distinct requests whose answers are compared with the policy's
    utilisation: float  # share of the run in which a request was being answered
    longest_wait: float
    service: dict[str, float]
    response: dict[str, float]
    parts: list[dict[str, float]]  # tenths of the run
    changes: dict[str, Change]
    machine: float  # how much longer the yardstick took in the last third than in the middle one
    versions: list[str]
    taken: int
    refused: int
    faults: int
    first_faults: list[str]
    warned: list[str]
    checks: dict[str, bool]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(self.checks.values())

    @property
    def finding(self) -> str:
        """The run in a sentence."""
        changed = ", ".join(f"{name} {change.ratio - 1:+.1%}" for name, change in self.changes.items())
        return f"{self.faults:,} of {self.requests:,} requests came out wrong; last third against middle: {changed}"

    def table(self) -> str:
        """The run as text, to be printed."""
        lines = [
            f"{self.seconds:g} s, {self.requests:,} requests ({self.distinct:,} distinct, {self.compared:,} of them "
            f"compared; {self.hostile} hostile), {self.utilisation:.0%} busy",
            f"{'milliseconds':16}{'p50':>9}{'p95':>9}{'p99':>9}{'mean':>9}",
        ]
        for name in ("service", "response"):
            found = getattr(self, name)
            lines.append(f"{name:16}" + "".join(f"{found[key]:9.2f}" for key in ("p50", "p95", "p99", "mean")))
        columns = ("service p50", "service p99", "response p50", "response p99", "megabytes")
        lines.append(f"\n{'from second':>12}{'requests':>10}" + "".join(f"{name:>14}" for name in columns))
        for part in self.parts:
            cells = "".join(f"{part[name]:14.2f}" for name in columns)
            lines.append(f"{part['at']:12.1f}{part['requests']:10}" + cells)
        lines.append(f"\n{'last third to middle third':28}{'middle':>9}{'last':>9}{'ratio':>8}   95 % interval")
        for name, change in self.changes.items():
            interval = "" if change.low == change.high else f"{change.low:.3f} to {change.high:.3f}"
            found = f"{change.middle:9.2f}{change.last:9.2f}{change.ratio:8.3f}"
            lines.append(f"  {name:26}{found}   {interval:16} {change.verdict}")
        lines.append(f"the machine itself took {self.machine:.3f} times as long for the same work; taken out above")
        lines += [f"\nwarned: {text}" for text in self.warned] + [f"wrong: {text}" for text in self.first_faults]
        lines += [f"{'holds' if holds else 'FAILS':6} {name}" for name, holds in self.checks.items()]
        return "\n".join(lines)

    def write(self, file: str | Path) -> None:
        """As JSON, under a temporary name first."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        record = asdict(self) | {"changes": {name: change._asdict() for name, change in self.changes.items()}}
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        fresh.replace(file)


def by_part(run: Run, seconds: float, parts: int) -> pl.DataFrame:
    """Equal parts of a run: ``at`` (its start, seconds), ``requests``, quantiles, ``megabytes``.

    Args:
        run: the run.
        seconds: its length.
        parts: how many.

    Returns:
        A row a part in which a sound request came; ``service p50`` and the like are milliseconds of sound requests.
    """
    at = (pl.col("at") / seconds * parts).floor() * seconds / parts
    times = [
        pl.col(name).quantile(q / 100, "linear").alias(f"{name} p{q}")
        for name in ("service", "response")
        for q in (50, 95, 99)
    ]
    found = run.answers.filter(~pl.col("hostile")).group_by(at).agg(pl.len().alias("requests"), *times)
    return found.join(run.memory.group_by(at).agg(pl.col("megabytes").mean()), on="at", how="left").sort("at")


def report(run: Run, coming: Arrivals, traffic: Traffic, rng: np.random.Generator) -> Report:
    """Sum up a run and judge it.

    Args:
        run: what was measured.
        coming: what came.
        traffic: the traffic's settings.
        rng: of the intervals.
    """
    sound = run.answers.filter(~pl.col("hostile"))
    changes = {f"service p{q}": latency_change(run.answers, traffic.seconds, q, rng) for q in (50, 99)}
    changes["memory"] = memory_change(run.memory, traffic.seconds)
    checks = {
        "sound requests answered as by the policy": not any(not hostile for hostile, _ in run.faults),
        "hostile requests came out as they must": not any(hostile for hostile, _ in run.faults),
        "the whole release taken in, the damaged one refused": (run.taken, run.refused) == (1, 1),
    } | {f"{name} not seen to grow": change.verdict != GREW for name, change in changes.items()}
    return Report(
        seconds=traffic.seconds, requests=len(run.answers), hostile=len(run.answers) - len(sound),
        distinct=len(coming.requests), compared=run.compared,
        utilisation=float(run.answers["service"].sum()) / 1e3 / traffic.seconds,
        longest_wait=float(run.answers["wait"].max()), service=quantiles(sound["service"]),
        response=quantiles(sound["response"]), parts=by_part(run, traffic.seconds, 10).to_dicts(), changes=changes,
        machine=machine_change(run.answers, traffic.seconds), versions=run.versions, taken=run.taken,
        refused=run.refused, faults=len(run.faults), first_faults=[text for _, text in run.faults[:20]],
        warned=run.warned, checks=checks,
    )  # fmt: skip
