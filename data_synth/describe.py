"""A first look at a log: its size and the habits in it, from the two tables alone."""

from __future__ import annotations

from pathlib import Path

import polars as pl

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
    requests = pl.scan_parquet(folder / "requests.parquet")
    candidates = pl.scan_parquet(folder / "candidates.parquet")
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
