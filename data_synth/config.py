"""Every knob of the market, checked once, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_type_hints


class MarketError(ValueError):
    """A market cannot be built or written as asked; the message says what to change."""


@dataclass(frozen=True)
class MarketConfig:
    """The size, the shoppers, the logging policy and the responses of one synthetic market.

    Every field has a default that gives the ``lite`` market. Values are checked on construction.

    Raises:
        MarketError: a field has another type than its default, or lies outside its range.
    """

    # Size
    sessions: int = (
        240_000  # sessions over all days, one request each; paper: about 10^8 page views [third-party notes]
    )
    seed: int = 0  # every random stream of the market descends from it; ours
    days: int = 30  # training days; paper: 30 [third-party notes]
    test_days: int = 2  # days after them, kept for the test; paper: 2 [third-party notes]
    shoppers: int = 5_000  # distinct shoppers, of unequal activity; ours
    queries: int = 60_000  # queries that exist on every day; ours
    new_queries: int = 1_800  # queries that exist on the test days alone; ours
    new_share: float = 0.06  # share of test-day intents that aim at a new query; ours

    # Shoppers
    history_length: int = 8  # earlier searched queries kept with a request; ours
    zipf: float = 1.0  # exponent of the popularity of types, brands, attributes and modifiers; ours
    query_noise: float = 0.5  # log-scale spread of a query's popularity around its factors; ours
    department_concentration: float = 4.0  # sum of the Dirichlet weights of department taste, low = narrow; ours
    brand_boost: float = 10.0  # how much likelier a query of the favourite brand is; ours
    attribute_boost: float = 6.0  # the same for the favourite attribute of a shelf; ours
    audience_boost: float = 5.0  # the same for a modifier that names the shopper's audience; ours
    price_boost: float = 4.0  # the same for a modifier that names the shopper's price tier; ours
    trend: float = 0.35  # log-scale spread of a type's popularity from day to day (slowly moving); ours
    profile_reliability: float = 0.8  # probability that one profile attribute tells the truth; ours
    missing_profile: float = 0.03  # share of shoppers without a profile; ours
    cold_shoppers: float = 0.05  # share of shoppers who start without any history; ours

    # Typing
    max_prefix: int = 10  # longest typed prefix, in characters; ours
    prefix_scale: float = 1.6  # stretch of the typed length; 1.6 gives a median of 4 characters; ours
    synonym: float = 0.2  # probability that the type is typed by its synonym, where it has one; ours
    reorder: float = 0.2  # probability that the type is typed first; ours
    misspell: float = 0.18  # probability that the first word is misspelt; ours

    # The logging policy, which sees what a log would show it
    shown: int = 16  # suggestions shown; paper: 16 [third-party notes]
    not_shown: int = 4  # recalled candidates logged without having been shown; ours
    recalled: int = 96  # candidates the policy ranks for one prefix; ours
    exploration: int = 2  # shown places filled at random from the recalled rest; ours
    popularity_noise: float = 0.5  # log-scale error of the policy's idea of a query's popularity; ours
    stale_days: int = 7  # age, in days, of the trends that the policy knows; ours
    personalisation: float = 1.0  # weight of visible history and profile in the policy's score; ours

    # Responses
    patience: float = 0.97  # probability of reading on after a suggestion that was not clicked; ours
    intent_click: float = 0.9  # click probability of the very query the shopper had in mind, once read; ours
    satisficing: float = 1.5  # strength of clicks on near matches of the intent; ours
    clickbait: float = 0.08  # share of queries that attract clicks and disappoint; ours
    bait_attraction: float = 4.0  # how much more a click-bait query attracts; ours
    order_rate: float = 0.55  # order probability after an item click, at quality 1; ours

    def __post_init__(self) -> None:
        hints = get_type_hints(MarketConfig)
        for field in fields(self):
            value, kind = getattr(self, field.name), hints[field.name]
            if kind is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))  # 1 and 1.0 are the same market
            elif type(value) is not kind:
                raise MarketError(f"{field.name} is {value!r} ({type(value).__name__}); expected {kind.__name__}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also catches nan
                raise MarketError(f"{name} is {value}; expected a value from {low} to {high}")
        if self.sessions < 2 * (self.days + self.test_days):
            raise MarketError(
                f"sessions is {self.sessions}; expected at least {2 * (self.days + self.test_days)}, two for "
                f"each of the {self.days} + {self.test_days} days: raise sessions or lower days"
            )
        if self.exploration > self.shown:
            raise MarketError(
                f"exploration is {self.exploration}; expected at most shown = {self.shown}, the places there are"
            )
        if self.recalled < self.shown + self.not_shown + self.exploration:
            raise MarketError(
                f"recalled is {self.recalled}; expected at least shown + not_shown + exploration = "
                f"{self.shown + self.not_shown + self.exploration}: raise recalled or log fewer candidates"
            )
        if self.recalled > self.queries:
            raise MarketError(f"recalled is {self.recalled}; expected at most queries = {self.queries}")
        if self.synonym + self.reorder + self.misspell > 1 + 1e-9:
            raise MarketError(
                f"synonym + reorder + misspell is {self.synonym + self.reorder + self.misspell:g}; expected "
                "at most 1: what is left is typed as written"
            )


_RANGES: dict[str, tuple[float, float]] = {
    "sessions": (1, 10**9),
    "seed": (0, 2**63 - 1),
    "days": (3, 366),  # history, validation and training need a day each
    "test_days": (1, 366),
    "shoppers": (1, 10**8),
    "queries": (1_000, 10**7),  # the lexicon sets the true upper end; see build_catalogue
    "new_queries": (0, 10**6),
    "new_share": (0, 1),
    "history_length": (0, 64),
    "zipf": (0, 3),
    "query_noise": (0, 3),
    "department_concentration": (0.01, 1e6),
    "brand_boost": (1, 1e3),
    "attribute_boost": (1, 1e3),
    "audience_boost": (1, 1e3),
    "price_boost": (1, 1e3),
    "trend": (0, 3),
    "profile_reliability": (0, 1),
    "missing_profile": (0, 1),
    "cold_shoppers": (0, 1),
    "max_prefix": (1, 24),
    "prefix_scale": (0.1, 20),
    "synonym": (0, 1),
    "reorder": (0, 1),
    "misspell": (0, 1),
    "shown": (1, 16),  # the log's positions end at 16
    "not_shown": (0, 100),
    "recalled": (1, 1_000),
    "exploration": (0, 16),
    "popularity_noise": (0, 5),
    "stale_days": (0, 366),
    "personalisation": (0, 100),
    "patience": (0, 1),
    "intent_click": (0, 1),
    "satisficing": (0, 10),
    "clickbait": (0, 1),
    "bait_attraction": (0, 100),
    "order_rate": (0, 1),
}

#: Named sizes. They differ in size alone: every behaviour is the same.
PROFILES: dict[str, MarketConfig] = {
    "smoke": MarketConfig(sessions=6_000, shoppers=400, queries=4_000, new_queries=140),
    "lite": MarketConfig(),
    "full": MarketConfig(sessions=2_400_000, shoppers=40_000, queries=80_000, new_queries=2_400),
}
