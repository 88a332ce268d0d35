"""Figures of the chapter on updates and feedback loops.

Every function takes a polars frame and a title, the finding, which the caller computes from the same frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onesug_lite.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    RED,
    filled_where_clear,
    groups,
    heading,
    legend_below,
    percent_axis,
    reach,
)
from onesug_lite.feedback import MARKET, OWN

COLOURS = {"popularity": GREEN, "cascade": ORANGE, "generator": BLUE, "market": GREY}
LOOKS = {OWN: "-", MARKET: ":"}


def decay_curves(data: pl.DataFrame, title: str, published: Mapping[str, float] | None = None) -> Figure:
    """What a system loses against its daily updates, by the days since it last learnt, a panel a system.

    Args:
        data: ``system``, ``label`` (of the schedule), ``age`` (days), ``decay``, ``low``, ``high`` (per cent).
        title: the finding, computed by the caller.
        published: per cent that the paper reports, by system.
    """
    systems = groups(data.drop_nulls("decay"), "system")
    figure, panels = plt.subplots(1, len(systems), figsize=(8.8, 4.2), sharey=True, squeeze=False)
    labels = data["label"].unique(maintain_order=True).to_list()
    for axes, (system, part) in zip(panels[0], systems, strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        for label, rows in groups(part, "label"):
            place = labels.index(label)
            rows, colour = rows.sort("age"), PALETTE[place % len(PALETTE)]
            line = "-" if place == 0 else "--"
            axes.plot(rows["age"], rows["decay"], "os^Dv"[place % 5] + line, color=colour, label=label, markersize=5)
            if place == 0:  # bands of several lines would hide each other
                axes.fill_between(rows["age"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0,
                                  label=f"{label}, 95 %")  # fmt: skip
        if published and system in published:
            axes.axhline(published[system], color=RED, linestyle=":", label="the paper, without daily updates")
        axes.set_title(system, fontsize=10, weight="normal")
        axes.set(xlabel="days since it last learnt")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0, 0].set_ylim(*_within(panels[0, 0].get_ylim()))
    panels[0, 0].set_ylabel("lost against daily updates (%)")
    legend_below(figure, panels[0], 2)
    heading(figure, title)
    return figure


def schedule_costs(data: pl.DataFrame, title: str, published: Mapping[str, float] | None = None) -> Figure:
    """What each schedule costs over all days, a panel a metric and a row a system and schedule.

    Args:
        data: ``system``, ``schedule``, ``label``, ``metric``, ``decay``, ``low``, ``high`` (per cent of daily).
        title: the finding, computed by the caller.
        published: per cent that the paper reports without daily updates, by system.
    """
    names = data.select(name=pl.format("{}: {}", "system", "label"))["name"]
    data, rows = data.with_columns(names), names.unique(maintain_order=True).to_list()
    metrics = groups(data, "metric")
    size = (8.8, 0.4 * len(rows) + 1.9)
    figure, panels = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False)
    for axes, (metric, part) in zip(panels[0], metrics, strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        for row in part.iter_rows(named=True):
            place = rows.index(row["name"])
            if row["low"] is not None and np.isfinite(row["low"]):
                look = filled_where_clear(row, COLOURS.get(row["system"], GREY))
                axes.errorbar(row["decay"], place, xerr=reach(row, "decay"), fmt="o", capsize=3, **look)
            if published and row["schedule"] == "never" and row["system"] in published:
                axes.plot(published[row["system"]], place - 0.25, "D", color=RED, markersize=5, label="the paper")
        axes.set_xlim(*_within(axes.get_xlim()))
        axes.set_title(metric, fontsize=10, weight="normal")
        axes.set_xlabel("lost against daily updates (%)")
    panels[0, 0].set_yticks(range(len(rows)), rows, fontsize=9)
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.6)
    blank = {"markerfacecolor": "white", "color": GREY}
    panels[0, 0].plot([], [], "o", color=GREY, label="interval excludes zero")
    panels[0, 0].plot([], [], "o", **blank, label="interval holds zero")
    legend_below(figure, panels[0], 3)
    heading(figure, title)
    return figure


def loops(data: pl.DataFrame, title: str) -> Figure:
    """Days of systems that learn from their own log (solid) and from the market's (dotted): a panel a metric.

    Args:
        data: ``system``, ``learns`` (:data:`onesug_lite.feedback.OWN` or ``MARKET``), ``number`` (day, 1 the first),
            ``clicks`` (a session), ``effective`` (number of queries), ``head`` (share of showings).
        title: the finding, computed by the caller.
    """
    told = {"clicks": "clicks a session", "effective": "effective number of shown queries", "head": "showings of head"}
    figure, panels = plt.subplots(1, len(told), figsize=(9.2, 4.4))
    for axes, (column, label) in zip(panels, told.items(), strict=True):
        for system, part in groups(data, "system"):
            for learns, rows in groups(part, "learns"):
                name = "the market's own policy" if system == "market" else f"{system}, {learns}"
                axes.plot(rows["number"], rows[column], LOOKS[learns], color=COLOURS.get(system, GREY), label=name,
                          linewidth=1.5 if learns == MARKET else 2.5)  # fmt: skip
        axes.set_title(label, fontsize=10, weight="normal")
        axes.set(xlabel="day")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(bottom=0)
    percent_axis(panels[2].yaxis)
    legend_below(figure, panels, 2)
    heading(figure, title)
    return figure


def loop_costs(data: pl.DataFrame, title: str) -> Figure:
    """What learning from its own log costs each system in clicks a session.

    Args:
        data: ``system``, ``mean``, ``low``, ``high`` (own less market's, clicks a session).
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(7.2, 0.5 * len(data) + 1.7))
    axes.axvline(0, color=GREY, linewidth=1)
    for place, row in enumerate(data.iter_rows(named=True)):
        look = filled_where_clear(row, COLOURS.get(row["system"], GREY))
        axes.errorbar(row["mean"], place, xerr=reach(row), fmt="o", capsize=4, **look)
    axes.set_yticks(range(len(data)), data["system"].to_list())
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlabel("clicks a session: learning from its own log less from the market's")
    heading(figure, title)
    return figure


def _within(ends: tuple[float, float]) -> tuple[float, float]:
    """Ends of an axis, cut at 100 %: a ratio of two small numbers, or its interval, may run far beyond what it says."""
    return max(ends[0], -100.0), min(ends[1], 100.0)
