r"""Experiments: two policies before the same shoppers, under common random numbers.

What a shopper has in mind and types does not depend on the lists, so it is drawn once (:func:`draw_searches`); a policy
only decides where each search ends (:func:`meet`). **Common random numbers**: every further draw is a hash of (luck,
session, step, query), not the next number of a stream. A list that changes moves no other draw: the same policy twice
has the same outcome, and a query shown by both is clicked by both or by neither.

That pairs every shopper with itself, which only a simulation can. A real test splits shoppers into halves; both
analyses (:mod:`data_synth.ab_tests`) of the same play stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from .ab_tests import Arm, compare
from .catalogue import Catalogue, period_of
from .config import MarketError
from .keystrokes import MISSPELT, WRITTEN, draw_forms, prefix_texts, typed_heads
from .policies import Batch, Page, Policy, text_policy
from .responses import click_probability, outcome_probability, price, reading
from .sessions import day_sessions, first_histories, play_days
from .shoppers import draw_intents, draw_shoppers
from .world import World

_LOOK, _DEPTH, _CLICK, _LEAVE, _OUTCOME, _PRICE = range(6)  # what a draw is for


class Searches(NamedTuple):
    """N searches as they would be typed if no list ever ended them, T requests at most."""

    day: np.ndarray  # (N,)
    who: np.ndarray  # (N,) shopper
    tier: np.ndarray  # (N,) price tier of the shopper
    intent: np.ndarray  # (N,) query in mind
    history: np.ndarray  # (N, H) as it stood on the first morning
    profile: np.ndarray  # (N, 5)
    points: np.ndarray  # (T, N, HEAD) code points of what is being typed
    length: np.ndarray  # (T, N) characters typed at each request
    there: np.ndarray  # (T, N) bool: there is such a request before Enter
    full: np.ndarray  # (N,) characters typed at Enter


class Experiment(NamedTuple):
    """Two policies before the same searches."""

    paired: pl.DataFrame  # :func:`compare` of each shopper with itself
    split: pl.DataFrame  # the same of two halves, as a real test has it
    a: Arm
    b: Arm
    searches: Searches
    first: np.ndarray  # (U,) bool, shoppers who see A in the split test


# ---------------------------------------------------------------- policies
def suggester_policy(catalogue: Catalogue, suggest: Callable[[pl.DataFrame], list[list[str]]], shown=16) -> Policy:
    """A suggester as a policy of the market that is asked each distinct request once, and remembers its lists.

    Args:
        catalogue: the queries; a string that is none of them becomes an empty place.
        suggest: from a frame with prefix (String), history and profile (List(String)) to N lists, best first. It must
            answer by these alone.
        shown: places of a list.

    Raises:
        MarketError: it answers with another number of lists.
    """
    lists: dict[tuple, np.ndarray] = {}

    def counted(frame: pl.DataFrame) -> list[list[str]]:
        answers = suggest(frame)
        if len(answers) != len(frame):
            raise MarketError(f"the suggester gave {len(answers)} lists for {len(frame)} requests; expected one each")
        return answers

    fresh = text_policy(catalogue, counted, shown)

    def answer(batch: Batch, rng: np.random.Generator) -> Page:
        texts = prefix_texts(batch.points, batch.length)
        whole = zip(texts.tolist(), batch.history, batch.profile, strict=True)
        keys = [(text, history.tobytes(), profile.tobytes()) for text, history, profile in whole]
        new = {key: row for row, key in enumerate(keys) if key not in lists}
        if new:
            rows = np.array(list(new.values()))
            page = fresh(Batch(batch.day, *(part[rows] for part in batch[1:])), rng)
            lists.update(zip(new, page.shown, strict=True))
        page = np.stack([lists[key] for key in keys]) if keys else np.empty((0, shown), dtype=np.int64)
        return Page(page, page[:, :0], np.ones(page.shape, dtype=np.float32))

    return answer


def logging_policy(world: World) -> Policy:
    """The market's own policy through all its periods, without the random slice."""
    by_period: dict[int, Policy] = {}

    def answer(batch: Batch, rng: np.random.Generator) -> Page:
        period = int(period_of(world.config, batch.day))
        if period not in by_period:
            by_period[period] = world.policies(period)[0]
        return by_period[period](batch, rng)

    return answer


# ---------------------------------------------------------------- play
def draw_searches(world: World, days: int, seed: int, sessions: int, first_day: int | None = None) -> Searches:
    """Searches of fresh shoppers, who have lived through the days before under the market's own policy.

    Each shopper searches as often a day as in the log. Histories stay as they are on the first morning, for both
    policies, so that both meet the same requests.

    Args:
        world: the market.
        days: how many.
        seed: of shoppers, intents and typing.
        sessions: over all days.
        first_day: number of the first one; the first test day by default.

    Raises:
        MarketError: the market ends before the last day, or there is not one session a day.
    """
    config, catalogue, typing = world.config, world.catalogue, world.typing
    first = config.days if first_day is None else first_day
    last = config.days + config.test_days
    if not (first >= 0 and 1 <= days <= last - first):
        raise MarketError(
            f"days is {days} from day {first} on; the market has days 0 to {last - 1}: lower days, choose an earlier "
            "first_day, or build it with more test_days"
        )
    if sessions < days:
        raise MarketError(f"sessions is {sessions}; expected at least one for each of the {days} days")
    rng = np.random.default_rng([config.seed, 5, seed])
    each = config.sessions / config.shoppers  # sessions of a shopper through all days of the log
    shoppers = draw_shoppers(config, catalogue, max(round(sessions / each * last / days), 2), rng)
    history = first_histories(config, catalogue, shoppers, rng)
    before = day_sessions(config, round(shoppers.tier.size * each))[:first]
    for _ in play_days(world.play(), shoppers, before, rng, 0, history):
        pass  # what was searched is in the history
    per_day = np.diff(np.round(np.linspace(0, sessions, days + 1)).astype(np.int64))
    day = np.repeat(np.arange(first, first + days), per_day)
    who = rng.choice(shoppers.tier.size, sessions, p=shoppers.activity / shoppers.activity.sum())
    intent = np.concatenate([
        draw_intents(config, catalogue, shoppers, who[day == number], number, history[who[day == number]], rng)
        for number in range(first, first + days)
    ])  # fmt: skip
    form, script = draw_forms(typing, catalogue, intent, rng)
    points, full = typed_heads(typing, catalogue, intent, form, script)
    right, right_full = typed_heads(typing, catalogue, intent, np.where(form == MISSPELT, WRITTEN, form), script)
    bursts, typed = np.cumsum(typing.burst)[:-1], np.zeros(sessions, dtype=np.int64)
    there, steps = np.ones(sessions, dtype=bool), []
    while there.any():  # as the market's own sessions do it, see data_synth.sessions
        if steps:
            mend = there & (form == MISSPELT) & (rng.random(sessions) < config.notice)
            points, full = np.where(mend[:, None], right, points), np.where(mend, right_full, full)
            form = np.where(mend, WRITTEN, form)
        typed = typed + 1 + np.searchsorted(bursts, rng.random(sessions), side="right")
        end = np.minimum(full, config.max_prefix)
        if steps:
            there = there & (typed <= end)
        typed = np.minimum(typed, end)
        steps.append((points, typed, there))
    own = (day, who, shoppers.tier[who], intent, history[who], shoppers.profile[who])
    return Searches(*own, *(np.stack(part) for part in zip(*steps[:-1], strict=True)), full)


def meet(world: World, searches: Searches, policy: Policy, luck: int) -> Arm:
    """Let a policy answer searches, all of them (no random slice), until a click, Enter or leaving.

    Args:
        world: the market.
        searches: N of them.
        policy: what answers. Its own chance is drawn a day and step at a time, so it is common to two policies as long
            as the same searches go on.
        luck: seed of every draw from here on; the same for two policies that are to be paired.
    """
    config, catalogue = world.config, world.catalogue
    count = searches.day.size
    found = {
        name: np.zeros(count) for name in ("requests", "click", "order", "revenue", "position", "abandoned", "bait")
    }
    typed, going, rows = searches.full.copy(), np.ones(count, dtype=bool), []
    for day in np.unique(searches.day):
        for step in range(len(searches.length)):
            at = np.flatnonzero((searches.day == day) & going & searches.there[step])
            if at.size == 0:
                break
            points, length = searches.points[step, at], searches.length[step, at]
            batch = Batch(int(day), points, length, searches.history[at], searches.profile[at])
            shown = policy(batch, np.random.default_rng([luck, int(day), step])).shown
            place = _click(world, searches.intent[at], shown, luck, at, step)
            clicked = place >= 0
            query = shown[np.arange(at.size), np.maximum(place, 0)][clicked]
            gone = ~clicked & (_uniform(luck, _LEAVE, at, step) < config.give_up)
            yes, over = at[clicked], clicked | gone
            found["requests"][at] += 1
            found["click"][yes], found["position"][yes] = 1, place[clicked] + 1
            found["bait"][yes] = catalogue.is_bait(query, config.clickbait)
            _, order = outcome_probability(config, catalogue, searches.intent[yes], query, searches.tier[yes])
            ordered = _uniform(luck, _OUTCOME, yes, 0, query) < order
            noise = np.exp(0.1 * stats.norm.ppf(_uniform(luck, _PRICE, yes, 0, query)))
            found["order"][yes] = ordered
            found["revenue"][yes] = np.where(ordered, np.round(price(catalogue, query) * noise, 2), 0.0)
            found["abandoned"][at[gone]] = 1
            typed[at[over]], going[at[over]] = length[over], False
            steps = np.full(at.size, step, dtype=np.int32)
            rows.append((at, searches.who[at], steps, prefix_texts(points, length), clicked.astype(np.float64)))
    sessions = {"session": np.arange(count), "shopper": searches.who, "day": searches.day, "sessions": np.ones(count)}
    names = ("session", "shopper", "step", "prefix", "click")
    requests = {name: np.concatenate(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)}
    return Arm(pl.DataFrame(sessions | found | {"typed": typed.astype(np.float64)}), pl.DataFrame(requests))


def _click(
    world: World, intent: np.ndarray, shown: np.ndarray, luck: int, session: np.ndarray, step: int
) -> np.ndarray:
    """(N,) place that is clicked, -1 for none: :func:`data_synth.responses.respond` with common random numbers."""
    config, places = world.config, np.arange(shown.shape[1])
    read, drawn = reading(config, places.size), _uniform(luck, _DEPTH, session, step)[:, None]
    if config.examination == "cascade":
        seen = drawn < np.cumprod(read)  # the depth is a geometric number
    else:
        seen = _uniform(luck, _DEPTH, session[:, None], step, places) < read
    looks = _uniform(luck, _LOOK, session, step) < config.glance
    wants = _uniform(luck, _CLICK, session[:, None], step, shown) < click_probability(
        config, world.catalogue, intent, shown
    )
    wants &= seen & looks[:, None]
    return np.where(wants.any(axis=1), wants.argmax(axis=1), -1)


def _uniform(luck: int, what: int, session: np.ndarray, step: int, item: np.ndarray | int = 0) -> np.ndarray:
    """Numbers in (0, 1) that belong to (luck, what, session, step, item) for good: splitmix64, one part at a time."""
    bits = np.zeros(1, dtype=np.uint64)
    for part in (luck, what, session, step, item):
        bits = (bits ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        bits = bits ^ (bits >> np.uint64(31))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def experiment(
    world: World, policy_a: Policy, policy_b: Policy, days: int = 2, seed: int = 0, sessions: int = 2_000,
    first_day: int | None = None,
) -> Experiment:  # fmt: skip
    """An A/B test in the market: the same shoppers, intents and luck meet both policies.

    Args:
        world: the market.
        policy_a: the control.
        policy_b: the treatment.
        days: how long.
        seed: of shoppers, searches, luck and of who sees what in the split test.
        sessions: over all days.
        first_day: see :func:`draw_searches`.

    Raises:
        MarketError: see :func:`draw_searches`.
    """
    both = {"a": policy_a, "b": policy_b}
    return experiments(world, both, [("b", "a")], days, seed, sessions, first_day)["b", "a"]


def experiments(
    world: World, policies: Mapping[str, Policy], pairs: Sequence[tuple[str, str]], days: int = 2, seed: int = 0,
    sessions: int = 2_000, first_day: int | None = None,
) -> dict[tuple[str, str], Experiment]:  # fmt: skip
    """Several A/B tests before the same searches: each policy is played once, in however many pairs it stands.

    Args:
        world: the market.
        policies: by name.
        pairs: names of treatment and control.
        days: how long, and the rest as for :func:`experiment`.
        seed: see there.
        sessions: see there.
        first_day: see there.

    Returns:
        Each pair's own :func:`experiment`.

    Raises:
        MarketError: a pair names no policy; see :func:`draw_searches`.
    """
    asked = dict.fromkeys(name for pair in pairs for name in pair)
    unknown = [name for name in asked if name not in policies]
    if unknown:
        raise MarketError(f"no policy '{unknown[0]}'; pairs are of {', '.join(policies)}")
    searches = draw_searches(world, days, seed, sessions, first_day)
    arms = {name: meet(world, searches, policies[name], seed) for name in asked}
    first = np.zeros(int(searches.who.max()) + 1, dtype=bool)  # halves of those who search
    first[np.random.default_rng([world.config.seed, 6, seed]).permutation(np.unique(searches.who))[::2]] = True
    return {
        (treatment, control): Experiment(compare(a, b), compare(a, b, first), a, b, searches, first)
        for treatment, control in pairs
        for a, b in [(arms[control], arms[treatment])]
    }
