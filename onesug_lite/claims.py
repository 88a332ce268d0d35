"""The claims of the paper, and the verdict that a grid's records give on each, worked out by one rule.

The claims are data, in ``claims.yaml``. A claim is tested by one or more measurements, differences of two systems on a
metric and a slice, each with an interval over requests and seeds (:mod:`onesug_lite.significance`).

A **measurement**, with the paper's sign as the positive one, is

- *reproduced*: the interval lies above zero, at least three seeds were run and all agree in sign, and the difference is
  between half and twice the published one, where a figure is published;
- *direction only*: the interval lies above zero, and one of the rest is missing;
- *reversed*: the interval lies below zero;
- *not found*: the interval holds zero.

Where the claim is that two systems are alike within some points, it is *reproduced* when the interval lies inside them
(*direction only* with fewer than three seeds), *reversed* when it lies outside, *not found* else.

A **claim** is *reproduced* when all its measurements are; *direction only* when all point the paper's way; *only under*
some when some do; *reversed* when none does and one is reversed; *not found* else. A calculation that holds under some
readings alone is *only under* those. What the paper found on live traffic is measured on the records of experiments in
the market (:mod:`onesug_lite.experiments`), by the same rule, in per cent. What records cannot answer *cannot be tested
here*, or *yet*; where they are missing there is *no record yet*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from onesug_lite.experiments import FOLDER, Experiments, ratio, read_experiments
from onesug_lite.identities import IDENTITIES
from onesug_lite.records import METRICS, Grid, read_records
from onesug_lite.significance import Estimate

ENOUGH_SEEDS = 3
FACTOR = 2.0  # of the published difference, up or down, within which a magnitude is reproduced
CELLS = ("click HR@16", "click MRR@16", "order HR@16", "order MRR@16")
"""Columns of the paper's offline table: slice and metric."""

REPRODUCED, DIRECTION, REVERSED, NOT_FOUND = "reproduced", "direction only", "reversed", "not found"
NO_RECORD = "no record yet"
HOLDS = (REPRODUCED, DIRECTION)


class Measurement(NamedTuple):
    """One number that a claim is judged by.

    Attributes:
        first: system.
        second: system that is subtracted.
        cell: metric and slice.
        estimate: in points, of an experiment in per cent; none where a record is missing.
        published: the paper's number, none where it prints none.
        verdict: by the rule above.
        condition: what to call it where only some of a claim's measurements hold.
        required: whether the claim waits for it where its records are missing.
    """

    first: str
    second: str
    cell: str
    estimate: Estimate | None
    published: float | None
    verdict: str
    condition: str
    required: bool = True


class Entry(NamedTuple):
    """A claim with its verdict and what that rests on."""

    section: str
    claim: Mapping
    verdict: str
    measurements: tuple[Measurement, ...] = ()


@cache
def load_claims() -> dict:
    """What ``claims.yaml`` holds: ``chapters``, ``published``, ``removed`` and ``claims`` by section."""
    return yaml.safe_load((files("onesug_lite") / "claims.yaml").read_text(encoding="utf-8"))


def published_row(variant: str) -> tuple[str, dict[str, float]]:
    """The paper's name of a system and its scores in per cent by cell of the offline table; empty where it has none.

    The row of an ablation is the full model's less what the paper says it loses.
    """
    data = load_claims()
    if variant in data["published"]:
        row = data["published"][variant]
        return row["name"], dict(zip(CELLS, row["scores"], strict=True))
    if variant in data["removed"]:
        row, full = data["removed"][variant], data["published"]["onesug"]["scores"]
        return row["name"], {cell: round(a + b, 2) for cell, a, b in zip(CELLS, full, row["scores"], strict=False)}
    return "", {}


def published_difference(first: str, second: str, cell: str) -> float | None:
    """What the paper prints for first minus second on a cell of its table, in points."""
    a, b = (published_row(variant)[1] for variant in (first, second))
    return round(a[cell] - b[cell], 2) if cell in a and cell in b else None


def published_gain(first: str, second: str, metric: str, band: str = "") -> float | None:
    """What the paper reports of an experiment on live traffic, in per cent; below zero where a metric fell.

    Args:
        first: our name of the treatment.
        second: of the control.
        metric: one of :data:`onesug_lite.experiments.METRICS`.
        band: of the prefixes.
    """
    parts = (
        part
        for section in load_claims()["claims"].values()
        for claim in section
        for part in claim.get("published", ())
        if (part["first"], part["second"], part.get("where", "")) == (first, second, f"prefix {band}" if band else "")
    )
    return next((float(part["gains"][metric]) for part in parts if metric in part["gains"]), None)


def judge(estimate: Estimate, published: float | None = None, within: float | None = None) -> str:
    """The verdict of one measurement.

    Args:
        estimate: above zero where the claim holds.
        published: the paper's number.
        within: points inside which the two count as alike; then the claim is that they are.
    """
    seeds = estimate.each_seed
    if np.isnan(estimate.low):  # too few rows in the slice to say
        return NO_RECORD
    if within is not None:
        if -within < estimate.low and estimate.high < within:
            return REPRODUCED if len(seeds) >= ENOUGH_SEEDS else DIRECTION
        return REVERSED if estimate.low > within or estimate.high < -within else NOT_FOUND
    if estimate.high < 0:
        return REVERSED
    if not estimate.low > 0:
        return NOT_FOUND
    sure = len(seeds) >= ENOUGH_SEEDS and min(seeds) > 0
    near = published is None or published / FACTOR <= estimate.mean <= published * FACTOR
    return REPRODUCED if sure and near else DIRECTION


def conclude(measurements: Sequence[Measurement]) -> str:
    """The verdict of a claim from those of its measurements."""
    parts = [part for part in measurements if part.verdict != NO_RECORD]
    if not parts or any(part.verdict == NO_RECORD and part.required for part in measurements):
        return NO_RECORD
    verdicts = [part.verdict for part in parts]
    if all(verdict == REPRODUCED for verdict in verdicts):
        return REPRODUCED
    if all(verdict in HOLDS for verdict in verdicts):
        return DIRECTION
    if any(verdict in HOLDS for verdict in verdicts):
        return "only under: " + "; ".join(_conditions(parts))
    return REVERSED if REVERSED in verdicts else NOT_FOUND


def _conditions(parts: Sequence[Measurement]) -> list[str]:
    """Comparisons that hold on every metric by their name; of the others, the metrics that do."""
    found = []
    names = list(dict.fromkeys(part.condition for part in parts))
    for name in names:
        own = [part for part in parts if part.condition == name]
        holding = [part for part in own if part.verdict in HOLDS]
        if not holding:
            continue
        cells = "" if len(holding) == len(own) else " and ".join(part.cell for part in holding)
        found.append(", ".join(text for text in (name if len(names) > 1 else "", cells) if text))
    return found


def measure(test: Mapping, grid: Grid | None, label: str = "", required: bool = True) -> list[Measurement]:
    """Measure one comparison of a claim on each of its metrics.

    Args:
        test: one of a claim's ``tests``.
        grid: the records; none where there are none.
        label: name of the records where they are not the claim's main ones.
        required: whether the claim waits for it where its records are missing.
    """
    first, second = test["first"], test["second"]
    condition = test.get("condition") or label or f"{first} against {second}"
    here, there = test.get("where", ""), test.get("than", "")
    slices = (f" on {here}" if here else "") + (f", more than on {there}" if there else "")
    found = []
    for cell in test.get("metrics", CELLS if _in_table(first, second) else CELLS[:2]):
        rows, metric = ("", cell) if cell in METRICS else cell.split(" ", 1)
        published = test.get("published", {}).get(cell)
        if published is None and not slices:
            published = published_difference(first, second, cell)
        estimate, verdict = None, NO_RECORD
        if grid is not None and grid.has(first, metric) and grid.has(second, metric):
            than = f"{rows} {there}".strip() if there else ""
            estimate = grid.difference(first, second, metric, f"{rows} {here}".strip(), than)
            verdict = judge(estimate, published, test.get("within"))
        found.append(Measurement(first, second, cell + slices, estimate, published, verdict, condition, required))
    return found


def _in_table(first: str, second: str) -> bool:
    """Whether the paper prints all four columns for both."""
    return all(len(published_row(variant)[1]) == len(CELLS) for variant in (first, second))


def measure_experiment(test: Mapping, experiments: Experiments | None) -> list[Measurement]:
    """Measure one comparison in the market on each of its metrics.

    Args:
        test: one of a claim's ``experiments``.
        experiments: the records; none where there are none.
    """
    first, second, band, than = test["first"], test["second"], test.get("band", ""), test.get("than", "")
    where = (f" on {band} prefixes" if band else "") + (f", more than on {than} prefixes" if than else "")
    found = []
    for metric in test["metrics"]:
        of = ratio(metric, band)
        unit = "points" if metric == "judgement" else "% more" if of.better > 0 else "% less"
        published = published_gain(first, second, metric, band)
        if published is not None and than:
            other = published_gain(first, second, metric, than)
            published = None if other is None else published - other
        published = None if published is None else round(of.better * published, 2)
        estimate, verdict = None, NO_RECORD
        if experiments is not None and experiments.has(first, second):
            estimate = _turned(experiments.gain(first, second, metric, band, than), of.better)
            verdict = judge(estimate, published)
        cell = f"{of.label}, {unit}{where}"
        found.append(Measurement(first, second, cell, estimate, published, verdict, f"{first} against {second}"))
    return found


def _turned(estimate: Estimate, better: int) -> Estimate:
    """Above zero where more is better (1), or where less is (-1)."""
    if better > 0:
        return estimate
    each = tuple(-value for value in estimate.each_seed)
    return estimate._replace(mean=-estimate.mean, low=-estimate.high, high=-estimate.low, each_seed=each)


def read_online(folder: str | Path) -> Experiments | None:
    """The experiments that lie below the records of a grid; none where there are none.

    Args:
        folder: of the grid's records.

    Raises:
        ValueError: records that cannot be compared, with each other or with the grid's.
    """
    records, offline = read_experiments(Path(folder) / FOLDER), read_records(folder)
    found = Experiments(records) if records else None
    if found and offline and offline[0]["log"] != found.log:
        raise ValueError(
            f"the experiments have log '{found.log}', the grid's records '{offline[0]['log']}'; they are of different "
            "markets: make experiments"
        )
    return found


def judge_claims(folder: str | Path) -> list[Entry]:
    """Every claim with its verdict.

    Args:
        folder: records of a grid; records under conditions that a claim names, and those of experiments, lie in folders
            below it. Missing ones leave claims without a record.

    Raises:
        ValueError: records that cannot be compared.
    """
    grids: dict[str, Grid | None] = {}

    def grid(name: str) -> Grid | None:
        if name not in grids:
            records = read_records(Path(folder) / name)
            grids[name] = Grid(records) if records else None
        return grids[name]

    entries, online = [], read_online(folder)
    for section, claims in load_claims()["claims"].items():
        for claim in claims:
            if "untested" in claim:
                entries.append(Entry(section, claim, f"cannot be tested {claim['verdict']}"))
            elif "identity" in claim:
                entries.append(Entry(section, claim, _conclude_identity(IDENTITIES[claim["identity"]]())))
            elif "experiments" in claim:
                parts = [part for test in claim["experiments"] for part in measure_experiment(test, online)]
                entries.append(Entry(section, claim, conclude(parts), tuple(parts)))
            else:
                parts, main = [], claim["tests"][0].get("under", "")  # other records are conditions, and may be missing
                for test in claim["tests"]:
                    under = test.get("under", "")
                    parts += measure(test, grid(under), under, under == main)
                entries.append(Entry(section, claim, conclude(parts), tuple(parts)))
    return entries


def _conclude_identity(readings: Mapping[str, bool]) -> str:
    holding = [name for name, holds in readings.items() if holds]
    if len(holding) == len(readings):
        return REPRODUCED
    return "only under: " + "; ".join(holding) if holding else NOT_FOUND
