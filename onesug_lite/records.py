"""The records of a grid, lined up: every system's scores on the same rows, a line a seed.

A record is the JSON file that one run of the grid leaves, one system and one seed (``notebooks/grid_run.ipynb`` writes
it). Its ``clicks`` hold one row for each held-out clicked query: the request, the rank that the system gave the query
(0 for absent), and what the slices of :data:`onesug_lite.metrics.SLICES` read. Its ``replay`` holds the outcome to
expect when a request is answered with the system's list, under the market's truth. A ceiling has no ranks but their
``expected`` scores; a ranking made from the truth for the replay alone has no clicks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onesug_lite.metrics import CUTOFF, hit_rate, in_slice, reciprocal_rank
from onesug_lite.significance import Estimate, Resampled
from onesug_lite.variants import VARIANTS


class Metric(NamedTuple):
    """What is read from a record: its section, and one number for each row of it."""

    section: str
    read: Callable[[Mapping], Sequence[float]]


def _rank_metric(score: Callable[[np.ndarray], np.ndarray], expected: str) -> Metric:
    def read(record: Mapping) -> Sequence[float]:
        return record["expected"][expected] if "expected" in record else score(np.array(record["clicks"]["rank"]))

    return Metric("clicks", read)


METRICS: dict[str, Metric] = {
    f"HR@{CUTOFF}": _rank_metric(hit_rate, "hit"),
    f"MRR@{CUTOFF}": _rank_metric(reciprocal_rank, "reciprocal"),
    "replay clicks": Metric("replay", lambda record: record["replay"]["click"]),
    "replay orders": Metric("replay", lambda record: record["replay"]["order"]),
    "replay revenue": Metric("replay", lambda record: record["replay"]["revenue"]),
}
"""Metrics of a record. Everything below counts them times 100: per cent, or per 100 requests."""

RANKING = tuple(METRICS)[:2]
REPLAY = tuple(METRICS)[2:]


def read_records(folder: str | Path) -> list[dict]:
    """The records in a folder, in the order of the table and then by seed; none where there is no such folder.

    Args:
        folder: holds ``<variant>-seed<k>.json``; folders below it are not looked into.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*-seed*.json"))]
    order = {name: place for place, name in enumerate(VARIANTS)}
    return sorted(records, key=lambda record: (order.get(record["variant"], len(order)), record["seed"]))


def committed_records(reference: str | Path, profile: str, below: str = "") -> list[dict]:
    """The reference that a chapter is drawn from; none where there is none of its profile.

    Args:
        reference: folder of the committed records of the grid; empty: there are none.
        profile: sizes.
        below: folder under it, of records beside the grid's.
    """
    records = read_records(Path(reference) / below) if reference else []
    return records if records and records[0]["profile"] == profile else []


class Grid:
    """The records of one grid.

    Args:
        records: of one market and profile, in the order in which tables list them.
        draws: resamples behind each interval.

    Raises:
        ValueError: no records, two of the same run, or records that cannot be compared.
    """

    def __init__(self, records: Sequence[Mapping], draws: int = 2000):
        if not records:
            raise ValueError("no records; make them with: make grid")
        self.runs: dict[str, dict[int, Mapping]] = {}
        for record in records:
            missing = sorted({"label", "profile", "log"} - set(record))
            if missing:
                name = f"{record['variant']}-seed{record['seed']}.json"
                raise ValueError(
                    f"record {name} has no '{missing[0]}', it is of an older grid; make it again: make grid"
                )
            seeds = self.runs.setdefault(record["variant"], {})
            if record["seed"] in seeds:
                raise ValueError(f"two records of variant '{record['variant']}' with seed {record['seed']}; keep one")
            seeds[record["seed"]] = record
        self.labels = {name: next(iter(seeds.values()))["label"] for name, seeds in self.runs.items()}
        self.columns: dict[str, Mapping] = {}
        self._resampled: dict[str, Resampled] = {}
        self._draws = draws
        self._check(records)

    def _check(self, records: Sequence[Mapping]) -> None:
        for record in records:
            name = f"variant '{record['variant']}' with seed {record['seed']}"
            for key in ("log", "profile"):
                if record[key] != records[0][key]:
                    raise ValueError(
                        f"the record of {name} has {key} '{record[key]}', others have '{records[0][key]}'; "
                        "records of different markets or sizes cannot be compared: run the grid again"
                    )
            for section in ("clicks", "replay"):
                if record.get(section):
                    first = self.columns.setdefault(section, record[section])
                    if list(record[section]["request_id"]) != list(first["request_id"]):
                        raise ValueError(
                            f"the record of {name} answers different requests under '{section}'; run the grid again"
                        )

    def has(self, variant: str, metric: str) -> bool:
        """Whether a system has records with what a metric reads."""
        return all(record.get(METRICS[metric].section) for record in self.runs.get(variant, {}).values()) and (
            variant in self.runs
        )

    def scores(self, variant: str, metric: str) -> dict[int, np.ndarray]:
        """Seed -> (N,) one number a row.

        Raises:
            ValueError: no such metric, or no record that has it.
        """
        if metric not in METRICS:
            raise ValueError(f"no metric '{metric}'; expected one of {', '.join(METRICS)}")
        if not self.has(variant, metric):
            raise ValueError(f"no record of variant '{variant}' with '{METRICS[metric].section}'; run the grid again")
        runs = self.runs[variant]
        return {seed: np.asarray(METRICS[metric].read(runs[seed]), dtype=np.float64) for seed in sorted(runs)}

    def together(self, metric: str, *variants: str) -> list[np.ndarray]:
        """Scores of several systems, (S, N) each, of the seeds that all of them have.

        A system without trained parameters answers alike whatever the seed, so one record of it stands for every seed.

        Raises:
            ValueError: a system has no such record, or the systems share no seed.
        """
        scores = [self.scores(variant, metric) for variant in variants]
        fixed = [
            len(score) == 1 and not next(iter(self.runs[variant].values())).get("parameters")
            for variant, score in zip(variants, scores, strict=True)
        ]
        trained = [set(score) for score, same in zip(scores, fixed, strict=True) if not same]
        seeds = sorted(set.intersection(*trained)) if trained else sorted(scores[0])
        if not seeds:
            raise ValueError(f"the variants {', '.join(variants)} share no seed; run the grid again")
        return [
            np.stack([next(iter(score.values())) if same else score[seed] for seed in seeds])
            for score, same in zip(scores, fixed, strict=True)
        ]

    def estimate(self, variant: str, metric: str, where: str = "all") -> Estimate:
        """A system's metric over requests and seeds, times 100.

        Args:
            variant: the system.
            metric: one of :data:`METRICS`.
            where: slice, see :func:`onesug_lite.metrics.in_slice`.
        """
        (values,) = self.together(metric, variant)
        return self._over(metric).mean(100 * values, self._rows(metric, where))

    def difference(self, first: str, second: str, metric: str, where: str = "all", than: str = "") -> Estimate:
        """First minus second on the same requests with the same seeds, in points.

        Args:
            first: system.
            second: system that is subtracted.
            metric: one of :data:`METRICS`.
            where: slice.
            than: a second slice, whose difference is subtracted: how much more the first gains here than there.
        """
        a, b = self.together(metric, first, second)
        values, rows = 100 * (a - b), self._rows(metric, where)
        if than:
            return self._over(metric).contrast(values, rows, self._rows(metric, than))
        return self._over(metric).mean(values, rows)

    def share(self, variant: str, whole: str, metric: str, where: str = "all", floor: str = "") -> Estimate:
        """How much of what is possible a system reaches, in per cent.

        Args:
            variant: the system.
            whole: the system that counts 100.
            metric: one of :data:`METRICS`.
            where: slice.
            floor: a system that counts 0; a score of zero by default. With ``imitation`` here and ``preference`` as
                whole, the share of the headroom between the two that is recovered.
        """
        names = (variant, whole, floor) if floor else (variant, whole)
        scores = self.together(metric, *names)
        base = scores[2] if floor else 0.0
        return self._over(metric).ratio(100 * (scores[0] - base), scores[1] - base, self._rows(metric, where))

    def _rows(self, metric: str, where: str) -> np.ndarray:
        return in_slice(self.columns[METRICS[metric].section], where)

    def _over(self, metric: str) -> Resampled:
        """The resampled requests of a section, drawn once."""
        section = METRICS[metric].section
        if section not in self._resampled:
            self._resampled[section] = Resampled(self.columns[section]["request_id"], self._draws)
        return self._resampled[section]


Records = Grid | Sequence[Mapping]
"""What tables and plot data are made from: a grid, or the list of its records."""


def beside(records: Records, variant: str, others: Mapping[str, Records]) -> Grid:
    """One grid of a system and of the same system under other settings, each a row of its own by its name.

    Args:
        records: of a grid with the system.
        variant: the system.
        others: name of a row -> records with the system under other settings.

    Raises:
        ValueError: a grid without the system, or grids that cannot be compared.
    """
    tables = {variant: as_grid(records)} | {name: as_grid(other) for name, other in others.items()}
    for name, grid in tables.items():
        if variant not in grid.runs:
            raise ValueError(
                f"the records of '{name}' hold no variant '{variant}'; expected one of {', '.join(grid.runs)}"
            )
    return Grid(
        [
            record if name == variant else {**record, "variant": name, "label": name}
            for name, grid in tables.items()
            for record in grid.runs[variant].values()
        ]
    )


def as_grid(records: Records) -> Grid:
    """A grid stays what it is; a list of records becomes one."""
    return records if isinstance(records, Grid) else Grid(records)
