"""How long an answer takes, and where the time goes: from what was typed to the list of queries.

A :class:`Stopwatch` notes the time of each stage without what lies in stages inside it, so that the stages of a request
add up to its total. :func:`stages_of` says where a policy's stages begin and end; nothing in the policies themselves
knows that it is being measured. Times differ from machine to machine and from run to run.

Source: paper, abstract (mean response time); the stages are ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

import onesug_lite.decode
import onesug_lite.serving
from onesug_lite.beam import BeamSearcher
from onesug_lite.cascade import Cascade
from onesug_lite.policy import OneSugPolicy
from onesug_lite.rankers import DCN
from onesug_lite.requests import history_and_profile
from onesug_lite.serving import ServingPolicy

REST = "rest"
"""What no stage holds: Python between the stages."""

QUANTILES = (50, 95, 99)


class Point(NamedTuple):
    """A function that is a stage.

    Attributes:
        holder: object or module.
        name: of its attribute.
        stage: name of the stage, or a function from the call's arguments to it; "#" becomes the number of the call
            within the request.
    """

    holder: Any
    name: str
    stage: str | Callable[..., str]


class Stopwatch:
    """Times of stages, each without the stages inside it.

    Args:
        clock: seconds; ``time.perf_counter`` by default.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._open: list[float] = []  # seconds already given to stages inside each open one
        self._spent: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        if "#" in name:
            self._calls[name] = self._calls.get(name, 0) + 1
            name = name.replace("#", str(self._calls[name]))
        self._open.append(0.0)
        start = self.clock()
        try:
            yield
        finally:
            whole = self.clock() - start
            self._spent[name] = self._spent.get(name, 0.0) + whole - self._open.pop()
            if self._open:
                self._open[-1] += whole

    def request(self, answer: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds of each stage of one call, in the order in which they ended; :data:`REST` comes last."""
        self._spent, self._calls = {}, {}
        with self.stage(REST):
            answer()
        return {name: seconds * 1e3 for name, seconds in self._spent.items()}

    @contextmanager
    def watching(self, points: Sequence[Point]) -> Iterator[None]:
        """Time these functions for a while; they are put back as they were."""
        before = []
        try:
            for point in points:
                original = getattr(point.holder, point.name)
                before.append((point, vars(point.holder).get(point.name)))
                setattr(point.holder, point.name, self._timed(original, point.stage))
            yield
        finally:
            for point, own in reversed(before):
                if own is None:
                    delattr(point.holder, point.name)
                else:
                    setattr(point.holder, point.name, own)

    def _timed(self, function: Callable, stage: str | Callable[..., str]) -> Callable:
        def timed(*arguments, **options):
            with self.stage(stage if isinstance(stage, str) else stage(*arguments, **options)):
                return function(*arguments, **options)

        return timed


def stages_of(policy: OneSugPolicy | ServingPolicy | Cascade) -> list[Point]:
    """Where the stages of a policy are.

    Raises:
        TypeError: a policy of another kind, or a generator that is searched by transformers.
    """
    if isinstance(policy, ServingPolicy):
        index = [] if policy.index is None else [Point(policy, "related", "PRE search")]
        return [
            *index,
            Point(policy, "prompt", "build prompt"),
            Point(policy.searcher, "search", "bookkeeping"),
            Point(policy.searcher.graphs, "encode", "encode"),
            Point(policy.searcher.graphs, "step", "decode step #"),
            Point(onesug_lite.serving, "decode_queries", "detokenise"),
        ]
    if isinstance(policy, OneSugPolicy) and isinstance(policy._searcher, BeamSearcher):
        index = [] if policy.search is None else [Point(policy.search, "related", "PRE search")]
        model = policy._searcher.model
        packed = [Point(model, "encode", "encode"), Point(model, "decode", "decode step #")]
        return [
            *index,
            Point(policy, "prompts", "build prompt"),
            Point(policy._searcher, "search", "bookkeeping"),
            *(packed if hasattr(model, "encode") else []),
            Point(onesug_lite.decode, "decode_queries", "detokenise"),
        ]
    if isinstance(policy, Cascade):
        return [
            Point(policy, "encode", "embed"),
            Point(policy.recall, "channel", lambda name, requests: f"recall: {name}"),
            Point(policy, "_keep", lambda model, *_: "pre-rank (DCN)" if isinstance(model, DCN) else "rank (DIN)"),
        ]
    raise TypeError(f"stages of a {type(policy).__name__} are not known; give a generator or a cascade")


def measure(policy: Any, requests: pl.DataFrame, warm: int = 5, clock: Callable[[], float] = time.perf_counter):
    """Answer requests one at a time.

    Args:
        policy: one that :func:`stages_of` knows.
        requests: columns ``prefix``, ``history``, ``profile``; N of them.
        warm: requests answered first, without being noted: what is built on first use is no part of an answer.
        clock: seconds.

    Returns:
        Frame ``request`` (0 to N - 1), ``stage``, ``milliseconds``.
    """
    rows = list(zip(requests["prefix"].to_list(), *history_and_profile(requests), strict=True))
    watch = Stopwatch(clock)
    with silent():
        for row in rows[:warm]:
            policy.suggest(*row)
        if isinstance(policy, ServingPolicy):
            policy.forget()
        with watch.watching(stages_of(policy)):
            spent = [watch.request(lambda row=row: policy.suggest(*row)) for row in rows]
    return pl.DataFrame(
        [(number, stage, ms) for number, stages in enumerate(spent) for stage, ms in stages.items()],
        schema={"request": pl.Int64, "stage": pl.String, "milliseconds": pl.Float64},
        orient="row",
    )


@contextmanager
def silent() -> Iterator[None]:
    """Without progress bars, which in a notebook cost more than some stages."""
    with redirect_stderr(StringIO()):
        yield


def totals(measured: pl.DataFrame) -> pl.Series:
    """Milliseconds of each request of :func:`measure`."""
    return measured.group_by("request", maintain_order=True).agg(pl.col("milliseconds").sum())["milliseconds"]


def quantiles(milliseconds: pl.Series | Sequence[float]) -> dict[str, float]:
    """``p50``, ``p95``, ``p99`` and ``mean`` of times."""
    values = np.asarray(milliseconds, dtype=np.float64)
    return {f"p{q}": float(np.percentile(values, q)) for q in QUANTILES} | {"mean": float(values.mean())}


def mean_stages(measured: pl.DataFrame) -> pl.DataFrame:
    """Mean milliseconds of each stage a request, 0 where a request lacks it: ``stage``, ``milliseconds``.

    Means add up to the mean response time, which medians would not. Stages stand in the order of the path.
    """
    number = measured["request"].n_unique()
    names = measured["stage"].unique(maintain_order=True).to_list()
    numbered = [name for name in names if name[-1].isdigit()]  # not every request has the later ones
    ordered = [name for name in names if name not in numbered and name != REST]
    before = ordered.index("encode") + 1 if "encode" in ordered else len(ordered)
    ordered[before:before] = sorted(numbered, key=lambda name: (len(name), name))
    places = {name: place for place, name in enumerate([*ordered, REST])}
    means = measured.group_by("stage").agg(pl.col("milliseconds").sum() / number)
    return means.sort(pl.col("stage").replace_strict(places, return_dtype=pl.Int64))


def median_time(answer: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median milliseconds of calls, after one that does not count."""
    answer()
    spent = []
    for _ in range(repeats):
        start = clock()
        answer()
        spent.append(clock() - start)
    return float(np.median(spent) * 1e3)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch with that many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
