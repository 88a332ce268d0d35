"""The search log: two Parquet tables, what they must hold, and how they are split by time.

Every later stage learns from a log and from nothing else. A log is a folder with two tables, ``requests`` and
``candidates``. Each is one file (``requests.parquet``) or a folder of shards (``requests/*.parquet``), which are one
table in the order of their names.

``requests``, one row a request (a shopper typed a prefix and saw a list):

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
``policy``      ``String``            optional: the logging policy that answered; null means unknown
==============  ====================  ===========================================================

``candidates``, one row a query that the ranker considered for a request:

==============  ====================  ===========================================================
column          type                  meaning
==============  ====================  ===========================================================
``request_id``  ``Int64``             of a request above
``query``       ``String``            at most once in a request, never null or blank
``position``    ``Int8``              1 (top) to 16, each at most once in a request; null: not shown
``behaviour``   ``String``            one of :data:`BEHAVIOURS`
``revenue``     ``Float32``           money earned, 0 without an order
``propensity``  ``Float32``           optional: probability in (0, 1] that the policy put this query at
                                      this position, given what it knew; null means unknown
==============  ====================  ===========================================================

An optional column may be absent, which says as much as nulls. Some days are read fastest from files whose row groups
hold a day each and whose times and request ids ascend, and all days in the least memory where the dictionary of a row
group has room for all its queries (pyarrow's ``dictionary_pagesize_limit``); what is read does not depend on either.

Any real search log can be written this way; nothing here knows where a log came from.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
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
"""Columns and types that ``requests`` must have."""

CANDIDATE_SCHEMA = {
    "request_id": pl.Int64,
    "query": pl.String,
    "position": pl.Int8,
    "behaviour": pl.String,
    "revenue": pl.Float32,
}
"""Columns and types that ``candidates`` must have."""

REQUIRED = {"requests": REQUEST_SCHEMA, "candidates": CANDIDATE_SCHEMA}

OPTIONAL = {"requests": {"policy": pl.String}, "candidates": {"propensity": pl.Float32}}
"""Columns and types that a table may have beside those, and that are kept where it has them."""

NULLABLE = {"profile", "history", "position"}  # null means unknown, unknown and not shown
BLANK = r"^\s*$"


class LogError(ValueError):
    """A log breaks its contract; the message names the table, the row, what was found and what to do."""


class RowError(LogError):
    """A row breaks the contract; :mod:`onesug_lite.log_files` says where in the table's files it is."""

    def __init__(self, table: str, row: int, fault: str):
        super().__init__(f"{table} row {row} {fault}")
        self.row, self.fault = row, fault


class Log(NamedTuple):
    """A checked log.

    Attributes:
        requests: one row a request, the columns of :data:`REQUEST_SCHEMA` and of :data:`OPTIONAL` if the log has them.
        candidates: one row a candidate of a request, the columns of :data:`CANDIDATE_SCHEMA`, and likewise.
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


def check_log(log: Log) -> None:
    """Raise at the first broken rule of the contract; return nothing when all hold.

    Args:
        log: the two tables; rows are numbered from 0 in messages.

    Raises:
        LogError: a missing or retyped column; no requests at all; a null where none may be; a blank
            prefix or query; an unknown behaviour; a request id or a query of a request given twice; a
            candidate of an unknown request; a shown candidate without a position, a hidden one with
            one; a position outside 1 to 16 or given twice in a request; a negative revenue; a propensity
            outside (0, 1].
    """
    check_requests(log.requests)
    check_candidates(log.candidates, log.requests["request_id"])


def check_requests(requests: pl.DataFrame) -> None:
    check_columns("requests", requests)
    if requests.is_empty():
        raise LogError("requests has no rows; a log needs at least one request.")
    blank = pl.col("prefix").str.contains(BLANK)
    _refuse("requests", requests, blank, "holds a blank prefix {prefix!r}", "leave the row out")
    _refuse_repeats("requests", requests, ["request_id"], "request_id {request_id}", "request ids are unique")


def check_candidates(candidates: pl.DataFrame, request_ids: pl.Series) -> None:
    check_columns("candidates", candidates)
    refuse = partial(_refuse, "candidates", candidates)
    refuse_repeats = partial(_refuse_repeats, "candidates", candidates)
    behaviour, position, revenue = pl.col("behaviour"), pl.col("position"), pl.col("revenue")
    shown = behaviour != "not_shown"
    refuse(pl.col("query").str.contains(BLANK), "holds a blank query {query!r}", "leave the row out")
    unknown = "column 'behaviour' holds {behaviour!r}"
    refuse(~behaviour.is_in(BEHAVIOURS), unknown, f"expected one of {', '.join(BEHAVIOURS)}")
    orphan = "belongs to request_id {request_id}, which requests does not hold"
    known = pl.col("request_id").is_in(request_ids.implode())
    refuse(~known, orphan, "add the request or leave its candidates out")
    query = "query {query!r} for request_id {request_id}"
    refuse_repeats(["request_id", "query"], query, "keep the row with the best behaviour")
    nowhere = "is a shown candidate (behaviour {behaviour!r}) with a null position"
    refuse(shown & position.is_null(), nowhere, f"expected a position from 1 to {POSITIONS}")
    hidden = "has position {position} although its behaviour is 'not_shown'"
    refuse(~shown & position.is_not_null(), hidden, "expected a null position")
    expected = f"expected 1 to {POSITIONS}, or null when the query was not shown"
    refuse(~position.is_between(1, POSITIONS), "has position {position}", expected)
    place = "position {position} of request_id {request_id}"
    refuse_repeats(["request_id", "position"], place, "a list shows one query at a position")
    sound = revenue.is_finite() & (revenue >= 0)
    refuse(~sound, "has revenue {revenue}", "expected a finite number, 0 or more")
    if "propensity" in candidates.columns:
        expected = "expected a probability above 0 and up to 1, or null when it is unknown"
        refuse(~pl.col("propensity").is_between(0, 1, closed="right"), "has propensity {propensity}", expected)


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
        train=part_of(log, days < validation_from),
        validation=part_of(log, (days >= validation_from) & (days < test_from)),
        test=part_of(log, days >= test_from),
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


def check_columns(table: str, frame: pl.DataFrame, name: str | None = None) -> None:
    for column, kind in (REQUIRED[table] | OPTIONAL[table]).items():
        if column not in frame.columns and column in REQUIRED[table]:
            raise LogError(
                f"{name or table} has no column '{column}'; found {', '.join(frame.columns) or 'none'}; expected "
                f"{', '.join(REQUIRED[table])}."
            )
        if frame.schema.get(column, kind) != kind:
            raise LogError(
                f"{name or table} column '{column}' is of type {frame.schema[column]}; expected {kind}; cast it with "
                f"pl.col('{column}').cast({kind})."
            )
        if column in REQUIRED[table] and column not in NULLABLE and frame[column].null_count():
            remedy = f"give each row a {column} or leave the row out"
            _refuse(table, frame, pl.col(column).is_null(), f"has a null {column}", remedy)


def _refuse(table: str, frame: pl.DataFrame, broken: pl.Expr, found: str, remedy: str) -> None:
    """Raise about the first row for which ``broken`` is true; nulls count as false."""
    rows = frame.select(broken.fill_null(False).arg_true()).to_series()
    if len(rows):
        values = frame.row(rows[0], named=True)
        more = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
        raise RowError(table, rows[0], f"{found.format(**values)}{more}; {remedy}.")


def _refuse_repeats(table: str, frame: pl.DataFrame, key: list[str], found: str, remedy: str) -> None:
    """Raise about the first row whose key, a request id and what is unique in it, an earlier one holds."""
    keys = frame.lazy().select(key).drop_nulls()
    # 64-bit hashes are counted, several times faster than grouping by text, and only equal ones are looked at. An
    # eighth of the requests at a time, so that a log of 12 million candidates needs no more than 100 MB for it.
    for part in range(8):
        hashes = keys.filter(pl.col("request_id") % 8 == part).collect().hash_rows()
        if hashes.n_unique() < len(hashes):
            repeated = pl.all_horizontal(pl.col(key).is_not_null()) & ~pl.struct(key).is_first_distinct()
            _refuse(table, frame, repeated, f"repeats {found}", remedy)


def part_of(log: Log, keep: pl.Series) -> Log:
    """Some of a log's requests, each with its candidates.

    Args:
        log: R requests.
        keep: ``Boolean`` (R,).
    """
    requests = log.requests.filter(keep)
    return Log(requests, log.candidates.filter(pl.col("request_id").is_in(requests["request_id"].implode())))
