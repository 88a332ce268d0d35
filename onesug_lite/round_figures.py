"""What rounds of feedback came to: gains over the seed model by round, what is left beside the controls, the figure.

All differences are of the same shoppers, clicks and model seeds, with the intervals of
:mod:`onesug_lite.significance` over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from onesug_lite.drawing import BLUE, GREEN, GREY, ORANGE, groups, heading, legend_below
from onesug_lite.records import Grid
from onesug_lite.rounds import ARMS, CONTROLS, FEEDBACK, SEED

METRICS = {"replay clicks": "clicks per 100 sessions", "HR@16": "click HR@16 (%)", "MRR@16": "click MRR@16 (%)"}
"""Metrics of the records, and what they count here: ``replay`` holds the sessions that every model has served."""

HELPS, HURTS, OPEN = "helps", "hurts", "cannot be told from it"


def after(records: Sequence[Mapping], number: int) -> list[dict]:
    """Records as they would be if the rounds had ended after ``number`` of them.

    Args:
        records: of :data:`onesug_lite.rounds.ARMS`. Their ``rounds`` hold, for each model, the ``rank`` of every click
            that it is asked about and whether each of the met sessions held a ``click``. The seed model stays as it is.
        number: 0 is the seed model.

    Returns:
        Records that :class:`onesug_lite.records.Grid` reads; in ``replay``, ``request_id`` is the shopper.
    """
    found = []
    for record in records:
        stand = record["rounds"][min(number, len(record["rounds"]) - 1)]
        clicks = record["clicks"] | {"rank": stand["rank"]}
        replay = {"request_id": record["replay"]["request_id"], "click": stand["click"]}
        found.append({**record, "clicks": clicks, "replay": replay})
    return found


def rounds_in(records: Sequence[Mapping]) -> int:
    """How many rounds were run.

    Raises:
        ValueError: an arm is missing, or arms of different numbers of rounds.
    """
    lacking = [name for name in ARMS if name not in {record["variant"] for record in records}]
    counts = {len(record["rounds"]) - 1 for record in records if record["variant"] != SEED}
    if lacking or len(counts) != 1:
        told = f"no record of '{lacking[0]}'" if lacking else f"records of {sorted(counts)} rounds"
        raise ValueError(f"{told}; expected every arm with the same rounds: make rounds")
    return counts.pop()


def course(records: Sequence[Mapping], draws: int = 2000) -> pl.DataFrame:
    """What each arm gains over the seed model, round by round.

    Args:
        records: every arm, of one seed or more.
        draws: resamples.

    Returns:
        ``arm``, ``label``, ``metric`` (a key of :data:`METRICS`), ``round`` (0: the seed model itself), ``seeds``,
        ``level`` (of the arm), ``seed_model`` (its level), ``mean`` (their difference), ``low``, ``high``; in per cent,
        or per 100 sessions.

    Raises:
        ValueError: see :func:`rounds_in`; records that cannot be compared.
    """
    rows = []
    for number in range(rounds_in(records) + 1):
        grid = Grid(after(records, number), draws)
        for name in ARMS:
            for metric in METRICS if name != SEED else ():
                gain = grid.difference(name, SEED, metric)
                level, base = (grid.together(metric, name, SEED)[place].mean() * 100 for place in (0, 1))
                told = (name, ARMS[name].label, metric, number, len(gain.each_seed), level, base)
                rows.append((*told, gain.mean, gain.low, gain.high))
    schema = {"arm": pl.String, "label": pl.String, "metric": pl.String, "round": pl.Int64, "seeds": pl.Int64}
    schema |= dict.fromkeys(("level", "seed_model", "mean", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")


def against_controls(records: Sequence[Mapping], draws: int = 2000) -> pl.DataFrame:
    """The paper's loop after its last round, less each control.

    Args:
        records: every arm, of one seed or more.
        draws: resamples.

    Returns:
        ``control``, ``label``, ``metric``, ``mean``, ``low``, ``high`` (points, or per 100 sessions), ``each_seed`` and
        ``verdict``: whether feedback helps, hurts, or cannot be told from the control.

    Raises:
        ValueError: as :func:`course`.
    """
    grid, rows = Grid(after(records, rounds_in(records)), draws), []
    for control in CONTROLS:
        for metric in METRICS:
            gap = grid.difference(FEEDBACK, control, metric)
            verdict = HELPS if gap.low > 0 else HURTS if gap.high < 0 else OPEN
            told = (control, ARMS[control].label.removesuffix(" (control)"), metric)
            rows.append((*told, gap.mean, gap.low, gap.high, list(gap.each_seed), verdict))
    schema = {"control": pl.String, "label": pl.String, "metric": pl.String}
    schema |= dict.fromkeys(("mean", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema | {"each_seed": pl.List(pl.Float64), "verdict": pl.String}, orient="row")


LOOKS = {FEEDBACK: (BLUE, "o", "-"), "rounds-supervised": (ORANGE, "s", "--"), "rounds-market": (GREEN, "^", "-.")}


def rounds(data: pl.DataFrame, title: str) -> Figure:
    """What each arm gains over the seed model by round, a panel a metric.

    Args:
        data: from :func:`course`, of the metrics to draw.
        title: the finding, computed by the caller.
    """
    metrics = groups(data, "metric")
    figure, panels = plt.subplots(1, len(metrics), figsize=(9.2, 4.4), squeeze=False)
    for axes, (metric, part) in zip(panels[0], metrics, strict=True):
        level = part["seed_model"][0]
        axes.axhline(0, color=GREY, linewidth=1.5, linestyle=":", label=ARMS[SEED].label)
        for place, (name, rows) in enumerate(groups(part, "arm")):
            colour, marker, line = LOOKS[name]
            at = rows["round"] + 0.08 * (place - 1)  # beside each other, not on top
            reach = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
            axes.errorbar(at, rows["mean"], yerr=reach, fmt=marker + line, color=colour, capsize=3, markersize=5,
                          label=ARMS[name].label)  # fmt: skip
        axes.set_title(METRICS[metric], fontsize=10, weight="normal")
        axes.set(xlabel="rounds of feedback", ylabel=f"less the seed model's {level:.1f}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_below(figure, panels[0], 2)
    heading(figure, title)
    return figure
