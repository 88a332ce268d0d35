"""The result chapters' tables: from the records of a grid to rows with intervals and verdicts.

Numbers are per cent, or per 100 requests, means over requests and training seeds; brackets hold 95 % intervals
(:mod:`onesug_lite.significance`). The number of seeds stands beside them: with one seed an interval speaks of other
requests, not of other seeds. Nothing here trains or decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from onesug_lite.claims import ENOUGH_SEEDS, Measurement, conclude, judge, published_row
from onesug_lite.frames import bars as bars
from onesug_lite.records import RANKING, REPLAY, Records, as_grid
from onesug_lite.significance import Estimate


def percent(estimate: Estimate, signed: bool = False) -> str:
    """``mean [low, high]``, or a dash where there were too few rows to say."""
    if np.isnan(estimate.low):
        return "-"
    form = "{:+z.2f} [{:+z.2f}, {:+z.2f}]" if signed else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(*estimate[:3])


def results_table(records: Records) -> pl.DataFrame:
    """The paper's offline table, ours beside it: one row a system.

    Returns:
        Columns ``system``, ``seeds``, the four metrics with intervals, the shares of suggestions that the training log
        does not hold (``unknown``) and that repeat another of their list (``repeated``), the share of lists with fewer
        than 16 (``short``), ``paper's row`` and the paper's four figures.
    """
    grid = as_grid(records)
    table = []
    for name, runs in grid.runs.items():
        if not grid.has(name, RANKING[0]):
            continue
        paper, scores = published_row(name)
        row = {"system": grid.labels[name], "seeds": len(runs)}
        row |= {
            f"{rows} {metric}": percent(grid.estimate(name, metric, rows))
            for rows in ("click", "order")
            for metric in RANKING
        }
        for column, key in (("unknown", "unknown_share"), ("repeated", "duplicate_share"), ("short", "short_share")):
            shares = [record[key] for record in runs.values() if record.get(key) is not None]
            row[column] = f"{np.mean(shares):.1%}" if shares else "-"
        row["paper's row"] = paper or "-"
        for rows in ("click", "order"):
            found = [f"{scores[cell]:.2f}" for metric in RANKING if (cell := f"{rows} {metric}") in scores]
            row[f"paper: {rows} HR / MRR"] = " / ".join(found) or "-"
        table.append(row)
    return pl.DataFrame(table)


def ceiling_table(
    records: Records,
    slices: Sequence[str] = ("all", "head", "torso", "tail", "order", "random"),
    metric: str = RANKING[1],
    ceiling: str = "ceiling",
) -> pl.DataFrame:
    """How much of the best possible score each system reaches, in per cent of it.

    Args:
        records: with those of the ceiling, the expected score of the best ranking.
        slices: columns.
        metric: one of the ranking metrics.
        ceiling: the variant that counts 100.

    Returns:
        ``system``, ``seeds``, and a column a slice.
    """
    grid = as_grid(records)
    return pl.DataFrame(
        [
            {"system": grid.labels[name], "seeds": len(runs)}
            | {where: percent(grid.share(name, ceiling, metric, where)) for where in slices}
            for name, runs in grid.runs.items()
            if grid.has(name, metric) and name != ceiling
        ]
    )


def replay_table(records: Records, floor: str = "imitation", ceiling: str = "preference") -> pl.DataFrame:
    """What shoppers would do with each system's lists, and the share of the headroom that it recovers.

    Args:
        records: of a grid.
        floor: the variant that imitates the log perfectly: no headroom recovered.
        ceiling: the variant that ranks by preference perfectly: all of it.

    Returns:
        ``system``, ``seeds``, expected ``clicks``, ``orders`` and ``revenue`` per 100 requests, and the recovered
        share of the headroom of clicks, (system − floor) / (ceiling − floor), in per cent; a dash where the two
        rankings made from the truth are missing.
    """
    grid = as_grid(records)
    known = all(grid.has(name, REPLAY[0]) for name in (floor, ceiling))
    return pl.DataFrame(
        [
            {"system": grid.labels[name], "seeds": len(runs)}
            | {metric.removeprefix("replay "): percent(grid.estimate(name, metric)) for metric in REPLAY}
            | {"headroom recovered": percent(grid.share(name, ceiling, REPLAY[0], floor=floor)) if known else "-"}
            for name, runs in grid.runs.items()
            if grid.has(name, REPLAY[0])
        ]
    )


def cost_table(records: Records) -> pl.DataFrame:
    """What each system took: parameters, seconds in all and of its slowest stage, peak memory; means over seeds."""
    table = []
    for runs in as_grid(records).runs.values():
        stages = {stage for record in runs.values() for stage in record["seconds"]}
        means = {stage: np.mean([record["seconds"].get(stage, 0) for record in runs.values()]) for stage in stages}
        slowest = max(sorted(means), key=means.get) if means else "-"
        table.append(
            {
                "system": next(iter(runs.values()))["label"],
                "parameters": next(iter(runs.values())).get("parameters"),
                "seconds": round(float(sum(means.values())), 1),
                "slowest stage": f"{slowest}, {means[slowest]:.1f} s" if means else "-",
                "peak memory (MB)": round(float(np.mean([record["peak_memory_mb"] for record in runs.values()]))),
            }
        )
    return pl.DataFrame(table)


def compare(records: Records, first: str, second: str, where: str = "all") -> dict[str, Estimate]:
    """Difference of two systems in points by ranking metric, the same requests and seeds in both.

    Args:
        records: of a grid.
        first: variant.
        second: variant that is subtracted.
        where: slice, see :func:`onesug_lite.metrics.in_slice`.

    Raises:
        ValueError: a record is missing, or two systems answered different requests.
    """
    grid = as_grid(records)
    return {metric: grid.difference(first, second, metric, where) for metric in RANKING}


def differences(
    sources: Mapping[str, Records],
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str] = RANKING,
    where: str = "all",
) -> pl.DataFrame:
    """Differences of several pairs of systems, from one or more grids.

    Args:
        sources: name of a grid -> its records.
        pairs: (first, second), second is subtracted.
        metrics: ranking or replay metrics.
        where: slice.

    Returns:
        ``difference``, ``metric``, ``points`` with interval, ``p``, ``each seed`` and ``records``.
    """
    grids = {name: as_grid(records) for name, records in sources.items()}
    table = []
    for first, second in pairs:
        for source, grid in grids.items():
            for metric in metrics:
                gap = grid.difference(first, second, metric, where)
                table.append(
                    {
                        "difference": f"{grid.labels[first]} − {grid.labels[second]}",
                        "metric": metric,
                        "points": percent(gap, signed=True),
                        "p": f"{gap.p:.3f}",
                        "each seed": " ".join(f"{value:+.1f}" for value in gap.each_seed),
                        "records": f"{source}, {len(gap.each_seed)} seed(s)",
                    }
                )
    return pl.DataFrame(table)


def agree(fresh: Estimate, reference: Estimate) -> bool:
    """Whether a fresh run and the reference agree: their intervals overlap."""
    return fresh.low <= reference.high and reference.low <= fresh.high


def agreement(fresh: Records, reference: Records) -> pl.DataFrame:
    """Every system's ranking metrics in a fresh run and in the reference.

    Returns:
        ``system``, ``metric``, ``fresh`` and ``reference`` with intervals, and whether they ``agree``; systems that
        only one of them has are left out.
    """
    new, old = as_grid(fresh), as_grid(reference)
    table = []
    for name in new.runs:
        for metric in RANKING:
            if new.has(name, metric) and old.has(name, metric):
                one, other = new.estimate(name, metric), old.estimate(name, metric)
                row = {"system": new.labels[name], "metric": metric, "fresh": percent(one), "reference": percent(other)}
                table.append(row | {"agree": agree(one, other)})
    return pl.DataFrame(table)


def verdicts(records: Records, claims: Sequence[tuple[str, str, str]]) -> pl.DataFrame:
    """Claims that the paper does not print figures for, each (text, first, second), judged by the ledger's rule.

    Returns:
        ``claim``, the difference by metric, ``seeds`` and ``verdict``; ``reproduced`` reads ``held`` here.
    """
    grid = as_grid(records)
    table = []
    for text, first, second in claims:
        gaps = compare(grid, first, second)
        parts = [Measurement(first, second, name, gap, None, judge(gap), "") for name, gap in gaps.items()]
        seeds = len(next(iter(gaps.values())).each_seed)
        verdict = conclude(parts).replace("reproduced", "held")
        if seeds < ENOUGH_SEEDS and verdict not in ("not found",):
            verdict += f", {seeds} seed(s): not yet a finding"
        cells = {name: percent(gap, signed=True) for name, gap in gaps.items()}
        table.append({"claim": text} | cells | {"seeds": seeds, "verdict": verdict})
    return pl.DataFrame(table)
