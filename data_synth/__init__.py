"""A synthetic market that writes a search log.

Shoppers with tastes of their own type prefixes; a logging policy shows them suggestions; they click,
and sometimes order. The log is written as two Parquet tables, the truth behind it apart from them.
"""

from .config import PROFILES, MarketConfig, MarketError
from .describe import describe_market
from .market import World, build_world, open_market, write_market

__all__ = [
    "PROFILES",
    "MarketConfig",
    "MarketError",
    "World",
    "build_world",
    "describe_market",
    "open_market",
    "write_market",
]
