r"""Experiments in the market: pairs of systems under several model seeds, a record each, and what they say together.

:mod:`onesug_lite.experiment_grid` makes the records. One holds, beside each metric's own figures, sums over searches
of shoppers who are dealt into G buckets, which keeps a file small however long the experiment was. Every seed's models
meet the same shoppers, so shoppers and seeds are crossed, and the intervals are those of
:mod:`onesug_lite.significance` with buckets in the place of requests.

A metric is a ratio of sums, :math:`r = \sum_g x_g / \sum_g n_g`. What the first system gains on the second, in per
cent, is the mean over the buckets of

.. math::
    100 \left( \frac{r_1}{r_2} - 1 + \frac{G}{r_2} \left( z_{1g} - \frac{r_1}{r_2} z_{2g} \right) \right),
    \qquad z_g = (x_g - r\, n_g) / \textstyle\sum_h n_h

whose spread is that of the gain by the delta method (Deng et al. 2018).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onesug_lite.metrics import BANDS
from onesug_lite.significance import Estimate, Resampled

FOLDER = "experiments"
"""Folder of the records, below those of the grid."""

PAIRS = (
    ("onesug", "online_mca"),
    ("onesug", "pairwise"),
    ("onesug", "without_pre"),
    ("recommended", "online_mca"),
    ("recommended", "onesug"),
)
"""First and second system: those of the paper, and our recommended recipe against both sides of its main one."""


class Ratio(NamedTuple):
    """A metric of an experiment, a ratio of sums over sessions."""

    label: str
    over: str  # column of the numerator
    per: str  # column of the denominator
    better: int  # 1: more is better, -1: less is


METRICS: dict[str, Ratio] = {
    "clicks": Ratio("clicks per session (CTR)", "click", "sessions", 1),
    "orders": Ratio("orders per session", "order", "sessions", 1),
    "revenue": Ratio("revenue per session", "revenue", "sessions", 1),
    "typed": Ratio("characters typed", "typed", "sessions", -1),
    "position": Ratio("position of the click", "position", "click", -1),
    "abandoned": Ratio("sessions abandoned", "abandoned", "sessions", -1),
    "bait": Ratio("click-bait share of clicks", "bait", "click", -1),
}
"""As the market measures them (``data_synth.ab_tests.METRICS``), which this package does not import."""
ON_BANDS = Ratio("clicks per request", "b", "requests", 1)
JUDGEMENT = Ratio("good less bad", "verdicts", "", 1)


def ratio(metric: str, band: str = "") -> Ratio:
    """What a metric is, on all searches or on a band of the prefixes.

    Args:
        metric: one of :data:`METRICS`, or ``judgement``.
        band: head, torso or tail; there clicks alone are counted, over requests that both systems answered.

    Raises:
        ValueError: there is no such metric, or not on a band.
    """
    if band:
        if metric != "clicks" or band not in BANDS:
            raise ValueError(f"no {metric} on band '{band}'; expected clicks on one of {', '.join(BANDS)}")
        return ON_BANDS
    known = METRICS | {"judgement": JUDGEMENT}
    if metric not in known:
        raise ValueError(f"no metric '{metric}' of an experiment; expected one of {', '.join(known)}")
    return known[metric]


# ---------------------------------------------------------------- records
def read_experiments(folder: str | Path) -> list[dict]:
    """The records in a folder, by name; none where there is no such folder.

    Args:
        folder: holds ``<first>-<second>-seed<k>.json``.
    """
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*-seed*.json"))]


class Experiments:
    """The records of several experiments before the same shoppers.

    Args:
        records: of one market and profile.
        draws: resamples behind each interval.

    Raises:
        ValueError: no records, two of the same run, or records that cannot be compared.
    """

    def __init__(self, records: Sequence[Mapping], draws: int = 2000):
        if not records:
            raise ValueError("no records of experiments; make them with: make experiments")
        self.runs: dict[tuple[str, str], dict[int, Mapping]] = {}
        self.labels: dict[str, str] = {}
        told, searches, judged = records[0], _searches(records[0]), _judged(records[0])
        for record in records:
            name = f"{record['first']}-{record['second']}-seed{record['seed']}.json"
            differs = [key for key in ("log", "profile", "sessions") if record[key] != told[key]]
            if differs:
                raise ValueError(
                    f"record {name} has {differs[0]} '{record[differs[0]]}', others have '{told[differs[0]]}'; they "
                    "cannot be compared: make experiments"
                )
            if _searches(record) != searches or _judged(record) != judged:
                raise ValueError(f"record {name} is of other searches or requests than the rest: make experiments")
            seeds = self.runs.setdefault((record["first"], record["second"]), {})
            if record["seed"] in seeds:
                raise ValueError(f"there are two records {name}; keep one")
            seeds[record["seed"]] = record
            self.labels |= {record[side]: record[f"{side}_label"] for side in ("first", "second")}
        order = {pair: place for place, pair in enumerate(PAIRS)}
        self.runs = {
            pair: dict(sorted(self.runs[pair].items()))
            for pair in sorted(self.runs, key=lambda pair: (order.get(pair, len(order)), pair))
        }
        self.log, self.profile, self.sessions, self.judged = told["log"], told["profile"], told["sessions"], len(judged)
        self._shoppers = Resampled(np.arange(len(searches)), draws)
        self._requests = Resampled(np.asarray(judged), draws)

    def has(self, first: str, second: str) -> bool:
        """Whether there is a record of this pair, in this order."""
        return (first, second) in self.runs

    def gain(self, first: str, second: str, metric: str, band: str = "", than: str = "") -> Estimate:
        """What the first system gains on the second, over shoppers and model seeds.

        Args:
            first: system.
            second: system.
            metric: one of :data:`METRICS`, or ``judgement``.
            band: of the prefixes, see :func:`ratio`; all searches by default.
            than: a second band, whose gain is subtracted.

        Returns:
            Per cent of the second's; points for ``judgement``. ``rows`` counts sessions (requests on a band or of a
            judgement) of one seed. The interval is nan where
            one of the two has nothing to compare.

        Raises:
            ValueError: no such metric, band or pair.
        """
        of = ratio(metric, band)
        if not self.has(first, second):
            pairs = ", ".join("-".join(pair) for pair in self.runs)
            raise ValueError(f"no experiment {first}-{second}; there are {pairs}")
        records = self.runs[first, second].values()
        if of is JUDGEMENT:
            return self._requests.mean(np.array([record["judgement"]["verdicts"] for record in records]) * 100.0)
        gains = np.stack([_shares(*_sums(record, of, band)) for record in records])
        if than:
            gains = gains - np.stack([_shares(*_sums(record, ratio(metric, than), than)) for record in records])
        found = self._shoppers.mean(gains)
        count = _sums(next(iter(records)), of, band)[1] if band else [self.sessions]
        return found._replace(rows=int(np.sum(count)))


def _searches(record: Mapping) -> list[int]:
    """Searches of each bucket of shoppers: what tells whether two experiments had the same."""
    return record["shoppers"]["a"]["sessions"]


def _judged(record: Mapping) -> list[int]:
    return record["judgement"]["request_id"]


def _sums(record: Mapping, of: Ratio, band: str) -> list[np.ndarray]:
    """Numerator and denominator of the second system, then of the first, (G,) each."""
    if band:
        sums = record["bands"][band]
        parts = [sums[name] for name in ("a", "requests", "b", "requests")]
    else:
        parts = [record["shoppers"][side][column] for side in ("a", "b") for column in (of.over, of.per)]
    return [np.asarray(part, dtype=np.float64) for part in parts]


def _shares(a: np.ndarray, n_a: np.ndarray, b: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """(G,) numbers whose mean is the gain in per cent, and whose spread is the gain's; nan where nothing happened.

    A system that never sold anything is 100 % behind, but by a delta method without any spread: too little to say.
    """
    if min(a.sum(), n_a.sum(), b.sum(), n_b.sum()) <= 0:
        return np.full(a.size, np.nan)
    rate, other = a.sum() / n_a.sum(), b.sum() / n_b.sum()
    z_a, z_b = (a - rate * n_a) / n_a.sum(), (b - other * n_b) / n_b.sum()
    return 100 * (other / rate - 1 + a.size * (z_b - other / rate * z_a) / rate)
