"""A load run: made-up traffic against a policy that serves, every outcome checked, its release replaced on the way.

The clock of the run is virtual. There is one server; a request starts when it has come and the one before is done, and
takes as long as answering it really took: ``start = max(arrival, finish before)``, ``response = finish - arrival``. Ten
minutes of traffic so take as long as their answers, and queues in bursts are as long as they would be. Only while a new
release is being read does the run wait for the time between two requests to pass, as the thread that reads needs it.

A machine that others use, or that heats up, is not equally quick from minute to minute. So a fixed piece of work, the
yardstick, is timed before each request: how long an answer takes can be told in its measure.

Source: ours.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
from tqdm import tqdm

from onesug_lite.folders import replacing
from onesug_lite.latency import silent
from onesug_lite.live import LiveService, release
from onesug_lite.policy import OneSugPolicy
from onesug_lite.requests import REQUEST
from onesug_lite.serving import LONGEST
from onesug_lite.tokenizer import CONTROL_TOKENS
from onesug_lite.traffic import HOSTILE, Arrival, Arrivals, Hostile, Traffic

BLOCKS = 60
"""Parts of a run that are measured together: ten seconds each in a run of ten minutes."""

TIE = 1e-3
"""Nats, over a whole query: scores closer than this are equal but for rounding."""

KEPT = 200
"""Answers, texts and prefixes remembered during a run: few, so that memories are full long before its middle third."""

REPLACED = {"new release": 0.25, "damaged release": 0.5}
"""What takes the release's place, and after which share of a run."""

DAMAGED = Path("graphs/decoder_step.onnx")
"""The file of a release that is cut short in the damaged one."""


_LEFT, _RIGHT = np.linspace(-1, 1, 32 * 128, dtype=np.float32).reshape(32, 128), np.ones((128, 512), np.float32)


def yardstick() -> None:
    """The same work at each call, below a millisecond: like an answer, partly products of matrices, partly Python."""
    (_LEFT @ _RIGHT).max(axis=1)
    count = 0
    for number in range(3_000):
        count += number


class Service(Protocol):
    """What a run asks: :class:`onesug_lite.live.LiveService`, or a stand-in."""

    version: str
    preparing: bool
    taken: int
    refused: int

    def suggest(self, prefix: Any, history: Any, profile: Any) -> list[tuple[str, float]]: ...

    def look(self, wait: bool = False) -> None: ...


class Event(NamedTuple):
    """Something that happens beside the requests.

    Attributes:
        at: seconds from the start of the run.
        action: what is done.
    """

    at: float
    action: Callable[[], Any]


class Referee:
    """What must come of every request, from each version that may be in force; known before the run begins.

    Args:
        requests: frame of the distinct sound requests.
        policies: version -> policy whose answers are right.
        rng: of the sample.
        checked: distinct requests whose answers are compared, a sample; None compares all.
    """

    def __init__(
        self,
        requests: pl.DataFrame,
        policies: Mapping[str, OneSugPolicy],
        rng: np.random.Generator,
        checked: int | None = None,
    ):
        number = len(requests) if checked is None else min(checked, len(requests))
        self.checked = np.sort(rng.choice(len(requests), number, replace=False))
        answered = [place for place, case in enumerate(HOSTILE) if case.refused is None]
        cases = pl.DataFrame([_read(HOSTILE[place]) for place in answered], schema=REQUEST, orient="row")
        self.sound, self.hostile = {}, {}
        for version, policy in policies.items():
            with silent():  # no progress bars
                lists = policy.scored(requests[self.checked])
                self.hostile[version] = dict(zip(answered, policy.scored(cases), strict=True))
            self.sound[version] = dict(zip(self.checked.tolist(), lists, strict=True))

    def fault(self, arrival: Arrival, outcome: list[tuple[str, float]] | Exception, version: str) -> str:
        """What is wrong with the outcome of a request; empty when nothing is."""
        case = HOSTILE[arrival.request] if arrival.hostile else None
        asked = f"request {arrival.request}" if case is None else f"'{case.name}'"
        if case is not None and case.refused is not None:
            if type(outcome) is case.refused and case.says in str(outcome):
                return ""
            return f"{asked}: {_said(outcome)}; expected {case.refused.__name__} with '{case.says}'"
        if isinstance(outcome, Exception):
            return f"{asked}: {_said(outcome)}; expected a list"
        if version not in self.sound:
            return f"{asked}: answered by version {version}, which nobody released"
        texts = [query for query, _ in outcome]
        if not texts:
            return f"{asked}: nothing suggested"
        if len(set(texts)) < len(texts):
            return f"{asked}: a query is suggested twice: {texts}"
        if any(token in text for token in CONTROL_TOKENS for text in texts):
            return f"{asked}: a control token is suggested: {texts}"
        wanted = (self.hostile if arrival.hostile else self.sound)[version].get(arrival.request)
        if wanted is None or _same(outcome, wanted):
            return ""
        return f"{asked}: {texts[:3]} ... of version {version}; expected {[query for query, _ in wanted[:3]]} ..."


def _same(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> bool:
    """Equal queries in equal order, up to queries whose scores are one number but for rounding."""
    if len(found) != len(wanted):
        return False
    scores = dict(wanted)
    return all(
        abs(mine[1] - right[1]) < TIE and (mine[0] == right[0] or abs(scores.get(mine[0], right[1]) - right[1]) < TIE)
        for mine, right in zip(found, wanted, strict=True)
    )


def _read(case: Hostile) -> tuple[str, list[str | None], list[str | None]]:
    """What a policy is asked in place of a hostile request: of each text what serving reads and a frame can hold."""

    def read(text: str | None) -> str | None:
        return text and text[:LONGEST].encode("utf-8", "ignore").decode()

    return read(case.prefix), [read(text) for text in case.history or ()], [read(text) for text in case.profile or ()]


def _said(outcome: Any) -> str:
    if isinstance(outcome, Exception):
        return f"{type(outcome).__name__}: {str(outcome)[:80]}"
    return f"{len(outcome)} suggestions"


class Run(NamedTuple):
    """What a run measured.

    Attributes:
        answers: N rows: ``at`` (arrival, seconds), ``hostile``, ``wait``, ``service`` and ``response`` (milliseconds;
            response = wait + service), ``version`` (a number in the order of appearance).
        memory: ``at`` (seconds), ``megabytes`` (resident).
        versions: names of the versions that answered, in order.
        faults: what was wrong, with whether the request was hostile.
        compared: distinct requests whose answers were compared with the policy's.
        taken: releases taken in.
        refused: releases refused.
        warned: what was warned of.
    """

    answers: pl.DataFrame
    memory: pl.DataFrame
    versions: list[str]
    faults: list[tuple[bool, str]]
    compared: int
    taken: int
    refused: int
    warned: list[str]


def simulate(
    service: Service,
    coming: Arrivals,
    traffic: Traffic,
    referee: Referee,
    events: Sequence[Event],
    resident: Callable[[], float],
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = time.sleep,
    measure: Callable[[], None] = yardstick,
) -> Run:
    """Serve a run.

    Args:
        service: what answers.
        coming: what arrives.
        traffic: of which the length of the run is read.
        referee: of every outcome.
        events: what happens on the way, in order; none of it counts as time of the service.
        resident: megabytes that the process holds now.
        clock: seconds; what passes on it while a request is answered is its service time.
        wait: lets seconds pass, asked only while a release is being read.
        measure: the fixed work that is timed before each request; no time of the service either.
    """
    rows = list(coming.requests.iter_rows())
    times, due = np.zeros((len(coming.times), 4)), list(events)  # arrival, start, service, yardstick
    version = np.zeros(len(coming.times), np.int64)
    versions: list[str] = []
    faults, held = [], []
    free = 0.0
    with warnings.catch_warnings(record=True) as warned:
        bar = tqdm(coming.times, desc="load", unit="request", leave=False, disable=None)  # in a terminal alone
        for place, arrival in enumerate(bar):
            while due and due[0].at <= arrival.at:
                due.pop(0).action()
            while (middle := (len(held) + 0.5) * traffic.seconds / BLOCKS) <= arrival.at:
                held.append((middle, resident()))
            if service.preparing and arrival.at > free:
                wait(arrival.at - free)
            case = HOSTILE[arrival.request][1:4] if arrival.hostile else rows[arrival.request]
            started = clock()
            measure()
            begun = clock()
            service.look()
            try:
                outcome = service.suggest(*case)
            except Exception as error:
                outcome = error
            spent = clock() - begun
            start = max(arrival.at, free)
            free = start + spent
            times[place] = arrival.at, start, spent, begun - started
            if service.version not in versions:
                versions.append(service.version)
            version[place] = versions.index(service.version)
            wrong = referee.fault(arrival, outcome, service.version)
            if wrong:
                faults.append((arrival.hostile, wrong))
        for event in due:
            event.action()
        service.look(wait=True)
    at, start, spent, measured = times.T
    answers = pl.DataFrame(
        {
            "at": at,
            "hostile": [arrival.hostile for arrival in coming.times],
            "wait": (start - at) * 1e3,
            "service": spent * 1e3,
            "response": (start - at + spent) * 1e3,
            "yardstick": measured * 1e3,
            "version": version,
        }
    )
    memory = pl.DataFrame(held, schema={"at": pl.Float64, "megabytes": pl.Float64}, orient="row")
    said = [str(each.message) for each in warned]
    return Run(answers, memory, versions, faults, len(referee.checked), service.taken, service.refused, said)


def load_run(
    releases: Sequence[tuple[OneSugPolicy, str | Path]],
    coming: Arrivals,
    traffic: Traffic,
    rng: np.random.Generator,
    resident: Callable[[], float],
    checked: int | None = None,
) -> Run:
    """Serve a run from a temporary folder whose release is replaced as :data:`REPLACED` says.

    The damaged release is the first one with :data:`DAMAGED` cut short.

    Args:
        releases: two policies with the folders of their graphs: the first, and what it is replaced by.
        coming: what arrives.
        traffic: its settings.
        rng: of the sample that is compared.
        resident: megabytes that the process holds now.
        checked: distinct requests whose answers are compared; None compares all.
    """
    with TemporaryDirectory(prefix="onesug-load-") as beside:
        beside = Path(beside)
        served, first, second, damaged = (beside / name for name in ("served", "first", "second", "damaged"))
        versions = [release(*each, folder) for each, folder in zip(releases, (first, second), strict=True)]
        shutil.copytree(first, damaged)
        os.truncate(damaged / DAMAGED, (damaged / DAMAGED).stat().st_size // 2)
        put(first, served)
        policies = {version: policy for version, (policy, _) in zip(versions, releases, strict=True)}
        referee = Referee(coming.requests, policies, rng, checked)
        service = LiveService(served, KEPT)
        sources = {"new release": second, "damaged release": damaged}
        events = [
            Event(share * traffic.seconds, lambda source=sources[name]: put(source, served))
            for name, share in REPLACED.items()
        ]
        return simulate(service, coming, traffic, referee, events, resident)


def put(source: str | Path, folder: str | Path) -> None:
    """Copy a release to where it is served from, in place of what is there."""
    with replacing(folder) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
