r"""A/B tests: the logs of two arms compared, with errors that know which sessions are one shopper's.

Shoppers are what is randomised, so errors are clustered by shopper. A metric is a ratio of sums over sessions,
:math:`r = \sum_u x_u / \sum_u n_u`, with the delta-method variance (Deng et al. 2018)

.. math:: \operatorname{Var}(r) \approx \tfrac{U}{U-1} \textstyle\sum_u z_u^2, \qquad z_u = (x_u - r\, n_u) / \sum_v n_v

A test has to be believed before it is read: :func:`aa_pvalues` holds a policy against itself, :func:`peeking` does so
every evening. How the logs come about, :mod:`data_synth.experiment` says; nothing here needs a market.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

if TYPE_CHECKING:
    from .experiment import Experiment


class Arm(NamedTuple):
    """What the searches came to under one policy."""

    sessions: pl.DataFrame  # session, shopper, day, requests and the columns of :data:`METRICS`
    requests: pl.DataFrame  # session, shopper, step, prefix, click


class Metric(NamedTuple):
    """A ratio of sums over sessions; the columns are those of :func:`meet`."""

    label: str
    over: str  # column of the numerator
    per: str  # column of the denominator
    better: int  # 1: more is better, -1: less is


METRICS: dict[str, Metric] = {
    "clicks": Metric("clicks per session (CTR)", "click", "sessions", 1),
    "orders": Metric("orders per session", "order", "sessions", 1),
    "revenue": Metric("revenue per session", "revenue", "sessions", 1),
    "typed": Metric("characters typed", "typed", "sessions", -1),
    "position": Metric("position of the click", "position", "click", -1),
    "abandoned": Metric("sessions abandoned", "abandoned", "sessions", -1),
    "bait": Metric("click-bait share of clicks", "bait", "click", -1),
}
BANDS = ("head", "torso", "tail")
GUARDS = ("no guard", "O'Brien-Fleming", "always valid")
_AT_ONCE = 200  # draws of halves that are held in memory together


# ---------------------------------------------------------------- two arms
def compare(a: Arm, b: Arm, first: np.ndarray | None = None) -> pl.DataFrame:
    """Each metric under both policies and how sure the difference is.

    Args:
        a: the control.
        b: the treatment, of the same searches.
        first: (U,) bool, shoppers of whom only A is read, while only B is of the others; without it every shopper is
            paired with itself.

    Returns:
        One row a metric: ``metric``, ``a``, ``b``, ``difference`` (b - a), its ``standard_error`` over shoppers, 95 %
        interval ``low`` and ``high``, ``p`` (two-sided t), ``detectable`` (the smallest effect found with 80 % power)
        and, in per cent of a, ``relative``, ``relative_low``, ``relative_high`` and ``relative_detectable``. Null
        where there is too little to say.
    """
    size = int(max(arm.sessions["shopper"].max() for arm in (a, b))) + 1
    rows = []
    for name, metric in METRICS.items():
        sums = [_by_shopper(arm.sessions, column, size) for arm in (a, b) for column in (metric.over, metric.per)]
        rows.append({"metric": name} | _difference(*sums, first))
    return pl.DataFrame(rows, infer_schema_length=None)


def gains(tests: Mapping[tuple[str, str], Experiment]) -> pl.DataFrame:
    """What several treatments gain on their controls, with p-values that know how many differences were asked for.

    Args:
        tests: names of treatment and control -> their experiment.

    Returns:
        A row a pair and metric: ``first``, ``second`` (treatment, control), ``metric``, ``better`` (see
        :class:`Metric`); ``mean``, ``low``, ``high``, ``detectable`` in per cent of the control, paired, and the same
        of the split test as ``split_mean`` and so on; ``p`` (paired), ``adjusted`` for the false discovery rate over
        all rows (Benjamini and Hochberg 1995; null counts as 1) and ``clear``, whether that is below 0.05.
    """
    kept = {"mean": "relative"} | {name: f"relative_{name}" for name in ("low", "high", "detectable")}
    rows = pl.concat(
        test.paired.select(
            pl.lit(first).alias("first"), pl.lit(second).alias("second"), "metric",
            pl.col("metric").replace_strict({name: metric.better for name, metric in METRICS.items()}).alias("better"),
            **kept, p="p",
        ).with_columns(test.split.select(**{f"split_{name}": column for name, column in kept.items()}))
        for (first, second), test in tests.items()
    )  # fmt: skip
    adjusted = pl.Series(stats.false_discovery_control(rows["p"].fill_null(1.0)))
    return rows.with_columns(adjusted=adjusted, clear=adjusted < 0.05)


def by_prefix(a: Arm, b: Arm, counts: Mapping[str, int], bounds: tuple[int, int] = (10, 100)) -> pl.DataFrame:
    """Clicks per request by how often the prefix occurs in the training log, on requests that both policies answered.

    Only the common requests are the same question to both: a policy that ends more searches early meets other ones
    later.

    Args:
        a: the control.
        b: the treatment.
        counts: prefix -> occurrences in training.
        bounds: below the first a prefix is tail, from the second on head.

    Returns:
        A row for each of :data:`BANDS`: ``band``, ``requests``, then as :func:`compare` gives it.
    """
    both = a.requests.join(b.requests.select("session", "step", other="click"), on=["session", "step"], how="inner")
    times = np.array([counts.get(prefix, 0) for prefix in both["prefix"].to_list()], dtype=np.int64)
    band = np.where(times < bounds[0], "tail", np.where(times < bounds[1], "torso", "head"))
    size, rows = int(a.sessions["shopper"].max()) + 1, []
    for name in BANDS:
        part = both.filter(pl.Series(band == name)).with_columns(one=pl.lit(1.0))
        x_a, n, x_b = (_by_shopper(part, column, size) for column in ("click", "one", "other"))
        rows.append({"band": name, "requests": len(part)} | _difference(x_a, n, x_b, n))
    return pl.DataFrame(rows, infer_schema_length=None)


def designs(a: Arm, b: Arm, again: Arm, first: np.ndarray) -> pl.DataFrame:
    """What each way of comparing costs in precision, with the same number of searches an arm where it can be.

    Args:
        a: the control.
        b: the treatment, under the control's luck.
        again: the treatment once more, before the same searches but with luck of its own.
        first: (U,) bool, shoppers who see A in the split test.

    Returns:
        ``metric``, ``design``, ``standard_error`` and ``variance``, as a share of that of independent shoppers.
    """
    paired, own, split = compare(a, b), compare(a, again), compare(a, b, first)
    everyone = np.ones(first.size, dtype=bool)
    rows = []
    for place, (name, metric) in enumerate(METRICS.items()):
        spread = [
            _ratio(*(_by_shopper(arm.sessions, of, everyone.size) for of in (metric.over, metric.per)), everyone)[2]
            for arm in (a, b)
        ]
        errors = {
            "independent shoppers": float(np.sqrt(sum(spread))) if np.isfinite(sum(spread)) else None,
            "same searches, own luck": own["standard_error"][place],
            "common random numbers": paired["standard_error"][place],
            "one half of the shoppers each": split["standard_error"][place],
        }
        whole = errors["independent shoppers"]
        for design, error in errors.items():
            share = (error / whole) ** 2 if whole and error is not None else None
            rows.append({"metric": name, "design": design, "standard_error": error, "variance": share})
    return pl.DataFrame(rows, infer_schema_length=None)


# ---------------------------------------------------------------- a policy against itself
def aa_pvalues(arm: Arm, rng: np.random.Generator, runs: int = 200, metric: str = "clicks") -> np.ndarray:
    """P-values of split tests of a policy against itself: its shoppers are drawn into halves again and again.

    Args:
        arm: one log.
        rng: draws the halves.
        runs: how many tests.
        metric: of :data:`METRICS`.

    Returns:
        (runs,); uniform if the test is right.
    """
    x, n = (_by_shopper(arm.sessions, column) for column in METRICS[metric][1:3])
    parts = [min(_AT_ONCE, runs - done) for done in range(0, runs, _AT_ONCE)]
    return np.concatenate([_same_policy(x, n, _halves(n, rng, part))[2] for part in parts])


def aa_summary(tests: pl.DataFrame, level: float = 0.05) -> pl.DataFrame:
    """How often tests of a policy against itself found something, beside what chance allows where none is wrong.

    Args:
        tests: ``metric``, ``p`` (:func:`aa_pvalues`), a row a test.
        level: at which a test finds something.

    Returns:
        A row a metric: ``metric``, ``tests``, ``found`` and ``share`` of them; ``low`` and ``high``, the counts that at
        least 95 % of such batches of sound tests keep to; ``inside``, whether this one does; ``miss``, how probable it
        is that a batch of sound tests does not; ``uniform``, the p-value of Kolmogorov and Smirnov against uniform p.
    """
    rows = []
    for (name,), part in tests.group_by("metric", maintain_order=True):
        p = part["p"].to_numpy()
        found, sound = int((p < level).sum()), stats.binom(p.size, level)
        low, high = (int(end) for end in sound.interval(0.95))
        rows.append({
            "metric": name, "tests": p.size, "found": found, "share": found / p.size, "low": low, "high": high,
            "inside": low <= found <= high, "miss": float(sound.cdf(low - 1) + sound.sf(high)),
            "uniform": float(stats.kstest(p, "uniform").pvalue),
        })  # fmt: skip
    return pl.DataFrame(rows)


def peeking(
    arm: Arm, rng: np.random.Generator, runs: int = 200, metric: str = "clicks", effect: float = 0.05,
    level: float = 0.05,
) -> pl.DataFrame:  # fmt: skip
    """How often tests of a policy against itself find something, when somebody looks every day and stops at the first.

    Guards (:data:`GUARDS`): *O'Brien-Fleming* compares z with :math:`c / \\sqrt{t}` at a share t of the sessions, with
    c such that a Brownian motion is outside [-c, c] at any look with probability ``level`` (O'Brien and Fleming 1979).
    *Always valid* is the mixture sequential p-value (Johari et al. 2017), good at any time, however often one looks.

    Args:
        arm: one log of several days.
        rng: draws the halves, and the motion.
        runs: how many tests.
        metric: of :data:`METRICS`.
        effect: hoped for, as a share of the metric: the scale of the mixture.
        level: promised share of false alarms.

    Returns:
        ``guard``, ``look`` (1 on the first evening), ``alarms`` (share of tests that had stopped by then) and its 95 %
        interval ``low``, ``high``.
    """
    size, days = int(arm.sessions["shopper"].max()) + 1, arm.sessions["day"].unique().sort()
    so_far = [arm.sessions.filter(pl.col("day") <= day) for day in days]
    x, n = (np.stack([_by_shopper(part, of, size) for part in so_far]) for of in METRICS[metric][1:3])
    first = _halves(n[-1], rng, runs)
    looks = [_same_policy(*sums, first) for sums in zip(x, n, strict=True)]
    difference, error, p = (np.stack(part, axis=1) for part in zip(*looks, strict=True))  # (runs, looks)
    p, spread = np.nan_to_num(p, nan=1.0), error**2  # too few shoppers find nothing
    share = n.sum(axis=1) / n[-1].sum()
    motion = np.cumsum(rng.standard_normal((100_000, share.size)) * np.sqrt(np.diff(share, prepend=0.0)), axis=1)
    bound = np.quantile(np.abs(motion).max(axis=1), 1 - level)
    scale = (effect * x[-1].sum() / n[-1].sum()) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        evidence = 0.5 * np.log(spread / (spread + scale)) + difference**2 * scale / (2 * spread * (spread + scale))
    stops = (p < level, stats.norm.isf(p / 2) * np.sqrt(share) >= bound, np.nan_to_num(evidence) >= -np.log(level))
    rows = []
    for guard, stop in zip(GUARDS, stops, strict=True):
        for look, hits in enumerate(np.logical_or.accumulate(stop, axis=1).sum(axis=0).tolist(), 1):
            low, high = stats.binomtest(hits, runs).proportion_ci(0.95)
            rows.append((guard, look, hits / runs, float(low), float(high)))
    return pl.DataFrame(rows, schema=["guard", "look", "alarms", "low", "high"], orient="row")


# ---------------------------------------------------------------- errors
def _same_policy(x: np.ndarray, n: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Difference, its error and p-value (runs,) of split tests of a policy against itself."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b, z_a, z_b, freedom = _split(x, n, x, n, first)
        error = _error(z_a, z_b)
        return b - a, error, _p(b - a, error, freedom)


def _by_shopper(rows: pl.DataFrame, column: str, size: int = 0) -> np.ndarray:
    return np.bincount(rows["shopper"].to_numpy(), rows[column].to_numpy(), minlength=size)


def _halves(n: np.ndarray, rng: np.random.Generator, runs: int) -> np.ndarray:
    """(runs, U) bool: a random half of the shoppers that have anything."""
    there = np.flatnonzero(n > 0)
    first = np.zeros((runs, n.size), dtype=bool)
    first[:, there] = rng.permuted(np.tile(np.arange(there.size) < there.size // 2, (runs, 1)), axis=1)
    return first


def _ratio(x: np.ndarray, n: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio of sums, z (..., U) and variance, over the shoppers ``among`` (..., U) all; call it where nan may come."""
    total, size = (among * n).sum(axis=-1), (among & (n > 0)).sum(axis=-1)
    rate = (among * x).sum(axis=-1) / total
    z = among * (x - rate[..., None] * n) / total[..., None]
    return rate, z, (z**2).sum(axis=-1) * size / (size - 1)


def _split(x_a, n_a, x_b, n_b, first: np.ndarray) -> tuple[np.ndarray, ...]:
    """A on the ``first`` (..., U) shoppers against B on the rest: a, b, z of both, Welch's degrees of freedom."""
    (a, z_a, v), (b, z_b, w) = _ratio(x_a, n_a, first), _ratio(x_b, n_b, ~first)
    k, m = (first & (n_a > 0)).sum(axis=-1), (~first & (n_b > 0)).sum(axis=-1)
    more = np.where(first, (k / (k - 1))[..., None], (m / (m - 1))[..., None]) ** 0.5  # small-sample factors
    return a, b, z_a * more, z_b * more, (v + w) ** 2 / (v**2 / (k - 1) + w**2 / (m - 1))


def _paired(x_a, n_a, x_b, n_b) -> tuple[np.ndarray, ...]:
    """The same of every shopper with itself."""
    everyone, size = np.ones(x_a.size, dtype=bool), ((n_a > 0) | (n_b > 0)).sum()
    (a, z_a, _), (b, z_b, _) = _ratio(x_a, n_a, everyone), _ratio(x_b, n_b, everyone)
    more = np.sqrt(size / (size - 1))
    return a, b, z_a * more, z_b * more, size - 1


def _error(z_a: np.ndarray, z_b: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    """Standard error of b - weight * a."""
    return np.sqrt(((z_b - weight * z_a) ** 2).sum(axis=-1))


def _p(difference: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Two-sided p-value of t; 1 where nothing differs."""
    return np.where(difference == 0, 1.0, 2 * stats.t.sf(np.abs(difference) / error, freedom))


def _difference(x_a, n_a, x_b, n_b, first: np.ndarray | None = None) -> dict[str, float | None]:
    """The columns of :func:`compare` for sums by shopper."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = x_a, n_a, x_b, n_b
        a, b, z_a, z_b, freedom = _paired(*sums) if first is None else _split(*sums, first)
        gap, error, share = b - a, _error(z_a, z_b), 100 * (b / a - 1)
        reach, power = stats.t.ppf(0.975, freedom), stats.t.ppf(0.8, freedom)
        wide = 100 * reach * _error(z_a, z_b, b / a) / a
        found = {
            "a": a, "b": b, "difference": gap, "standard_error": error, "low": gap - reach * error,
            "high": gap + reach * error, "p": _p(gap, error, freedom), "detectable": (reach + power) * error,
            "relative": share, "relative_low": share - wide, "relative_high": share + wide,
            "relative_detectable": 100 * (reach + power) * error / a,
        }  # fmt: skip
    return {name: float(number) if np.isfinite(number) else None for name, number in found.items()}
