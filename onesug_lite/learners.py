"""Suggesters that can be brought up to date: what an update of each system is, and what it may learn from.

An update is a list of **stages**, each with the days that it learns from. ``counts`` recounts the clicks of popularity
completion. ``rankers`` builds the cascade anew: recall, statistics and both rankers, over the encoder that it has. The
generator has stages of its own, see :mod:`onesug_lite.generator_learner`. No stage reads a row of the day that its
suggester will answer: :func:`check_past` refuses such a log.

Source: ours.
"""

from __future__ import annotations

from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from onesug_lite.log import Log, clicked, part_of
from onesug_lite.popularity import PopularityCompletion, count_clicks

if TYPE_CHECKING:
    from onesug_lite.cascade import Cascade
    from onesug_lite.generator_learner import UpdateConfig
    from onesug_lite.pairs import PairConfig
    from onesug_lite.profiles import Sizes

SYSTEMS = ("popularity", "cascade", "generator")
"""The systems that can be updated."""


class LeakError(ValueError):
    """A suggester was to learn from the day that it answers, or from a later one."""


class Learner(Protocol):
    """A suggester that can be updated."""

    stages: tuple[str, ...]  # that its updates are made of, in their order

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        """Ranked queries of each request, best first."""

    def updated(self, stage: str, log: Log, day: date, seed: int, work: Path, days: int = 1) -> Learner:
        """The suggester after one stage, ready to answer ``day``; this one stays as it is.

        Args:
            stage: one of ``stages``.
            log: what it learns from, days before ``day`` alone.
            day: the day that it will answer.
            seed: of samples, order and first weights.
            work: folder for checkpoints.
            days: since the last update; a generator takes its steps once for each.

        Raises:
            LeakError: the log holds a request of ``day`` or later.
            ValueError: no such stage.
        """

    def save(self, folder: Path) -> None:
        """Write what an update has changed."""

    def load(self, folder: Path) -> Learner:
        """The suggester as :meth:`save` has written it; what no update changes is taken from this one."""


def past(log: Log, day: date, days: int | None = None) -> Log:
    """The part of a log that may be learned from before a day begins.

    Args:
        log: any days.
        day: the day that is going to be answered.
        days: the last so many days alone; all by default.

    Raises:
        LeakError: nothing is left.
    """
    of = log.requests["time"].dt.date()
    keep = of < day
    if days is not None:
        keep &= of >= date.fromordinal(day.toordinal() - days)
    if not keep.any():
        told = "no day" if days is None else f"none of the {days} days"
        raise LeakError(f"the log holds {told} before {day}, so there is nothing to learn from; start on a later day")
    return part_of(log, keep)


def check_past(log: Log, day: date) -> None:
    """Refuse to learn from the day that is going to be answered.

    Raises:
        LeakError: the log holds a request of ``day`` or later, or a candidate of a request that it does not hold.
    """
    late = log.requests.filter(pl.col("time") >= datetime.combine(day, time()))
    if len(late):
        raise LeakError(
            f"the log for the answers of {day} holds {len(late)} request(s) of that day or later, first request_id "
            f"{late['request_id'][0]} of {late['time'][0]}; cut it with past(log, day)"
        )
    strange = log.candidates.filter(~pl.col("request_id").is_in(log.requests["request_id"].implode()))
    if len(strange):
        raise LeakError(
            f"the log for the answers of {day} holds candidates of request_id {strange['request_id'][0]}, which is not "
            "among its requests, so their day is unknown; cut it with past(log, day)"
        )


def check_update(learner: Learner, stage: str, log: Log, day: date) -> None:
    """Refuse an update that a suggester does not have, or one that knows too much; see :meth:`Learner.updated`."""
    if stage not in learner.stages:
        raise ValueError(f"stage is '{stage}'; {type(learner).__name__} has {', '.join(learner.stages)}")
    check_past(log, day)


def counts_of(log: Log) -> pl.DataFrame:
    """Clicks by (prefix, query), sorted."""
    return count_clicks(clicked(log))


class PopularityLearner:
    """Popularity completion, counted anew at every update.

    Args:
        counts: clicks by ``prefix`` and ``query``.
    """

    stages = ("counts",)

    def __init__(self, counts: pl.DataFrame):
        self.counts = counts
        self._answer = PopularityCompletion(counts)

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        return self._answer(requests)

    def updated(self, stage: str, log: Log, day: date, seed: int, work: Path, days: int = 1) -> PopularityLearner:
        """See :class:`Learner`."""
        check_update(self, stage, log, day)
        return PopularityLearner(counts_of(log))

    def save(self, folder: Path) -> None:
        """See :class:`Learner`."""
        self.counts.write_parquet(folder / "counts.parquet")

    def load(self, folder: Path) -> PopularityLearner:
        """See :class:`Learner`."""
        return PopularityLearner(pl.read_parquet(folder / "counts.parquet"))


class CascadeLearner:
    """The cascade, built anew at every update over the encoder that it has.

    Args:
        cascade: as it stands.
        pairs: how co-occurring queries are mined.
    """

    stages = ("rankers",)

    def __init__(self, cascade: Cascade, pairs: PairConfig):
        self.cascade, self._pairs = cascade, pairs

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        return self.cascade(requests)

    def updated(self, stage: str, log: Log, day: date, seed: int, work: Path, days: int = 1) -> CascadeLearner:
        """See :class:`Learner`."""
        from onesug_lite.cascade_training import train_cascade
        from onesug_lite.pairs import mine_pairs
        from onesug_lite.trainer import set_seed

        check_update(self, stage, log, day)
        set_seed(seed)
        pairs, rng = mine_pairs(log, self._pairs), np.random.default_rng(seed)
        cascade = train_cascade(log, pairs, self.cascade.encoder, self.cascade.config, rng)
        return CascadeLearner(cascade, self._pairs)

    def save(self, folder: Path) -> None:
        """See :class:`Learner`."""
        self.cascade.save(folder / "cascade")

    def load(self, folder: Path) -> CascadeLearner:
        """See :class:`Learner`."""
        from onesug_lite.cascade import Cascade

        cascade = Cascade.load(folder / "cascade")
        cascade.encoder = self.cascade.encoder  # the same, and the folder may go away
        return CascadeLearner(cascade, self._pairs)


def learner_of(road, system: str, config: UpdateConfig | None = None) -> Learner:
    """A system as the training days of a road leave it.

    Args:
        road: a :class:`onesug_lite.pipeline.Pipeline`.
        system: one of :data:`SYSTEMS`: ``popularity``, the cascade ``mca``, or the generator ``sft_pre``.
        config: size of the generator's updates.

    Raises:
        ValueError: no such system.
    """
    _check_system(system)
    if system == "popularity":
        return PopularityLearner(road.click_counts)
    if system == "cascade":
        return CascadeLearner(road.policy("mca"), road.sizes.pairs)
    from onesug_lite.generator_learner import GeneratorLearner, UpdateConfig

    own = with_recipe(road.sizes)
    policy = road.policy("sft_pre")
    return GeneratorLearner(policy, config or UpdateConfig(), own.train, own.preference, own.reward)


def made_of(road, system: str, config: UpdateConfig | None = None) -> dict[str, str]:
    """What :func:`learner_of` would give, for the store: name -> fingerprint. Nothing is loaded for it.

    Raises:
        ValueError: no such system.
    """
    _check_system(system)
    made = {"log": road.log_fingerprint, "first answered": str(first_answered(road)), "system": system}
    if system == "popularity":  # draws nothing, so all its seeds are one
        return made
    made["seed"] = str(road.seed)
    if system == "cascade":
        return made | {"made": road.cascade_folder.parent.name, "pairs": repr(road.sizes.pairs)}
    from onesug_lite.generator_learner import UpdateConfig

    own = with_recipe(road.sizes)
    settings = repr((own.prompt, own.decode, own.train, own.preference, own.reward, config or UpdateConfig()))
    return made | {"made": road.supervised(True).folder.name, "search": road.search_folder.name, "settings": settings}


def with_recipe(sizes: Sizes) -> Sizes:
    """Sizes with the recipe of the generator's preference stage."""
    from onesug_lite.variants import LEAD

    return sizes.changed({f"preference.{name}": value for name, value in LEAD.items()})


def _check_system(system: str) -> None:
    if system not in SYSTEMS:
        raise ValueError(f"system is '{system}'; expected one of {', '.join(SYSTEMS)}")


def first_answered(road) -> date:
    """The first day that a road's training days leave to be answered."""
    return date.fromordinal(road.split.train.requests["time"].dt.date().max().toordinal() + 1)
