"""Feedback: a suggester answers the market, and learns from the log that it has written itself.

What was not shown is not clicked, and what is not clicked is not learnt. A system that is trained on its own log may
so narrow what it shows, or drift away from what shoppers want. Each system therefore lives through the same days twice.
Both times it answers, and is updated every morning on the last days; once with the log that came of its own answers,
once with the log that the market's own policy wrote before the same shoppers. On the first morning both are one.

The market comes from outside, as anything that plays a day: nothing here knows how it is made.

Source: ours; the paper trains on its own feedback (training loop of the authors' public repository) and does not report
what that does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from onesug_lite.folders import replacing
from onesug_lite.generator_learner import UpdateConfig
from onesug_lite.learners import Learner, learner_of, made_of, past
from onesug_lite.log import CLICKS, Log, check_log, part_of
from onesug_lite.significance import Resampled

STAGES = {"popularity": ("counts",), "cascade": ("rankers",), "generator": ("search", "supervised")}
"""What every morning's update of a system is made of."""

MARKET, OWN = "the market's log", "its own log"
"""What a system learns from."""


class Market(Protocol):
    """Shoppers who go on from day to day."""

    day: int
    history: np.ndarray

    def play(self, suggest: Callable[[pl.DataFrame], list[list[str]]] | None = None) -> tuple[pl.DataFrame, ...]:
        """The next day's two tables of a log, answered by a suggester or by the market's own policy."""

    def copy(self) -> Market:
        """Another one that goes on from the same morning."""


def played(market: Market, suggest: Callable[[pl.DataFrame], list[list[str]]] | None = None) -> Log:
    """The next day's log, checked.

    Raises:
        LogError: the market wrote what is no log.
    """
    log = Log(*market.play(suggest))
    check_log(log)
    return log


def live(
    learner: Learner,
    market: Market,
    start: Log,
    days: int,
    stages: Sequence[str],
    window: int,
    seed: int,
    work: Path,
    feed: Sequence[Log] | None = None,
) -> list[Log]:
    """Let a suggester answer days one after the other, updated every morning on the last ``window`` days.

    A day that was finished under ``work`` is not played again.

    Args:
        learner: as it stands before the first update.
        market: stands on the first morning; played on.
        start: log of the days just before.
        days: how many.
        stages: of every update.
        window: days that an update learns from.
        seed: of the updates.
        work: folder that outlives an interruption.
        feed: logs of the same days to learn from instead of its own.

    Returns:
        The logs that came of its answers, one a day.

    Raises:
        ValueError: ``feed`` has fewer days than are to be lived through.
    """
    if feed is not None and len(feed) < days - 1:
        raise ValueError(f"feed holds {len(feed)} days; expected at least {days - 1}, all but the last of {days}")
    first = start.requests["time"].dt.date().max() + timedelta(days=1)
    logs: list[Log] = []
    for number in range(days):
        folder = work / f"day-{number:03}"
        if folder.is_dir():
            logs.append(_read(folder))
            if not (work / f"day-{number + 1:03}").is_dir():  # the last one that was finished
                learner, market.history = learner.load(folder), np.load(folder / "history.npy")
            market.day += 1
            continue
        day = date.fromordinal(first.toordinal() + number)
        known = joined([start, *(logs if feed is None else feed[:number])])
        for place, stage in enumerate(stages):
            own = int(np.random.default_rng([seed, number, place]).integers(2**31))
            learner = learner.updated(stage, past(known, day, window), day, own, work / "training")
        log = played(market, learner)
        with replacing(folder) as new:
            learner.save(new)
            np.save(new / "history.npy", market.history)
            _write(log, new)
        logs.append(log)
    return logs


def joined(logs: Sequence[Log]) -> Log:
    """Logs of different days as one."""
    return Log(*(pl.concat(tables) for tables in zip(*logs, strict=True)))


def _read(folder: Path) -> Log:
    return Log(*(pl.read_parquet(folder / f"{table}.parquet") for table in Log._fields))


def _write(log: Log, folder: Path) -> None:
    for table, frame in log._asdict().items():
        frame.write_parquet(folder / f"{table}.parquet")


def sessions_of(log: Log) -> pl.DataFrame:
    """``day``, ``session_id``, ``user_id``, ``click`` (1 where the session holds one), the random slice left out."""
    answered = log.requests.filter(pl.col("policy") != "random")
    clicks = log.candidates.filter(pl.col("behaviour").is_in(CLICKS))["request_id"]
    return (
        answered.select(
            "session_id", "user_id", day=pl.col("time").dt.date(), click=pl.col("request_id").is_in(clicks.implode())
        )
        .group_by("day", "session_id", "user_id")
        .agg(pl.col("click").any().cast(pl.Float64))
        .sort("day", "session_id")
    )


def shown_of(log: Log) -> pl.DataFrame:
    """``day``, ``query``, ``shown``: how often a query was shown, the random slice left out; sorted."""
    answered = log.requests.filter(pl.col("policy") != "random").select("request_id", day=pl.col("time").dt.date())
    listed = log.candidates.filter(pl.col("behaviour") != "not_shown").select("request_id", "query")
    return listed.join(answered, on="request_id").group_by("day", "query").agg(shown=pl.len()).sort("day", "query")


def lived(
    road, market: Market, told: str, systems: Sequence[str], days: int, window: int, config: UpdateConfig | None = None
) -> tuple[pl.DataFrame, pl.DataFrame, Log]:
    """Both lives of several systems, and the market under its own policy; each from the store or lived and kept there.

    Args:
        road: a :class:`onesug_lite.pipeline.Pipeline`; what the systems know before the first update is from it.
        market: stands ``window`` days before the road's first held-out day, with the log's own shoppers or others.
        told: what the market is, for the store.
        systems: keys of :data:`STAGES`.
        days: to live through.
        window: days that every update learns from.
        config: size of an update of the generator.

    Returns:
        Sessions as :func:`sessions_of` and showings as :func:`shown_of` gives them, with ``system`` ("market" for its
        own policy) and ``learns`` (:data:`OWN` or :data:`MARKET`) before them; and the log of the days before.
    """

    def watch(build: Callable[[Path], Sequence[Log]]) -> Callable[[Path, Path], None]:
        def write(out: Path, work: Path) -> None:
            log = joined(build(work))
            sessions_of(log).write_parquet(out / "sessions.parquet")
            shown_of(log).write_parquet(out / "shown.parquet")

        return write

    def own_policy(out: Path, work: Path) -> None:
        own = market.copy()
        logs = [played(own) for _ in range(window)]
        np.save(out / "history.npy", own.history)
        logs += [played(own) for _ in range(days)]
        _write(joined(logs), out)

    settings, modules = {"days": days, "window": window}, ["feedback"]
    source = road.store.get("feedback_market", settings, {"market": told}, modules, own_policy)
    whole = _read(source)
    of, by_day = whole.requests["time"].dt.date(), []
    for day in of.unique().sort():
        by_day.append(part_of(whole, of == day))
    start, feed = joined(by_day[:window]), by_day[window:]

    def morning() -> Market:
        own = market.copy()
        own.day, own.history = market.day + window, np.load(source / "history.npy")
        return own

    found = [("market", MARKET, sessions_of(joined(feed)), shown_of(joined(feed)))]
    for system in systems:
        made = made_of(road, system, config)
        for learns, other in ((OWN, None), (MARKET, feed)):

            def build(work: Path, system=system, other=other) -> list[Log]:
                learner = learner_of(road, system, config)
                return live(learner, morning(), start, days, STAGES[system], window, road.seed, work, other)

            inputs = made | {"market": source.name, "learns": learns}
            folder = road.store.get(f"feedback_{system}", settings, inputs, modules, watch(build))
            tables = (pl.read_parquet(folder / f"{name}.parquet") for name in ("sessions", "shown"))
            found.append((system, learns, *tables))

    def named(place: int) -> pl.DataFrame:
        return pl.concat(row[place].select(pl.lit(row[0]).alias("system"), pl.lit(row[1]).alias("learns"), pl.all())
                         for row in found)  # fmt: skip

    return named(2), named(3), start


# ---------------------------------------------------------------- what came of it
def clicks_by_day(sessions: pl.DataFrame) -> pl.DataFrame:
    """``system``, ``learns``, ``day``, ``sessions``, ``clicks`` (a session)."""
    by = ["system", "learns", "day"]
    return sessions.group_by(by, maintain_order=True).agg(sessions=pl.len(), clicks=pl.col("click").mean())


def clicks_lost(sessions: pl.DataFrame, draws: int = 2000) -> pl.DataFrame:
    """What learning from its own log costs a system in clicks a session, against learning from the market's.

    The same shoppers come to both, at the same times; they are resampled whole, with all their sessions.

    Args:
        sessions: from :func:`lived`.
        draws: resamples.

    Returns:
        ``system``, ``sessions``, ``own``, ``market`` (clicks a session), ``mean`` (own less market), ``low``, ``high``.
    """
    rows = []
    for (system,), part in sessions.partition_by("system", as_dict=True, maintain_order=True).items():
        both = [part.filter(pl.col("learns") == learns) for learns in (OWN, MARKET)]
        if not len(both[0]):
            continue  # the market's own policy
        keys = ["day", "session_id", "user_id"]
        pairs = both[0].join(both[1], on=keys, suffix="_market", maintain_order="left")
        gap = (pairs["click"] - pairs["click_market"]).to_numpy()[None]
        found = Resampled(pairs["user_id"].to_numpy(), draws).mean(gap)
        means = (pairs["click"].mean(), pairs["click_market"].mean())
        rows.append((system, len(pairs), *means, found.mean, found.low, found.high))
    schema = {"system": pl.String, "sessions": pl.Int64}
    schema |= dict.fromkeys(("own", "market", "mean", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")


def head_of(log: Log, share: float = 0.5) -> list[str]:
    """The fewest queries that hold a share of a log's clicks, most clicked first; equals sorted by their texts."""
    clicks = log.candidates.filter(pl.col("behaviour").is_in(CLICKS)).group_by("query").agg(clicks=pl.len())
    clicks = clicks.sort("clicks", "query", descending=[True, False])
    before = clicks["clicks"].cum_sum().shift(1, fill_value=0)
    return clicks.filter(before < share * clicks["clicks"].sum())["query"].to_list()


def diversity(shown: pl.DataFrame, head: Sequence[str]) -> pl.DataFrame:
    r"""How wide each day's showings are.

    Args:
        shown: from :func:`lived`; the pool is all that anybody shows on any day.
        head: queries that count as the head.

    Returns:
        ``system``, ``learns``, ``day``, ``distinct`` (queries shown), ``effective`` (the exponential of the entropy
        :math:`-\sum_q p_q \ln p_q` of showings, the number of equally often shown queries that is as diverse), ``gini``
        (of showings over the pool; 1: one query alone) and ``head`` (share of showings).
    """
    pool, rows = shown["query"].n_unique(), []
    by = ["system", "learns", "day"]
    for key, part in shown.partition_by(by, as_dict=True, maintain_order=True).items():
        counts = np.sort(part["shown"].to_numpy().astype(np.float64))
        share = counts / counts.sum()
        effective = np.exp(-(share * np.log(share)).sum())
        place = np.arange(pool - len(counts) + 1, pool + 1)  # those never shown come first, with nothing
        gini = 2 * (place * share).sum() / pool - (pool + 1) / pool
        often = part.filter(pl.col("query").is_in(list(head)))["shown"].sum() / part["shown"].sum()
        rows.append((*key, len(counts), float(effective), float(gini), float(often)))
    schema = {"system": pl.String, "learns": pl.String, "day": pl.Date, "distinct": pl.Int64}
    schema |= dict.fromkeys(("effective", "gini", "head"), pl.Float64)
    return pl.DataFrame(rows, schema, orient="row")
