"""What searches came to: read off later histories, from the training days alone, and right by the market's truth."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from onesug_lite.log import Log
from onesug_lite.outcomes import appended, outcomes


@pytest.mark.parametrize(
    "before, after, new",
    [
        (["a", "b"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], ["c"]),
        (["a", "b"], ["b", "c"], ["c"]),  # the oldest is forgotten
        (["a", "b"], ["b", "a"], ["a"]),
        (["a", "a"], ["a", "a"], []),  # the fewest that explain it
        ([], ["a"], ["a"]),
        (["a", "b"], ["c", "d"], None),  # no telling how many came between
        (["a"], [], None),
    ],
)
def test_what_a_later_history_has_more(before, after, new):
    assert appended(before, after) == new


def _log(*sessions: tuple[int, list[str], str | None]) -> Log:
    """One request a session: (user, history, clicked query)."""
    first = datetime(2025, 6, 1)
    requests = pl.DataFrame(
        [
            (number, number, user, first + timedelta(hours=number), f"p{number}", [], history)
            for number, (user, history, _) in enumerate(sessions)
        ],
        schema=["request_id", "session_id", "user_id", "time", "prefix", "profile", "history"],
        orient="row",
    ).with_columns(pl.col("profile", "history").cast(pl.List(pl.String)))
    candidates = pl.DataFrame(
        [
            (number, query or "shown", 1, "query_click" if query else "show", 0.0)
            for number, (*_, query) in enumerate(sessions)
        ],
        schema=["request_id", "query", "position", "behaviour", "revenue"],
        orient="row",
    )
    return Log(requests, candidates)


def test_a_search_without_a_click_ends_in_what_the_next_history_holds_more():
    found = outcomes(_log((1, ["x"], None), (2, [], "clicked"), (1, ["x", "typed"], None)))
    assert found.select("request_id", "query", "clicked").rows() == [(0, "typed", False), (1, "clicked", True)]


def test_several_searches_of_one_day_are_matched_in_their_order():
    found = outcomes(_log((1, ["x"], None), (1, ["x"], "b"), (1, ["x"], None), (1, ["x", "a", "b", "c"], None)))
    assert found["query"].to_list() == ["a", "b", "c"]


def test_where_one_was_given_up_only_the_clicks_count():
    found = outcomes(_log((1, ["x"], None), (1, ["x"], "b"), (1, ["x"], None), (1, ["x", "b", "c"], None)))
    assert found.select("request_id", "query").rows() == [(1, "b")]


def test_a_log_without_users_who_come_back_gives_the_clicks():
    found = outcomes(_log((1, [], "a"), (2, [], None)))
    assert found["query"].to_list() == ["a"] and found["clicked"].all()


def test_they_are_right_and_of_the_training_days_alone(road, market):
    train = road.split.train
    found = outcomes(train)
    assert set(found["request_id"]) <= set(train.requests["request_id"])
    assert len(found) > 3 * len(road.training_clicks)  # what makes them worth having
    truth = pl.concat([pl.read_parquet(path) for path in sorted((market / "truth" / "requests").glob("*.parquet"))])
    ends = (
        train.requests.join(truth.select("request_id", "searched"), on="request_id")
        .group_by("session_id")
        .agg(pl.col("searched").drop_nulls().last())
    )
    compared = found.join(train.requests.select("request_id", "session_id"), on="request_id").join(
        ends, on="session_id"
    )
    right = compared.filter(~pl.col("clicked")).select((pl.col("query") == pl.col("searched")).mean()).item()
    assert right > 0.97


def test_a_generator_can_learn_from_them_and_write_what_was_never_shown(road):
    other = road.changed({"targets": "outcomes"})
    assert set(road.queries) < set(other.known)
    assert len(other.targets) > len(road.targets)
    with pytest.raises(ValueError, match="targets is 'intents'; expected clicks or outcomes"):
        _ = road.changed({"targets": "intents"}).targets
