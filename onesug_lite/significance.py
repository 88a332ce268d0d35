r"""How sure a number is that comes from several requests and several training seeds.

Requests and seeds are crossed: every seed answers the same requests. Two things could have come out otherwise.

- **Other requests.** They are resampled with replacement, whole requests with all their rows, and once for all systems:
  each resample asks every system the same questions, which is what pairs a comparison.
- **Other seeds.** Three to five are too few to resample (a resample of three knows a third too little variance). Each
  resampled mean is moved instead by a draw of :math:`t_{S-1}\, s / \sqrt S`, with :math:`s` the deviation of the
  seeds' own values: the usual interval of a mean of few. The deviation holds some of the request noise as well, so the
  interval is a little too wide, if anything.

One seed says nothing about other seeds: its interval speaks of requests alone, and :class:`Estimate` shows that
there is one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number with its interval.

    Attributes:
        mean: over requests and seeds.
        low: lower end of the interval; nan where fewer than two requests were asked.
        high: upper end.
        p: two-sided, twice the share of draws on the other side of zero; 1 where nothing differs.
        each_seed: the value of every seed alone.
        rows: rows it was measured on.
    """

    mean: float
    low: float
    high: float
    p: float
    each_seed: tuple[float, ...]
    rows: int


class Resampled:
    """The same resampled requests for every system of a grid.

    Args:
        request_id: (N,) request of each row; a request's rows stay together.
        draws: resamples.
        level: share of draws inside an interval.
        seed: of the resampling; the same records give the same intervals.
    """

    def __init__(self, request_id: np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0):
        _, self._request = np.unique(np.asarray(request_id), return_inverse=True)
        self._size = int(self._request.max(initial=-1)) + 1  # R
        rng = np.random.default_rng(seed)
        share = np.full(self._size, 1 / max(self._size, 1))
        self._counts = rng.multinomial(self._size, share, size=draws).astype(np.float32)  # (draws, R)
        self._draws, self._level, self._seed = draws, level, seed

    def mean(self, values: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """Mean over rows and seeds; of a difference of two systems when ``values`` are differences.

        Args:
            values: (S, N) one number a row and seed.
            rows: ``bool`` (N,) rows that count; all by default.
        """
        rows = self._all(values) if rows is None else rows
        return self._estimate(self._means(values, rows), self._observed(values, rows), int(rows.sum()))

    def contrast(self, values: np.ndarray, rows: np.ndarray, other_rows: np.ndarray) -> Estimate:
        """How much larger the mean is over some rows than over others.

        Args:
            values: (S, N).
            rows: ``bool`` (N,).
            other_rows: ``bool`` (N,), whose mean is subtracted.
        """
        drawn = self._means(values, rows) - self._means(values, other_rows)
        observed = self._observed(values, rows) - self._observed(values, other_rows)
        return self._estimate(drawn, observed, int((rows | other_rows).sum()))

    def ratio(self, values: np.ndarray, whole: np.ndarray, rows: np.ndarray | None = None) -> Estimate:
        """The mean of some values as a share of the mean of others; ``p`` is against a share of zero.

        Args:
            values: (S, N).
            whole: (S or 1, N), whose mean is 1.
            rows: ``bool`` (N,) rows that count; all by default.
        """
        rows = self._all(values) if rows is None else rows
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self._means(values, rows) / self._means(whole, rows)
            observed = self._observed(values, rows) / self._observed(whole, rows)
        return self._estimate(drawn, observed, int(rows.sum()))

    @staticmethod
    def _all(values: np.ndarray) -> np.ndarray:
        return np.ones(values.shape[1], dtype=bool)

    @staticmethod
    def _observed(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return values[:, rows].mean(axis=1) if rows.any() else np.full(len(values), np.nan)  # (S,)

    def _means(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(draws, S) mean of each resample; nan where a resample holds no such row."""
        request = self._request[rows]
        sums = np.stack([np.bincount(request, line[rows], minlength=self._size) for line in values], axis=1)  # (R, S)
        asked = np.bincount(request, minlength=self._size).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self._counts @ sums.astype(np.float32)) / (self._counts @ asked)[:, None]

    def _estimate(self, drawn: np.ndarray, observed: np.ndarray, rows: int) -> Estimate:
        mean, seeds = float(observed.mean()), len(observed)
        moved = drawn.mean(axis=1, dtype=np.float64)  # (draws,)
        if seeds > 1:  # the same draws of t for every number of a grid, so that the order of asking does not matter
            noise = np.random.default_rng(self._seed + 1).standard_t(seeds - 1, self._draws)
            moved = moved + noise * observed.std(ddof=1) / np.sqrt(seeds)
        moved = moved[np.isfinite(moved)]
        if rows < 2 or not len(moved):
            return Estimate(mean, np.nan, np.nan, np.nan, tuple(observed.tolist()), rows)
        low, high = np.quantile(moved, [(1 - self._level) / 2, (1 + self._level) / 2])
        beyond = min((moved <= 0).sum(), (moved >= 0).sum())
        p = min(1.0, 2 * (beyond + 1) / (len(moved) + 1))
        return Estimate(mean, float(low), float(high), float(p), tuple(observed.tolist()), rows)
