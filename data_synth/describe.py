"""A first look at a log: its size and the habits in it; and, with the truth beside it, every search in one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from .config import MarketError

_CLICKS = ("order", "item_click", "query_click")


def describe_market(out: Path) -> dict[str, float]:
    """Count what the log of a market holds.

    Args:
        out: folder of a market, or of any log with requests.parquet and candidates.parquet.

    Returns:
        sessions, requests, users, days; distinct prefixes, queries listed and queries clicked; median
        prefix length in characters; click_rate and order_rate, the shares of requests with a click and with
        an order; starts_with, the share of clicked queries that start with the typed prefix; revenue,
        summed over orders.
    """
    folder = Path(out) / "log" if (Path(out) / "log").is_dir() else Path(out)
    requests, candidates = (_scan(folder, name) for name in ("requests", "candidates"))
    clicks = (
        candidates.filter(pl.col("behaviour").is_in(_CLICKS))
        .join(requests.select("request_id", "prefix"), on="request_id")
        .collect()
    )
    size = requests.select(
        sessions=pl.col("session_id").n_unique(),
        requests=pl.len(),
        users=pl.col("user_id").n_unique(),
        days=pl.col("time").dt.date().n_unique(),
        prefixes=pl.col("prefix").n_unique(),
        prefix_length=pl.col("prefix").str.len_chars().median(),
    ).collect()
    listed = candidates.select(queries=pl.col("query").n_unique(), revenue=pl.col("revenue").sum()).collect()
    found = size.row(0, named=True) | listed.row(0, named=True)
    with_click = clicks["request_id"].n_unique()
    orders = clicks.filter(pl.col("behaviour") == "order")["request_id"].n_unique()
    return found | {
        "clicks": clicks.height,
        "clicked_queries": clicks["query"].n_unique(),
        "click_rate": with_click / max(found["requests"], 1),
        "order_rate": orders / max(found["requests"], 1),
        "starts_with": float(clicks["query"].str.starts_with(clicks["prefix"]).mean() or 0.0),
    }


class Digest(NamedTuple):
    """What a market's files come to: a row a search, and a few counts over all requests."""

    locale: str
    days: int
    test_days: int
    searches: pl.DataFrame
    """A row a session: user_id; time of its start; prefix, the last one typed; form, as it was begun; searched, the
    query it ended in, null where the shopper left; clicked, with its position and behaviour, null where nothing was;
    passed_over, whether the clicked query had stood on an earlier list of the session."""
    requests: int
    prefix_characters: int  # of all requests
    latin: int  # requests whose prefix holds Latin letters alone
    went_on: int  # places of a list after which a shopper read on
    stopped: int  # places after which one stopped without a click
    candidates: int

    @property
    def clicks(self) -> pl.DataFrame:
        """The searches that ended in a click."""
        return self.searches.filter(pl.col("clicked").is_not_null())

    @property
    def queries(self) -> pl.Series:
        """What was searched, clicked or typed to the end."""
        return self.searches["searched"].drop_nulls()

    @property
    def counts(self) -> np.ndarray:
        """Searches of each distinct query, most searched first."""
        return np.sort(self.queries.value_counts()["count"].to_numpy())[::-1].astype(float)


def digest_market(out: Path) -> Digest:
    """Read a market shard by shard, so that the memory of one suffices; no session crosses them.

    Args:
        out: folder of a market, with ``log`` and ``truth``.

    Raises:
        MarketError: the folder holds no market, a part of one, or one without a click.
    """
    out = Path(out)
    try:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        raise MarketError(f"{out} holds no market; write one with: python -m data_synth --out {out}") from None
    shards = sorted(path.name for path in (out / "log" / "requests").glob("*.parquet"))
    tables = ("log/requests", "log/candidates", "truth/requests")
    lacking = [out / table / name for name in shards or ["shard-00000.parquet"] for table in tables
               if not (out / table / name).is_file()]  # fmt: skip
    if lacking:
        raise MarketError(f"{lacking[0]} is missing; write the market again with --force")
    read = [_digest_shard(*(pl.scan_parquet(out / table / name) for table in tables), config) for name in shards]
    searches = pl.concat(part for part, _ in read)
    if searches["clicked"].null_count() == searches.height:
        raise MarketError(f"{out} holds no click among its {searches.height:,} searches; write more of them")
    sums = np.sum([row for _, row in read], axis=0).tolist()
    return Digest(config["locale"], config["days"], config["test_days"], searches, *sums)


def _digest_shard(requests: pl.LazyFrame, candidates: pl.LazyFrame, truth: pl.LazyFrame, config: dict):
    """The rows of one shard's searches, and its counts in the order of :class:`Digest`."""
    clicks = candidates.filter(pl.col("behaviour").is_in(_CLICKS)).rename({"query": "clicked"})
    steps = requests.drop("profile", "history", "policy").join(truth, on="request_id")
    steps = steps.join(clicks, on="request_id", how="left").sort("request_id").collect()
    ends = steps.lazy().drop_nulls("clicked").select("session_id", query="clicked")
    wanted = steps.lazy().select("request_id", "session_id").join(ends, on="session_id")
    shown = candidates.filter(pl.col("position").is_not_null()).join(wanted, on=["request_id", "query"])
    times = shown.group_by("session_id").agg(passed_over=pl.len() > 1).collect()
    first = pl.col("user_id", "time", "form").first()
    last = pl.col("searched", "clicked", "position", "behaviour").drop_nulls().last()
    searches = steps.group_by("session_id", maintain_order=True).agg(first, pl.col("prefix").last(), last)
    row = steps.select(
        requests=pl.len(),
        prefix_characters=pl.col("prefix").str.len_chars().sum(),
        latin=pl.col("prefix").str.contains(r"^[ -~]+$").sum(),
        went_on=(pl.col("read").cast(pl.Int64) - 1).clip(0).sum(),
        stopped=(pl.col("clicked").is_null() & pl.col("read").is_between(1, config["shown"] - 1)).sum(),
    ).row(0)
    listed = candidates.select(pl.len()).collect().item()
    searches = searches.join(times, on="session_id", how="left", maintain_order="left")
    return searches, np.array([*row, listed], dtype=np.int64)


def _scan(folder: Path, name: str) -> pl.LazyFrame:
    """One table of a log, in one file or in shards."""
    return pl.scan_parquet(folder / name / "*.parquet" if (folder / name).is_dir() else folder / f"{name}.parquet")
