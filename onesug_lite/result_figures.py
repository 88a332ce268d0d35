"""Figures of the result chapters, drawn from what ``tables`` makes of a grid's records.

Intervals are drawn wherever a number was estimated, and a marker is filled only where its interval excludes zero. The
caller computes the title, the finding, from the same frame; so no title claims what the data do not show.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onesug_lite.drawing import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    filled_where_clear,
    groups,
    heading,
    headline,
    legend_below,
    reach,
)

MARKERS = "os^Dv<>pPX"
LINES = ("-", "--", "-.", ":")


def forest(data: pl.DataFrame, title: str) -> Figure:
    """Each system's metric with its interval.

    Args:
        data: ``label``, ``metric``, ``mean``, ``low``, ``high`` in per cent; rows in the order to draw.
        title: the finding, computed by the caller.
    """
    figure, panels, labels = _rows(data)
    for axes, (metric, rows) in zip(panels, groups(data, "metric"), strict=True):
        for row in rows.iter_rows(named=True):
            place = labels.index(row["label"])
            axes.errorbar(row["mean"], place, xerr=reach(row), fmt="o", color=PALETTE[place % 10], capsize=4)
        axes.set_xlabel(f"{metric} (%)")
    heading(figure, title)
    return figure


def differences(data: pl.DataFrame, title: str) -> Figure:
    """Differences of pairs of systems with their intervals; small grey dots are the seeds.

    Args:
        data: ``label`` (first − second), ``metric``, ``mean``, ``low``, ``high`` in points, and, where there is one,
            ``each_seed`` (list) and ``published`` (the paper's difference, a diamond; null where it has none); rows in
            the order to draw.
        title: the finding, computed by the caller.
    """
    figure, panels, labels = _rows(data)
    for axes, (metric, rows) in zip(panels, groups(data, "metric"), strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        for row in rows.iter_rows(named=True):
            place = labels.index(row["label"])
            look = filled_where_clear(row, BLUE) | {"capsize": 4}
            axes.errorbar(row["mean"], place, xerr=reach(row), fmt="o", label="ours", **look)
            seeds = row.get("each_seed") or []
            axes.plot(seeds, [place + 0.25] * len(seeds), ".", color=GREY, markersize=4, label="each seed")
            if row.get("published") is not None:
                axes.plot(row["published"], place - 0.25, "D", color=ORANGE, markersize=5, label="the paper")
        axes.set_xlabel(f"{metric}, points")
    legend_below(figure, panels)
    heading(figure, title)
    return figure


def waterfall(data: pl.DataFrame, title: str, unit: str = "click MRR@16 (%)") -> Figure:
    """What each component adds, one after another, from a first system to a last.

    Args:
        data: ``label``, ``change``, ``low``, ``high``. The first row is the system to start from, its ``change`` the
            level of its metric; each further row adds to what stands above it, with the interval of the step.
        title: the finding, computed by the caller.
        unit: of the metric, for the axis.
    """
    figure, axes = plt.subplots(figsize=(7.8, 0.5 * (len(data) + 1) + 1.4))
    end = data["change"].cum_sum()
    start = end - data["change"]
    levels = np.concatenate([end.to_numpy(), [end[-1]]])
    room = float(levels.max() - levels.min()) or 1.0
    floor = max(0.0, float(levels.min()) - 0.4 * room)  # bars of a level start here: the steps are the subject
    for place, row in enumerate(data.iter_rows(named=True)):
        if place == 0:
            axes.barh(0, row["change"] - floor, left=floor, color=GREY)
            axes.text(row["change"], 0, f" {row['change']:.1f}", va="center", fontsize=9)
            continue
        axes.barh(place, row["change"], left=start[place], color=BLUE if row["change"] >= 0 else ORANGE)
        axes.plot([start[place]] * 2, [place - 1.4, place + 0.4], color=GREY, linewidth=0.8)
        axes.errorbar(end[place], place, xerr=reach(row, "change"), color="black", capsize=3)
        beyond = start[place] + max(row["high"], 0.0)
        axes.text(beyond, place, f"  {row['change']:+.1f}", va="center", fontsize=9)
    axes.barh(len(data), end[-1] - floor, left=floor, color=GREY)
    axes.text(end[-1], len(data), f" {end[-1]:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(data) + 1), [*data["label"], "all of it"])
    right = max(levels.max(), (start + data["high"])[1:].max() or 0.0)  # of the first row, the level, no reach is drawn
    axes.set(xlabel=f"{unit}, axis cut" if floor else unit, xlim=(floor, right + 0.25 * room))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    headline(axes, title)
    return figure


def paper_beside_ours(data: pl.DataFrame, title: str) -> Figure:
    """The paper's row beside ours, a pair of dots a system; the logs differ, so only orders can be compared.

    Args:
        data: ``label``, ``metric``, ``paper``, and ours: ``mean``, ``low``, ``high``, all in per cent; rows in the
            order to draw.
        title: the finding, computed by the caller.
    """
    figure, panels, labels = _rows(data)
    for axes, (metric, rows) in zip(panels, groups(data, "metric"), strict=True):
        for row in rows.iter_rows(named=True):
            place = labels.index(row["label"])
            axes.plot([row["paper"], row["mean"]], [place] * 2, color="#c9c9c9", linewidth=1.5, zorder=1)
            axes.plot(row["paper"], place, "D", color=ORANGE, markerfacecolor="white", label="the paper, on its log")
            axes.errorbar(row["mean"], place, xerr=reach(row), fmt="o", color=BLUE, capsize=3, label="ours")
        axes.set_xlabel(f"{metric} (%)")
    legend_below(figure, panels)
    heading(figure, title)
    return figure


def budget_curves(data: pl.DataFrame, title: str, x: str, y: str = "click MRR@16 (%)", log: bool = True) -> Figure:
    """A metric, or a difference, over a training budget or a knob of the market, with the band of its interval.

    Args:
        data: ``label`` (a line each), ``x``, ``mean``, ``low``, ``high``.
        title: the finding, computed by the caller.
        x: name of the budget or knob with its unit.
        y: name of the metric with its unit.
        log: whether the axis of x is logarithmic.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for place, (label, rows) in enumerate(groups(data, "label")):
        rows = rows.sort("x")
        look = {"color": PALETTE[place % 10], "marker": MARKERS[place % 10], "linestyle": LINES[place % 4]}
        axes.plot(rows["x"], rows["mean"], label=label, linewidth=2, **look)
        if len(rows) == 1:  # a band of no width cannot be seen
            axes.vlines(rows["x"], rows["low"], rows["high"], color=PALETTE[place % 10], linewidth=1.5)
        else:
            axes.fill_between(rows["x"], rows["low"], rows["high"], color=PALETTE[place % 10], alpha=0.18, linewidth=0)
    if data["low"].min() < 0 < data["high"].max():
        axes.axhline(0, color=GREY, linewidth=1)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    if log and data["x"].n_unique() <= 8:
        _tick(axes, data["x"])
    axes.legend(fontsize=9)
    headline(axes, title)
    return figure


def part_curves(data: pl.DataFrame, title: str, x: str) -> Figure:
    """What parts of a system add over a budget or a knob, a panel a part, all on one scale.

    Args:
        data: ``label`` (a panel each, in the order to draw), ``metric``, ``x``, ``mean``, ``low``, ``high`` in points.
        title: the finding, computed by the caller.
        x: name of the budget or knob with its unit; its axis is logarithmic.
    """
    parts = groups(data, "label")
    metrics = data["metric"].unique(maintain_order=True).to_list()
    rows = -(-len(parts) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(7.8, 2.1 * rows + 1.2), sharex=True, sharey=True, squeeze=False)
    panels, spare = list(grid.flat)[: len(parts)], list(grid.flat)[len(parts) :]
    for axes, (part, points) in zip(panels, parts, strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        for metric, line in groups(points.sort("x"), "metric"):
            place = metrics.index(metric)
            color, marker = PALETTE[place], MARKERS[place]
            aside = line["x"] * 1.05 ** (2 * place - len(metrics) + 1)  # so that no bar hides the other metric's
            axes.plot(aside, line["mean"], color=color, linestyle=LINES[place], linewidth=1.5)
            for at, row in zip(aside, line.iter_rows(named=True), strict=True):
                look = filled_where_clear(row, color) | {"capsize": 3}
                axes.errorbar(at, row["mean"], yerr=reach(row), fmt=marker, label=metric, **look)
        axes.set_title(part, fontsize=10)
    panels[0].set_xscale("log")  # shared by all
    _tick(panels[0], data["x"])
    for axes in spare:
        axes.set_visible(False)
    for axes in panels[-2:]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x)
    figure.supylabel("adds, points", fontsize=11)
    legend_below(figure, panels)
    heading(figure, title)
    return figure


def training_watch(data: pl.DataFrame, title: str) -> Figure:
    """What moves while systems train, a panel a quantity: the chosen log-ratio, say, above the unknown share.

    Args:
        data: ``panel`` (name with its unit), ``label`` (a line each), ``step``, ``value``; panels in the order to draw.
        title: the finding, computed by the caller.
    """
    names = data["panel"].unique(maintain_order=True).to_list()
    labels = data["label"].unique(maintain_order=True).to_list()
    figure, panels = plt.subplots(len(names), 1, figsize=(7.4, 2.3 * len(names) + 1.1), sharex=True, squeeze=False)
    for axes, (name, part) in zip(panels[:, 0], groups(data, "panel"), strict=True):
        for label, rows in groups(part, "label"):
            place, rows = labels.index(label), rows.sort("step")
            smooth = rows["value"].rolling_mean(max(1, len(rows) // 15), min_samples=1)
            look = {"color": PALETTE[place % 10], "linestyle": LINES[place % 4], "linewidth": 2}
            axes.plot(rows["step"], smooth, label=label, **look)
        if part["value"].min() < 0:
            axes.axhline(0, color=GREY, linewidth=1)
        axes.set_ylabel(name)
    panels[-1, 0].set_xlabel("training step")
    legend_below(figure, panels[:, 0], columns=3)
    heading(figure, title)
    return figure


def replay_against_log(data: pl.DataFrame, title: str, x: str, y: str) -> Figure:
    """Two judges of the same systems: held-out clicks of the old policy, and the market's truth in replay.

    Args:
        data: ``label``, ``logged``, ``logged_low``, ``logged_high``, ``replay``, ``replay_low``, ``replay_high``; one
            row a system.
        title: the finding, computed by the caller.
        x: name of the logged metric with its unit.
        y: name of the replay's with its unit.
    """
    figure, axes = plt.subplots(figsize=(8.4, 4.8))
    for place, row in enumerate(data.iter_rows(named=True)):
        across, up = (
            [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]] for name in ("logged", "replay")
        )
        look = {"color": PALETTE[place % 10], "marker": MARKERS[place % 10], "markersize": 7, "elinewidth": 0.8}
        face = {"markerfacecolor": "white"} if place >= 10 else {}  # ten colours: the next ten are hollow
        axes.errorbar(
            row["logged"], row["replay"], xerr=across, yerr=up, linestyle="", label=row["label"], **look, **face
        )
    axes.set(xlabel=x, ylabel=y)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside right lower", frameon=False)
    heading(figure, title)
    return figure


def bands(data: pl.DataFrame, title: str) -> Figure:
    """A metric by frequency band of the clicked query, bars grouped by system.

    Args:
        data: ``label``, ``band`` (head, torso, tail), ``mean``, ``low``, ``high`` in per cent.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(7.8, 4.2))
    names = data["band"].unique(maintain_order=True).to_list()
    systems = groups(data, "label")
    width = 0.8 / len(systems)
    for place, (label, rows) in enumerate(systems):
        middle = np.array([names.index(name) for name in rows["band"]]) + (place - (len(systems) - 1) / 2) * width
        reach = np.abs(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]))
        axes.bar(
            middle,
            rows["mean"],
            width,
            yerr=reach,
            label=label,
            color=PALETTE[place % 10],
            error_kw={"capsize": 2, "linewidth": 1},
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="training clicks of the clicked query", ylabel="MRR@16 (%)")
    axes.grid(axis="x", visible=False)
    legend_below(figure, [axes], columns=3)
    headline(axes, title)
    return figure


def _tick(axes: Axes, places: pl.Series) -> None:
    """A tick at each point of a logarithmic axis, and nowhere else."""
    ticks = places.unique().sort().to_list()
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.minorticks_off()


def _rows(data: pl.DataFrame) -> tuple[Figure, list[Axes], list[str]]:
    """A panel a metric, side by side, with the labels as rows from the top."""
    labels = data["label"].unique(maintain_order=True).to_list()
    count = data["metric"].n_unique()
    size = (max(8.6, 2.3 * count + 3), 0.42 * len(labels) + 1.9)
    figure, panels = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    return figure, list(panels[0]), labels
