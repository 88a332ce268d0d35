"""The market day by day: the same shoppers every morning, before whatever policy answers that day.

An experiment (:mod:`data_synth.experiment`) asks what two fixed policies make of the same searches. Here a policy may
be another one each day, because it has learnt from the days before; what shoppers searched yesterday is their history
today, and the day's log comes out in the tables that any log has. Every day has a random stream of its own, so who
comes and when does not depend on what was shown before, and what is in mind does so only through histories: two
policies that live through the same days meet nearly the same searches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from .config import MarketError
from .experiment import suggester_policy
from .market_tables import candidate_table, request_table
from .sessions import day_sessions, first_histories, play_days
from .shoppers import draw_shoppers, profile_texts
from .world import SPAN, World


class DayLog(NamedTuple):
    """One day in the two tables of a log."""

    requests: pl.DataFrame
    candidates: pl.DataFrame


class DailyMarket:
    """Shoppers who have lived through the days before ``first_day`` under the market's own policy.

    Args:
        world: the market.
        sessions: searches a day.
        seed: of the shoppers and of all that they do.
        first_day: number of the day that is played next.

    Attributes:
        day: number of the day that is played next.
        history: (U, H) what every shopper searched so far; all that days hand on to each other.

    Raises:
        MarketError: there is no such day, or not one search a day.
    """

    def __init__(self, world: World, sessions: int, seed: int = 0, first_day: int = 0):
        config = world.config
        self.last = config.days + config.test_days
        if not 0 <= first_day < self.last:
            raise MarketError(f"first_day is {first_day}; the market has days 0 to {self.last - 1}")
        if sessions < 1:
            raise MarketError(f"sessions is {sessions}; expected at least one search a day")
        self.world, self.sessions, self.seed, self.day = world, sessions, seed, first_day
        rng = np.random.default_rng([config.seed, 7, seed])
        each = config.sessions / config.shoppers  # searches of a shopper through all days of the log
        self.shoppers = draw_shoppers(config, world.catalogue, max(round(sessions * self.last / each), 2), rng)
        self.history = first_histories(config, world.catalogue, self.shoppers, rng)
        before = day_sessions(config, sessions * self.last)[:first_day]
        for _ in play_days(world.play(), self.shoppers, before, rng, 0, self.history):
            pass  # what was searched is in the history

    def play(self, suggest: Callable[[pl.DataFrame], list[list[str]]] | None = None) -> DayLog:
        """Live through the next day.

        Args:
            suggest: answers all but the random slice, by prefix, history and profile, see
                :func:`data_synth.experiment.suggester_policy`; the market's own policy by default.

        Returns:
            What the day wrote into the log. Ids belong to the day, so days can be put together.

        Raises:
            MarketError: the market is over.
        """
        world, config = self.world, self.world.config
        if self.day >= self.last:
            raise MarketError(f"day {self.day} is asked for; the market has days 0 to {self.last - 1}")
        policy = None if suggest is None else suggester_policy(world.catalogue, suggest, config.shown)
        play = world.play(policy)
        rng = np.random.default_rng([config.seed, 7, self.seed, self.day])
        (day,) = play_days(play, self.shoppers, np.array([self.sessions]), rng, self.day, self.history)
        day = day._replace(session=self.day * self.sessions + day.session)
        ids = (self.day + 1) * SPAN + np.arange(day.who.size)
        profiles = profile_texts(world.catalogue, self.shoppers.profile)
        tables = request_table(play, day, 0, ids, profiles), candidate_table(world, day, ids)
        self.day += 1
        requests, candidates = map(_plain, tables)
        return DayLog(requests.sort("time", "request_id"), candidates)

    def copy(self) -> DailyMarket:
        """Another market that goes on from the same morning."""
        other = copy.copy(self)
        other.history = self.history.copy()
        return other


def _plain(table: pa.Table) -> pl.DataFrame:
    """A log's table as it is read back from a file: texts, no dictionaries, no null lists."""
    frame = pl.from_arrow(table)
    texts = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Categorical | pl.Enum)]
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(texts).cast(pl.String), pl.col(lists).fill_null([]).list.drop_nulls())
