"""The ledger page: every claim of the paper beside our measurement, with its verdict and where to look.

``python -m onesug_lite.ledger --records results/lite --out page.md`` writes it as a page of the book. Verdicts are
worked out by :mod:`onesug_lite.claims` from the records each time; where records are missing the page says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from onesug_lite.claims import (
    DIRECTION,
    NO_RECORD,
    NOT_FOUND,
    REPRODUCED,
    REVERSED,
    Entry,
    judge_claims,
    load_claims,
    published_gain,
    read_online,
)
from onesug_lite.decay import FOLDER as UPDATES
from onesug_lite.experiments import FOLDER, METRICS, Experiments, ratio, read_experiments
from onesug_lite.metrics import BANDS
from onesug_lite.records import Grid, read_records
from onesug_lite.rounds import FOLDER as ROUNDS
from onesug_lite.tables import percent

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
INTRODUCTION = """\
# The ledger of claims

Every claim of the paper, what this project measured, and what follows. The page is written from the records of a grid,
of experiments in the market, of schedules of updates and of rounds of feedback by `python -m onesug_lite.ledger`; no
verdict on it is typed by hand.

:::{admonition} How a verdict is reached
:class: tip

Numbers are points, first system minus second, with a 95 % interval over requests and training seeds; above zero is
where the claim holds. Those of an experiment are per cent of the second system, over shoppers and training seeds. A
measurement is **reproduced** when its interval lies above zero, at least three seeds were run and all agree in sign,
and it is between half and twice the published difference, where one is printed. It is **direction only** when its
interval lies above zero and one of the rest is missing, **reversed** when it lies below zero, and **not found** when it
holds zero. Where two systems are said to be alike, the interval must lie inside the stated points.

A claim is reproduced when all its measurements are, and **only under** a condition when only some point the paper's
way. With so many intervals at 95 %, one in forty lies on a given side of zero by chance alone.
:::
"""


def _cell(text: str) -> str:
    """A text that cannot end a table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def _measured(entry: Entry) -> str:
    """All measurements of a claim, a line each."""
    if "untested" in entry.claim:
        return _cell(entry.claim["untested"])
    lines = []
    several = len({(part.first, part.second) for part in entry.measurements}) > 1
    for part in entry.measurements:
        name = part.cell + (f", {part.condition}" if several else "")
        paper = "" if part.published is None else f" (paper {part.published:+.2f})"
        if part.estimate is None:
            lines.append(f"{name}: no record{paper}")
            continue
        if isnan(part.estimate.low):
            lines.append(f"{name}: too few to say{paper}")
            continue
        lines.append(f"{name}: {percent(part.estimate, signed=True)}{paper}, {part.verdict}")
    return _cell("<br>".join(lines)) or "a calculation, made when this page was written"


def _seeds(entry: Entry) -> str:
    counts = {len(part.estimate.each_seed) for part in entry.measurements if part.estimate is not None}
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _where(entry: Entry) -> str:
    """Chapter, figure and test behind an entry; a chapter is linked where its notebook exists."""
    claim, parts = entry.claim, []
    if "chapter" in claim:
        stem = load_claims()["chapters"][claim["chapter"]]
        name = f"chapter {int(stem[:2])}"
        parts.append(f"[{name}](../notebooks/{stem}.ipynb)" if (NOTEBOOKS / f"{stem}.ipynb").is_file() else name)
    if "figure" in claim:
        parts.append(f"figure `{claim['figure']}`")
    if "test" in claim:
        parts.append(f"test `{claim['test'].split('::')[1]}`")
    elif "tests" in claim:
        parts.append("test `test_every_verdict_is_recomputed`")
    elif "experiments" in claim:
        parts.append("test `test_online_verdicts_follow_the_records`")
    return "<br>".join(parts)


def online_table(experiments: Experiments) -> list[str]:
    """Lines of a Markdown table: what each first system gains on its second, a pair a column and a metric a row.

    Args:
        experiments: the records.
    """
    pairs = list(experiments.runs)
    names = [f"{experiments.labels[first]} against {experiments.labels[second]}" for first, second in pairs]
    seeds = ", ".join(str(number) for number in sorted({len(runs) for runs in experiments.runs.values()}))
    lines = [
        f"Each pair before the same {experiments.sessions:,} searches, {seeds} model seed(s): the difference in per "
        "cent of the second system, with a 95 % interval over shoppers and seeds, bold where that leaves out zero, and "
        "the paper's figure where it has one. For position, characters typed, sessions abandoned and click-bait, less "
        f"is better. The last row is in points, good less bad on {experiments.judged:,} requests; the market's truth "
        "judges there, which is no person.",
        "",
        f"| | {' | '.join(map(_cell, names))} |",
        f"|---|{'---|' * len(pairs)}",
    ]
    rows = [*((metric, "") for metric in METRICS), *(("clicks", band) for band in BANDS), ("judgement", "")]
    for metric, band in rows:
        label = ratio(metric, band).label + (f", {band} prefixes" if band else "")
        cells = []
        for first, second in pairs:
            mean, low, high, *_ = experiments.gain(first, second, metric, band)
            published = published_gain(first, second, metric, band)
            paper = "" if published is None else f"<br>(paper {published:+.2f})"
            clear = "**" if low > 0 or high < 0 else ""
            told = "too few to say" if isnan(low) else f"{clear}{mean:+z.2f}{clear} [{low:+z.2f}, {high:+z.2f}]"
            cells.append(told + paper)
        lines.append(f"| {' | '.join((label, *cells))} |")
    return [*lines, ""]


def write_page(entries: Sequence[Entry], source: str, online: Experiments | None = None) -> str:
    """The ledger as MyST Markdown.

    Args:
        entries: from :func:`onesug_lite.claims.judge_claims`.
        source: what to say of the records.
        online: experiments, for a table of all that they measured.
    """
    kinds = Counter(entry.verdict.split(":")[0] for entry in entries)
    order = (REPRODUCED, DIRECTION, "only under", NOT_FOUND, REVERSED, NO_RECORD)
    names = [*order, *sorted(set(kinds) - set(order))]
    counted = ", ".join(f"{kinds[name]} {name}" for name in names if kinds[name])
    lines = [INTRODUCTION, f"{source} {len(entries)} claims: {counted}.", ""]
    for section in dict.fromkeys(entry.section for entry in entries):
        lines += [f"## {section}", "", "| claim | measured here | seeds | verdict | where |"]
        lines += ["|---|---|---|---|---|"]
        for entry in (entry for entry in entries if entry.section == section):
            text = f"{entry.claim['text']}<br>*{entry.claim['source']}*"
            cells = (_cell(text), _measured(entry), _seeds(entry), f"**{_cell(entry.verdict)}**")
            lines.append(f"| {' | '.join((*cells, _where(entry)))} |")
        lines.append("")
    if online is not None:
        lines += ["## Every pair in the market", "", *online_table(online)]
    return "\n".join(lines)


def describe_records(folder: str | Path) -> str:
    """One sentence on the records a page was written from.

    Raises:
        ValueError: records that cannot be compared.
    """
    records, online = read_records(folder), read_experiments(Path(folder) / FOLDER)
    tests = f" {len(online)} record(s) of experiments stand beside them." if online else ""
    for name, place in (("updates", UPDATES), ("rounds of feedback", ROUNDS)):
        drifting = read_records(Path(folder) / place)
        if drifting:
            seeds = len({record["seed"] for record in drifting})
            tests += f" {len(drifting)} record(s) of {name}, of {seeds} seed(s), are of a small market that drifts."
    if not records:
        return f"There are no records yet: `make grid` makes them.{tests}"
    grid = Grid(records, draws=1)
    codes = {record.get("code", "") for record in records}
    seeds = {record["seed"] for record in records}
    mixed = "" if len(codes) == 1 else f", made by {len(codes)} states of the code"
    size = records[0]["profile"]
    return (
        f"From {len(records)} records of {len(grid.runs)} systems and {len(seeds)} seed(s) at `{size}`{mixed}.{tests}"
    )


def main(
    records: Annotated[Path, typer.Option(help="folder of the grid's records")] = Path("results/lite"),
    out: Annotated[Path, typer.Option(help="page to write")] = Path("build/ledger.md"),
) -> None:
    """Judge every claim of the paper by the records and write the ledger page."""
    try:
        page = write_page(judge_claims(records), describe_records(records), read_online(records))
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    typer.echo(f"ledger: {out}")


if __name__ == "__main__":
    typer.run(main)
