r"""Rounds: a suggester answers the market, learns from what came of it, and answers again, :math:`M_t \to M_{t+1}`.

The seed model :math:`M_0` is the supervised generator with related queries. In round :math:`t` model :math:`M_t`
answers a day, shoppers respond, and the preference stage makes :math:`M_{t+1}` of it from that day's log. Any model
gains from more training, and any model gains from fresher days, so feedback is only worth what it gives beyond its
controls, which have the same rounds, steps, rate and number of examples:

- the **supervised** loss on its own log: the same clicks in the same batches, and no rejected query (in the grid this
  control is called *trained on*);
- the preference stage on the **market's** log: the same days, answered by the market's own policy;
- the **seed** model, left as it is.

Every model is then asked the same questions, all of days that no round has seen: to serve the same searches of fresh
shoppers, whose luck does not depend on what is shown, and to rank what was clicked in the log that the market wrote.

Source: the paper's training loop (authors' public repository); the controls and the measure are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from onesug_lite.feedback import MARKET, OWN, Market, played
from onesug_lite.generator_learner import GeneratorLearner
from onesug_lite.learners import LeakError
from onesug_lite.log import Log, clicked

FOLDER = "rounds"
"""Folder of the records, below those of the grid."""


class Arm(NamedTuple):
    """One way to go on from the seed model.

    Attributes:
        label: how figures call it.
        learns: from which log, :data:`onesug_lite.feedback.OWN` or ``MARKET``; none where it never learns.
        changes: settings of its preference stage that differ.
    """

    label: str
    learns: str | None
    changes: Mapping[str, str] = {}


SEED, FEEDBACK = "rounds-seed", "rounds-preference"
ARMS: dict[str, Arm] = {
    SEED: Arm("the seed model (control)", None),
    FEEDBACK: Arm("preference stage, its own log", OWN),
    "rounds-supervised": Arm("supervised loss, its own log (control)", OWN, {"loss": "supervised"}),
    "rounds-market": Arm("preference stage, the market's log (control)", MARKET),
}
"""By the name that records have; the seed model first, the others are compared with it."""
CONTROLS = tuple(name for name in ARMS if name != FEEDBACK)


class Round(NamedTuple):
    """A model and what it was made from.

    Attributes:
        number: t of :math:`M_t`.
        model: the suggester.
        log: what the step from the model before learnt from; none for the seed model.
    """

    number: int
    model: GeneratorLearner
    log: Log | None


def arm_of(name: str) -> Arm:
    """One of :data:`ARMS`.

    Raises:
        ValueError: there is no such arm.
    """
    if name not in ARMS:
        raise ValueError(f"unknown arm '{name}'; expected one of {', '.join(ARMS)}")
    return ARMS[name]


def rounds_of(
    name: str,
    learner: GeneratorLearner,
    market: Market,
    rounds: int,
    seed: int,
    work: Path,
    feed: Sequence[Log] | None = None,
) -> Iterator[Round]:
    r"""The models :math:`M_0, M_1, \ldots` of one arm, each made from the day before.

    Updates draw by seed and round alone, so two arms that learn from the same log read the same clicks in the same
    order.

    Args:
        name: one of :data:`ARMS`.
        learner: :math:`M_0`.
        market: stands on the first morning; played on by arms that learn from their own log.
        rounds: how many; a round is a day.
        seed: of the updates.
        work: folder for checkpoints.
        feed: the market's logs of the same days, a day each; read by the arm that learns from them.

    Yields:
        ``rounds + 1`` models; the seed model alone where the arm never learns.

    Raises:
        ValueError: no such arm, or ``feed`` has not a log for each round.
        LeakError: a log holds a day later than its own.
    """
    arm = arm_of(name)
    yield Round(0, learner, None)
    if arm.learns is None:
        return
    if arm.learns == MARKET and len(feed or ()) != rounds:
        raise ValueError(f"feed holds {len(feed or ())} days; '{name}' needs one for each of {rounds} rounds")
    policy, preference = learner.policy, replace(learner.preference, **arm.changes)
    learner = GeneratorLearner(policy, learner.config, learner.train, preference, learner.reward)
    day = None
    for number in range(rounds):
        log = feed[number] if arm.learns == MARKET else played(market, learner)
        day = day_after(log) if day is None else day + timedelta(days=1)
        own = int(np.random.default_rng([seed, number]).integers(2**31))
        learner = learner.updated("preference", log, day, own, work / name)  # refuses a log of that day
        yield Round(number + 1, learner, log)


def day_after(log: Log) -> date:
    """The day after a log's last one."""
    return log.requests["time"].dt.date().max() + timedelta(days=1)


def unseen_clicks(log: Log, first: date, size: int) -> pl.DataFrame:
    """Clicks of the days that no round sees: a fixed sample, the same whatever the seed of a model.

    Args:
        log: written by the market's own policy.
        first: first day that counts.
        size: rows at most.

    Returns:
        Columns as :func:`onesug_lite.log.clicked` gives them.

    Raises:
        ValueError: no click on these days.
    """
    rows = clicked(Log(log.requests.filter(pl.col("time").dt.date() >= first), log.candidates))
    if rows.is_empty():
        raise ValueError(f"the log holds no click from {first} on; choose fewer rounds, or a longer log")
    chosen = np.random.default_rng(0).choice(len(rows), min(size, len(rows)), replace=False)
    return rows[np.sort(chosen)]


def check_unseen(asked: pl.DataFrame, log: Log | None) -> None:
    """Refuse to ask about clicks of a day that a round has learnt from.

    Args:
        asked: ``time`` of each click.
        log: what the round learnt from.

    Raises:
        LeakError: a click is no later than the log's last day.
    """
    if log is not None and asked["time"].dt.date().min() < day_after(log):
        raise LeakError(
            f"a round has learnt from days up to {day_after(log) - timedelta(days=1)}, and clicks are asked about from "
            f"{asked['time'].dt.date().min()} on; ask about later days alone"
        )
