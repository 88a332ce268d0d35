"""What a search came to in the end, also where no suggestion was clicked.

Clicks alone say what shoppers took of what the old policy showed them. Most lists are not clicked: the shopper types on
and, at the end, searches something. The log holds that too, one search later: in the history of the shopper's next
request. So every request of a session, clicked or not, has a target that no policy has chosen, and there are several
times as many of them as of clicks. Query completion has long been trained on what was submitted in the end; the
paper's generator learns from clicks alone.

Source: ours, a deviation from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from onesug_lite.log import Log, clicked


def appended(before: Sequence[str], after: Sequence[str]) -> list[str] | None:
    """The searches at the end of a history that an earlier one does not have yet.

    Args:
        before: a history, oldest first.
        after: a later one of the same shopper; it may have lost its oldest searches.

    Returns:
        The fewest new searches that explain the later one, oldest first; None when nothing of the earlier one is left
        in it, so that it cannot be told how many came between.
    """
    for new in range(len(after)):
        kept = after[: len(after) - new]
        if list(before[-len(kept) :]) == list(kept):
            return list(after[len(after) - new :])
    return None if before else list(after)


def outcomes(log: Log) -> pl.DataFrame:
    """One row for each request whose session is known to have ended in a query.

    That query is the clicked one where there was a click. Otherwise it is read off the shopper's later history: the
    sessions that see one state of it have brought what the next state holds more, in their order, as long as there are
    as many of one as of the other. Where some have brought nothing, and so it is not clear which, none is counted.

    Args:
        log: the days that may be learned from; nothing outside of it is read.

    Returns:
        ``request_id, user_id, time, prefix, profile, history, query, clicked``, sorted by time and request id;
        ``clicked`` says whether the session ended in a click.
    """
    requests = log.requests.sort("time", "request_id")
    clicks = clicked(log).select("request_id", "query").unique("request_id", keep="last", maintain_order=True)
    sessions = (
        requests.join(clicks, on="request_id", how="left", maintain_order="left")
        .group_by("session_id", maintain_order=True)
        .agg(pl.col("user_id", "history").first(), pl.col("query").drop_nulls().last())
    )
    ended = dict(sessions.select("session_id", "query").filter(pl.col("query").is_not_null()).iter_rows())
    by_click = set(ended)
    for _, states in sessions.group_by("user_id", maintain_order=True):
        waiting: list[int] = []
        before: list[str] = []
        for session, history in states.select("session_id", "history").iter_rows():
            now = history or []
            if waiting and now != before:
                new = appended(before, now)
                if new is not None and len(new) == len(waiting):
                    for earlier, query in zip(waiting, new, strict=True):
                        ended.setdefault(earlier, query)
                waiting = []
            waiting.append(session)
            before = now
    known = pl.DataFrame(
        {"session_id": list(ended), "query": list(ended.values())},
        schema={"session_id": requests.schema["session_id"], "query": pl.String},
    ).with_columns(clicked=pl.col("session_id").is_in(list(by_click)))
    columns = ["request_id", "user_id", "time", "prefix", "profile", "history", "query", "clicked"]
    return requests.join(known, on="session_id", maintain_order="left").select(columns)
