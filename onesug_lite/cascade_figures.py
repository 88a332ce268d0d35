"""Figures of the cascade's chapter: the funnel, the channels of recall, what the features are worth; and its tables.

Every figure takes a polars frame, as :mod:`onesug_lite.cascade_faults` measures it, and a title, the finding, which
the caller computes from the same frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure

from onesug_lite.cascade_faults import STAGES, TOGETHER
from onesug_lite.drawing import (
    BLUE,
    GREY,
    ORANGE,
    filled_where_clear,
    groups,
    heading,
    legend_below,
    percent_axis,
    reach,
)


def funnel(data: pl.DataFrame, title: str) -> Figure:
    """Share of clicked queries that is left after each stage, a panel a slice and a line a system.

    Args:
        data: ``label`` (system), and the columns of ``surviving``; slices in the order to draw, three in a row.
        title: the finding, computed by the caller.
    """
    slices = groups(data, "slice")
    lines = -(-len(slices) // 3)
    size = (8.6, 2.5 * lines + 1.1)
    figure, panels = plt.subplots(lines, 3, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(slices) :]:
        axes.set_visible(False)
    for axes, (name, rows) in zip(panels.flat, slices, strict=False):
        looks = zip((BLUE, ORANGE), "os", ("-", "--"), (-0.06, 0.06), strict=True)
        for (label, part), (colour, marker, line, shift) in zip(groups(rows, "label"), looks, strict=False):
            x = np.array([STAGES.index(stage) for stage in part["stage"]]) + shift
            look = {"color": colour, "marker": marker, "linestyle": line, "capsize": 3, "linewidth": 2}
            axes.errorbar(x, part["mean"], yerr=_reach(part), label=label, **look)
        axes.set_title(f"{name} ({rows['requests'][0]:,} clicks)", fontsize=10, weight="normal")
        axes.set_xticks(range(len(STAGES)), STAGES, fontsize=9)
        axes.set_xlim(-0.4, len(STAGES) - 0.6)
        percent_axis(axes.yaxis)
        axes.grid(axis="x", visible=False)
    for axes in panels[:, 0]:
        axes.set_ylabel("clicks still there")
    legend_below(figure, [panels.flat[0]], 2)
    heading(figure, title)
    return figure


def channel_bars(data: pl.DataFrame, title: str) -> Figure:
    """Share of requests whose clicked query each channel of recall holds, and that it alone holds, a panel a slice.

    Args:
        data: the columns of ``channel_shares``; slices in the order to draw, two in a row.
        title: the finding, computed by the caller.
    """
    slices = groups(data, "slice")
    names = data["channel"].unique(maintain_order=True).to_list()
    lines = -(-len(slices) // 2)
    size = (8.6, (0.34 * len(names) + 0.8) * lines + 1.2)
    figure, panels = plt.subplots(lines, 2, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(slices) :]:
        axes.set_visible(False)
    for axes, (name, rows) in zip(panels.flat, slices, strict=False):
        place = np.array([names.index(channel) for channel in rows["channel"]])
        whole = [GREY if channel == TOGETHER else BLUE for channel in rows["channel"]]
        look = {"error_kw": {"capsize": 3, "linewidth": 1}, "label": "holds the clicked query"}
        axes.barh(place, rows["mean"], 0.72, xerr=_reach(rows), color=whole, **look)
        axes.barh(place, rows["only"].fill_null(0), 0.36, color=ORANGE, label="no other channel does")
        axes.set_title(f"{name} ({rows['requests'][0]:,} clicks)", fontsize=10, weight="normal")
        axes.grid(axis="y", visible=False)
        percent_axis(axes.xaxis)
        axes.tick_params(axis="x", labelsize=9)
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
    for axes in panels[-1]:
        axes.set_xlabel("share of requests with a click")
    legend_below(figure, [panels.flat[0]], 2)
    heading(figure, title)
    return figure


def permutation_forest(data: pl.DataFrame, title: str) -> Figure:
    """What a system loses when one group of features says nothing; filled where the interval excludes zero.

    Args:
        data: ``label`` (system, a panel each), ``group``, ``mean``, ``low``, ``high`` in points of MRR@16; groups in
            the order to draw.
        title: the finding, computed by the caller.
    """
    names = data["group"].unique(maintain_order=True).to_list()
    systems = groups(data, "label")
    size = (8.6, 0.42 * len(names) + 1.9)
    figure, panels = plt.subplots(1, len(systems), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, (label, rows) in zip(panels[0], systems, strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        for row in rows.iter_rows(named=True):
            look = filled_where_clear(row, BLUE) | {"capsize": 4}
            axes.errorbar(row["mean"], names.index(row["group"]), xerr=reach(row), fmt="o", **look)
        axes.set_title(label, fontsize=10, weight="normal")
        axes.set_xlabel("MRR@16 lost, points")
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set_ylim(len(names) - 0.5, -0.5)
    heading(figure, title)
    return figure


def _reach(rows: pl.DataFrame) -> np.ndarray:
    """How far the intervals reach to both sides, as matplotlib wants it; 0 where there is no interval."""
    return rows.select(low=pl.col("mean") - pl.col("low"), high=pl.col("high") - pl.col("mean")).to_numpy().T


# ---------------------------------------------------------------- tables
def labelled(parts: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """What was measured of each system as one frame, its name in column ``label``; systems in the order to draw."""
    return pl.concat(part.with_columns(label=pl.lit(label)) for label, part in parts.items())


def interval_table(data: pl.DataFrame, index: Sequence[str], scale: float = 100, digits: int = 1) -> pl.DataFrame:
    """Systems beside each other: ``mean [low, high]``, a dash where there is nothing to say.

    Args:
        data: ``label``, ``mean``, ``low``, ``high`` and the columns of ``index``.
        index: what names a row of the table.
        scale: factor of the numbers; 100 for per cent.
        digits: after the point.

    Returns:
        The columns of ``index``, then one a label.
    """
    number = f"{{:.{digits}f}}"
    texts = [
        "-" if None in row else f"{number} [{number}, {number}]".format(*(scale * end for end in row))
        for row in data.select("mean", "low", "high").iter_rows()
    ]
    texts = data.with_columns(text=pl.Series(texts, dtype=pl.String))
    return texts.pivot("label", index=list(index), values="text")
