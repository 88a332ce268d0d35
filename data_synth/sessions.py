"""Sessions: a search typed keystroke by keystroke, with a list after every burst, until a click, Enter or leaving.

How long a prefix is when it is clicked, how far down, and how many requests a search takes are outcomes of this play,
not inputs. Shards are groups of shoppers that know nothing of each other, so any shard can be played alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .catalogue import Catalogue, period_of
from .config import MarketConfig
from .keystrokes import MISSPELT, WRITTEN, Typing, draw_forms, typed_heads
from .policies import Batch, Page, Policy
from .responses import Responses, respond
from .shoppers import Shoppers, draw_intents

_WEEK = np.array([1.1, 0.95, 0.9, 0.95, 1.0, 1.05, 1.1])  # of searches, from the first day on
DAY = 86_400_000_000  # microseconds


class Requests(NamedTuple):
    """All requests of one day of a shard, in the order of session and step, and what each came to."""

    day: int
    session: np.ndarray  # (N,) number of the session inside the shard
    who: np.ndarray  # (N,) shopper inside the shard
    time: np.ndarray  # (N,) microseconds since midnight of the first day
    intent: np.ndarray  # (N,) query in mind; the same through a session
    form: np.ndarray  # (N,) how it is being typed
    script: np.ndarray  # (N,)
    batch: Batch  # what the policy saw
    page: Page  # what it answered
    responses: Responses
    at_random: np.ndarray  # (N,) bool, answered by the random slice
    searched: np.ndarray  # (N,) the query that the session ended in with this request, -1 if it did not end in one
    final_points: np.ndarray  # (N, HEAD) what was being typed when it ended, for the policies' counts


class Play(NamedTuple):
    """What a shard needs to be played."""

    config: MarketConfig
    catalogue: Catalogue
    typing: Typing
    policies: Callable[[int], tuple[Policy, Policy]]  # period -> (main, random slice)
    name: str = "plugged_in"  # of the main policy, as the log has it


def day_sessions(config: MarketConfig, sessions: int) -> np.ndarray:
    """(days + test_days,) how many of a shard's sessions fall on each day."""
    week = _WEEK[np.arange(config.days + config.test_days) % 7]
    return np.diff(np.round(np.r_[0.0, np.cumsum(week) / week.sum()] * sessions).astype(np.int64))


def first_histories(config, catalogue, shoppers: Shoppers, rng: np.random.Generator) -> np.ndarray:
    """(U, H) searches from before the first day, oldest first; -1 throughout for a cold shopper."""
    count, past = shoppers.tier.size, config.history_length
    none = np.empty((count * past, 0), dtype=np.int64)
    intents = draw_intents(config, catalogue, shoppers, np.repeat(np.arange(count), past), -1, none, rng)
    return np.where(shoppers.cold[:, None], -1, intents.reshape(count, past))


def play_days(
    play: Play, shoppers: Shoppers, per_day: np.ndarray, rng: np.random.Generator, first_day: int = 0,
    history: np.ndarray | None = None,
) -> Iterator[Requests]:  # fmt: skip
    """Live through days: search, be shown, respond, remember.

    History is refreshed each night: a request sees the searches of earlier days.

    Args:
        play: the market and its policies.
        shoppers: U of them.
        per_day: (days,) number of sessions.
        rng: source of every draw.
        first_day: number of the first one.
        history: (U, H) searches before it, kept up to date in place; drawn when not given.

    Yields:
        The requests of each day that has any.
    """
    config = play.config
    if history is None:
        history = first_histories(config, play.catalogue, shoppers, rng)
    share = np.cumsum(shoppers.activity / shoppers.activity.sum())
    done = 0
    for day, count in enumerate(per_day.tolist(), first_day):
        if count == 0:
            continue  # in a shard too thin for a search a day
        hour = np.where(rng.random(count) < 0.5, rng.triangular(12.0, 20.0, 24.0, count), rng.uniform(0.0, 24.0, count))
        time = day * DAY + np.sort((hour / 24.0 * (DAY - 60_000_000)).astype(np.int64))  # it ends on its day
        who = np.minimum(np.searchsorted(share, rng.random(count), side="right"), share.size - 1)
        played = _play_day(play, shoppers, day, who, time, history[who], rng)
        yield played._replace(session=played.session + done)
        ended = played.searched >= 0
        _remember(history, played.who[ended], played.searched[ended])
        done += count


def _play_day(play: Play, shoppers: Shoppers, day: int, who, time, history, rng) -> Requests:
    config, catalogue, typing = play.config, play.catalogue, play.typing
    main, chance = play.policies(int(period_of(config, day)))
    count = who.size
    intent = draw_intents(config, catalogue, shoppers, who, day, history, rng)
    form, script = draw_forms(typing, catalogue, intent, rng)
    points, length = typed_heads(typing, catalogue, intent, form, script)
    right, right_length = points.copy(), length.copy()  # what a misspelling is mended to
    wrong = np.flatnonzero(form == MISSPELT)
    if wrong.size:
        right[wrong], right_length[wrong] = typed_heads(
            typing, catalogue, intent[wrong], np.full(wrong.size, WRITTEN), script[wrong]
        )
    at_random = rng.random(count) < config.random_share
    bursts = np.cumsum(typing.burst)[:-1]
    typed = np.zeros(count, dtype=np.int64)
    active = np.arange(count)
    steps = []
    while active.size:
        if steps:  # mending shows at the next request
            mend = (form[active] == MISSPELT) & (rng.random(active.size) < config.notice)
            row = active[mend]
            points[row], length[row], form[row] = right[row], right_length[row], WRITTEN
        typed[active] += 1 + np.searchsorted(bursts, rng.random(active.size), side="right")
        over = (typed[active] > np.minimum(length[active], config.max_prefix)) if steps else np.zeros(active.size, bool)
        if steps and over.any():  # typed to the end: Enter
            entered = active[over]
            steps[-1][3][np.searchsorted(steps[-1][0], entered)] = intent[entered]
            active = active[~over]
            if active.size == 0:
                break
        typed[active] = np.minimum(typed[active], np.minimum(length[active], config.max_prefix))
        batch = Batch(day, points[active], typed[active], history[active], shoppers.profile[who[active]])
        page = _answer(config, batch, at_random[active], main, chance, rng)
        looks = rng.random(active.size) < config.glance
        tier = shoppers.tier[who[active]]
        responses = respond(config, catalogue, intent[active], tier, page.shown, rng, looks)
        clicked = responses.place >= 0
        ended = np.where(clicked, page.shown[np.arange(active.size), np.maximum(responses.place, 0)], -1)
        steps.append([active, batch, page, ended, responses, form[active]])
        gone = ~clicked & (rng.random(active.size) < config.give_up)
        active = active[~clicked & ~gone]
    pace = rng.gamma(4.0, 250_000.0, count)  # microseconds from one burst to the next, about a second
    return _in_order(steps, day, who, time, pace, intent, script, at_random, points)


def _answer(config: MarketConfig, batch: Batch, at_random, main: Policy, chance: Policy, rng) -> Page:
    """The main policy's page, but for the random slice."""
    page = main(batch, rng)
    rows = np.flatnonzero(at_random)
    if rows.size:
        other = chance(Batch(batch.day, *(part[rows] for part in batch[1:])), rng)
        page = Page(*(part.copy() for part in page))
        for whole, part in zip(page, other, strict=True):
            whole[rows] = part[:, : whole.shape[1]]
    return page


def _in_order(steps, day, who, time, pace, intent, script, at_random, points) -> Requests:
    """The steps of all sessions, sorted by session, then step."""
    rows = np.concatenate([step[0] for step in steps])
    number = np.repeat(np.arange(len(steps)), [step[0].size for step in steps])
    order = np.lexsort((number, rows))
    session = rows[order]

    def stack(parts):
        return np.concatenate(list(parts))[order]

    batch = Batch(day, *(stack(step[1][place] for step in steps) for place in range(1, 5)))
    page = Page(*(stack(step[2][place] for step in steps) for place in range(3)))
    responses = Responses(*(stack(step[4][place] for step in steps) for place in range(4)))
    moment = time[session] + (number[order] * np.minimum(pace, 4_000_000)[session]).astype(np.int64)
    return Requests(
        day, session, who[session], moment, intent[session], stack(step[5] for step in steps), script[session], batch,
        page, responses, at_random[session], stack(step[3] for step in steps), points[session],
    )  # fmt: skip


def _remember(history: np.ndarray, who: np.ndarray, searched: np.ndarray) -> None:
    """Append the day's searches, in the order of time, to each shopper's history."""
    if history.shape[1] == 0 or who.size == 0:
        return
    order = np.argsort(who, kind="stable")
    who, searched = who[order], searched[order]
    first = np.searchsorted(who, who)
    turn = np.arange(who.size) - first
    for number in range(int(turn.max()) + 1):
        at = turn == number
        history[who[at], :-1] = history[who[at], 1:]
        history[who[at], -1] = searched[at]
