"""Figures of the market's chapters: what its log looks like beside published ones, and what there is to gain in it.

Every function takes a polars frame and, unless a title is passed in, computes its title from it.
"""

from __future__ import annotations

from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from onesug_lite.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, groups, heading, headline, legible, percent_axis


# ---------------------------------------------------------------- m1 data card
def published_spans(data: pl.DataFrame) -> Figure:
    """Our value of each statistic beside the span of published ones, both as multiples of the span's middle.

    Args:
        data: ``statistic``, ``ours``, ``low``, ``high``, all above 0, and ``verdict`` (below, inside, above).
    """
    middle = (pl.col("low") * pl.col("high")).sqrt()
    rows = data.with_columns(ratio=pl.col("ours") / middle, start=pl.col("low") / middle, end=pl.col("high") / middle)
    rows = rows.sort("ratio", "statistic").with_row_index("height")
    names = [name.replace("_", " ") for name in rows["statistic"]]
    figure, axes = plt.subplots(figsize=(8.4, 0.3 * len(rows) + 1.7))
    axes.axvline(1, color=GREY, linewidth=1, linestyle=":")
    length = rows["end"] - rows["start"]
    axes.barh(rows["height"], length, 0.5, left=rows["start"], color="#c9c9c9", label="published span")
    axes.plot(np.ones(len(rows)), rows["height"], "|", color=GREY, markersize=9, markeredgewidth=2)
    inside = rows.filter(pl.col("verdict") == "inside")
    outside = rows.filter(pl.col("verdict") != "inside")
    axes.plot(inside["ratio"], inside["height"], "o", color=BLUE, label="ours, inside")
    axes.plot(outside["ratio"], outside["height"], "D", color=ORANGE, label="ours, outside")
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
    for row in rows.iter_rows(named=True):
        span = f"{row['low']:g}" if row["low"] == row["high"] else f"{row['low']:g} to {row['high']:g}"
        axes.text(1.02, row["height"], f"{row['ours']:.3g}", **beside)
        axes.text(1.13, row["height"], span, color=GREY, **beside)
    for place, name in ((1.02, "ours"), (1.13, "published")):
        axes.text(place, len(rows), name, weight="bold", **beside)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(rows["height"], names, fontsize=9)
    axes.set(xlabel="multiple of the middle of the published span (log scale)", ylim=(-0.7, len(rows) - 0.3))
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3, frameon=False)
    far = int(np.abs(np.log(rows["ratio"].to_numpy())).argmax())
    ratio = f"{rows['ratio'][far]:.2g} times its middle"
    heading(figure, f"{len(inside)} of {len(rows)} lie inside; the farthest out is {names[far]}, at {ratio}")
    return figure


def click_habits(data: pl.DataFrame) -> Figure:
    """Where in the list clicks fall, and after how many characters.

    Args:
        data: ``habit`` (two of them, each a panel; positions first), ``value`` (whole numbers from 1), ``share`` of the
            clicks, which sums to 1 in each panel.
    """
    habits = groups(data, "habit")
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for axes, (name, rows), colour in zip(panels, habits, (BLUE, GREEN), strict=True):
        axes.bar(rows["value"], rows["share"], color=colour)
        axes.set(xlabel=name, xticks=[tick for tick in rows["value"] if tick % 2 or len(rows) <= 12])
        percent_axis(axes.yaxis)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("share of clicks")
    first = habits[0][1].filter(pl.col("value") == 1)["share"].sum()
    length = habits[1][1].sort("value")
    half = length.filter(length["share"].cum_sum() >= 0.5 * length["share"].sum())["value"][0]
    heading(figure, f"The first place takes {first:.0%} of clicks; half of them come within {half} characters")
    return figure


def rank_frequency(data: pl.DataFrame, exponent: float, low: float, high: float) -> Figure:
    """Searches of each query against its rank, both logarithmic, beside the slopes of published logs.

    Args:
        data: ``rank`` (1 = most searched), ``searches``.
        exponent: of our log between ranks 10 and 1000.
        low: smallest published exponent.
        high: largest one.
    """
    rank, searches = data["rank"].to_numpy(), data["searches"].to_numpy()
    figure, axes = plt.subplots()
    axes.plot(rank, searches, color=BLUE, linewidth=2, label="the market's queries")
    at = np.geomspace(10, 1000, 50)
    flat, steep = (np.interp(100, rank, searches) * (at / 100) ** -power for power in (low, high))
    axes.fill_between(at, flat, steep, color=ORANGE, alpha=0.3, label=f"published slopes, {low:g} to {high:g}")
    for line, style in ((flat, "--"), (steep, ":")):
        axes.plot(at, line, color=ORANGE, linestyle=style, linewidth=1.5)
    axes.set(xscale="log", yscale="log", xlabel="rank of the query", ylabel="searches", ylim=(0.8, None))
    axes.legend()
    once = (searches == 1).mean()
    word = "flatter than" if exponent < low else "steeper than" if exponent > high else "as steep as"
    headline(axes, f"The curve is {word} published ones (slope {exponent:.2f}); {once:.0%} of queries occur once")
    return figure


def drift(data: pl.DataFrame, first_test: int) -> Figure:
    """Shares of searches that move over the days of a log.

    Args:
        data: ``panel`` (two of them), ``line``, ``day`` from 1, ``share``; the lines of a panel in the order to draw.
        first_test: the first test day.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8))
    findings = []
    for axes, (name, part) in zip(panels, groups(data, "panel"), strict=True):
        reach = []
        for number, (line, rows) in enumerate(groups(part, "line")):
            style = ["-", "--", "-.", ":"][number % 4]
            axes.plot(rows["day"], rows["share"], color=PALETTE[number], linestyle=style, linewidth=2, label=line)
            low, high = float(rows["share"].min()), float(rows["share"].max())
            reach.append((high - low, f"{line} from {low:.1%} to {high:.1%}"))
        findings.append(max(reach)[1])
        axes.axvspan(first_test - 0.5, part["day"].max() + 0.5, color=GREY, alpha=0.2, linewidth=0, label="test days")
        axes.set(xlabel="day", title=name, ylim=(0, float(part["share"].max()) * 1.6))
        axes.title.set_fontsize(10)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.legend(fontsize=8, loc="upper left", ncols=2)
    panels[0].set_ylabel("share of searches")
    heading(figure, f"Demand drifts over the days: {' of searches, '.join(findings)}")
    return figure


# ---------------------------------------------------------------- m3 Chinese
def prefix_lengths(data: pl.DataFrame) -> Figure:
    """How much was typed before the click, by script.

    Args:
        data: ``script`` (characters, pinyin), ``length`` (typed characters or letters), ``clicks``.
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    half = {}
    for place, (script, rows) in enumerate(groups(data.sort("script", "length"), "script")):
        share = rows["clicks"] / rows["clicks"].sum()
        axes.bar(rows["length"].to_numpy() + 0.4 * place - 0.2, share, 0.4, color=PALETTE[place], label=script)
        half[script] = rows.filter(share.cum_sum() >= 0.5)["length"][0]
    axes.set(
        xlabel="typed when the click came (characters, or letters of pinyin)", ylabel="share of the script's clicks"
    )
    axes.set_xticks(range(1, data["length"].max() + 1))
    axes.grid(axis="x", visible=False)
    percent_axis(axes.yaxis)
    axes.legend()
    names = {"characters": "characters", "pinyin": "letters of pinyin"}
    headline(axes, f"Half the clicks come within {' or '.join(f'{n} {names[script]}' for script, n in half.items())}")
    return figure


def typed_prefixes(data: pl.DataFrame, query: str, most: int = 12) -> Figure:
    """What had been typed when one query was clicked.

    Args:
        data: ``prefix``, ``script`` (characters, pinyin), ``clicks`` on the query after it, the most first.
        query: the query.
        most: prefixes drawn.
    """
    drawn = data.head(most)
    labels = legible([query, *drawn["prefix"]])
    figure, axes = plt.subplots(figsize=(7.2, 0.28 * len(drawn) + 1.4))
    for place, script in enumerate(sorted(data["script"].unique())):
        rows = drawn.with_row_index().filter(pl.col("script") == script)
        axes.barh(rows["index"], rows["clicks"], color=PALETTE[place], label=script)
    axes.set_yticks(range(len(drawn)), labels.texts[1:], fontfamily=labels.family)
    axes.set(xlabel="clicks", ylabel="typed")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")
    share = data.filter(pl.col("script") == "pinyin")["clicks"].sum() / data["clicks"].sum()
    finding = f"{len(data)} different prefixes led to {labels.texts[0]}; {share:.0%} of the clicks followed pinyin"
    headline(axes, finding).set_fontfamily(labels.family)
    return figure


# ---------------------------------------------------------------- m2 headroom
def headroom(data: pl.DataFrame, title: str) -> Figure:
    """What rankings gain over perfect imitation of the log, a panel a metric and a row a world.

    Args:
        data: ``panel`` (name of the gain, with its unit), ``world``, ``bias``, ``candidates`` (two kinds, filled and
            hollow), ``gain``, ``low``, ``high``; everything in the order to draw.
        title: the finding, computed by the caller.
    """
    worlds, biases, kinds = (
        data[name].unique(maintain_order=True).to_list() for name in ("world", "bias", "candidates")
    )
    names = data["panel"].unique(maintain_order=True).to_list()
    figure, panels = plt.subplots(len(names), 1, figsize=(6.8, 3.3 * len(names) + 0.9), squeeze=False)
    for axes, (name, rows) in zip(panels[:, 0], groups(data, "panel"), strict=True):
        for row in rows.iter_rows(named=True):
            number, hollow = biases.index(row["bias"]), row["candidates"] == kinds[-1]
            height = worlds.index(row["world"]) + 0.24 * (number - (len(biases) - 1) / 2)
            reach = [[row["gain"] - row["low"]], [row["high"] - row["gain"]]]
            look = {"color": PALETTE[number], "marker": "os^D"[number], "markersize": 7, "capsize": 3}
            axes.errorbar(row["gain"], height, xerr=reach, markerfacecolor="white" if hollow else None, **look)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(range(len(worlds)), worlds)
        axes.set(xlabel=name, ylim=(len(worlds) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        for edge in range(1, len(worlds)):
            axes.axhline(edge - 0.5, color="#d9d9d9", linewidth=0.8)
    _legend(figure, biases, kinds)
    heading(figure, title)
    return figure


def reliability(data: pl.DataFrame) -> Figure:
    """How often what was told to be likely came true, both axes logarithmic.

    Args:
        data: ``told``, ``came``, ``low``, ``high``, ``pairs``, as :func:`data_synth.headroom.calibration` gives them.
    """
    rows = data.filter(pl.col("came") > 0)
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    ends = [float(data["told"].min()) / 2, 1.0]
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
    reach = [rows["came"] - rows["low"], rows["high"] - rows["came"]]
    axes.errorbar(rows["told"], rows["came"], yerr=reach, fmt="o", color=BLUE, capsize=3, label="with 95 % interval")
    axes.set(xscale="log", yscale="log", xlabel="probability that the oracle told", ylabel="share that was in mind")
    axes.legend()
    inside = ((data["low"] <= data["told"]) & (data["told"] <= data["high"])).sum()
    worst = float((rows["came"] / rows["told"]).log().abs().max())
    headline(
        axes,
        f"{inside} of {len(data)} bins agree within chance; the farthest is off by a factor of {np.exp(worst):.2f}",
    )
    return figure


def _legend(figure: Figure, biases: list[str], kinds: list[str]) -> None:
    """Colours and markers of the levels of position bias, and below them filled and hollow for the kinds."""
    look = {"linestyle": "", "markersize": 7}
    above = [
        Line2D([], [], color=PALETTE[number], marker="os^D"[number], label=bias, **look)
        for number, bias in enumerate(biases)
    ]
    below = [
        Line2D(
            [], [], color=GREY, marker="o", markerfacecolor="white" if kind == kinds[-1] else GREY, label=kind, **look
        )
        for kind in kinds
    ]
    columns = [mark for pair in zip_longest(above, below) for mark in pair if mark is not None]
    place = {"loc": "outside lower center", "ncols": max(len(above), len(below)), "fontsize": 9, "frameon": False}
    figure.legend(handles=columns, **place)
