"""A world: all that is fixed before the first request, and the shards that can be played in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from .catalogue import Catalogue, Pool, period_of
from .catalogue_building import build_catalogue
from .config import MarketConfig, MarketError
from .counts import Index, add_counts, build_index
from .keystrokes import Typing, build_typing, draw_forms, typed_heads
from .policies import Policy, builtin_policy
from .sessions import Play, Requests, day_sessions, first_histories, play_days
from .shoppers import Shoppers, draw_intents, draw_shoppers

#: Ids of requests, sessions and shoppers that one shard has for itself.
SPAN = 10**8


class World(NamedTuple):
    """Everything that is fixed before the first request."""

    config: MarketConfig
    catalogue: Catalogue
    typing: Typing
    indexes: list[Index]  # what the policies have counted, by period
    exact: float  # share of the pilot's searches that ended in the very query in mind

    def policies(self, period: int) -> tuple[Policy, Policy]:
        """The logging policy of a period and the random slice beside it."""
        index = self.indexes[period]
        return tuple(
            builtin_policy(self.config, self.catalogue, index, name) for name in (self.config.policy, "random")
        )

    def play(self, policy: Policy | None = None) -> Play:
        """The market under its own logging policy, or under another one that answers all but the random slice."""
        if policy is None:
            return Play(self.config, self.catalogue, self.typing, self.policies, self.config.policy)
        return Play(self.config, self.catalogue, self.typing, lambda period: (policy, self.policies(period)[1]))


def unplayed_world(config: MarketConfig, queries: Pool | None = None) -> World:
    """Words of a market and how they are typed, before its policies have counted anything: no ``indexes`` yet.

    That is all it takes to say what a list is worth, and it is there in a tenth of the time.

    Args:
        config: the market.
        queries: real queries to start from, instead of the lexicon's words.
    """
    catalogue = build_catalogue(config, _stream(config, 0), queries)
    return World(config, catalogue, build_typing(config, catalogue, _stream(config, 1)), [], 1.0)


def build_world(config: MarketConfig, queries: Pool | None = None) -> World:
    """Draw the words of a market, and let its policies count a pilot's searches period by period.

    The pilot's shoppers belong to no shard. Before the first day they type every search to its end; from then on they
    see what the policies make of the counts so far, and what they click is counted: the shown get richer.

    Args:
        config, queries: as for :func:`unplayed_world`.
    """
    world = unplayed_world(config, queries)
    catalogue, typing = world.catalogue, world.typing
    rng = _stream(config, 2)
    shoppers = draw_shoppers(config, catalogue, max(config.pilot_sessions // 20, 50), rng)
    share = shoppers.activity / shoppers.activity.sum()
    who = rng.choice(share.size, size=config.pilot_sessions, p=share)
    none = np.empty((who.size, 0), dtype=np.int64)
    intents = draw_intents(config, catalogue, shoppers, who, -1, none, rng)
    points, _ = typed_heads(typing, catalogue, intents, *draw_forms(typing, catalogue, intents, rng))
    counts = add_counts(None, points, intents, config.memory)
    days = np.arange(config.days + config.test_days)
    periods = period_of(config, days)
    history = first_histories(config, catalogue, shoppers, rng)
    right, ended = 0, 0
    per_day = day_sessions(config, config.pilot_sessions)
    for period in tqdm(range(int(periods[-1]) + 1), desc="policies count", disable=None, leave=False):
        world.indexes.append(build_index(config, catalogue, counts))
        own = days[periods == period]
        played = play_days(world.play(), shoppers, per_day[own], rng, int(own[0]), history)
        if period == int(periods[-1]):
            break  # nothing is counted after it
        searches = []
        for part in played:
            there = part.searched >= 0
            searches.append((part.final_points[there], part.searched[there]))
            right, ended = right + (part.searched == part.intent).sum(), ended + there.sum()
        if searches:
            new = (np.concatenate(parts) for parts in zip(*searches, strict=True))
            counts = add_counts(counts, *new, config.memory)
    return world._replace(exact=float(right / max(ended, 1)))


def shard_count(config: MarketConfig) -> int:
    """Number of shards of a market."""
    return -(-config.sessions // config.shard_sessions)


def play_shard(world: World, shard: int, play: Play | None = None) -> tuple[Shoppers, Iterator[Requests]]:
    """The shoppers of a shard and its days, one after the other; the same whatever other shards are played.

    Args:
        world: the market.
        shard: 0 to :func:`shard_count` - 1.
        play: under another policy than the market's; see :meth:`World.play`.

    Raises:
        MarketError: there is no such shard.
    """
    config, shards = world.config, shard_count(world.config)
    if not 0 <= shard < shards:
        raise MarketError(f"shard is {shard}; the market has {shards}, numbered from 0")
    rng = _stream(config, 3, shard)
    ends = np.round(np.linspace(0, config.shoppers, shards + 1)).astype(np.int64)
    shoppers = draw_shoppers(config, world.catalogue, max(int(ends[shard + 1] - ends[shard]), 1), rng)
    edges = np.round(np.linspace(0, config.sessions, shards + 1)).astype(np.int64)
    per_day = day_sessions(config, int(edges[shard + 1] - edges[shard]))
    return shoppers, play_days(play or world.play(), shoppers, per_day, rng)


def _stream(config: MarketConfig, *numbers: int) -> np.random.Generator:
    """A random stream of its own for each room and shard, so that a change in one leaves the others as they were."""
    return np.random.default_rng([config.seed, *numbers])
