r"""How good the lists are: HR@16 and MRR@16 of the clicked query, with intervals, by behaviour and frequency.

Both metrics look at one thing, the rank of the query that the shopper clicked (or ordered from) in the list a
system would have shown:

.. math::

    \mathrm{HR@}k = \frac{1}{N} \sum_i [1 \le \mathrm{rank}_i \le k]
    \qquad
    \mathrm{MRR@}k = \frac{1}{N} \sum_i \frac{[1 \le \mathrm{rank}_i \le k]}{\mathrm{rank}_i}

They are shares between 0 and 1 here; the paper prints them in per cent. A click is what the logging system's
list allowed, so both reward a system for agreeing with that list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

CUTOFF = 16
"""Queries shown in a list (paper: 16)."""

BANDS = ("head", "torso", "tail")
"""Frequency of a query among the training clicks: 100 or more, 10 to 99, under 10."""

ROWS = ("click", "order")
"""The two kinds of test rows in the paper's table: any clicked query, and those that ended in an order."""


SLICES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "all": ("request_id", lambda ids: np.ones(len(ids), dtype=bool)),
    "click": ("request_id", lambda ids: np.ones(len(ids), dtype=bool)),
    "order": ("behaviour", lambda names: names == "order"),
    "seen": ("seen", lambda seen: seen.astype(bool)),
    "unseen": ("seen", lambda seen: ~seen.astype(bool)),
    "random": ("random", lambda random: random.astype(bool)),
    **{band: ("training_clicks", lambda clicks, band=band: _bands(clicks) == band) for band in BANDS},
    **{f"prefix {band}": ("prefix_clicks", lambda clicks, band=band: _bands(clicks) == band) for band in BANDS},
}
"""Slices of the held-out clicks: name -> the column that it reads and the test of its values."""


class Interval(NamedTuple):
    """A mean and its bootstrap interval.

    Attributes:
        mean: of the values; nan when there is none.
        low: lower end; nan with fewer than two values.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def ranks(lists: Sequence[Sequence[str]], targets: Sequence[str]) -> np.ndarray:
    """Rank of each target in its list.

    Args:
        lists: N suggestion lists, best first.
        targets: N strings, the clicked queries; compared character by character.

    Returns:
        ``int64`` (N,): 1 is the top of the list, 0 means absent. A query that a list repeats counts where it
        first stands.

    Raises:
        ValueError: the two lengths differ.
    """
    if len(lists) != len(targets):
        raise ValueError(f"{len(lists)} lists and {len(targets)} targets; expected one list for each target")
    found = [
        next((rank for rank, query in enumerate(row, start=1) if query == target), 0)
        for row, target in zip(lists, targets, strict=True)
    ]
    return np.array(found, dtype=np.int64)  # (N,)


def hit_rate(ranks: np.ndarray, k: int = CUTOFF) -> np.ndarray:
    """HR@k of each request: 1 where the target is among the first k, else 0.

    Args:
        ranks: (N,) from :func:`ranks`.
        k: places that count.

    Returns:
        ``float64`` (N,); its mean is the hit rate.

    Source:
        The paper's offline table.
    """
    ranks = np.asarray(ranks)
    return ((ranks >= 1) & (ranks <= k)).astype(np.float64)


def reciprocal_rank(ranks: np.ndarray, k: int = CUTOFF) -> np.ndarray:
    """RR@k of each request: one over the target's rank, 0 below place k or when absent.

    Args:
        ranks: (N,) from :func:`ranks`.
        k: places that count.

    Returns:
        ``float64`` (N,); its mean is the mean reciprocal rank.

    Source:
        The paper's offline table.
    """
    ranks = np.asarray(ranks)
    return hit_rate(ranks, k) / np.maximum(ranks, 1)


def bootstrap(values: np.ndarray, rng: np.random.Generator, draws: int = 1000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of a mean over requests.

    Requests are drawn with replacement as if independent. Requests of one shopper are not quite, so the
    interval is a little too narrow; it speaks of other requests, not of other training seeds. For several seeds, and
    for differences of systems, see :mod:`onesug_lite.significance`.

    Args:
        values: (N,) one number a request.
        rng: source of the draws.
        draws: resamples.
        level: share of resampled means inside the interval.

    Returns:
        Mean and interval; the ends are nan for fewer than two values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else np.nan, np.nan, np.nan)
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=draws,
        batch=_batch(len(values)),
        confidence_level=level,
        method="percentile",
        rng=rng,
    )
    low, high = result.confidence_interval
    return Interval(float(values.mean()), float(low), float(high))


def frequency_band(targets: Sequence[str], training_clicks: Mapping[str, int]) -> list[str]:
    """Whether each target is a head, torso or tail query.

    Args:
        targets: queries.
        training_clicks: query -> clicks in training; a query it does not hold was never clicked and is tail.

    Returns:
        One of :data:`BANDS` for each target: tail under 10 training clicks, torso 10 to 99, head 100 or more.
    """
    return _bands(np.array([training_clicks.get(query, 0) for query in targets])).tolist()


def in_slice(columns: Mapping[str, Sequence], where: str = "all") -> np.ndarray:
    """Which rows belong to a slice of the held-out clicks.

    Args:
        columns: of a record, N rows each. ``training_clicks`` (of the clicked query) and ``prefix_clicks`` (of the
            typed prefix) are read for the bands, ``seen`` for queries that were clicked in training, ``random`` for
            requests whose list was shuffled when it was shown, ``behaviour`` for orders.
        where: names of :data:`SLICES`, a blank between them: rows must lie in all of them, as in ``order tail``.

    Returns:
        ``bool`` (N,).

    Raises:
        ValueError: no such slice, or the records lack its column.
    """
    mask = np.ones(len(columns["request_id"]), dtype=bool)
    for name in re.findall(r"prefix \w+|\S+", where):
        if name not in SLICES:
            raise ValueError(f"no slice '{name}'; expected one of {', '.join(SLICES)}")
        column, belongs = SLICES[name]
        if column not in columns:
            raise ValueError(f"slice '{name}' needs the column '{column}', which the records lack; run the grid again")
        mask &= belongs(np.asarray(columns[column]))
    return mask


def invalid_share(lists: Sequence[Sequence[str]], known_queries: Collection[str]) -> float:
    """Share of all suggestions that are no known query.

    A generator can write strings that nobody would search for; a known query is not always a good one, and an
    unknown one not always bad, but a rising share is the first sign that training goes wrong.

    Args:
        lists: N suggestion lists.
        known_queries: every query that exists, for example all those of the log.

    Returns:
        A share between 0 and 1; 0 when there is no suggestion at all.
    """
    known = known_queries if isinstance(known_queries, set | frozenset | Mapping) else set(known_queries)
    suggestions = [query for row in lists for query in row]
    return sum(query not in known for query in suggestions) / max(len(suggestions), 1)


def summary_table(
    lists: Sequence[Sequence[str]],
    targets: Sequence[str],
    behaviours: Sequence[str],
    training_clicks: Mapping[str, int],
    rng: np.random.Generator,
    k: int = CUTOFF,
    draws: int = 1000,
    level: float = 0.95,
) -> pl.DataFrame:
    """HR@k and MRR@k with intervals, for click and order rows, overall and by frequency of the target.

    Args:
        lists: N suggestion lists, one for each clicked query of the test days.
        targets: N clicked queries.
        behaviours: N behaviours: ``order``, ``item_click`` or ``query_click``.
        training_clicks: query -> clicks in training, for the bands.
        rng: source of the bootstrap draws.
        k: places that count.
        draws: bootstrap resamples.
        level: of the intervals.

    Returns:
        16 rows: ``rows`` (one of :data:`ROWS`; orders are clicks too), ``band`` (``all`` or one of
        :data:`BANDS`), ``requests`` (how many), ``metric`` (``HR@16``, ``MRR@16``), ``mean``, ``low``,
        ``high``; null where a cell has too few requests to say.

    Raises:
        ValueError: lengths differ, or a behaviour is no click.
    """
    if not len(lists) == len(targets) == len(behaviours):
        raise ValueError(
            f"{len(lists)} lists, {len(targets)} targets and {len(behaviours)} behaviours; expected one "
            "of each a request"
        )
    behaviour, band = (
        np.array(behaviours, dtype=object),
        np.array(frequency_band(targets, training_clicks), dtype=object),
    )
    unknown = sorted(set(behaviours) - {"order", "item_click", "query_click"})
    if unknown:
        raise ValueError(f"behaviour '{unknown[0]}' is no click; expected order, item_click or query_click")
    found = ranks(lists, targets)
    metrics = {f"HR@{k}": hit_rate(found, k), f"MRR@{k}": reciprocal_rank(found, k)}
    table = []
    for rows in ROWS:
        in_rows = np.ones(len(found), dtype=bool) if rows == "click" else behaviour == "order"
        for name in ("all", *BANDS):
            cell = in_rows if name == "all" else in_rows & (band == name)
            for metric, values in metrics.items():
                interval = bootstrap(values[cell], rng, draws, level)
                table.append((rows, name, int(cell.sum()), metric, *interval))
    schema = {"rows": pl.String, "band": pl.String, "requests": pl.Int64, "metric": pl.String}
    schema |= dict.fromkeys(Interval._fields, pl.Float64)
    return pl.DataFrame(table, schema=schema, orient="row").with_columns(pl.col(Interval._fields).fill_nan(None))


def _batch(size: int) -> int:
    """Resamples held in memory at a time: at most about 4 million numbers."""
    return max(1, 4_000_000 // max(size, 1))


def _bands(clicks: np.ndarray) -> np.ndarray:
    """One of :data:`BANDS` for each count of training clicks."""
    return np.where(clicks < 10, "tail", np.where(clicks < 100, "torso", "head"))
