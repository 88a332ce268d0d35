"""Requests as every policy is given them: a frame with a row each, of which all but the prefix may be missing."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

REQUEST = {"prefix": pl.String, "history": pl.List(pl.String), "profile": pl.List(pl.String)}
"""Columns that a policy reads."""


def one_request(prefix: str, history: Sequence[str] = (), profile: Sequence[str] = ()) -> pl.DataFrame:
    """A frame of one row.

    Args:
        prefix: what was typed.
        history: earlier searches, oldest first.
        profile: attributes of the shopper.
    """
    row = {"prefix": [prefix], "history": [list(history)], "profile": [list(profile)]}
    return pl.DataFrame(row, schema=REQUEST)


def history_and_profile(requests: pl.DataFrame) -> tuple[list[list[str]], list[list[str]]]:
    """What is known of the shoppers of N requests.

    Args:
        requests: with or without the columns ``history`` and ``profile`` (List(String)).

    Returns:
        N histories and N profiles; empty where the column is missing or null.
    """
    missing = [None] * len(requests)
    histories, profiles = (
        [row or [] for row in (requests[name].to_list() if name in requests.columns else missing)]
        for name in ("history", "profile")
    )
    return histories, profiles
