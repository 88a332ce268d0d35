"""Every knob of the market, checked once, in one place, each with a plain reading and a range that real shops span."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints


class MarketError(ValueError):
    """A market cannot be built or written as asked; the message says what to change."""


def _knob(default: Any, valid: tuple, reads: str, plausible: str = "", source: str = "ours") -> Any:
    """A field with the values it accepts, what it means in plain words, and what is plausible according to whom."""
    return field(default=default, metadata={"valid": valid, "reads": reads, "plausible": plausible, "source": source})


@dataclass(frozen=True)
class MarketConfig:
    """The size, the shoppers, the typing, the logging policy and the responses of one synthetic market.

    Every field has a default that gives the ``lite`` market. Values are checked on construction. What a knob means,
    and which values are plausible according to whom, stands in its metadata and, as a table, in :func:`knob_rows`.

    Raises:
        MarketError: a field has another type than its default, or lies outside its range.
    """

    # Size
    sessions: int = _knob(
        100_000,
        (1, 10**10),
        "searches over all days; each is one to a dozen requests",
        "10^5-10^8",
        "paper: 10^8 page views [third-party notes]",
    )
    seed: int = _knob(0, (0, 2**63 - 1), "every random stream descends from it")
    days: int = _knob(30, (3, 366), "training days", "30", "paper [third-party notes]")
    test_days: int = _knob(2, (1, 366), "days after them, kept for the test", "2", "paper [third-party notes]")
    shoppers: int = _knob(14_000, (1, 10**9), "distinct shoppers, of unequal activity")
    shard_sessions: int = _knob(50_000, (64, 10**7), "searches of one shard: one file, one worker, its own shoppers")
    pilot_sessions: int = _knob(60_000, (500, 10**7), "earlier searches that the policies have counted before day one")

    # The queries
    locale: str = _knob("en", ("en", "zh"), "language of the words")
    types: int = _knob(7, (3, 12), "product types on each of the 24 shelves")
    brands: int = _knob(8, (2, 26), "brands of a department")
    styles: int = _knob(3, (2, 8), "colours, materials or flavours of a shelf")
    attributes: int = _knob(5, (3, 12), "further attributes of a shelf")
    modifiers: int = _knob(6, (4, 12), "endings such as 'for men' of a department")
    zipf: float = _knob(
        1.0, (0, 3), "exponent of the popularity of types and words", "0.8-1.0", "baezayates2007caching"
    )
    pairing: float = _knob(0.5, (0, 3), "log-scale spread of how well a word and a type go together")

    # Drift
    period_days: int = _knob(
        4, (1, 366), "days between two rebuilds of the policies' counts; launches fall on them", "1-7"
    )
    trend: float = _knob(0.35, (0, 3), "log-scale spread of a type's popularity over days, slowly moving")
    season: float = _knob(0.3, (0, 3), "log-scale height of a type's weekly season")
    event: float = _knob(6.0, (1, 100), "how much likelier an event's words are at its peak")
    launched: float = _knob(
        0.12, (0, 0.5), "share of brands that appear during the log, beside one a department on the first test day"
    )
    retired: float = _knob(0.08, (0, 0.5), "share of brands that vanish during the log")

    # Shoppers
    activity: float = _knob(1.4, (0.2, 10), "tail exponent of searches a shopper: low = a few search most", "1-2")
    history_length: int = _knob(8, (0, 64), "earlier searches kept with a request", "5-50")
    repeat: float = _knob(
        0.2, (0, 0.95), "share of searches that repeat one of the shopper's last ones", "0.16-0.4", "teevan2007"
    )
    department_concentration: float = _knob(4.0, (0.01, 1e6), "sum of the Dirichlet weights of department taste")
    brand_boost: float = _knob(7.0, (1, 1e3), "how much likelier the favourite brand of a department is")
    attribute_boost: float = _knob(4.0, (1, 1e3), "the same for the favourite attribute of a shelf")
    audience_boost: float = _knob(5.0, (1, 1e3), "the same for words that name the shopper's audience")
    price_boost: float = _knob(4.0, (1, 1e3), "the same for words that name the shopper's price tier")
    profile_reliability: float = _knob(0.8, (0, 1), "probability that one profile attribute tells the truth")
    missing_profile: float = _knob(0.03, (0, 1), "share of shoppers without a profile")
    cold_shoppers: float = _knob(0.05, (0, 1), "share of shoppers who start without any history")

    # Typing
    max_prefix: int = _knob(12, (1, 12), "characters after which a shopper types on to the end without looking")
    burst: float = _knob(2.0, (1, 6), "mean characters typed between two requests; 1 = every keystroke", "1-2")
    glance: float = _knob(0.5, (0, 1), "probability of looking at the list after a burst", "0.3-0.8", "li2014tdcm")
    give_up: float = _knob(0.05, (0, 0.9), "probability of leaving after a list that did not serve", "0.02-0.1")
    synonym: float = _knob(0.25, (0, 1), "probability that the type is typed by another name, where it has one")
    reorder: float = _knob(0.2, (0, 1), "probability that the type is typed first")
    misspell: float = _knob(0.12, (0, 1), "probability that the first word is misspelt", "0.10-0.15", "cucerzan2004")
    alias: float = _knob(0.15, (0, 1), "probability that a brand is typed by its nickname, where it has one")
    pinyin: float = _knob(0.5, (0, 1), "Chinese alone: probability of typing Latin letters up to the click")
    notice: float = _knob(0.35, (0, 1), "probability, at each later request, of seeing and mending a misspelling")

    # The logging policy
    policy: str = _knob("popularity", ("popularity", "production", "random"), "which system answers")
    random_share: float = _knob(0.03, (0, 1), "share of searches answered at random, with propensities", "0.01-0.05")
    shown: int = _knob(16, (1, 16), "suggestions shown", "16", "paper [third-party notes]")
    not_shown: int = _knob(4, (0, 8), "recalled candidates logged without having been shown")
    recalled: int = _knob(200, (24, 1_000), "candidates a policy knows of a prefix", "100-1000")
    exploration: int = _knob(2, (0, 8), "shown places filled by chance from the recalled rest", "0-2")
    personalisation: float = _knob(1.0, (0, 100), "weight of history and profile in the production policy's score")
    memory: float = _knob(0.7, (0, 1), "what older counts keep of their weight at each rebuild: high = stale")

    # Responses
    examination: str = _knob(
        "cascade",
        ("cascade", "position"),
        "how a list is read: from the top until patience ends, or each place by itself",
        source="hofmann2014eye",
    )
    patience: float = _knob(
        0.9, (0, 1), "cascade: probability of reading on after a place", "0.7-0.95", "chapelle2009dbn"
    )
    position_decay: float = _knob(
        0.7,
        (0, 4),
        "position: a place k is read with probability k to the power of minus this",
        "0.5-1.5",
        "craswell2008",
    )
    intent_click: float = _knob(0.9, (0, 1), "click probability of the very query in mind, once read")
    satisficing: float = _knob(0.8, (0, 10), "strength of clicks on near matches of the intent")
    clickbait: float = _knob(0.08, (0, 1), "share of queries that attract clicks and disappoint")
    bait_attraction: float = _knob(4.0, (0, 20), "how much more a click-bait query attracts")
    order_rate: float = _knob(0.55, (0, 1), "order probability after an item click, at quality 1")

    def __post_init__(self) -> None:
        hints = get_type_hints(MarketConfig)
        for knob in fields(self):
            value, kind, valid = getattr(self, knob.name), hints[knob.name], knob.metadata["valid"]
            if kind is float and type(value) is int:
                value = float(value)  # 1 and 1.0 are the same market
                object.__setattr__(self, knob.name, value)
            elif type(value) is not kind:
                raise MarketError(f"{knob.name} is {value!r} ({type(value).__name__}); expected {kind.__name__}")
            if kind is str and value not in valid:
                raise MarketError(f"{knob.name} is {value!r}; expected one of {', '.join(valid)}")
            if kind is not str and not valid[0] <= value <= valid[1]:  # also catches nan
                raise MarketError(f"{knob.name} is {value}; expected a value from {valid[0]} to {valid[1]}")
        if self.sessions < 2 * (self.days + self.test_days):
            raise MarketError(
                f"sessions is {self.sessions}; expected at least {2 * (self.days + self.test_days)}, two for "
                f"each of the {self.days} + {self.test_days} days: raise sessions or lower days"
            )
        if self.exploration > self.shown:
            raise MarketError(
                f"exploration is {self.exploration}; expected at most shown = {self.shown}, the places there are"
            )
        forms = self.synonym + self.reorder + self.misspell + self.alias
        if forms > 1 + 1e-9:
            raise MarketError(
                f"synonym + reorder + misspell + alias is {forms:g}; expected at most 1: "
                "what is left is typed as written"
            )


def knob_rows() -> list[dict[str, str]]:
    """One row a knob, in the order of the config: name, default, plain reading, plausible values, source, valid values.

    ``source`` is "ours" (a choice of this project), or the key of a reference.
    """
    rows = []
    for knob in fields(MarketConfig):
        told = knob.metadata
        between = ", " if isinstance(knob.default, str) else " to "
        rows.append(
            {
                "knob": knob.name,
                "default": str(knob.default),
                "reads": told["reads"],
                "plausible": told["plausible"],
                "source": told["source"],
                "valid": between.join(map(str, told["valid"])),
            }
        )
    return rows


#: Named sizes. They differ in size alone: every behaviour is the same.
PROFILES: dict[str, MarketConfig] = {
    "smoke": MarketConfig(
        sessions=5_000, shoppers=700, pilot_sessions=4_000, types=4, brands=4, styles=2, attributes=3, modifiers=4
    ),
    "lite": MarketConfig(),
    "full": MarketConfig(
        sessions=30_000_000,
        shoppers=4_000_000,
        pilot_sessions=600_000,
        types=12,
        brands=25,
        styles=8,
        attributes=11,
        modifiers=12,
    ),
}

#: Named worlds: what differs from the default, which is selective exposure by a stale policy that knows no shopper.
PRESETS: dict[str, dict[str, Any]] = {
    "selective": {},
    "production": {"policy": "production", "burst": 3.0, "memory": 0.5},
    "few_candidates": {"burst": 4.0, "glance": 0.9, "patience": 0.97, "recalled": 48, "exploration": 4},
}


def market_config(profile: str = "lite", world: str = "selective", **changes: Any) -> MarketConfig:
    """The config of a named size and a named world.

    Args:
        profile: smoke, lite or full.
        world: a name of :data:`PRESETS`.
        **changes: knobs to set otherwise.

    Raises:
        MarketError: an unknown name or knob, or a value that a knob does not take.
    """
    for name, value, known in (("profile", profile, PROFILES), ("world", world, PRESETS)):
        if value not in known:
            raise MarketError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    unknown = sorted(set(changes) - {knob.name for knob in fields(MarketConfig)})
    if unknown:
        raise MarketError(f"there is no knob {unknown[0]!r}; knob_rows() lists them")
    return replace(PROFILES[profile], **(PRESETS[world] | changes))
