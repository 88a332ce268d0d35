"""Plot data: from the records of a grid to the frames that :mod:`onesug_lite.result_figures` draws.

Numbers are per cent, points, or per 100 requests, with 95 % intervals over requests and training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy import stats

from onesug_lite.claims import CELLS, published_difference, published_row
from onesug_lite.records import RANKING, Records, as_grid
from onesug_lite.significance import Estimate


def _ends(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def bars(
    records: Records, rows: str = "click", names: Sequence[str] = RANKING, bands: Sequence[str] = ("all",)
) -> pl.DataFrame:
    """For ``forest`` and ``bands``: ``label``, ``metric``, ``band``, ``mean``, ``low``, ``high``.

    A cell with too few rows is left out.

    Args:
        records: of a grid.
        rows: ``click`` or ``order``.
        names: ranking metrics.
        bands: slices.
    """
    grid = as_grid(records)
    cells = [
        {"label": grid.labels[name], "metric": metric, "band": band} | _ends(grid.estimate(name, metric, where))
        for name in grid.runs
        for metric in names
        if grid.has(name, metric)
        for band in bands
        for where in [f"{rows} {band}"]
    ]
    return pl.DataFrame(cells).filter(pl.col("low").is_not_nan())


def difference_frame(
    records: Records,
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str] = RANKING,
    where: str = "click",
    labels: Sequence[str] | None = None,
) -> pl.DataFrame:
    """For ``differences``: ``label``, ``metric``, ``mean``, ``low``, ``high``, ``each_seed``, ``published``.

    Args:
        records: of a grid.
        pairs: (first, second), second is subtracted.
        metrics: ranking or replay metrics.
        where: slice; the paper's figures are for ``click`` and ``order``.
        labels: names of the pairs; by default "first − second".
    """
    grid = as_grid(records)
    names = labels or [f"{grid.labels[first]} − {grid.labels[second]}" for first, second in pairs]
    rows = [
        {"label": label, "metric": metric}
        | _ends(gap)
        | {
            "each_seed": list(gap.each_seed),
            "published": published_difference(first, second, f"{where} {metric}"),
        }
        for label, (first, second) in zip(names, pairs, strict=True)
        for metric in metrics
        for gap in [grid.difference(first, second, metric, where if metric in RANKING else "all")]
    ]
    return pl.DataFrame(rows, schema_overrides={"published": pl.Float64})


def slice_frame(
    records: Records, first: str, second: str, slices: Sequence[str], metrics: Sequence[str] = RANKING
) -> pl.DataFrame:
    """For ``differences``: one pair of systems on several slices of the requests; those with too few rows are left out.

    Args:
        records: of a grid.
        first: system.
        second: system that is subtracted.
        slices: see :func:`onesug_lite.metrics.in_slice`; the labels.
        metrics: ranking metrics.
    """
    grid = as_grid(records)
    rows = [
        {"label": where, "metric": metric} | _ends(gap) | {"each_seed": list(gap.each_seed)}
        for where in slices
        for metric in metrics
        for gap in [grid.difference(first, second, metric, where)]
    ]
    return pl.DataFrame(rows).filter(pl.col("low").is_not_nan())


def waterfall_frame(records: Records, steps: Sequence[str], metric: str = RANKING[1]) -> pl.DataFrame:
    """For ``waterfall``: the first system's level, then what each further one adds to the one before it.

    Args:
        records: of a grid.
        steps: variants in order.
        metric: one of the metrics.

    Returns:
        ``label``, ``change``, ``low``, ``high``.
    """
    grid = as_grid(records)
    found = [grid.estimate(steps[0], metric)]
    found += [grid.difference(after, before, metric) for before, after in zip(steps, steps[1:], strict=False)]
    return pl.DataFrame(
        [
            {"label": grid.labels[name], "change": value.mean, "low": value.low, "high": value.high}
            for name, value in zip(steps, found, strict=True)
        ]
    )


def paper_frame(records: Records, cells: Sequence[str] = CELLS) -> pl.DataFrame:
    """For ``paper_beside_ours``: systems that the paper has a row for; ``label``, ``metric``, ``paper``, our interval.

    Args:
        records: of a grid.
        cells: of the paper's table, such as ``click HR@16``.
    """
    grid = as_grid(records)
    rows = []
    for name in grid.runs:
        scores = published_row(name)[1]
        for cell in cells:
            where, metric = cell.split(" ")
            if cell in scores and grid.has(name, metric):
                row = {"label": grid.labels[name], "metric": cell, "paper": scores[cell]}
                rows.append(row | _ends(grid.estimate(name, metric, where)))
    return pl.DataFrame(rows)


def curve_frame(
    points: Sequence[tuple[float, Records]],
    variants: Sequence[str],
    metric: str = RANKING[1],
    minus: str = "",
    where: str = "all",
    whole: str = "",
) -> pl.DataFrame:
    """For ``budget_curves``: a metric over several grids; ``label``, ``x``, ``mean``, ``low``, ``high``, ``seeds``.

    Args:
        points: the budget or knob of each grid, with its records.
        variants: a line each; a grid that lacks one leaves its point out.
        metric: one of the metrics.
        minus: a system to subtract.
        where: slice.
        whole: a system that counts 100 %, such as the ceiling, where nothing is subtracted; not given, none does.
    """
    rows = []
    for x, records in points:
        grid = as_grid(records)
        for name in variants:
            if not all(grid.has(needed, metric) for needed in (name, minus, whole) if needed):
                continue
            label = grid.labels[name]
            if minus:
                label, value = f"{label} − {grid.labels[minus]}", grid.difference(name, minus, metric, where)
            elif whole:
                value = grid.share(name, whole, metric, where)
            else:
                value = grid.estimate(name, metric, where)
            rows.append({"label": label, "x": float(x)} | _ends(value) | {"seeds": len(value.each_seed)})
    return pl.DataFrame(rows)


def gains_frame(
    points: Sequence[tuple[float, Records]], pairs: Mapping[str, tuple[str, str]], metrics: Sequence[str] = RANKING
) -> pl.DataFrame:
    """For ``part_curves``: what parts add over several grids; as :func:`curve_frame`, with the ``metric``.

    Args:
        points: the budget or knob of each grid, with its records.
        pairs: name of a part, the label -> (with it, without it); one that no grid has both of is left out.
        metrics: ranking or replay metrics.
    """
    curves = [
        curve.select(pl.lit(what).alias("label"), pl.lit(metric).alias("metric"), pl.exclude("label"))
        for what, (first, second) in pairs.items()
        for metric in metrics
        for curve in [curve_frame(points, [first], metric, minus=second)]
        if len(curve)
    ]
    return pl.concat(curves)


def headroom_frame(tables: Mapping[str, Records | None], variants: Mapping[str, str]) -> pl.DataFrame:
    """For ``forest``: what systems recover of the headroom in clicks, under several conditions side by side.

    The headroom lies between perfect imitation of the log, 0 %, and perfect preference, 100 %, of the same condition.

    Args:
        tables: what the label adds for a condition -> its records, none where it was not run.
        variants: system -> its name in a label; a condition that lacks the system, or one of the two ends, has no row.

    Returns:
        ``label``, ``metric``, ``seeds``, ``mean``, ``low``, ``high``, the conditions of a system together.
    """
    metric, ends = "replay clicks", ("preference", "imitation")
    grids = {condition: as_grid(records) for condition, records in tables.items() if records}
    rows = []
    for name, label in variants.items():
        for condition, grid in grids.items():
            if all(grid.has(needed, metric) for needed in (name, *ends)):
                share = grid.share(name, ends[0], metric, floor=ends[1])
                row = {"label": f"{label}{condition}", "metric": "of the headroom in clicks"}
                rows.append(row | {"seeds": len(share.each_seed)} | _ends(share))
    return pl.DataFrame(rows)


def unknown_frame(points: Sequence[tuple[float, Records]], variants: Sequence[str]) -> pl.DataFrame:
    """For ``budget_curves``: per cent of what systems suggest that no training day has, over several grids.

    A line is over the seeds that all its points have, with the interval of a mean of as many numbers; a single seed
    has an interval of no width.

    Args:
        points: the budget or knob of each grid, with its records.
        variants: a line each; a grid that lacks one leaves its point out.

    Returns:
        ``label``, ``x``, ``mean``, ``low``, ``high``, ``seeds``.
    """
    grids = [(x, as_grid(records)) for x, records in points]
    rows = []
    for name in variants:
        having = [(x, grid.labels[name], grid.runs[name]) for x, grid in grids if name in grid.runs]
        seeds = sorted(set.intersection(*(set(runs) for *_, runs in having))) if having else []
        if not seeds:
            continue
        for x, label, runs in having:
            shares = 100 * np.array([runs[seed]["unknown_share"] for seed in seeds])
            row = {"label": label, "x": float(x)} | _of_few(shares)
            rows.append(row | {"low": max(row["low"], 0.0), "seeds": len(seeds)})
    return pl.DataFrame(rows)


def markets_frame(
    tables: Mapping[str, Sequence[Records]], pairs: Mapping[str, tuple[str, str]], metrics: Sequence[str] = RANKING
) -> pl.DataFrame:
    """For ``differences``: pairs of systems in several markets; ``label``, ``metric``, ``mean``, ``low``, ``high``.

    A market counts once, whatever its seeds. Over several markets the interval is that of a mean of as many numbers, so
    it holds what markets, requests and model seeds differ by; of a single one it is over its requests and seeds.

    Args:
        tables: what the label adds -> the records of each market.
        pairs: name -> (first, second), second is subtracted.
        metrics: ranking or replay metrics.

    Returns:
        Also ``each_seed``, the value of each market, or of each seed of a single one.
    """
    grids = {added: [as_grid(records) for records in markets] for added, markets in tables.items() if markets}
    rows = []
    for what, (first, second) in pairs.items():
        for added, markets in grids.items():
            for metric in metrics:
                gaps = [grid.difference(first, second, metric) for grid in markets]
                ends = _ends(gaps[0]) if len(gaps) == 1 else _of_few(np.array([gap.mean for gap in gaps]))
                each = list(gaps[0].each_seed) if len(gaps) == 1 else [gap.mean for gap in gaps]
                rows.append({"label": f"{what}{added}", "metric": metric} | ends | {"each_seed": each})
    return pl.DataFrame(rows)


def _of_few(values: np.ndarray) -> dict[str, float]:
    """Mean of a few numbers with its t interval; that of a single one has no width."""
    mean, count = float(values.mean()), len(values)
    reach = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5) if count > 1 else 0.0
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def watch_frame(
    records: Records, variants: Sequence[str], panels: Mapping[str, str], stage: str = "preference"
) -> pl.DataFrame:
    """For ``training_watch``: training curves of the lowest seed; ``panel``, ``label``, ``step``, ``value``.

    Args:
        records: of a grid.
        variants: a line each; one without the stage or the quantity is left out.
        panels: quantity of the curves -> name of its panel with the unit.
        stage: ``supervised`` or ``preference``.
    """
    grid = as_grid(records)
    rows = []
    for quantity, panel in panels.items():
        for name in variants:
            curves = grid.runs[name][min(grid.runs[name])].get("curves", {}).get(stage, {})
            rows += [
                {"panel": panel, "label": grid.labels[name], "step": step, "value": float(value)}
                for step, value in zip(curves.get("step", []), curves.get(quantity, []), strict=False)
                if value is not None
            ]
    return pl.DataFrame(rows)


def replay_frame(records: Records, logged: str = RANKING[1], replay: str = "replay clicks") -> pl.DataFrame:
    """For ``replay_against_log``: systems that both judges saw, with the intervals of both.

    Args:
        records: of a grid.
        logged: ranking metric on held-out clicks.
        replay: metric of the replay.
    """
    grid = as_grid(records)
    rows = []
    for name in grid.runs:
        if grid.has(name, logged) and grid.has(name, replay):
            row = {"label": grid.labels[name]}
            for judge, metric in (("logged", logged), ("replay", replay)):
                mean, low, high, *_ = grid.estimate(name, metric)
                row |= {judge: mean, f"{judge}_low": low, f"{judge}_high": high}
            rows.append(row)
    return pl.DataFrame(rows)
