"""The book's figures: one function a figure, from a data frame to a matplotlib figure.

Every function takes a polars frame and computes its title from it, so that a title cannot claim what the data do not
show. :func:`save` writes the picture and, beside it, the numbers it was drawn from.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import polars.selectors as selectors
import seaborn as sns
from IPython.display import HTML
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
GREY = "#6b6b6b"
FONT = "DejaVu Sans"  # ships with matplotlib, so every machine draws the same letters
CHINESE_FONTS = (  # tried in this order before any other installed font
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Droid Sans Fallback",
)
BEHAVIOUR_NAMES = {
    "order": "order",
    "item_click": "item click",
    "query_click": "query click",
    "show": "shown only",
    "not_shown": "not shown",
}


def use_style() -> None:
    """Set the look of all figures: white ground, colour-blind palette, sizes that stay readable on a phone."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 4.0),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.family": FONT,
            "svg.hashsalt": "onesug",
        }
    )


def save(figure: Figure, data: pl.DataFrame, name: str, folder: str | Path) -> Figure:
    """Write ``<name>.png`` and ``<name>.csv`` into ``folder`` under temporary names, then rename."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = data.with_columns(pl.col(pl.List(pl.String)).list.join(" | ")) if len(data.columns) else data
    flat.write_csv(folder / f".{name}.csv", float_precision=6)
    os.replace(folder / f".{name}.csv", folder / f"{name}.csv")
    figure.savefig(folder / f".{name}.png", metadata={"Software": None})
    os.replace(folder / f".{name}.png", folder / f"{name}.png")
    return figure


def table(data: pl.DataFrame, wrap: bool = False) -> HTML:
    """A frame as a plain HTML table: no index, no types, three significant decimals, lists joined by a dot.

    Args:
        data: the frame.
        wrap: break long texts into lines, where the table would else be wider than the page.
    """
    lists = [name for name, kind in data.schema.items() if isinstance(kind, pl.List)]
    joined = data.with_columns(pl.col(name).list.eval(pl.element().cast(pl.String)).list.join(" · ") for name in lists)
    joined = joined.with_columns(selectors.integer().cast(pl.String).fill_null(""))  # pandas makes floats of them
    shape = {"index": False, "float_format": "{:.3f}".format, "na_rep": "", "border": 0}
    return HTML(joined.to_pandas().to_html(classes="wrap" if wrap else None, **shape))


class Labels(NamedTuple):
    """Texts that a figure can draw, and the font families to draw them with."""

    texts: list[str]
    family: list[str]


def legible(texts: Sequence[str]) -> Labels:
    """Labels in any script, without empty boxes where the figures' own font has no such letter.

    An installed font that has all missing letters stands in for them; DejaVu Sans goes on drawing the rest. Without
    one, Chinese is written in pinyin and one line on stderr says so. Texts that DejaVu Sans can draw stay as they are.

    Args:
        texts: the labels.
    """
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    lacking = letters - _letters(font_manager.findfont(FONT))
    if not lacking:
        return Labels(list(texts), [FONT])
    for family, file in _installed().items():
        if lacking <= _letters(file):
            return Labels(list(texts), [FONT, family])
    _say_once("no installed font has the Chinese letters of a figure, so they are drawn as pinyin")
    return Labels([transliterated(text) for text in texts], [FONT])


def transliterated(text: str) -> str:
    """Chinese read aloud: pinyin with tones, a blank between syllables; letters that cannot be drawn become "?"."""
    from pypinyin import Style, lazy_pinyin

    drawn = _letters(font_manager.findfont(FONT))

    def kept(other: str) -> str:
        return "".join(letter if letter.isspace() or letter in drawn else "?" for letter in other)

    return " ".join(" ".join(lazy_pinyin(text, style=Style.TONE, errors=kept)).split())


def _installed() -> dict[str, str]:
    """Families of the installed fonts with a file of each: those known to hold Chinese first, then by name."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):  # installed after matplotlib listed the fonts
        with suppress(OSError, RuntimeError, ValueError):
            font_manager.fontManager.addfont(file)
    upright = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: (e.style != "normal", str(e.weight), e.fname)):
        if not entry.name.startswith("Last Resort"):  # it has a box for every letter
            upright.setdefault(entry.name, entry.fname)
    rank = {name: place for place, name in enumerate(CHINESE_FONTS)}
    order = sorted(upright, key=lambda name: (rank.get(name, len(rank)), name))
    return {name: upright[name] for name in order}


@cache
def _letters(file: str) -> frozenset[str]:
    """The letters that a font file has; none if it cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _percent(axis) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


# ---------------------------------------------------------------- 01 sessions
def click_by_position(data: pl.DataFrame) -> Figure:
    """Click share by position.

    Args:
        data: ``position`` (1-16), ``shown``, ``clicked``.
    """
    share = data["clicked"] / data["shown"]
    figure, axes = plt.subplots()
    axes.bar(data["position"], share, color=BLUE)
    axes.set(xlabel="position in the list", ylabel="clicks per showing", xticks=data["position"].to_list())
    _percent(axes.yaxis)
    axes.grid(axis="x", visible=False)
    ratio = share[0] / max(share[-1], 1e-9)
    _title(axes, f"The first place is clicked {ratio:.0f} times as often as the last")
    return figure


def behaviour_funnel(data: pl.DataFrame) -> Figure:
    """How many candidates reach each behaviour level, on a log axis.

    Args:
        data: ``behaviour``, ``candidates``, ordered best first.
    """
    names = [BEHAVIOUR_NAMES[name] for name in data["behaviour"]]
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    bars = axes.barh(names, data["candidates"], color=[GREEN, GREEN, GREEN, BLUE, GREY][: len(names)])
    axes.bar_label(bars, labels=[f" {count:,}" for count in data["candidates"]])
    axes.set(xscale="log", xlabel="candidates in the log (log scale)")
    axes.set_xlim(right=float(data["candidates"].max()) * 8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    clicks = data.filter(pl.col("behaviour").is_in(["order", "item_click", "query_click"]))["candidates"].sum()
    _title(axes, f"{clicks / data['candidates'].sum():.1%} of what was considered was clicked")
    return figure


def query_frequency(data: pl.DataFrame) -> Figure:
    """Training clicks of each query against its rank, both logarithmic.

    Args:
        data: ``rank`` (1 = most clicked), ``clicks``.
    """
    clicks = data["clicks"].to_numpy()
    figure, axes = plt.subplots()
    axes.plot(data["rank"], clicks, color=BLUE, linewidth=2)
    for bound, name in ((100, "head: 100 clicks or more"), (10, "torso: 10 to 99")):
        axes.axhline(bound, color=GREY, linestyle="--", linewidth=1)
        axes.text(1, bound * 1.12, name, color=GREY, fontsize=9)
    axes.text(1, 1.12, "tail: under 10", color=GREY, fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="rank of the query", ylabel="clicks in training")
    tail = clicks < 10
    _title(
        axes,
        f"{tail.mean():.0%} of the queries are tail; they hold {clicks[tail].sum() / clicks.sum():.0%} of clicks",
    )
    return figure


# ---------------------------------------------------------------- 02 alignment, 03 semantic ids
def loss_curve(data: pl.DataFrame, what: str) -> Figure:
    """Training loss against step.

    Args:
        data: ``step``, ``loss``.
        what: the loss with its unit, for the axis.
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    axes.plot(data["step"], data["loss"], color=BLUE, alpha=0.35, linewidth=1)
    window = max(1, len(data) // 20)
    smooth = data["loss"].rolling_mean(window, min_samples=1)
    axes.plot(data["step"], smooth, color=BLUE, linewidth=2)
    axes.set(xlabel="training step", ylabel=what)
    axes.set_ylim(bottom=0)
    _title(axes, f"The loss falls from {data['loss'][0]:.2f} to {smooth[-1]:.2f}")
    return figure


def recall_curves(data: pl.DataFrame, title: str) -> Figure:
    """Recall@k of the clicked query, one line a system.

    Args:
        data: ``system``, ``k``, ``recall``, ``low``, ``high``.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots()
    for place, (name, rows) in enumerate(_groups(data, "system")):
        axes.plot(rows["k"], rows["recall"], marker="os^D"[place % 4], color=PALETTE[place], label=name)
        axes.fill_between(rows["k"], rows["low"], rows["high"], color=PALETTE[place], alpha=0.2)
    axes.set(xlabel="k, queries looked at", ylabel="recall@k of the clicked query", xscale="log")
    ticks = sorted(set(data["k"].to_list()))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    _percent(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.legend()
    _title(axes, title)
    return figure


def codebook(data: pl.DataFrame) -> Figure:
    """Use, entropy and collisions of the codebook by level.

    Args:
        data: the report of :func:`onesug_lite.rqvae.codebook_report`.
    """
    figure, panels = plt.subplots(1, 3, figsize=(8.4, 3.2), sharex=True)
    level = data["level"].to_list()
    values = (
        ("codes in use", data["share_used"], BLUE),
        ("entropy / maximum", data["entropy_bits"] / data["max_entropy_bits"], GREEN),
        ("queries sharing a SID", data["collisions"], ORANGE),
    )
    for axes, (name, series, colour) in zip(panels, values, strict=True):
        bars = axes.bar(level, series, color=colour)
        axes.bar_label(bars, labels=[f"{value:.0%}" for value in series], fontsize=9)
        axes.set(title=name, ylim=(0, 1.12), xticks=level)
        axes.title.set_fontsize(10)
        _percent(axes.yaxis)
        axes.grid(axis="x", visible=False)
    figure.supxlabel("level (for sharing: SID shortened to this level)", fontsize=10)
    last = data["collisions"][-1]
    _heading(figure, f"At full length {last:.1%} of the queries share their SID with another")
    return figure


# ---------------------------------------------------------------- 05 preference
def reward_weights(data: pl.DataFrame) -> Figure:
    """Pair weight of the nine pair types.

    Args:
        data: ``chosen``, ``rejected``, ``weight``.
    """
    table = data.to_pandas().pivot(index="chosen", columns="rejected", values="weight")
    rows = data["chosen"].unique(maintain_order=True).to_list()
    columns = data["rejected"].unique(maintain_order=True).to_list()
    table = table.loc[rows, columns]
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    sns.heatmap(table, annot=True, fmt=".2f", cmap="cividis", cbar_kws={"label": "weight 1 / (r_w - r_l)"}, ax=axes)
    axes.set(xlabel="rejected", ylabel="chosen")
    axes.tick_params(axis="y", rotation=0)
    ratio = table.to_numpy().max() / table.to_numpy().min()
    _title(axes, f"The closest pair weighs {ratio:.1f} times the widest")
    return figure


def hinge_gradient(data: pl.DataFrame) -> Figure:
    """Loss and its slope against the margin, for each reading of the hinge.

    Args:
        data: ``hinge``, ``margin`` (chosen minus rejected implicit reward), ``loss``, ``slope``.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharex=True)
    for place, (name, rows) in enumerate(_groups(data, "hinge")):
        for axes, column in zip(panels, ("loss", "slope"), strict=True):
            axes.plot(
                rows["margin"],
                rows[column],
                label=name,
                color=PALETTE[place],
                linestyle=["-", "--", "-.", ":"][place % 4],
                linewidth=2,
            )
    for axes, name in zip(panels, ("loss", "slope of the loss"), strict=True):
        axes.axvspan(float(data["margin"].min()), 0, color=RED, alpha=0.07)
        axes.set(xlabel="implicit reward, chosen minus rejected", ylabel=name)
    panels[0].legend(title="hinge", fontsize=9)
    wrong = data.filter((pl.col("hinge").str.contains("as printed")) & (pl.col("margin") < 0))
    worst = float(wrong["slope"].abs().max()) if len(wrong) else float("nan")
    _heading(figure, f"As printed, a wrongly ranked pair (shaded) gets a slope of {worst:.2f}")
    return figure


def preference_curves(data: pl.DataFrame) -> Figure:
    """What moves while the preference stage trains.

    Args:
        data: ``step``, ``margin``, ``chosen_log_ratio``.
    """
    window = max(1, len(data) // 15)
    smooth = data.with_columns(pl.col("margin", "chosen_log_ratio").rolling_mean(window, min_samples=1))
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    axes.plot(smooth["step"], smooth["margin"], color=BLUE, linewidth=2, label="margin, chosen minus rejected")
    axes.plot(
        smooth["step"],
        smooth["chosen_log_ratio"],
        color=ORANGE,
        linestyle="--",
        linewidth=2,
        label="chosen, log-ratio to the seed model",
    )
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(xlabel="training step", ylabel="nats")
    axes.legend(fontsize=9)
    drift = smooth["chosen_log_ratio"][-1]
    word = "less" if drift < 0 else "more"
    _title(
        axes,
        f"The margin ends at {smooth['margin'][-1]:+.2f}; chosen queries become {word} likely ({drift:+.2f})",
    )
    return figure


# ---------------------------------------------------------------- 06 results
def forest(data: pl.DataFrame, title: str) -> Figure:
    """Each system's metric with its interval.

    Args:
        data: ``label``, ``metric``, ``mean``, ``low``, ``high`` in per cent; rows in the order to draw.
        title: the finding, computed by the caller.
    """
    metrics = data["metric"].unique(maintain_order=True).to_list()
    labels = data["label"].unique(maintain_order=True).to_list()
    figure, panels = plt.subplots(1, len(metrics), figsize=(8.6, 0.55 * len(labels) + 1.6), sharey=True, squeeze=False)
    for axes, metric in zip(panels[0], metrics, strict=True):
        for place, label in enumerate(labels):
            row = data.filter((pl.col("metric") == metric) & (pl.col("label") == label)).row(0, named=True)
            reach = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axes.errorbar(row["mean"], place, xerr=reach, fmt="o", color=PALETTE[place % 10], capsize=4)
        axes.set(xlabel=f"{metric} (%)", yticks=range(len(labels)))
        axes.set_yticks(range(len(labels)), labels)
    panels[0][0].invert_yaxis()
    _heading(figure, title)
    return figure


def bands(data: pl.DataFrame, title: str) -> Figure:
    """A metric by frequency band of the clicked query, bars grouped by system.

    Args:
        data: ``label``, ``band`` (head, torso, tail), ``mean``, ``low``, ``high`` in per cent.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots(figsize=(7.8, 4.2))
    names = data["band"].unique(maintain_order=True).to_list()
    systems = _groups(data, "label")
    width = 0.8 / len(systems)
    for place, (label, rows) in enumerate(systems):
        middle = np.arange(len(names)) + (place - (len(systems) - 1) / 2) * width
        reach = np.abs(np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]]))
        axes.bar(
            middle,
            rows["mean"],
            width,
            yerr=reach,
            label=label,
            color=PALETTE[place],
            error_kw={"capsize": 2, "linewidth": 1},
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="training clicks of the clicked query", ylabel="MRR@16 (%)")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    _title(axes, title)
    return figure


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
    _heading(figure, f"{len(inside)} of {len(rows)} lie inside; the farthest out is {names[far]}, at {ratio}")
    return figure


def click_habits(data: pl.DataFrame) -> Figure:
    """Where in the list clicks fall, and after how many characters.

    Args:
        data: ``habit`` (two of them, each a panel; positions first), ``value`` (whole numbers from 1), ``share`` of the
            clicks, which sums to 1 in each panel.
    """
    habits = _groups(data, "habit")
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
    for axes, (name, rows), colour in zip(panels, habits, (BLUE, GREEN), strict=True):
        axes.bar(rows["value"], rows["share"], color=colour)
        axes.set(xlabel=name, xticks=[tick for tick in rows["value"] if tick % 2 or len(rows) <= 12])
        _percent(axes.yaxis)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("share of clicks")
    first = habits[0][1].filter(pl.col("value") == 1)["share"].sum()
    length = habits[1][1].sort("value")
    half = length.filter(length["share"].cum_sum() >= 0.5 * length["share"].sum())["value"][0]
    _heading(figure, f"The first place takes {first:.0%} of clicks; half of them come within {half} characters")
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
    _title(axes, f"The curve is {word} published ones (slope {exponent:.2f}); {once:.0%} of queries occur once")
    return figure


def drift(data: pl.DataFrame, first_test: int) -> Figure:
    """Shares of searches that move over the days of a log.

    Args:
        data: ``panel`` (two of them), ``line``, ``day`` from 1, ``share``; the lines of a panel in the order to draw.
        first_test: the first test day.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8))
    findings = []
    for axes, (name, part) in zip(panels, _groups(data, "panel"), strict=True):
        reach = []
        for number, (line, rows) in enumerate(_groups(part, "line")):
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
    _heading(figure, f"Demand drifts over the days: {' of searches, '.join(findings)}")
    return figure


# ---------------------------------------------------------------- m3 Chinese
def prefix_lengths(data: pl.DataFrame) -> Figure:
    """How much was typed before the click, by script.

    Args:
        data: ``script`` (characters, pinyin), ``length`` (typed characters or letters), ``clicks``.
    """
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    half = {}
    for place, (script, rows) in enumerate(_groups(data.sort("script", "length"), "script")):
        share = rows["clicks"] / rows["clicks"].sum()
        axes.bar(rows["length"].to_numpy() + 0.4 * place - 0.2, share, 0.4, color=PALETTE[place], label=script)
        half[script] = rows.filter(share.cum_sum() >= 0.5)["length"][0]
    axes.set(
        xlabel="typed when the click came (characters, or letters of pinyin)", ylabel="share of the script's clicks"
    )
    axes.set_xticks(range(1, data["length"].max() + 1))
    axes.grid(axis="x", visible=False)
    _percent(axes.yaxis)
    axes.legend()
    names = {"characters": "characters", "pinyin": "letters of pinyin"}
    _title(axes, f"Half the clicks come within {' or '.join(f'{n} {names[script]}' for script, n in half.items())}")
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
    _title(axes, finding).set_fontfamily(labels.family)
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
    for axes, (name, rows) in zip(panels[:, 0], _groups(data, "panel"), strict=True):
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
    _heading(figure, title)
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
    _title(
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


def _title(axes: Axes, text: str) -> Text:
    """A finding as the title, on as many lines as it needs."""
    return axes.set_title("\n".join(textwrap.wrap(text, int(axes.figure.get_figwidth() * 8.6))))


def _heading(figure: Figure, text: str) -> None:
    """The same for a figure of several panels."""
    lines = "\n".join(textwrap.wrap(text, int(figure.get_figwidth() * 8.6)))
    figure.suptitle(lines, x=0.01, ha="left", weight="bold", fontsize=12)


def _groups(data: pl.DataFrame, column: str) -> list[tuple[str, pl.DataFrame]]:
    parts: Mapping = data.partition_by(column, maintain_order=True, as_dict=True)
    return [(key[0], rows) for key, rows in parts.items()]
