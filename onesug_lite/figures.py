"""The book's figures, one function a figure: from a data frame to a matplotlib figure.

Every function takes a polars frame and computes its title from it, so that a title cannot claim what the data do not
show. Here are those of the method's chapters; ``market_figures`` holds the market's, ``result_figures`` those drawn
from a grid's records, and both can be called by their names here as well, as can what ``drawing`` offers.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import polars as pl
import seaborn as sns
from matplotlib.figure import Figure

from onesug_lite.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, RED, groups, heading, headline, percent_axis
from onesug_lite.drawing import legible as legible
from onesug_lite.drawing import save as save
from onesug_lite.drawing import table as table
from onesug_lite.drawing import transliterated as transliterated
from onesug_lite.drawing import use_style as use_style
from onesug_lite.market_figures import click_habits as click_habits
from onesug_lite.market_figures import drift as drift
from onesug_lite.market_figures import headroom as headroom
from onesug_lite.market_figures import prefix_lengths as prefix_lengths
from onesug_lite.market_figures import published_spans as published_spans
from onesug_lite.market_figures import rank_frequency as rank_frequency
from onesug_lite.market_figures import reliability as reliability
from onesug_lite.market_figures import typed_prefixes as typed_prefixes
from onesug_lite.result_figures import bands as bands
from onesug_lite.result_figures import budget_curves as budget_curves
from onesug_lite.result_figures import differences as differences
from onesug_lite.result_figures import forest as forest
from onesug_lite.result_figures import paper_beside_ours as paper_beside_ours
from onesug_lite.result_figures import part_curves as part_curves
from onesug_lite.result_figures import replay_against_log as replay_against_log
from onesug_lite.result_figures import training_watch as training_watch
from onesug_lite.result_figures import waterfall as waterfall

BEHAVIOUR_NAMES = {
    "order": "order",
    "item_click": "item click",
    "query_click": "query click",
    "show": "shown only",
    "not_shown": "not shown",
}


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
    percent_axis(axes.yaxis)
    axes.grid(axis="x", visible=False)
    ratio = share[0] / max(share[-1], 1e-9)
    headline(axes, f"The first place is clicked {ratio:.0f} times as often as the last")
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
    headline(axes, f"{clicks / data['candidates'].sum():.1%} of what was considered was clicked")
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
    headline(
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
    headline(axes, f"The loss falls from {data['loss'][0]:.2f} to {smooth[-1]:.2f}")
    return figure


def recall_curves(data: pl.DataFrame, title: str) -> Figure:
    """Recall@k of the clicked query, one line a system.

    Args:
        data: ``system``, ``k``, ``recall``, ``low``, ``high``.
        title: the finding, computed by the caller.
    """
    figure, axes = plt.subplots()
    for place, (name, rows) in enumerate(groups(data, "system")):
        axes.plot(rows["k"], rows["recall"], marker="os^D"[place % 4], color=PALETTE[place], label=name)
        axes.fill_between(rows["k"], rows["low"], rows["high"], color=PALETTE[place], alpha=0.2)
    axes.set(xlabel="k, queries looked at", ylabel="recall@k of the clicked query", xscale="log")
    ticks = sorted(set(data["k"].to_list()))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    percent_axis(axes.yaxis)
    axes.set_ylim(bottom=0)
    axes.legend()
    headline(axes, title)
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
        percent_axis(axes.yaxis)
        axes.grid(axis="x", visible=False)
    figure.supxlabel("level (for sharing: SID shortened to this level)", fontsize=10)
    last = data["collisions"][-1]
    heading(figure, f"At full length {last:.1%} of the queries share their SID with another")
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
    headline(axes, f"The closest pair weighs {ratio:.1f} times the widest")
    return figure


def hinge_gradient(data: pl.DataFrame) -> Figure:
    """Loss and its slope against the margin, for each reading of the hinge.

    Args:
        data: ``hinge``, ``margin`` (chosen minus rejected implicit reward), ``loss``, ``slope``.
    """
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8), sharex=True)
    for place, (name, rows) in enumerate(groups(data, "hinge")):
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
    heading(figure, f"As printed, a wrongly ranked pair (shaded) gets a slope of {worst:.2f}")
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
    headline(
        axes,
        f"The margin ends at {smooth['margin'][-1]:+.2f}; chosen queries become {word} likely ({drift:+.2f})",
    )
    return figure
