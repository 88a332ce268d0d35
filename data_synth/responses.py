"""Responses: reading a list, clicking, and what comes after the click.

A shopper either reads from the top and stops at the first click, or when patience ends (a cascade), or reads each place
with a chance of its own and clicks the topmost that appeals (position). The query in mind is clicked almost surely once
read; a near match is now and then good enough (satisficing), the more so the more it attracts. What a click leads to
depends on a quality that cannot be seen beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import Catalogue, Parts
from .config import MarketConfig

#: What can happen to a candidate, worst first; the index is the code used in this package.
BEHAVIOURS = ("not_shown", "show", "query_click", "item_click", "order")


class Responses(NamedTuple):
    """What each request of a batch came to."""

    place: np.ndarray  # (N,) index of the clicked suggestion, -1 for none
    behaviour: np.ndarray  # (N,) code in BEHAVIOURS of the clicked suggestion, "show" where there is none
    revenue: np.ndarray  # (N,) of the order, 0 without one
    read: np.ndarray  # (N,) number of suggestions read


def click_probability(config: MarketConfig, catalogue: Catalogue, intents: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Probability of clicking a suggestion, given that it is read.

    Args:
        config: the market.
        catalogue: its queries.
        intents: (N,) the query each shopper has in mind, or any shape that broadcasts against ``shown``.
        shown: (N, K) suggestions, -1 for an empty place.

    Returns:
        (N, K) float32 in 0..0.95; 0 at an empty place.
    """
    intents = np.asarray(intents)
    if intents.ndim < shown.ndim:
        intents = intents[..., None]
    kind, wanted = shown // catalogue.split_base, intents // catalogue.split_base
    department = catalogue.type_department[kind] == catalogue.type_department[wanted]
    lure = np.where(department, np.float32(0.003), np.float32(0.0004))
    lure = np.broadcast_to(lure, np.broadcast_shapes(shown.shape, intents.shape)).copy()
    near = np.broadcast_to(catalogue.family[kind] == catalogue.family[wanted], lure.shape)
    if near.any():
        one = catalogue.split(np.broadcast_to(shown, lure.shape)[near])
        other = catalogue.split(np.broadcast_to(intents, lure.shape)[near])
        lure[near] = 0.01 + sum(
            weight * (left == right) for weight, left, right in zip(CLOSENESS, one[1:], other[1:], strict=True)
        )
    probability = np.minimum(
        np.float32(config.satisficing) * lure * catalogue.attraction(shown, config), np.float32(0.95)
    )
    probability = np.where(shown == intents, np.float32(config.intent_click), probability)
    return np.where(shown < 0, np.float32(0.0), probability)


#: What the same brand, style, attribute and modifier add to the lure of a near match.
CLOSENESS = (np.float32(0.05), np.float32(0.02), np.float32(0.03), np.float32(0.02))


def reading(config: MarketConfig, places: int) -> np.ndarray:
    """(K,) cascade: probability of going on to each place after no click before it; position: of reading the place."""
    if config.examination == "cascade":
        return np.r_[1.0, np.full(places - 1, config.patience)]
    return np.arange(1, places + 1) ** -config.position_decay


def click_places(config: MarketConfig, probability: np.ndarray) -> np.ndarray:
    """Probability that the click falls on each place, in closed form.

    Args:
        config: the market.
        probability: (..., K) of a click, given reading.

    Returns:
        (..., K); sums to the probability of any click, given that the shopper looks at the list.
    """
    read = reading(config, probability.shape[-1])
    if config.examination == "cascade":
        reach = np.cumprod(read) * np.cumprod(np.concatenate(
            [np.ones_like(probability[..., :1]), 1.0 - probability[..., :-1]], axis=-1), axis=-1)  # fmt: skip
        return reach * probability
    seen = read * probability
    return seen * np.cumprod(np.concatenate([np.ones_like(seen[..., :1]), 1.0 - seen[..., :-1]], axis=-1), axis=-1)


def outcome_probability(
    config: MarketConfig, catalogue: Catalogue, intents: np.ndarray, clicked: np.ndarray, tier: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of an item click, and of an order, once a suggestion was clicked.

    Args:
        config: the market.
        catalogue: its queries.
        intents: (N,) the query in mind.
        clicked: (N,) the query clicked.
        tier: (N,) the shopper's price tier.
    """
    one, other = catalogue.split(clicked), catalogue.split(intents)
    family = catalogue.family[one.type] == catalogue.family[other.type]
    relevance = np.where(clicked == intents, 1.0, np.where(family, 0.75, 0.35))
    quality = catalogue.quality(clicked, config)
    named = catalogue.brand_tier[catalogue.type_department[one.type], one.brand]
    fit = np.where(named < 0, 0.9, 1.0 - 0.25 * np.abs(named - tier))
    item = relevance * (0.1 + 0.8 * quality)
    return item, item * config.order_rate * relevance * fit * quality


def price(catalogue: Catalogue, queries: np.ndarray) -> np.ndarray:
    """Typical price of what lies behind queries, in the market's currency."""
    parts: Parts = catalogue.split(queries)
    tier = catalogue.brand_tier[catalogue.type_department[parts.type], parts.brand]
    return np.maximum(catalogue.price[parts.type] * np.where(tier < 0, 1.0, 1.4 ** (tier - 1.0)), 0.5)


def respond(
    config: MarketConfig,
    catalogue: Catalogue,
    intents: np.ndarray,
    tier: np.ndarray,
    shown: np.ndarray,
    rng: np.random.Generator,
    looks: np.ndarray | None = None,
) -> Responses:
    """Let each shopper react to a list, whatever policy it comes from.

    Args:
        config: the market.
        catalogue: its queries.
        intents: (N,) the query each shopper has in mind.
        tier: (N,) the shopper's price tier.
        shown: (N, K) suggestions, -1 for an empty place.
        rng: source of every draw.
        looks: (N,) bool, who looks at the list at all; everybody by default.

    Returns:
        At most one click a request, with the best behaviour it led to: order, item click or query click.
    """
    count, places = shown.shape
    read = reading(config, places)
    if config.examination == "cascade":
        patience = min(max(config.patience, 1e-12), 1 - 1e-12)
        depth = np.minimum(1 + np.floor(np.log1p(-rng.random(count)) / np.log(patience)), places).astype(np.int64)
        seen = np.arange(places)[None, :] < depth[:, None]
    else:
        seen = rng.random(shown.shape, dtype=np.float32) < read
        depth = seen.sum(axis=1)
    looking = np.ones(count, dtype=bool) if looks is None else looks
    wants = rng.random(shown.shape, dtype=np.float32) < click_probability(config, catalogue, intents, shown)
    wants &= seen & looking[:, None]
    clicked = wants.any(axis=1)
    place = np.where(clicked, wants.argmax(axis=1), -1)

    at = np.flatnonzero(clicked)
    query = shown[at, place[at]]
    p_item, p_order = outcome_probability(config, catalogue, intents[at], query, tier[at])
    luck = rng.random(at.size)
    behaviour = np.full(count, BEHAVIOURS.index("show"), dtype=np.int8)
    behaviour[at] = np.where(luck < p_order, BEHAVIOURS.index("order"), np.where(
        luck < p_item, BEHAVIOURS.index("item_click"), BEHAVIOURS.index("query_click")))  # fmt: skip
    revenue = np.zeros(count)
    paid = np.round(price(catalogue, query) * rng.lognormal(0.0, 0.1, at.size), 2)
    revenue[at] = np.where(luck < p_order, paid, 0.0)
    stop = np.where(clicked, place + 1, depth)
    if config.examination == "position":
        stop = np.where(clicked, (seen & (np.arange(places) <= place[:, None])).sum(axis=1), depth)
    return Responses(place, behaviour, revenue, np.where(looking, stop, 0))
