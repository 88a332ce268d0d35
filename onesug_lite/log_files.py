"""Reading a log from its folder: whole or in shards, all days or some; errors name the file and the row.

What a log must hold is the contract of :mod:`onesug_lite.log`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from onesug_lite.log import (
    BEHAVIOURS,
    OPTIONAL,
    REQUIRED,
    Log,
    LogError,
    RowError,
    check_candidates,
    check_columns,
    check_requests,
)
from onesug_lite.tokenizer import clean


def log_files(folder: str | Path) -> dict[str, dict[str, Path]]:
    """Find the files of both tables of a log.

    Args:
        folder: a log.

    Returns:
        For ``requests`` and for ``candidates``, files by name: the one named as the table, or its shards in
        the order of their names, each as ``requests/shard.parquet``.

    Raises:
        LogError: a table is missing, or is there both as a file and as shards.
    """
    found = {}
    for table in REQUIRED:
        file, shards = Path(folder, f"{table}.parquet"), sorted(Path(folder, table).glob("*.parquet"))
        if shards and file.is_file():
            raise LogError(
                f"{file} and the shards in {shards[0].parent} both hold {table}; remove {file.name} to read the "
                f"shards, or the folder {table} to read the file."
            )
        if not shards and not file.is_file():
            raise LogError(
                f"{file} is missing, and so are shards {table}/*.parquet; a log is a folder with requests and "
                "candidates, each a file or a folder of shards."
            )
        found[table] = {f"{table}/{shard.name}": shard for shard in shards} or {table: file}
    return found


def read_log(folder: str | Path, first: date | None = None, last: date | None = None) -> Log:
    """Read a log or some days of it, check what was read, and put its requests in the order of time.

    Unknown columns are dropped, a missing profile or history becomes an empty list, and requests are
    sorted by time and then request id. Candidates keep the order of their files.

    Args:
        folder: holds both tables.
        first: day of the earliest requests to read; None for the log's first.
        last: day of the latest requests to read, itself included; None for the log's last.

    Returns:
        The log; nothing in it breaks the contract of this module.

    Raises:
        LogError: a file is missing or unreadable, no request is of those days, or :func:`check_log` finds
            a fault; a row is named by its number in the table and, in a shard, by its number there.
    """
    files = log_files(folder)
    wanted = [] if first is None else [pl.col("time") >= first]
    if last is not None:
        wanted.append(pl.col("time") < last + timedelta(days=1))
    parts = _read("requests", files, wanted)
    requests = pl.concat(parts, how="diagonal")
    if wanted and requests.is_empty():
        times = pl.concat([pl.scan_parquet(file).select("time") for file in files["requests"].values()])
        times = times.collect()["time"].drop_nulls()
        if len(times):
            raise LogError(
                f"no request from first={first} to last={last}; the log's first day is {times.min().date()} and "
                f"its last {times.max().date()}; choose days among them."
            )
    # Checked before sorting, so that the row numbers of an error are those of the file.
    with _naming_files("requests", files, wanted):
        check_requests(requests)
    if not requests.select(pl.struct("time", "request_id")).to_series().is_sorted():
        requests = requests.sort("time", "request_id")
    ids = requests["request_id"]
    if wanted:
        # A range of ids rules out row groups by their statistics, which a list of ids does not.
        spans = [(part["request_id"].min(), part["request_id"].max()) for part in parts if part.height]
        near = pl.any_horizontal([pl.col("request_id").is_between(*span) for span in spans])
        wanted = [near, pl.col("request_id").is_in(ids.implode())]
    del parts  # a copy of the requests, if they were sorted
    candidates = pl.concat(_read("candidates", files, wanted), how="diagonal")
    with _naming_files("candidates", files, wanted):
        check_candidates(candidates, ids)
    return Log(requests, candidates)


def _read(table: str, files: dict[str, dict[str, Path]], wanted: list[pl.Expr]) -> list[pl.DataFrame]:
    """Read the contract's columns and the wanted rows of each file; a null list becomes an empty one."""
    parts = []
    for name, file in files[table].items():
        try:
            held = pl.read_parquet_schema(file)
            check_columns(table, pl.DataFrame(schema=held), name)
            columns = [column for column in REQUIRED[table] | OPTIONAL[table] if column in held]
            lists = pl.col(pl.List(pl.String)).fill_null([]).list.drop_nulls()
            parts.append(pl.scan_parquet(file).filter(*wanted).select(columns).with_columns(lists).collect())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise LogError(f"{file} cannot be read as Parquet ({error}); write it again.") from error
    return parts


@contextmanager
def _naming_files(table: str, files: dict[str, dict[str, Path]], wanted: list[pl.Expr]) -> Iterator[None]:
    """Where a row of what :func:`_read` read is at fault, name its shard and its row in the files instead."""
    try:
        yield
    except RowError as error:
        row, before = error.row, 0
        for name, file in files[table].items():
            rows = pl.scan_parquet(file, row_index_name="row").filter(*wanted).select("row").collect()["row"]
            if row < len(rows):
                whole = "" if name == table else f" ({table} row {before + rows[row]})"
                raise LogError(f"{name} row {rows[row]}{whole} {error.fault}") from None
            row, before = row - len(rows), before + pl.scan_parquet(file).select(pl.len()).collect().item()
        raise


def normalise(log: Log) -> Log:
    """Bring prefixes and queries into the form of :func:`onesug_lite.tokenizer.clean`.

    Two candidates of one request that become equal are merged into the one with the better behaviour.

    Raises:
        LogError: a text has nothing left after cleaning.
    """

    def cleaned(column: pl.Series) -> pl.Series:
        texts = column.unique().sort()
        new = pl.Series([clean(text) for text in texts.to_list()], dtype=pl.String)
        if (new == "").any():
            bad = texts.filter(new == "")[0]
            raise LogError(f"column '{column.name}' holds {bad!r}, which has no visible character; drop that row")
        return column if new.equals(texts) else column.replace_strict(texts, new)

    requests = log.requests.with_columns(cleaned(log.requests["prefix"]))
    queries = cleaned(log.candidates["query"])
    candidates = log.candidates
    if not queries.equals(candidates["query"]):
        level = pl.col("behaviour").replace_strict(BEHAVIOURS, range(len(BEHAVIOURS)), return_dtype=pl.Int8)
        candidates = (
            candidates.with_columns(queries, row=pl.int_range(pl.len()))
            .sort(level, "row")
            .unique(["request_id", "query"], keep="first", maintain_order=True)
            .sort("row")
            .drop("row")
        )
    return Log(requests, candidates)
