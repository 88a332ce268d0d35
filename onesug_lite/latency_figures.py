"""Figures of the latency chapter. Times differ from machine to machine; titles are computed from the run at hand."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from onesug_lite.drawing import BLUE, GREY, ORANGE, PALETTE, groups, heading, headline, legend_below, percent_axis
from onesug_lite.result_figures import LINES, MARKERS


def time_by_stage(data: pl.DataFrame, title: str) -> Figure:
    """Where each millisecond goes: one panel a system, a bar a stage, in the order of the path.

    Args:
        data: ``system``, ``stage``, ``milliseconds`` (mean a request).
        title: the finding, computed by the caller.
    """
    systems = groups(data, "system")
    heights = [len(rows) for _, rows in systems]
    figure, panels = plt.subplots(
        len(systems), 1, sharex=True, squeeze=False, figsize=(7.2, 0.27 * sum(heights) + 0.75 * len(systems) + 0.9),
        height_ratios=heights,
    )  # fmt: skip
    longest = float(data["milliseconds"].max())
    for place, (axes, (system, rows)) in enumerate(zip(panels[:, 0], systems, strict=True)):
        axes.barh(rows["stage"], rows["milliseconds"], color=PALETTE[place % 10])
        for at, value in enumerate(rows["milliseconds"]):
            axes.text(value, at, f" {value:.2f}", va="center", fontsize=9)
        axes.set_title(f"{system}: {rows['milliseconds'].sum():.1f} ms", fontsize=10)
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.15)
        axes.tick_params(axis="y", labelsize=9)
        axes.grid(axis="y", visible=False)
    panels[-1, 0].set_xlabel("milliseconds, mean of a request")
    heading(figure, title)
    return figure


def growth(data: pl.DataFrame, title: str) -> Figure:
    """How time grows, a panel for each thing that grows.

    Args:
        data: ``knob`` (a panel), ``label`` (a line), ``x``, ``milliseconds``.
        title: the finding, computed by the caller.
    """
    knobs = groups(data, "knob")
    rows = -(-len(knobs) // 2)
    figure, panels = plt.subplots(rows, min(2, len(knobs)), squeeze=False, figsize=(7.2, 2.7 * rows + 0.6))
    labels = data["label"].unique(maintain_order=True).to_list()
    for axes in panels.flat[len(knobs) :]:
        axes.set_visible(False)
    for axes, (knob, part) in zip(panels.flat, knobs, strict=False):
        for label, line in groups(part, "label"):
            at, line = labels.index(label), line.sort("x")
            look = {"color": PALETTE[at % 10], "marker": MARKERS[at % 10], "linestyle": LINES[at % 4]}
            axes.plot(line["x"], line["milliseconds"], label=label, **look)
        far = part["x"].min() > 0 and part["x"].max() / part["x"].min() > 30
        axes.set(xlabel=knob, ylabel="milliseconds", xscale="log" if far else "linear")
        if far and part["milliseconds"].max() / part["milliseconds"].min() > 30:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        ticks = sorted(set(part["x"].to_list()))
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        if part["label"].n_unique() > 1:
            axes.legend(fontsize=8)
    heading(figure, title)
    return figure


def predicted_against_measured(data: pl.DataFrame, title: str) -> Figure:
    """The cost model's milliseconds against the measured ones; on the line they agree.

    Args:
        data: ``label`` (a marker), ``measured``, ``predicted``, both in milliseconds.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(5.6, 4.6))
    for place, (label, rows) in enumerate(groups(data, "label")):
        look = {"color": PALETTE[place % 10], "marker": MARKERS[place % 10], "linestyle": ""}
        axes.plot(rows["measured"], rows["predicted"], label=label, **look)
    both = np.concatenate([data["measured"].to_numpy(), data["predicted"].to_numpy()])
    ends = [both.min() / 1.3, both.max() * 1.3]
    axes.plot(ends, ends, color=GREY, linewidth=1, zorder=0)
    axes.set(xlabel="measured (ms)", ylabel="predicted (ms)", xscale="log", yscale="log", xlim=ends, ylim=ends)
    ticks = [base * 10**power for power in range(-3, 5) for base in (1, 2, 5) if ends[0] < base * 10**power < ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    headline(axes, title)
    return figure


def reduction_by_hop(data: pl.DataFrame, published: float, title: str) -> Figure:
    """How much sooner the generator answers, over what a call to another service takes.

    Args:
        data: ``label`` (a line), ``hop`` (milliseconds), ``reduction`` (share of the cascade's time).
        published: the paper's reduction, drawn as a line across.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.0))
    for place, (label, rows) in enumerate(groups(data, "label")):
        color = (BLUE, *PALETTE[2:])[place % 9]
        axes.plot(rows["hop"], rows["reduction"], label=label, color=color, linestyle=LINES[place % 4], linewidth=2)
    axes.axhline(published, color=ORANGE, linewidth=1.5, linestyle=":", label="the paper")
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(xlabel="milliseconds of one call to another service", ylabel="sooner than the cascade by")
    axes.set_ylim(max(-1.0, float(data["reduction"].min())) - 0.05, 1.0)
    percent_axis(axes.yaxis)
    axes.legend(fontsize=9)
    headline(axes, title)
    return figure


def under_load(
    data: pl.DataFrame, bursts: Iterable[tuple[float, float]], marks: Iterable[tuple[float, str]], title: str
) -> Figure:
    """Response time and memory along a load run; bursts are shaded.

    Args:
        data: ``at`` (start of each part, seconds), ``response p50``, ``response p95``, ``response p99`` (milliseconds),
            ``megabytes``.
        bursts: start and end of each, in seconds.
        marks: seconds and name of what happened on the way, drawn as lines.
        title: the finding, computed by the caller.
    """
    figure, (times, memory) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.2), height_ratios=[2, 1])
    for place, q in enumerate((50, 95, 99)):
        look = {"color": PALETTE[(0, 2, 3)[place]], "linestyle": LINES[place], "drawstyle": "steps-post"}
        times.plot(data["at"], data[f"response p{q}"], label=f"p{q}", **look)
    memory.plot(data["at"], data["megabytes"], color=BLUE, drawstyle="steps-post")
    for axes in (times, memory):
        for place, (start, end) in enumerate(bursts):
            axes.axvspan(start, end, color=ORANGE, alpha=0.2, linewidth=0, label="burst" if place == 0 else None)
        for at, _ in marks:
            axes.axvline(at, color=GREY, linewidth=1.5, linestyle=":")
    for at, name in marks:
        memory.annotate(f" {name}", (at, 0.1), xycoords=("data", "axes fraction"), fontsize=9)
    times.set(ylabel="response (ms)", yscale="log")
    low, high = times.get_ylim()
    ticks = [base * 10**power for power in range(-3, 7) for base in (1, 2, 5) if low <= base * 10**power <= high]
    times.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    times.yaxis.set_minor_locator(NullLocator())
    memory.set(xlabel="seconds of the run", ylabel="resident (MB)")
    memory.set_ylim(0, float(data["megabytes"].max()) * 1.15)
    legend_below(figure, [times])
    heading(figure, title)
    return figure
