"""A synthetic market that writes a search log.

Shoppers with tastes of their own type queries keystroke by keystroke; a logging policy shows them suggestions; they
click, and sometimes order. The log is written as two Parquet tables, the truth behind it apart from them.
"""

from .config import PRESETS, PROFILES, MarketConfig, MarketError, knob_rows, market_config
from .describe import describe_market
from .market import open_market, write_market, write_shard
from .world import World, build_world, play_shard, shard_count

__all__ = [
    "PRESETS",
    "PROFILES",
    "MarketConfig",
    "MarketError",
    "World",
    "build_world",
    "describe_market",
    "knob_rows",
    "market_config",
    "open_market",
    "play_shard",
    "shard_count",
    "write_market",
    "write_shard",
]
