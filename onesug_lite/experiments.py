r"""Experiments in the market: pairs of systems under several model seeds, a record each, and what they say together.

``python -m onesug_lite.experiments --profile lite --seeds 3`` runs ``notebooks/experiment_run.ipynb`` for each pair and
seed. A record holds, beside each metric's own figures, sums over the searches of shoppers who are dealt into G buckets,
which keeps a file small however long the experiment was. Every seed's models meet the same shoppers, so shoppers and
seeds are crossed, and the intervals are those of :mod:`onesug_lite.significance` with buckets in the place of requests.

A metric is a ratio of sums, :math:`r = \sum_g x_g / \sum_g n_g`. What the first system gains on the second, in per
cent, is the mean over the buckets of

.. math::
    100 \left( \frac{r_1}{r_2} - 1 + \frac{G}{r_2} \left( z_{1g} - \frac{r_1}{r_2} z_{2g} \right) \right),
    \qquad z_g = (x_g - r\, n_g) / \textstyle\sum_h n_h

whose spread is that of the gain by the delta method (Deng et al. 2018).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import joblib
import nbformat
import numpy as np
import typer
from tqdm import tqdm

from onesug_lite.grid import NOTEBOOKS, code_key, record_key, run_notebook
from onesug_lite.metrics import BANDS
from onesug_lite.profiles import sizes
from onesug_lite.significance import Estimate, Resampled
from onesug_lite.store import fingerprint, source_checksums
from onesug_lite.variants import variant

RUN = "experiment_run.ipynb"
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

SESSIONS = {"smoke": 60, "lite": 400, "full": 10_000}
"""Searches that both systems meet: half a minute a pair and seed on one core, but for ``full``."""
JUDGED = {"smoke": 40, "lite": 500, "full": 500}
"""Requests on which the market's truth says which list is better."""


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


# ---------------------------------------------------------------- running
@cache
def experiment_code() -> str:
    """Fingerprint (16 hex digits) of what all records of experiments share: the code of both packages and the run."""
    run = [cell.source for cell in nbformat.read(NOTEBOOKS / RUN, as_version=4).cells if cell.cell_type == "code"]
    imported = sorted(set(re.findall(r"^from (data_synth\S*) import", "\n".join(run), re.MULTILINE)))
    told = {"run": run, "market": source_checksums(imported)}
    return fingerprint("experiments", told, {"grid": code_key()}, ["metrics"])[0]


def experiment_key(first: str, second: str, seed: int, profile: str, parameters: Mapping[str, object]) -> str:
    """Fingerprint (16 hex digits) of all that a record depends on: settings, code and libraries.

    Args:
        first: system.
        second: system.
        seed: of the models.
        profile: sizes.
        parameters: of the run, beside these.

    Raises:
        ValueError: unknown system or profile.
    """
    told = {"pair": [first, second], "sessions": SESSIONS.get(profile), "judged": JUDGED.get(profile)}
    told["parameters"] = {name: value for name, value in parameters.items() if name != "build"}
    inputs = {name: record_key(name, seed, profile) for name in (first, second)} | {"code": experiment_code()}
    return fingerprint("experiment", told, inputs, [])[0]


def run_experiments(
    out: str | Path,
    profile: str = "lite",
    seeds: int = 1,
    jobs: int = 1,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    **parameters,
) -> list[dict]:
    """One record for each (pair, seed), by seed and pair; one that is there, made with the same settings, is kept.

    Models that the grid has trained are read from the store, others are trained on the way.

    Args:
        out: folder of the records, ``<first>-<second>-seed<k>.json``; the executed notebooks land in ``runs/`` below.
        profile: sizes.
        seeds: number of model seeds, 0 to seeds - 1.
        jobs: processes at a time (joblib).
        pairs: names of first and second system.
        **parameters: further parameters of the notebook, ``sessions`` for one.

    Raises:
        GridError: unknown parameter.
        ValueError: unknown system or profile.
    """
    sizes(profile)  # an unknown profile is said before anything runs
    out = Path(out).resolve()
    tasks = [(*pair, seed) for seed in range(seeds) for pair in pairs]

    def run(first: str, second: str, seed: int, key: str) -> dict:
        name = f"{variant(first).name}-{variant(second).name}-seed{seed}"
        record = out / f"{name}.json"
        with suppress(OSError, ValueError):
            made = json.loads(record.read_text(encoding="utf-8"))
            if made.get("key") == key:
                return made
        values = {"first": first, "second": second, "seed": seed, "profile": profile, "record": str(record), "key": key}
        run_notebook(NOTEBOOKS / RUN, out / "runs" / f"{name}.ipynb", values | parameters, progress=False)
        return json.loads(record.read_text(encoding="utf-8"))

    keys = [experiment_key(*task, profile, parameters) for task in tasks]
    work = joblib.Parallel(n_jobs=jobs, return_as="generator")
    made = work(joblib.delayed(run)(*task, key) for task, key in zip(tasks, keys, strict=True))
    return list(tqdm(made, total=len(tasks), desc="experiments", unit="run", mininterval=0))


def main(
    profile: str = "lite",
    seeds: int = 3,
    jobs: int = 1,
    out: Path = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="FIRST-SECOND; may be given several times")] = None,
) -> None:
    """Let pairs of systems serve the market's shoppers and leave one JSON record a run in OUT/PROFILE/experiments."""
    pairs = [tuple(pair.split("-")) for pair in only] if only else PAIRS
    if any(len(pair) != 2 for pair in pairs):
        raise typer.BadParameter("a pair is FIRST-SECOND, for example onesug-online_mca")
    folder = out / profile / FOLDER
    run_experiments(folder, profile, seeds, jobs, pairs)
    typer.echo(f"records: {folder}")


if __name__ == "__main__":
    typer.run(main)
