"""The contract of the log: each way of breaking it is named, and the split never looks ahead."""

from datetime import date, datetime, timedelta

import polars as pl
import pytest

from onesug_lite.log import (
    CANDIDATE_SCHEMA,
    CLICKS,
    REQUEST_SCHEMA,
    Log,
    LogError,
    check_log,
    clicked,
    day_number,
    read_log,
    split_by_time,
)

START = datetime(2025, 3, 1, 23, 30)


def small_log(days: int = 5) -> Log:
    """Two requests a day, each with a click, a show and a query that was not shown."""
    requests, candidates = [], []
    for number in range(2 * days):
        time = START + timedelta(hours=12 * number)
        requests.append((number, number, number % 3, time, f"p{number % 4}", ["adult"], ["old shoes"]))
        candidates += [
            (number, "red shoes", 2, CLICKS[number % 3], 1.0),
            (number, "blue shoes", 1, "show", 0.0),
            (number, "green shoes", None, "not_shown", 0.0),
        ]
    return Log(
        pl.DataFrame(requests, schema=REQUEST_SCHEMA, orient="row"),
        pl.DataFrame(candidates, schema=CANDIDATE_SCHEMA, orient="row"),
    )


def write(log: Log, folder) -> None:
    log.requests.write_parquet(folder / "requests.parquet")
    log.candidates.write_parquet(folder / "candidates.parquet")


def change(frame: pl.DataFrame, row: int, column: str, value) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))


def test_a_sound_log_passes_and_comes_back_in_the_order_of_time(tmp_path):
    log = small_log()
    write(Log(log.requests.reverse().with_columns(note=pl.lit("x")), log.candidates), tmp_path)
    read = read_log(tmp_path)
    assert read.requests.equals(log.requests)
    assert read.candidates.equals(log.candidates)


def test_a_missing_profile_or_history_is_an_empty_one(tmp_path):
    log = small_log()
    requests = change(change(log.requests, 3, "profile", None), 4, "history", ["a", None])
    write(Log(requests, log.candidates), tmp_path)
    read = read_log(tmp_path).requests
    assert read["profile"][3].to_list() == []
    assert read["history"][4].to_list() == ["a"]


def test_equal_times_are_ordered_by_request_id(tmp_path):
    log = small_log()
    write(Log(log.requests.reverse().with_columns(time=pl.lit(START)), log.candidates), tmp_path)
    assert read_log(tmp_path).requests["request_id"].to_list() == list(range(10))


REQUEST_FAULTS = {
    "null prefix": ((2, "prefix", None), r"requests row 2 has a null prefix"),
    "blank prefix": ((2, "prefix", " \t"), r"requests row 2 holds a blank prefix ' \\t'"),
    "null time": ((1, "time", None), r"requests row 1 has a null time"),
    "doubled request": ((7, "request_id", 3), r"requests row 7 repeats request_id 3"),
}


@pytest.mark.parametrize("fault", REQUEST_FAULTS)
def test_a_broken_request_is_named(fault):
    where, message = REQUEST_FAULTS[fault]
    log = small_log()
    with pytest.raises(LogError, match=message):
        check_log(Log(change(log.requests, *where), log.candidates))


CANDIDATE_FAULTS = {
    "unknown behaviour": (
        (4, "behaviour", "buy"),
        r"row 4 column 'behaviour' holds 'buy'; expected one of order, it",
    ),
    "null behaviour": ((4, "behaviour", None), r"row 4 has a null behaviour"),
    "null query": ((4, "query", None), r"row 4 has a null query"),
    "doubled query": ((4, "query", "red shoes"), r"row 4 repeats query 'red shoes' for request_id 1"),
    "unknown request": ((5, "request_id", 99), r"row 5 belongs to request_id 99"),
    "position 0": ((4, "position", 0), r"row 4 has position 0; expected 1 to 16"),
    "position 17": ((4, "position", 17), r"row 4 has position 17; expected 1 to 16"),
    "doubled position": ((4, "position", 2), r"row 4 repeats position 2 of request_id 1"),
    "shown nowhere": (
        (4, "position", None),
        r"row 4 is a shown candidate \(behaviour 'show'\) with a null position",
    ),
    "hidden somewhere": ((5, "position", 9), r"row 5 has position 9 although its behaviour is 'not_shown'"),
    "negative revenue": ((3, "revenue", -1.0), r"row 3 has revenue -1.0"),
    "revenue not a number": ((3, "revenue", float("nan")), r"row 3 has revenue nan"),
}


@pytest.mark.parametrize("fault", CANDIDATE_FAULTS)
def test_a_broken_candidate_is_named(fault):
    where, message = CANDIDATE_FAULTS[fault]
    log = small_log()
    with pytest.raises(LogError, match="candidates " + message):
        check_log(Log(log.requests, change(log.candidates, *where)))


def test_several_faults_of_a_kind_are_counted():
    log = small_log()
    requests = change(change(log.requests, 2, "prefix", None), 5, "prefix", None)
    with pytest.raises(LogError, match=r"row 2 .*\(2 such rows\)"):
        check_log(Log(requests, log.candidates))


@pytest.mark.parametrize("column", REQUEST_SCHEMA)
def test_a_missing_request_column_is_named(column, tmp_path):
    log = small_log()
    write(Log(log.requests.drop(column), log.candidates), tmp_path)
    with pytest.raises(LogError, match=f"requests has no column '{column}'"):
        read_log(tmp_path)


@pytest.mark.parametrize("column", CANDIDATE_SCHEMA)
def test_a_missing_or_retyped_candidate_column_is_named(column, tmp_path):
    log = small_log()
    write(Log(log.requests, log.candidates.drop(column)), tmp_path)
    with pytest.raises(LogError, match=f"candidates has no column '{column}'"):
        read_log(tmp_path)
    write(Log(log.requests, log.candidates.with_columns(pl.lit(date(2025, 1, 1)).alias(column))), tmp_path)
    with pytest.raises(LogError, match=f"column '{column}' is of type Date; expected"):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["requests.parquet", "candidates.parquet"])
def test_a_missing_or_torn_file_is_named(name, tmp_path):
    write(small_log(), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    with pytest.raises(LogError, match=f"{name} cannot be read"):
        read_log(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LogError, match=f"{name} is missing"):
        read_log(tmp_path)


def test_a_log_without_requests_is_refused():
    log = small_log()
    with pytest.raises(LogError, match="no rows"):
        check_log(Log(log.requests.clear(), log.candidates.clear()))


def test_the_split_is_by_calendar_day_and_keeps_every_row():
    log = small_log(days=5)  # from 1 March 23:30 in steps of 12 hours: 6 calendar days
    assert day_number(log).to_list() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    split = split_by_time(log)
    assert [part.requests["request_id"].to_list() for part in split] == [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
    for part in split:
        assert part.candidates["request_id"].unique().sort().equals(part.requests["request_id"])
    assert sum(part.candidates.height for part in split) == log.candidates.height


def test_the_split_takes_dates():
    split = split_by_time(small_log(), validation_from=date(2025, 3, 3), test_from=date(2025, 3, 4))
    assert [part.requests.height for part in split] == [3, 2, 5]
    assert split_by_time(small_log(), validation_days=0).validation.requests.is_empty()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_days": 4}, r"the log has 6 day\(s\), 2025-03-01 to 2025-03-06"),
        ({"test_days": 0}, r"test_days is 0"),
        (
            {"validation_from": date(2025, 3, 5), "test_from": date(2025, 3, 4)},
            r"wrong order: .*validation from 2025-03-05, test from 2025-03-04",
        ),
        (
            {"validation_from": date(2025, 3, 1), "test_from": date(2025, 3, 4)},
            r"wrong order: first day 2025-03-01",
        ),
        ({"test_from": date(2025, 4, 1)}, r"wrong order: .*last day 2025-03-06"),
    ],
)
def test_days_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(LogError, match=message):
        split_by_time(small_log(), **arguments)


def test_a_validation_of_empty_days_is_refused():
    log = small_log()
    kept = log.requests.filter(~day_number(log).is_in([3]))
    thin = Log(kept, log.candidates.filter(pl.col("request_id").is_in(kept["request_id"].implode())))
    with pytest.raises(LogError, match="no request from 2025-03-04"):
        split_by_time(thin)


def test_clicked_gives_a_row_per_click_beside_its_request():
    log = small_log()
    second = log.candidates.with_columns(
        behaviour=pl.when(pl.col("request_id").eq(4) & pl.col("query").eq("blue shoes"))
        .then(pl.lit("query_click"))
        .otherwise("behaviour")
    )
    rows = clicked(Log(log.requests.reverse(), second.reverse()))
    assert rows.columns == [
        *("request_id", "user_id", "time", "prefix", "profile", "history", "query", "behaviour", "position")
    ]
    assert rows["request_id"].to_list() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert rows.filter(pl.col("request_id") == 4)["query"].to_list() == ["blue shoes", "red shoes"]
    assert set(rows["behaviour"]) == set(CLICKS)
    assert rows["prefix"].to_list()[:3] == ["p0", "p1", "p2"]
