"""The results chapter's tables: from the records of a grid to rows with intervals and verdicts.

A record is what one run of the grid leaves (see ``notebooks/grid_run.ipynb``): the ranks of the clicked queries in one
system's lists, and a summary of them. Nothing here trains or decodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from onesug_lite.metrics import CUTOFF, Comparison, hit_rate, paired_bootstrap, reciprocal_rank
from onesug_lite.variants import VARIANTS

METRICS = {f"HR@{CUTOFF}": hit_rate, f"MRR@{CUTOFF}": reciprocal_rank}
ENOUGH_SEEDS = 3
"""Model seeds below which a difference is not yet a finding."""


def metric(record: Mapping, rows: str, name: str, band: str = "all") -> dict:
    """One cell of a record's summary: ``mean``, ``low`` and ``high`` as shares, ``requests``."""
    return next(row for row in record["summary"] if (row["rows"], row["metric"], row["band"]) == (rows, name, band))


def percent(cell: Mapping) -> str:
    """``mean [low, high]`` in per cent, or a dash where there were too few requests."""
    if cell["low"] is None:
        return "-"
    return f"{100 * cell['mean']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def results_table(records: Sequence[Mapping], seed: int = 0) -> pl.DataFrame:
    """The paper's offline table, ours beside it: one row a system, one seed.

    Args:
        records: of a grid.
        seed: whose records are shown.

    Returns:
        Columns ``system``, the four metrics with intervals in per cent, ``unknown strings`` (share of suggestions that
        the training log does not hold), ``paper's row`` and the paper's click figures.
    """
    table = []
    for record in (record for record in records if record["seed"] == seed):
        row = VARIANTS[record["variant"]]
        cells = {
            f"{rows} {name}": percent(metric(record, rows, name)) for rows in ("click", "order") for name in METRICS
        }
        paper = f"{row.paper['click_hr']:.2f} / {row.paper['click_mrr']:.2f}" if row.paper else "-"
        table.append(
            {"system": row.label}
            | cells
            | {
                "unknown strings": f"{record['unknown_share']:.1%}",
                "paper's row": row.paper.get("name", "-"),
                "paper: click HR / MRR": paper,
            }
        )
    return pl.DataFrame(table)


def bars(
    records: Sequence[Mapping], rows: str, names: Sequence[str], bands: Sequence[str], seed: int = 0
) -> pl.DataFrame:
    """Long frame for the figures: ``label``, ``metric``, ``band``, ``mean``, ``low``, ``high`` in per cent, one seed.

    A cell with too few requests is left out.
    """
    cells = [
        {"label": VARIANTS[record["variant"]].label, "metric": name, "band": band}
        | {key: 100 * cell[key] for key in ("mean", "low", "high")}
        for record in records
        if record["seed"] == seed
        for name in names
        for band in bands
        for cell in [metric(record, rows, name, band)]
        if cell["low"] is not None
    ]
    return pl.DataFrame(cells)


def compare(records: Sequence[Mapping], first: str, second: str) -> dict[str, tuple[Comparison, list[float]]]:
    """Paired difference of two systems in points (per cent), by metric.

    Both answered the same requests with every seed. A request counts with its mean over the seeds, so that requests are
    what is resampled; the differences of the single seeds stand beside it.

    Args:
        records: of a grid.
        first: variant.
        second: variant that is subtracted.

    Returns:
        Metric -> (comparison, difference of each seed).

    Raises:
        ValueError: a record is missing, or two systems answered different requests.
    """
    found = {(record["variant"], record["seed"]): record for record in records}
    seeds = sorted({record["seed"] for record in records})
    for key in ((name, seed) for name in (first, second) for seed in seeds):
        if key not in found:
            raise ValueError(f"no record of variant '{key[0]}' with seed {key[1]}; run the grid again")
    asked = [found[name, seed]["request_id"] for name in (first, second) for seed in seeds]
    if any(ids != asked[0] for ids in asked):
        raise ValueError(f"the records of '{first}' and '{second}' answer different requests; run the grid again")
    result = {}
    for name, score in METRICS.items():
        a, b = (
            100 * np.array([score(np.array(found[system, seed]["rank"])) for seed in seeds])
            for system in (first, second)
        )  # (seeds, N)
        gap = paired_bootstrap(a.mean(axis=0), b.mean(axis=0), np.random.default_rng(0))
        result[name] = (gap, (a - b).mean(axis=1).tolist())
    return result


def differences(sources: Mapping[str, Sequence[Mapping]], pairs: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """Paired differences of several pairs of systems, from one or more grids.

    Args:
        sources: name of a grid -> its records.
        pairs: (first, second), second is subtracted.
    """
    table = []
    for first, second in pairs:
        for source, records in sources.items():
            for name, (gap, seeds) in compare(records, first, second).items():
                table.append(
                    {
                        "difference": f"{VARIANTS[first].label} − {VARIANTS[second].label}",
                        "metric": name,
                        "points": f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]",
                        "p": f"{gap.p:.3f}",
                        "each seed": " ".join(f"{value:+.1f}" for value in seeds),
                        "records": f"{source}, {len(seeds)} seed(s)",
                    }
                )
    return pl.DataFrame(table)


def verdict(gaps: Mapping[str, tuple[Comparison, list[float]]]) -> str:
    """What a comparison says about "first is better than second".

    ``held`` or ``reversed`` needs both metrics' intervals on one side of zero and :data:`ENOUGH_SEEDS` seeds that agree
    in sign; ``on MRR@16 only`` and the like name the metric whose interval excludes zero alone.
    """
    signs = {name: (gap.low > 0) - (gap.high < 0) for name, (gap, _) in gaps.items()}
    seeds = len(next(iter(gaps.values()))[1])
    clear = {name: sign for name, sign in signs.items() if sign}
    if not clear:
        return "no difference found"
    if len(set(clear.values())) > 1:
        return "mixed: " + ", ".join(f"{name} {'up' if sign > 0 else 'down'}" for name, sign in clear.items())
    word = "held" if next(iter(clear.values())) > 0 else "reversed"
    if len(clear) < len(signs):
        word += f" on {next(iter(clear))} only"
    agree = all(len({value > 0 for value in gaps[name][1]}) == 1 for name in clear)
    if not agree:
        word += ", the seeds disagree"
    elif seeds < ENOUGH_SEEDS:
        word += f", {seeds} seed(s): not yet a finding"
    return word


def verdicts(records: Sequence[Mapping], claims: Sequence[tuple[str, str, str]]) -> pl.DataFrame:
    """Each claim (text, first, second) with its measurement and verdict."""
    table = []
    for claim, first, second in claims:
        gaps = compare(records, first, second)
        cells = {name: f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]" for name, (gap, _) in gaps.items()}
        table.append({"claim": claim} | cells | {"verdict": verdict(gaps)})
    return pl.DataFrame(table)
