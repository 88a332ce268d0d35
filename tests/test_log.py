"""The contract of the log: each way of breaking it is named, and the split never looks ahead."""

from datetime import date, datetime, timedelta

import polars as pl
import pyarrow.parquet as pq
import pytest

from onesug_lite.log import (
    CANDIDATE_SCHEMA,
    CLICKS,
    OPTIONAL,
    REQUEST_SCHEMA,
    Log,
    LogError,
    check_log,
    clicked,
    day_number,
    split_by_time,
)
from onesug_lite.log_files import read_log

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


def write_shards(log: Log, folder, *starts: int) -> None:
    """Requests from each of the ids in ``starts`` to the next; written last shard first."""
    for number in reversed(range(len(starts))):
        wanted = pl.col("request_id").is_between(starts[number], [*starts, 10**9][number + 1] - 1)
        for table, frame in zip(("requests", "candidates"), log, strict=True):
            (folder / table).mkdir(exist_ok=True)
            frame.filter(wanted).write_parquet(folder / table / f"shard-{number}.parquet")


def with_optional(log: Log) -> Log:
    """Half of the requests by an unknown policy, and their candidates of unknown propensity."""
    even = pl.col("request_id") % 2 == 0
    return Log(
        log.requests.with_columns(policy=pl.when(even).then(pl.lit("greedy"))),
        log.candidates.with_columns(propensity=pl.when(even).then(pl.lit(0.25, pl.Float32))),
    )


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


@pytest.mark.parametrize("factor", [1, -1, 8])
def test_repeats_are_found_whatever_the_ids(factor):
    requests, candidates = (frame.with_columns(pl.col("request_id") * factor) for frame in small_log())
    check_log(Log(requests, candidates))
    for number in range(10):
        row = 3 * number + 1
        repeated = change(candidates, row, "query", "red shoes")
        with pytest.raises(LogError, match=f"row {row} repeats query 'red shoes' for request_id {number * factor};"):
            check_log(Log(requests, repeated))


def test_candidates_without_a_position_repeat_none():
    log = small_log()
    hidden = change(change(log.candidates, 1, "position", None), 1, "behaviour", "not_shown")
    check_log(log._replace(candidates=hidden))
    with pytest.raises(LogError, match="candidates row 7 repeats position 2 of request_id 2;"):
        check_log(log._replace(candidates=change(hidden, 7, "position", 2)))


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_propensity_is_a_probability_above_zero(value):
    log = with_optional(small_log())
    for sound in (1.0, 1e-6, None):
        check_log(log._replace(candidates=change(log.candidates, 4, "propensity", sound)))
    with pytest.raises(LogError, match=rf"candidates row 4 has propensity {value}; expected .* above 0 and up to 1"):
        check_log(log._replace(candidates=change(log.candidates, 4, "propensity", value)))


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


def test_optional_columns_are_kept_where_a_log_has_them(tmp_path):
    bare, full = small_log(), with_optional(small_log())
    write(bare, tmp_path)
    read = read_log(tmp_path)
    assert read.requests.columns == list(REQUEST_SCHEMA)
    assert read.candidates.columns == list(CANDIDATE_SCHEMA)
    write(full, tmp_path)
    read = read_log(tmp_path)
    assert read.requests.equals(full.requests)
    assert read.candidates.equals(full.candidates)
    for part in split_by_time(read):
        assert part.requests.columns == full.requests.columns
        assert part.candidates.columns == full.candidates.columns


def test_normalising_keeps_the_optional_columns():
    from onesug_lite.log_files import normalise

    full = with_optional(small_log())
    shouted = full.candidates.with_columns(query=pl.col("query").str.to_uppercase())
    read = normalise(Log(full.requests, shouted))
    assert read.requests.equals(full.requests)
    assert read.candidates.equals(full.candidates)


@pytest.mark.parametrize(("table", "column"), [(table, column) for table in OPTIONAL for column in OPTIONAL[table]])
def test_a_retyped_optional_column_is_named(table, column, tmp_path):
    write(with_optional(small_log()), tmp_path)
    file = tmp_path / f"{table}.parquet"
    pl.read_parquet(file).with_columns(pl.lit(1.0, pl.Float64).alias(column)).write_parquet(file)
    with pytest.raises(
        LogError, match=f"{table} column '{column}' is of type Float64; expected {OPTIONAL[table][column]}"
    ):
        read_log(tmp_path)


def test_shards_are_one_table_in_the_order_of_their_names(tmp_path):
    log = small_log()
    write_shards(log, tmp_path, 0, 3, 7)
    (tmp_path / "candidates" / "_SUCCESS").touch()
    read = read_log(tmp_path)
    assert read.requests.equals(log.requests)
    assert read.candidates.equals(log.candidates)


def test_one_table_may_be_a_file_and_the_other_shards(tmp_path):
    log = small_log()
    write_shards(log, tmp_path, 0, 3)
    for shard in (tmp_path / "requests").iterdir():
        shard.unlink()
    log.requests.write_parquet(tmp_path / "requests.parquet")  # beside an empty folder
    assert read_log(tmp_path).candidates.equals(log.candidates)


def test_shards_need_not_follow_each_other_in_time(tmp_path):
    log = small_log()
    odd = pl.col("request_id") % 2 == 1
    for table, frame in zip(("requests", "candidates"), log, strict=True):
        (tmp_path / table).mkdir()
        frame.filter(odd).write_parquet(tmp_path / table / "a.parquet")
        frame.filter(~odd).write_parquet(tmp_path / table / "b.parquet")
    read = read_log(tmp_path)
    assert read.requests.equals(log.requests)
    assert read.candidates["request_id"].unique(maintain_order=True).to_list() == [1, 3, 5, 7, 9, 0, 2, 4, 6, 8]
    days = read_log(tmp_path, date(2025, 3, 3), date(2025, 3, 4))
    assert days.requests["request_id"].to_list() == [3, 4, 5, 6]
    assert days.candidates["request_id"].unique(maintain_order=True).to_list() == [3, 5, 4, 6]


def test_an_optional_column_may_be_absent_from_some_shards(tmp_path):
    full = with_optional(small_log())
    write_shards(full, tmp_path, 0, 3, 7)
    for table in OPTIONAL:
        file = tmp_path / table / "shard-0.parquet"
        pl.read_parquet(file).drop(OPTIONAL[table]).write_parquet(file)
    requests, candidates = read_log(tmp_path)
    assert requests["policy"].to_list() == [None] * 3 + full.requests["policy"][3:].to_list()
    assert candidates["propensity"].to_list() == [None] * 9 + full.candidates["propensity"][9:].to_list()


@pytest.mark.parametrize("table", ["requests", "candidates"])
def test_a_table_that_is_there_twice_or_nowhere_is_refused(table, tmp_path):
    log = small_log()
    write(log, tmp_path)
    write_shards(log, tmp_path, 0)
    other = {"requests": "candidates", "candidates": "requests"}[table]
    (tmp_path / f"{other}.parquet").unlink()
    with pytest.raises(LogError, match=rf"both hold {table}; remove {table}.parquet to .*, or the folder {table} to "):
        read_log(tmp_path)
    (tmp_path / f"{table}.parquet").unlink()
    (tmp_path / table / "shard-0.parquet").unlink()
    with pytest.raises(LogError, match=rf"{table}.parquet is missing, and so are shards {table}/\*.parquet"):
        read_log(tmp_path)


@pytest.mark.parametrize("days", [(None, None), (date(2025, 3, 3), None), (date(2025, 3, 4), date(2025, 3, 5))])
def test_a_fault_is_found_in_its_shard(days, tmp_path):
    log = small_log()
    write_shards(log._replace(requests=change(log.requests, 6, "prefix", " ")), tmp_path, 0, 4)
    with pytest.raises(LogError, match=r"^requests/shard-1.parquet row 2 \(requests row 6\) holds a blank prefix ' ';"):
        read_log(tmp_path, *days)
    write_shards(log._replace(candidates=change(log.candidates, 18, "revenue", -1.0)), tmp_path, 0, 4)
    message = r"^candidates/shard-1.parquet row 6 \(candidates row 18\) has revenue -1.0;"
    with pytest.raises(LogError, match=message):
        read_log(tmp_path, *days)


def test_a_fault_in_some_days_of_a_file_has_the_row_of_the_file(tmp_path):
    log = small_log()
    write(log._replace(candidates=change(log.candidates, 18, "revenue", -1.0)), tmp_path)
    read_log(tmp_path, last=date(2025, 3, 3))
    with pytest.raises(LogError, match=r"^candidates row 18 has revenue -1.0;"):
        read_log(tmp_path, first=date(2025, 3, 4))


def test_a_repeat_in_another_shard_is_found(tmp_path):
    log = small_log()
    write_shards(log, tmp_path, 0, 4)
    extra = log.requests[2].with_columns(time=pl.lit(START + timedelta(days=5)))
    extra.write_parquet(tmp_path / "requests" / "shard-2.parquet")
    with pytest.raises(LogError, match=r"^requests/shard-2.parquet row 0 \(requests row 10\) repeats request_id 2;"):
        read_log(tmp_path)
    (tmp_path / "requests" / "shard-2.parquet").unlink()
    log.candidates[7].write_parquet(tmp_path / "candidates" / "shard-2.parquet")
    with pytest.raises(LogError, match=r"^candidates/shard-2.parquet row 0 \(candidates row 30\) repeats query"):
        read_log(tmp_path)


@pytest.mark.parametrize("table", ["requests", "candidates"])
def test_a_torn_or_retyped_shard_is_named(table, tmp_path):
    write_shards(small_log(), tmp_path, 0, 4)
    file = tmp_path / table / "shard-1.parquet"
    sound = file.read_bytes()
    pl.read_parquet(file).with_columns(pl.col("request_id").cast(pl.Int32)).write_parquet(file)
    with pytest.raises(
        LogError, match=f"^{table}/shard-1.parquet column 'request_id' is of type Int32; expected Int64"
    ):
        read_log(tmp_path)
    file.write_bytes(sound[:200])
    with pytest.raises(LogError, match="shard-1.parquet cannot be read"):
        read_log(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_some_days_hold_their_requests_and_no_other(sharded, tmp_path):
    log = small_log()
    first, tick = datetime(2025, 3, 3), timedelta.resolution
    times = [START, first - tick, first, first + timedelta(days=2) - tick, first + timedelta(days=2)]
    times += [datetime(2025, 3, 6)] * 5
    log = log._replace(requests=log.requests.with_columns(time=pl.Series(times, dtype=pl.Datetime("us"))))
    if sharded:
        write_shards(log, tmp_path, 0, 3)
    else:
        write(log, tmp_path)
    for first, last, ids in (
        (date(2025, 3, 3), date(2025, 3, 4), [2, 3]),
        (date(2025, 3, 5), None, [4, 5, 6, 7, 8, 9]),
        (None, date(2025, 3, 2), [0, 1]),
        (date(2025, 3, 1), date(2025, 3, 6), list(range(10))),
    ):
        read = read_log(tmp_path, first, last)
        assert read.requests.equals(log.requests[ids])
        assert read.candidates.equals(log.candidates.filter(pl.col("request_id").is_in(ids)))


def test_some_days_leave_out_candidates_of_ids_in_between(tmp_path):
    log = small_log()
    shuffled = [5, 0, 9, 1, 8, 2, 7, 3, 6, 4]
    write(log._replace(requests=log.requests.with_columns(request_id=pl.Series(shuffled)).reverse()), tmp_path)
    assert read_log(tmp_path).requests["request_id"].to_list() == shuffled
    read = read_log(tmp_path, date(2025, 3, 2), date(2025, 3, 2))
    assert read.requests["request_id"].to_list() == [0, 9]
    assert read.candidates.equals(log.candidates.filter(pl.col("request_id").is_in([0, 9])))


def test_days_without_a_request_are_refused(tmp_path):
    log = small_log()
    write_shards(log, tmp_path, 0, 4)
    whole = "the log's first day is 2025-03-01 and its last 2025-03-06"
    for first, last in ((date(2025, 3, 7), None), (None, date(2025, 2, 28)), (date(2025, 3, 4), date(2025, 3, 3))):
        with pytest.raises(LogError, match=f"no request from first={first} to last={last}; {whole}"):
            read_log(tmp_path, first, last)
    write_shards(Log(log.requests.clear(), log.candidates.clear()), tmp_path, 0, 4)
    with pytest.raises(LogError, match="requests has no rows"):
        read_log(tmp_path, date(2025, 3, 1))


def test_some_days_are_read_without_reading_the_others(tmp_path):
    log = small_log()
    write_shards(log, tmp_path, 1, 5)
    for table, rows_a_day in (("requests", 2), ("candidates", 6)):
        for file in (tmp_path / table).iterdir():
            pl.read_parquet(file).write_parquet(file, row_group_size=rows_a_day)
            # Every page of every request but 3 to 6 is overwritten; only the statistics tell that it may be.
            pages, metadata = bytearray(file.read_bytes()), pq.read_metadata(file)
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                if not 3 <= group.column(0).statistics.min <= 6:
                    for column in map(group.column, range(metadata.num_columns)):
                        start = column.dictionary_page_offset or column.data_page_offset
                        pages[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
            file.write_bytes(pages)
    for last, end in ((date(2025, 3, 3), 5), (date(2025, 3, 4), 7)):  # in one shard, and in both
        read = read_log(tmp_path, date(2025, 3, 3), last)
        assert read.requests.equals(log.requests[3:end])
        assert read.candidates.equals(log.candidates[9 : 3 * end])
    with pytest.raises(LogError, match="cannot be read"):
        read_log(tmp_path)


def test_the_fingerprint_covers_names_and_bytes_of_all_files(tmp_path):
    from onesug_lite.pipeline import Pipeline

    def fingerprint(name: str, *starts: int, revenue: float = 1.0, rename: str = "shard-1") -> str:
        folder = tmp_path / name
        folder.mkdir()
        log = small_log()
        log = log._replace(candidates=change(log.candidates, 18, "revenue", revenue))
        if starts:
            write_shards(log, folder, *starts)
            (folder / "requests" / "shard-1.parquet").rename(folder / "requests" / f"{rename}.parquet")
        else:
            write(log, folder)
        return Pipeline(folder, store=tmp_path / "store").log_fingerprint

    assert fingerprint("single") == fingerprint("copy")
    assert fingerprint("sharded", 0, 4) == fingerprint("copied", 0, 4)
    seen = [
        fingerprint("a"),
        fingerprint("b", revenue=2.0),
        fingerprint("c", 0, 4),
        fingerprint("d", 0, 4, revenue=2.0),
        fingerprint("e", 0, 4, rename="shard-2"),
        fingerprint("f", 0, 5),
    ]
    assert len(set(seen)) == 6
    (tmp_path / "f" / "candidates" / "shard-0.parquet").unlink()
    (tmp_path / "f" / "candidates" / "shard-1.parquet").unlink()
    with pytest.raises(LogError, match="candidates.parquet is missing"):
        _ = Pipeline(tmp_path / "f", store=tmp_path / "store").log_fingerprint


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
