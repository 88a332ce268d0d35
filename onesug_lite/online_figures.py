"""Figures of the chapter on experiments, and what the paper reports of its own.

Every function takes a polars frame and a title, the finding, which the caller computes from the same frame.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy import stats

from onesug_lite.claims import load_claims
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
    headline,
    legend_below,
    percent_axis,
    reach,
)

DESIGNS = ("common random numbers", "same searches, own luck", "independent shoppers", "one half of the shoppers each")


def published_gains() -> pl.DataFrame:
    """What the paper reports of its experiments on live traffic, as the ledger's claims hold it.

    Returns:
        ``first``, ``second`` (names of our variants), ``where`` (``all``, or a slice of the prefixes), ``metric`` (of
        the market's experiments) and ``gain`` of first on second, in per cent.
    """
    rows = [
        (part["first"], part["second"], part.get("where", "all"), metric, float(gain))
        for section in load_claims()["claims"].values()
        for claim in section
        for part in claim.get("published", ())
        for metric, gain in part["gains"].items()
    ]
    return pl.DataFrame(rows, schema=["first", "second", "where", "metric", "gain"], orient="row")


def online_gains(data: pl.DataFrame, title: str) -> Figure:
    """What one system gains on another in the market, a panel a pair and a row a metric.

    Args:
        data: ``pair``, ``metric``, ``better`` (1: more is better, -1: less is), ``mean``, ``low``, ``high`` with every
            shopper paired with itself and ``clear`` (whether the difference is beyond chance), ``split_mean``,
            ``split_low``, ``split_high`` of a split test, and ``published`` (null where there is none), all in per
            cent; null where there is too little to say.
        title: the finding, computed by the caller.
    """
    pairs, metrics = groups(data, "pair"), data["metric"].unique(maintain_order=True).to_list()
    columns = min(len(pairs), 2)
    lines = -(-len(pairs) // columns)
    size = (8.8, lines * (0.36 * len(metrics) + 1.2) + 1.1)
    figure, panels = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    for axes in panels.ravel()[len(pairs) :]:
        axes.set_visible(False)
    for axes, (pair, rows) in zip(panels.ravel(), pairs, strict=False):
        axes.axvline(0, color=GREY, linewidth=1)
        for row in rows.iter_rows(named=True):
            place = metrics.index(row["metric"])
            if row["split_low"] is not None:
                axes.plot([row["split_low"], row["split_high"]], [place + 0.25] * 2, color="#c0c0c0", linewidth=1.5)
                axes.plot(row["split_mean"], place + 0.25, ".", color=GREY, label="split test, 95 % (may run out)")
            if row["low"] is not None:
                ahead = row["better"] * row["mean"] > 0
                colour = (BLUE if ahead else RED) if row["clear"] else GREY
                name = {BLUE: "paired, better", RED: "paired, worse", GREY: "paired, may be nothing"}[colour]
                face = colour if row["clear"] else "white"
                look = {"color": colour, "markerfacecolor": face, "capsize": 3, "label": name}
                axes.errorbar(row["mean"], place, xerr=reach(row), fmt="o", **look)
            if row["published"] is not None:
                axes.plot(row["published"], place - 0.25, "D", color=ORANGE, markersize=5, label="the paper")
        told = rows.select("low", "high", "published").to_numpy().astype(float).ravel()
        far = 1.15 * np.nanmax(np.abs(told), initial=0.0) or 1.0
        axes.set(xlim=(-far, far), xlabel="difference (%)")
        axes.set_title(pair, fontsize=10, weight="normal")
        axes.set_yticks(range(len(metrics)), metrics)
        axes.set_ylim(len(metrics) - 0.5, -0.6)
    legend_below(figure, panels.ravel()[: len(pairs)], 3)
    heading(figure, title)
    return figure


def variance_left(data: pl.DataFrame, title: str) -> Figure:
    """Variance of a difference under each way of comparing, as a share of that of independent shoppers.

    Args:
        data: ``metric``, ``design`` (one of :data:`DESIGNS`), ``variance`` (null where there is too little to say).
        title: the finding, computed by the caller.
    """
    metrics = data["metric"].unique(maintain_order=True).to_list()
    figure, axes = plt.subplots(figsize=(7.6, 0.42 * len(metrics) + 2.0))
    axes.axvline(1, color=GREY, linewidth=1)
    for place, design in enumerate(DESIGNS):
        rows = data.filter(pl.col("design") == design).drop_nulls("variance")
        at = [metrics.index(metric) for metric in rows["metric"]]
        axes.plot(rows["variance"], at, "os^D"[place], color=PALETTE[place], markersize=7, label=design)
    axes.set_yticks(range(len(metrics)), metrics)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="variance of the difference, independent shoppers = 1 (log scale)")
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if tick >= (data["variance"].min() or 1) / 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    legend_below(figure, [axes], 2)
    heading(figure, title)
    return figure


def same_policy(data: pl.DataFrame, title: str) -> Figure:
    """P-values of tests of a policy against itself: their share below each level, with the band that chance allows.

    Args:
        data: ``metric``, ``p``; a row a test.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    runs = min(len(rows) for _, rows in groups(data, "metric"))
    line, band = np.linspace(0, 1, 101), stats.kstwo.ppf(0.95, runs)
    axes.fill_between(line, np.maximum(line - band, 0), np.minimum(line + band, 1), color="#dddddd", linewidth=0,
                      label="95 % band of Kolmogorov and Smirnov")  # fmt: skip
    axes.plot(line, line, color=GREY, linewidth=1, label="uniform")
    for place, (metric, rows) in enumerate(groups(data, "metric")):
        p = np.sort(rows["p"].to_numpy())
        axes.step(np.r_[0, p, 1], np.r_[0, np.arange(1, p.size + 1) / p.size, 1], where="post", color=PALETTE[place],
                  linestyle=("-", "--", "-.", ":")[place % 4], linewidth=2, label=metric)  # fmt: skip
    axes.set(xlabel="p-value", ylabel="share of tests at or below it", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=9, loc="lower right")
    percent_axis(axes.yaxis)
    headline(axes, title)
    return figure


def false_alarms(data: pl.DataFrame, title: str, level: float = 0.05) -> Figure:
    """Share of tests of a policy against itself that have found something by each look.

    Args:
        data: ``guard``, ``look`` (1 is the first), ``alarms``, ``low``, ``high`` (shares).
        title: the finding, computed by the caller.
        level: what was promised.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.0))
    axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2, label=f"promised: {level:.0%}")
    for place, (guard, rows) in enumerate(groups(data, "guard")):
        colour = (RED, BLUE, GREEN)[place % 3]
        axes.plot(rows["look"], rows["alarms"], "os^"[place % 3], linestyle="-", color=colour, linewidth=2, label=guard)
        axes.fill_between(rows["look"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="evening on which somebody has looked and could stop", ylabel="tests with a false finding")
    axes.set_xticks(data["look"].unique().sort().to_list())
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MultipleLocator(0.05))
    percent_axis(axes.yaxis)
    axes.legend(fontsize=9, loc="upper left")
    headline(axes, title)
    return figure


def prefix_gains(data: pl.DataFrame, title: str) -> Figure:
    """Gain of clicks per request by how often the prefix occurs in training.

    Args:
        data: ``pair``, ``band`` (head, torso, tail), ``mean``, ``low``, ``high`` and ``published`` in per cent, null
            where there is none or too little to say.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(7.6, 4.2))
    bands, pairs = data["band"].unique(maintain_order=True).to_list(), groups(data, "pair")
    axes.axhline(0, color=GREY, linewidth=1)
    for number, (pair, rows) in enumerate(pairs):
        shift = 0.7 * ((number + 0.5) / len(pairs) - 0.5)
        for row in rows.iter_rows(named=True):
            place = bands.index(row["band"]) + shift
            if row["low"] is not None:
                look = filled_where_clear(row, PALETTE[number])
                axes.errorbar(
                    place, row["mean"], yerr=reach(row), fmt="os^Dv"[number % 5], capsize=4, label=pair, **look
                )
            if row["published"] is not None:
                axes.plot(place - 0.07, row["published"], "D", color=ORANGE, markeredgecolor="black", markersize=6,
                          label="the paper")  # fmt: skip
    axes.set_xticks(range(len(bands)), bands)
    axes.set(xlabel="how often the prefix occurs in the training log", ylabel="gain of clicks per request (%)")
    axes.grid(axis="x", visible=False)
    legend_below(figure, [axes], 1)
    headline(axes, title)
    return figure


def judgements(data: pl.DataFrame, title: str) -> Figure:
    """Good, same and bad of each pair of systems.

    Args:
        data: ``pair``, ``verdict`` (good, same, bad), ``share``; three rows a pair, in this order.
        title: the finding, computed by the caller.
    """
    pairs = groups(data, "pair")
    figure, axes = plt.subplots(figsize=(7.8, 0.62 * len(pairs) + 1.8))
    colours = {"good": BLUE, "same": "#d9d9d9", "bad": ORANGE}
    for place, (_, rows) in enumerate(pairs):
        left = 0.0
        for row in rows.iter_rows(named=True):
            axes.barh(place, row["share"], left=left, color=colours[row["verdict"]], label=row["verdict"], height=0.7)
            if row["share"] > 0.05:
                ink = "black" if row["verdict"] == "same" else "white"
                axes.text(left + row["share"] / 2, place, f"{row['share']:.0%}", ha="center", va="center", color=ink)
            left += row["share"]
    axes.set_yticks(range(len(pairs)), [pair for pair, _ in pairs])
    axes.invert_yaxis()
    axes.set(xlabel="share of requests", xlim=(0, 1))
    percent_axis(axes.xaxis)
    axes.grid(axis="y", visible=False)
    legend_below(figure, [axes], 3)
    heading(figure, title)
    return figure
