r"""What is lost without updates: the answers of schedules, from a run or from its records, against daily ones.

**Decay** is what a schedule loses against the same system updated every day with all that it has, in per cent of the
latter's metric, on the same requests: :math:`100\,(1 - m / m_{daily})`. Every schedule, system and training seed
answers the same clicks, so the intervals are those of :mod:`onesug_lite.significance`, over requests and seeds.

Records of updates (:mod:`onesug_lite.update_grid` makes them) are read by :class:`onesug_lite.records.Grid` as those of
the results table are, a system and its schedule in the place of a variant.

Source: paper, decay without daily updates [third-party notes]; controls and intervals: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from onesug_lite.metrics import hit_rate, reciprocal_rank
from onesug_lite.records import committed_records
from onesug_lite.significance import Resampled

FOLDER = "updates"
"""Folder of the records, below those of the grid."""

METRICS = {"HR@16": hit_rate, "MRR@16": reciprocal_rank}
REFERENCE = "daily"
"""The schedule that decay is measured against, of each system."""

PUBLISHED = {"generator": 0.6, "cascade": 1.1}
"""Per cent that is lost without daily updates (third-party notes); over how long and in which metric is not told."""


def answers_of(records: Sequence[Mapping]) -> pl.DataFrame:
    """What records of updates hold, as :func:`onesug_lite.updates.followed` gives it.

    Args:
        records: from :func:`onesug_lite.records.read_records`.

    Returns:
        A row a click: ``system``, ``schedule``, ``label``, ``seed``, ``age`` (days), ``request_id`` and ``rank`` (0 is
        absent); systems and schedules in their own order, then by seed.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no records of updates; make them with: make updates")
    from onesug_lite.updates import SCHEDULES  # brings torch along, which nothing else here needs

    order = [f"{system}-{schedule.name}" for system, schedules in SCHEDULES.items() for schedule in schedules]
    place = {name: number for number, name in enumerate(order)}
    parts = []
    for record in sorted(records, key=lambda record: (place.get(record["variant"], len(place)), record["seed"])):
        named = {"system": record["system"], "schedule": record["schedule"], "label": record["updated"]}
        columns = {name: record["clicks"][name] for name in ("age", "request_id", "rank")}
        parts.append(pl.DataFrame(named | {"seed": record["seed"]} | columns))
    return pl.concat(parts)


def chapter_answers(fresh: pl.DataFrame, reference: str | Path, profile: str) -> tuple[pl.DataFrame, str]:
    """The committed answers of a profile where there are some, else those of the run just made.

    Args:
        fresh: from :func:`onesug_lite.updates.followed`.
        reference: folder of the committed records of the grid; those of updates lie below it.
        profile: of the fresh run.

    Returns:
        The answers, and ``reference`` or ``fresh``.
    """
    records = committed_records(reference, profile, FOLDER)
    return (answers_of(records), "reference") if records else (fresh, "fresh")


def agreement(fresh: pl.DataFrame, reference: pl.DataFrame) -> pl.DataFrame:
    """What both lose, a row a system, schedule and metric.

    Args:
        fresh: from :func:`decay`.
        reference: the same.

    Returns:
        ``system``, ``updated`` (the schedule), ``metric``, ``fresh``, ``reference`` (per cent lost, with intervals) and
        ``agree``, whether the intervals overlap; schedules that one of the two lacks are left out.
    """
    ends = [pl.format("{} [{}, {}]", *(pl.col(name).round(1) for name in ("decay", "low", "high"))).alias("told")]
    keys = ["system", "schedule", "metric"]
    both = fresh.with_columns(ends).join(
        reference.with_columns(ends), on=keys, suffix="_reference", maintain_order="left"
    )
    overlap = (pl.col("low") <= pl.col("high_reference")) & (pl.col("low_reference") <= pl.col("high"))
    return both.select(
        "system", "metric", updated="label", fresh="told", reference="told_reference", agree=overlap
    ).select("system", "updated", "metric", "fresh", "reference", "agree")


def decay(answers: pl.DataFrame, by_age: bool = False, draws: int = 2000) -> pl.DataFrame:
    """What each schedule loses against :data:`REFERENCE` of its system, with 95 % intervals over requests and seeds.

    Args:
        answers: of one system or several, from :func:`answers_of` or :func:`onesug_lite.updates.followed`.
        by_age: a row for each age instead of one for all days.
        draws: resamples.

    Returns:
        ``system``, ``schedule``, ``label``, ``age`` (null for all days), ``metric``, ``rows``, ``seeds`` (that schedule
        and reference share), ``mean`` (of the schedule), ``reference`` (of the daily one), and ``decay``, ``low``,
        ``high`` in per cent of the reference; above 0 is a loss; nan where the reference found nothing.

    Raises:
        ValueError: a system without its reference, or seeds and schedules that answered other clicks.
    """
    table, clicks = [], _clicks(answers)
    resampled = Resampled(clicks, draws)
    for (system, schedule), own in answers.partition_by("system", "schedule", as_dict=True).items():
        if schedule == REFERENCE:
            continue
        found, daily = _ranks(answers, (system, schedule), (system, REFERENCE))  # (S, N) each
        age = own["age"].to_numpy()[: len(clicks)]
        for wanted in np.unique(age) if by_age else (None,):
            mask = np.ones(len(age), dtype=bool) if wanted is None else age == wanted
            for metric, measure in METRICS.items():
                mine, theirs = measure(found), measure(daily)
                share = resampled.ratio(mine, theirs, mask)
                table.append((
                    system, schedule, own["label"][0], None if wanted is None else int(wanted), metric,
                    share.rows, len(found), mine[:, mask].mean(), theirs[:, mask].mean(),
                    100 * (1 - share.mean), 100 * (1 - share.high), 100 * (1 - share.low),
                ))  # fmt: skip
    schema = {"system": pl.String, "schedule": pl.String, "label": pl.String, "age": pl.Int64, "metric": pl.String}
    schema |= {"rows": pl.Int64, "seeds": pl.Int64}
    schema |= dict.fromkeys(("mean", "reference", "decay", "low", "high"), pl.Float64)
    return pl.DataFrame(table, schema, orient="row")


def loses_more(
    answers: pl.DataFrame, first: str = "cascade", second: str = "generator", schedule: str = "never", draws: int = 2000
) -> pl.DataFrame:
    r"""How much more per cent one system loses than another, on the same clicks with the same seeds.

    A ratio of two means :math:`r = m / d` is the mean over clicks of :math:`r + (m_i - r\,d_i) / d`, whose spread is
    that of the ratio by the delta method; the difference of two such means is resampled.

    Args:
        answers: of both systems, with their :data:`REFERENCE`.
        first: system.
        second: system whose decay is subtracted.
        schedule: whose decay.
        draws: resamples.

    Returns:
        A row a metric: ``metric``, ``rows``, ``seeds``, ``mean``, ``low``, ``high`` (points of decay, which is in per
        cent); above zero the first loses more; nan where a reference found nothing.

    Raises:
        ValueError: a schedule is not there, or it answered other clicks.
    """
    asked = [(system, name) for system in (first, second) for name in (schedule, REFERENCE)]
    ranks, resampled, table = _ranks(answers, *asked), Resampled(_clicks(answers), draws), []
    for metric, measure in METRICS.items():
        a, a_daily, b, b_daily = map(measure, ranks)
        found = resampled.mean(100 * (_shares(b, b_daily) - _shares(a, a_daily)))
        table.append((metric, found.rows, len(a), found.mean, found.low, found.high))
    schema = {"metric": pl.String, "rows": pl.Int64, "seeds": pl.Int64}
    return pl.DataFrame(table, schema | dict.fromkeys(("mean", "low", "high"), pl.Float64), orient="row")


def _shares(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(S, N) numbers whose mean is, seed by seed, the ratio of the two means; nan where ``whole`` is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        whole_mean = whole.mean(axis=1, keepdims=True)  # (S, 1)
        ratio = values.mean(axis=1, keepdims=True) / whole_mean
        return ratio + (values - ratio * whole) / whole_mean


def _clicks(answers: pl.DataFrame) -> np.ndarray:
    """(N,) request of each click that one suggester answered."""
    first = answers.row(0, named=True)
    alone = [pl.col(name) == first[name] for name in ("system", "schedule", "seed")]
    return answers.filter(*alone)["request_id"].to_numpy()


def _ranks(answers: pl.DataFrame, *asked: tuple[str, str]) -> list[np.ndarray]:
    """(S, N) ranks of each (system, schedule) that is asked for, a line for each seed that all of them have."""
    lines, clicks = [], _clicks(answers)
    for system, schedule in asked:
        rows = answers.filter(pl.col("system") == system, pl.col("schedule") == schedule)
        if rows.is_empty():
            raise ValueError(f"{system} has no schedule '{schedule}', which is to be compared; run it as well")
        seeds = rows.partition_by("seed", as_dict=True)
        for (seed,), line in seeds.items():
            if line["request_id"].to_list() != clicks.tolist():
                raise ValueError(
                    f"{system}, {schedule}, seed {seed} answered other clicks than the first; run all of them alike"
                )
        lines.append({seed: line["rank"].to_numpy() for (seed,), line in seeds.items()})
    shared = sorted(set.intersection(*map(set, lines)))
    if not shared:
        told = " and ".join(f"{system}-{schedule}" for system, schedule in asked)
        raise ValueError(f"{told} share no seed; run them with the same ones")
    return [np.stack([line[seed] for seed in shared]) for line in lines]
