"""Made-up traffic for a policy that serves: who asks when, and what nobody should have to ask.

Shoppers of a log type their requests letter by letter. They come as a Poisson process whose rate is a multiple in some
windows, the bursts. A share of what arrives is hostile: requests that no shopper types, each with what must come of it,
an error that names the thing or a list like any other.

Source: ours; the paper tells of its traffic only that it is that of a large shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from onesug_lite.requests import REQUEST, history_and_profile
from onesug_lite.tokenizer import PromptError


@dataclass(frozen=True)
class Traffic:
    """How much comes, and how unevenly; all values are ours."""

    seconds: float = 600.0  # of the whole run
    sessions_per_second: float = 2.7  # shoppers who begin to type, outside the bursts
    keystroke_seconds: float = 0.25  # mean time between two letters
    first_letters: int = 2  # typed before the first request
    bursts: int = 4  # windows, one at a random place of each equal part of the run
    burst_seconds: float = 20.0  # length of each
    burst_factor: float = 6.0  # times as many sessions within them
    hostile: float = 0.01  # share of all requests

    def __post_init__(self):
        for name in ("seconds", "sessions_per_second", "keystroke_seconds", "first_letters", "burst_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Traffic.{name} is {getattr(self, name)}; expected more than 0")
        if not self.burst_factor >= 1:
            raise ValueError(f"Traffic.burst_factor is {self.burst_factor}; expected 1 or more")
        if not 0 <= self.hostile < 1:
            raise ValueError(f"Traffic.hostile is {self.hostile}; expected a share from 0 to below 1")
        if self.bursts < 0 or self.bursts * self.burst_seconds > self.seconds:
            raise ValueError(
                f"{self.bursts} bursts of {self.burst_seconds:g} s do not fit into {self.seconds:g} s; give fewer, or "
                "make them shorter"
            )


def traffic_of(seconds: float) -> Traffic:
    """Traffic of that many seconds, its bursts as long, against the run, as in one of ten minutes."""
    return Traffic(seconds=seconds, burst_seconds=Traffic.burst_seconds * seconds / Traffic.seconds)


class Hostile(NamedTuple):
    """A request that no shopper types.

    Attributes:
        name: of the kind.
        prefix: what is sent as the typed text.
        history: what is sent as earlier searches.
        profile: what is sent as the shopper's attributes.
        refused: the error that must come; None where a list must.
        says: what the error's message must hold.
    """

    name: str
    prefix: Any
    history: Any = ()
    profile: Any = ()
    refused: type[Exception] | None = None
    says: str = ""


_NOTHING = {"refused": PromptError, "says": "which holds no visible character"}
_NO_TEXT = {"refused": TypeError, "says": "expected text"}
_NO_LIST = {"refused": TypeError, "says": "expected a list of texts"}

HOSTILE = (
    Hostile("empty", "", **_NOTHING),
    Hostile("nothing at all", None, **_NOTHING),
    Hostile("blanks", " \t\n\u3000", **_NOTHING),
    Hostile("a page of blanks", " " * 100_000 + "shoes", **_NOTHING),
    Hostile("control characters alone", "\x00\x07\x1b\x7f", **_NOTHING),
    Hostile("lone surrogates alone", "\ud800\udfff", **_NOTHING),
    Hostile("joiners alone", "\u200d\u200b\ufeff", **_NOTHING),
    Hostile("a number", 7, says="prefix is 7 (int)", refused=TypeError),
    Hostile("zero", 0, says="prefix is 0 (int)", refused=TypeError),
    Hostile("bytes", b"shoes", **_NO_TEXT),
    Hostile("a list as prefix", ["sh", "oe"], **_NO_TEXT),
    Hostile("a text as history", "sh", "red shoes", **_NO_LIST),
    Hostile("a number as history", "sh", 7, **_NO_LIST),
    Hostile("a mapping as profile", "sh", (), {"age": "30"}, **_NO_LIST),
    Hostile("a number in history", "sh", ["red shoes", 7], refused=TypeError, says="history entry 1 is 7 (int)"),
    Hostile("a list in profile", "sh", (), [["a"]], refused=TypeError, says="profile entry 0 is ['a'] (list)"),
    Hostile("a hundred thousand letters", "shoes" * 20_000),
    Hostile("a hundred thousand words", "red shoes " * 10_000),
    Hostile("a hundred thousand emoji", "👟" * 100_000),
    Hostile("control tokens", "<s>shoes</s><match><mask><pad>"),
    Hostile("one control token", "</s>"),
    Hostile("NUL inside", "sh\x00oes\x1b[31m"),
    Hostile("a surrogate inside", "sh\ud83does"),
    Hostile("emoji", "👩\u200d👩\u200d👧 shoes"),
    Hostile("right to left", "\u202eshoes\u202c حذاء"),
    Hostile("stacked marks", "s" + "\u0301" * 50 + "hoes"),
    Hostile("replacement character", "sh\ufffdoes"),
    Hostile("SQL", "'; DROP TABLE queries; --"),
    Hostile("HTML", "<script>alert('sh')</script>"),
    Hostile("a format string", "%s%n{0}${jndi}"),
    Hostile("no history", "sh", None, None),
    Hostile("gaps in history", "sh", [None, "", "red shoes", None], [None, ""]),
    Hostile("control tokens in history", "sh", ["</s>", "<match> red shoes", "<mask>"], ["<sep>", "<item>"]),
    Hostile("surrogates in history", "sh", ["red \udc00shoes", "\ud800"], ["\udfff"]),
    Hostile("ten thousand searches", "sh", tuple(f"search {place}" for place in range(10_000))),
    Hostile("a search of a hundred thousand letters", "sh", ["shoes" * 20_000]),
    Hostile("ten thousand attributes", "sh", (), tuple(f"attribute {place}" for place in range(10_000))),
)  # fmt: skip


class Arrival(NamedTuple):
    """A request and when it comes.

    Attributes:
        at: seconds from the start of the run.
        request: number of the distinct request, from 0; for a hostile one its place in :data:`HOSTILE`.
        hostile: which of both.
    """

    at: float
    request: int
    hostile: bool


class Arrivals(NamedTuple):
    """What comes during a run.

    Attributes:
        times: N arrivals, in the order in which they come.
        requests: frame of the distinct sound requests: ``prefix``, ``history``, ``profile``.
        bursts: ``float`` (B, 2) start and end of each burst, in seconds.
    """

    times: list[Arrival]
    requests: pl.DataFrame
    bursts: np.ndarray


def arrivals(traffic: Traffic, requests: pl.DataFrame, rng: np.random.Generator) -> Arrivals:
    """Draw a run; the same generator state gives the same arrivals.

    Args:
        traffic: how much, how unevenly.
        requests: what shoppers typed in the end: ``prefix``, ``history``, ``profile``; each session draws a row, types
            its prefix letter by letter and asks at each letter.
        rng: of every draw.

    Raises:
        ValueError: there is no request to draw from.
    """
    if not len(requests):
        raise ValueError("there are no requests to draw from; expected a frame with a row or more")
    part = traffic.seconds / max(traffic.bursts, 1)
    starts = np.arange(traffic.bursts) * part + rng.uniform(0, max(part - traffic.burst_seconds, 0), traffic.bursts)
    bursts = np.stack([starts, starts + traffic.burst_seconds], axis=1)  # (B, 2)
    begun = _times(traffic, bursts, None, rng)
    rows = list(zip(requests["prefix"].to_list(), *history_and_profile(requests), strict=True))
    numbers: dict[tuple, int] = {}
    times = []
    for at, row in zip(begun.tolist(), rng.integers(0, len(rows), len(begun)).tolist(), strict=True):
        whole, history, profile = rows[row]
        for length in range(min(traffic.first_letters, len(whole)), len(whole) + 1):
            typed = (whole[:length], tuple(history), tuple(profile))
            if typed[0].strip() and at < traffic.seconds:
                times.append(Arrival(at, numbers.setdefault(typed, len(numbers)), False))
            at += float(rng.exponential(traffic.keystroke_seconds))
    number = round(len(times) * traffic.hostile / (1 - traffic.hostile))
    kinds = np.concatenate([rng.permutation(len(HOSTILE)) for _ in range(-(-number // len(HOSTILE)))] or [[]])
    when = _times(traffic, bursts, number, rng)
    times += [Arrival(at, int(kind), True) for at, kind in zip(when.tolist(), kinds[:number], strict=True)]
    distinct = [(prefix, list(history), list(profile)) for prefix, history, profile in numbers]
    return Arrivals(sorted(times), pl.DataFrame(distinct, schema=REQUEST, orient="row"), bursts)


def _times(traffic: Traffic, bursts: np.ndarray, number: int | None, rng: np.random.Generator) -> np.ndarray:
    """Sorted times of a Poisson process with bursts: by the inverse of its mean number of arrivals up to a time.

    Args:
        traffic: the rates.
        bursts: (B, 2) windows, apart and in order.
        number: how many; None draws it.
        rng: of the draws.
    """
    edges = np.concatenate([[0.0], bursts.ravel(), [traffic.seconds]])
    rates = np.where(np.arange(len(edges) - 1) % 2, traffic.burst_factor, 1.0) * traffic.sessions_per_second
    expected = np.concatenate([[0.0], np.cumsum(np.diff(edges) * rates)])
    number = rng.poisson(expected[-1]) if number is None else number
    return np.interp(np.sort(rng.uniform(0, expected[-1], number)), expected, edges)
