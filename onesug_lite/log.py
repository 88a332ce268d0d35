"""The search log: two Parquet tables, what they must hold, and how they are split by time.

Every later stage learns from a log and from nothing else. A log is a folder with two files.

``requests.parquet``, one row a request (a shopper typed a prefix and saw a list):

==============  ====================  ===========================================================
column          type                  meaning
==============  ====================  ===========================================================
``request_id``  ``Int64``             unique
``session_id``  ``Int64``             requests of one visit share it
``user_id``     ``Int64``             the shopper
``time``        ``Datetime("us")``    local wall-clock time; its date is the day of the request
``prefix``      ``String``            what was typed, never null or blank
``profile``     ``List(String)``      text attributes of the shopper; null means unknown
``history``     ``List(String)``      earlier searched queries, oldest first; null means unknown
==============  ====================  ===========================================================

``candidates.parquet``, one row a query that the ranker considered for a request:

==============  ====================  ===========================================================
column          type                  meaning
==============  ====================  ===========================================================
``request_id``  ``Int64``             of a request above
``query``       ``String``            at most once in a request, never null or blank
``position``    ``Int8``              1 (top) to 16, each at most once in a request; null: not shown
``behaviour``   ``String``            one of :data:`BEHAVIOURS`
``revenue``     ``Float32``           money earned, 0 without an order
==============  ====================  ===========================================================

Any real search log can be written this way; nothing here knows where a log came from.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

BEHAVIOURS = ("order", "item_click", "query_click", "show", "not_shown")
"""What can become of a candidate, best first (the paper's sixth level, ``random``, is drawn, not logged)."""

CLICKS = ("order", "item_click", "query_click")
"""The behaviours that hold a click on the query: an order and an item click come after one."""

POSITIONS = 16
"""How many queries a list can show (the paper's 16)."""

REQUEST_SCHEMA = {
    "request_id": pl.Int64,
    "session_id": pl.Int64,
    "user_id": pl.Int64,
    "time": pl.Datetime("us"),
    "prefix": pl.String,
    "profile": pl.List(pl.String),
    "history": pl.List(pl.String),
}
"""Columns and types of ``requests.parquet``."""

CANDIDATE_SCHEMA = {
    "request_id": pl.Int64,
    "query": pl.String,
    "position": pl.Int8,
    "behaviour": pl.String,
    "revenue": pl.Float32,
}
"""Columns and types of ``candidates.parquet``."""

NULLABLE = {"profile", "history", "position"}  # null means unknown, unknown and not shown


class LogError(ValueError):
    """A log breaks its contract; the message names the table, the row, what was found and what to do."""


class Log(NamedTuple):
    """A checked log.

    Attributes:
        requests: one row a request, the columns of :data:`REQUEST_SCHEMA`.
        candidates: one row a candidate of a request, the columns of :data:`CANDIDATE_SCHEMA`.
    """

    requests: pl.DataFrame
    candidates: pl.DataFrame


class Split(NamedTuple):
    """Three logs, each strictly later than the one before.

    Attributes:
        train: what every model learns from.
        validation: the days on which settings are chosen.
        test: the days on which results are reported.
    """

    train: Log
    validation: Log
    test: Log


def read_log(folder: str | Path) -> Log:
    """Read a log from its folder, check all of it, and put its requests in the order of time.

    Unknown columns are dropped, a missing profile or history becomes an empty list, and requests are
    sorted by time and then request id. Candidates keep the order of their file.

    Args:
        folder: holds ``requests.parquet`` and ``candidates.parquet``.

    Returns:
        The log; nothing in it breaks the contract of this module.

    Raises:
        LogError: a file is missing or unreadable, or :func:`check_log` finds a fault.
    """
    folder = Path(folder)
    requests = _read(folder / "requests.parquet", REQUEST_SCHEMA)
    candidates = _read(folder / "candidates.parquet", CANDIDATE_SCHEMA)
    # Checked before sorting, so that the row numbers of an error are those of the file.
    check_log(Log(requests, candidates))
    requests = requests.with_columns(
        pl.col("profile", "history").fill_null([]).list.drop_nulls(),
    ).sort("time", "request_id")
    return Log(requests, candidates)


def check_log(log: Log) -> None:
    """Raise at the first broken rule of the contract; return nothing when all hold.

    Args:
        log: the two tables; rows are numbered from 0 in messages.

    Raises:
        LogError: a missing or retyped column; no requests at all; a null where none may be; a blank
            prefix or query; an unknown behaviour; a request id or a query of a request given twice; a
            candidate of an unknown request; a shown candidate without a position, a hidden one with
            one; a position outside 1 to 16 or given twice in a request; a negative revenue.
    """
    requests, candidates = log
    _check_columns("requests", requests, REQUEST_SCHEMA)
    _check_columns("candidates", candidates, CANDIDATE_SCHEMA)
    if requests.is_empty():
        raise LogError("requests has no rows; a log needs at least one request.")

    for table, frame, column in (("requests", requests, "prefix"), ("candidates", candidates, "query")):
        blank = frame[column].str.contains(r"^\s*$")
        _refuse(table, frame, blank, f"holds a blank {column} {{{column}!r}}", "leave the row out")

    _refuse_repeats(requests, "requests", ("request_id",), "request_id {request_id}", "request ids are unique")

    # 4.8 million rows at full size: five distinct values are checked, not each row.
    unknown = set(candidates["behaviour"].unique()) - set(BEHAVIOURS)
    if unknown:
        _refuse(
            "candidates",
            candidates,
            ~candidates["behaviour"].is_in(BEHAVIOURS),
            "column 'behaviour' holds {behaviour!r}",
            f"expected one of {', '.join(BEHAVIOURS)}",
        )
    _refuse(
        "candidates",
        candidates,
        ~candidates["request_id"].is_in(requests["request_id"].implode()),
        "belongs to request_id {request_id}, which requests does not hold",
        "add the request or leave its candidates out",
    )
    _refuse_repeats(
        candidates,
        "candidates",
        ("request_id", "query"),
        "query {query!r} for request_id {request_id}",
        "keep the row with the best behaviour",
    )

    position, shown = candidates["position"], candidates["behaviour"] != "not_shown"
    _refuse(
        "candidates",
        candidates,
        shown & position.is_null(),
        "is a shown candidate (behaviour {behaviour!r}) with a null position",
        f"expected a position from 1 to {POSITIONS}",
    )
    _refuse(
        "candidates",
        candidates,
        ~shown & position.is_not_null(),
        "has position {position} although its behaviour is 'not_shown'",
        "expected a null position",
    )
    _refuse(
        "candidates",
        candidates,
        ~position.is_between(1, POSITIONS),
        "has position {position}",
        f"expected 1 to {POSITIONS}, or null when the query was not shown",
    )
    _refuse_repeats(
        candidates,
        "candidates",
        ("request_id", "position"),
        "position {position} of request_id {request_id}",
        "a list shows one query at a position",
        among=position.is_not_null(),
    )
    _refuse(
        "candidates",
        candidates,
        ~(candidates["revenue"].is_finite() & (candidates["revenue"] >= 0)),
        "has revenue {revenue}",
        "expected a finite number, 0 or more",
    )


def day_number(log: Log) -> pl.Series:
    """Days from the date of the first request to the date of each.

    Args:
        log: a log with R requests.

    Returns:
        ``Int32`` (R,), 0 on the first day.
    """
    days = log.requests["time"].dt.date()
    return (days - days.min()).dt.total_days().cast(pl.Int32).alias("day")


def split_by_time(
    log: Log,
    validation_days: int = 1,
    test_days: int = 2,
    *,
    validation_from: date | None = None,
    test_from: date | None = None,
) -> Split:
    """Split a log by calendar days: the last ones for testing, those before them for validation.

    A model that is tested on an earlier day than one it learnt from knows the future, so no other
    split is offered. The two dates, where given, replace the two counts.

    Args:
        log: a log that spans at least ``1 + validation_days + test_days`` days.
        validation_days: days of validation, 0 or more.
        test_days: days of test, 1 or more.
        validation_from: first day of validation, instead of a count.
        test_from: first day of test, instead of a count.

    Returns:
        Train, validation and test; together all requests, each with its candidates.

    Raises:
        LogError: too few days, dates in the wrong order or outside the log, or a part with no request.

    Source:
        The paper trains on 30 days and tests on the 2 that follow; the day of validation is ours, taken
        from the end of the training days.
    """
    days = log.requests["time"].dt.date()
    first, last = days.min(), days.max()
    span = (last - first).days + 1
    if validation_days < 0 or test_days < 1:
        raise LogError(
            f"validation_days is {validation_days} and test_days is {test_days}; expected 0 or more for "
            "the first and 1 or more for the second."
        )
    if validation_from is None and test_from is None and span < 1 + validation_days + test_days:
        raise LogError(
            f"the log has {span} day(s), {first} to {last}; {validation_days} of validation and {test_days} "
            "of test leave none to train on. Give a log of "
            f"{1 + validation_days + test_days} days or more, or fewer validation and test days."
        )
    if test_from is None:
        test_from = last - timedelta(days=test_days - 1)
    if validation_from is None:
        validation_from = test_from - timedelta(days=validation_days)
    if not first < validation_from <= test_from <= last:
        raise LogError(
            f"days in the wrong order: first day {first}, validation from {validation_from}, test from "
            f"{test_from}, last day {last}; expected first < validation <= test <= last."
        )
    split = Split(
        train=_part(log, days < validation_from),
        validation=_part(log, (days >= validation_from) & (days < test_from)),
        test=_part(log, days >= test_from),
    )
    if validation_from < test_from and split.validation.requests.is_empty():
        raise LogError(f"no request from {validation_from} to the day before {test_from}; choose days that have some.")
    return split


def clicked(log: Log) -> pl.DataFrame:
    """One row for each clicked candidate, beside the request it was clicked in.

    Args:
        log: a checked log.

    Returns:
        ``request_id, user_id, time, prefix, profile, history, query, behaviour, position``, sorted by
        time, request id and position.
    """
    columns = ["request_id", "user_id", "time", "prefix", "profile", "history"]
    clicks = log.candidates.lazy().filter(pl.col("behaviour").is_in(CLICKS))
    return (
        clicks.select("request_id", "query", "behaviour", "position")
        .join(log.requests.lazy().select(columns), on="request_id")
        .select(*columns, "query", "behaviour", "position")
        .sort("time", "request_id", "position")
        .collect()
    )


def _read(path: Path, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Read the contract's columns of one file, as they are."""
    if not path.is_file():
        raise LogError(f"{path} is missing; a log is a folder with requests.parquet and candidates.parquet.")
    try:
        held = pl.read_parquet_schema(path)
        _check_columns(path.stem, pl.DataFrame(schema=held), schema)
        return pl.read_parquet(path, columns=list(schema)).select(list(schema))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(f"{path} cannot be read as Parquet ({error}); write it again.") from error


def _check_columns(table: str, frame: pl.DataFrame, schema: dict[str, pl.DataType]) -> None:
    for column, kind in schema.items():
        if column not in frame.columns:
            raise LogError(
                f"{table} has no column '{column}'; found {', '.join(frame.columns) or 'none'}; expected "
                f"{', '.join(schema)}."
            )
        if frame.schema[column] != kind:
            raise LogError(
                f"{table} column '{column}' is of type {frame.schema[column]}; expected {kind}; cast it with "
                f"pl.col('{column}').cast({kind})."
            )
        if column not in NULLABLE and frame[column].null_count():
            where = frame[column].is_null()
            _refuse(table, frame, where, f"has a null {column}", f"give each row a {column} or leave the row out")


def _refuse(table: str, frame: pl.DataFrame, where: pl.Series, found: str, remedy: str) -> None:
    """Raise about the first row for which ``where`` is true; nulls count as false."""
    rows = where.fill_null(False).arg_true()
    if len(rows):
        values = frame.row(rows[0], named=True)
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        raise LogError(f"{table} row {rows[0]} {found.format(**values)}{more}; {remedy}.")


def _refuse_repeats(
    frame: pl.DataFrame,
    table: str,
    key: tuple[str, ...],
    found: str,
    remedy: str,
    among: pl.Series | None = None,
) -> None:
    """Raise about the first row, of those ``among`` marks, whose key an earlier one holds."""
    keys = frame.select(key) if among is None else frame.select(key).filter(among)
    # Counting 64-bit hashes is several times faster than grouping by text; equal hashes are then looked at.
    if keys.hash_rows().n_unique() < keys.height:
        repeated = ~frame.select(pl.struct(key).is_first_distinct()).to_series()
        _refuse(table, frame, repeated if among is None else repeated & among, f"repeats {found}", remedy)


def _part(log: Log, where: pl.Series) -> Log:
    requests = log.requests.filter(where)
    return Log(requests, log.candidates.filter(pl.col("request_id").is_in(requests["request_id"].implode())))
