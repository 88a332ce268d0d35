"""Responses: reading down the list, clicking, and what comes after the click.

A shopper reads from the top and stops at the first click, or when patience ends (a cascade). The query in
mind is clicked almost surely once read; a near match is now and then good enough (satisficing), the more so
the more it attracts. What a click leads to depends on a quality that cannot be seen beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import Catalogue
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
        intents: (N,) the query each shopper has in mind.
        shown: (N, K) suggestions, -1 for an empty place.

    Returns:
        (N, K) in 0..0.95; 0 at an empty place.
    """
    same = [part[shown] == part[intents][:, None] for part in (catalogue.type, catalogue.department)]
    near = [
        part[shown] == part[intents][:, None] for part in (catalogue.brand, catalogue.attribute, catalogue.modifier)
    ]
    closeness = 0.01 + 0.05 * near[0] + 0.03 * near[1] + 0.02 * near[2]
    lure = np.where(same[0], closeness, np.where(same[1], 0.003, 0.0008))
    probability = np.minimum(config.satisficing * lure * catalogue.attraction[shown], 0.95)
    probability = np.where(shown == intents[:, None], config.intent_click, probability)
    return np.where(shown < 0, 0.0, probability)


def respond(
    config: MarketConfig,
    catalogue: Catalogue,
    intents: np.ndarray,
    tier: np.ndarray,
    shown: np.ndarray,
    rng: np.random.Generator,
) -> Responses:
    """Let each shopper react to a list, whatever policy it comes from.

    Args:
        config: the market.
        catalogue: its queries.
        intents: (N,) the query each shopper has in mind.
        tier: (N,) the shopper's price tier.
        shown: (N, K) suggestions, -1 for an empty place.
        rng: source of every draw.

    Returns:
        At most one click a request, with the best behaviour it led to: order, item click or query click.
    """
    count, places = shown.shape
    patience = min(max(config.patience, 1e-12), 1 - 1e-12)
    depth = np.minimum(1 + np.floor(np.log1p(-rng.random(count)) / np.log(patience)), places).astype(np.int64)
    wants = rng.random(shown.shape) < click_probability(config, catalogue, intents, shown)
    wants &= np.arange(places)[None, :] < depth[:, None]
    clicked = wants.any(axis=1)
    place = np.where(clicked, wants.argmax(axis=1), -1)

    query = shown[np.arange(count), np.maximum(place, 0)]
    same_type = catalogue.type[query] == catalogue.type[intents]
    relevance = np.where(query == intents, 1.0, np.where(same_type, 0.75, 0.35))
    quality = catalogue.quality[query]
    item = clicked & (rng.random(count) < relevance * (0.1 + 0.8 * quality))
    named = catalogue.vocabulary.brand_tier[catalogue.brand[query]]
    fit = np.where(named < 0, 0.9, 1.0 - 0.25 * np.abs(named - tier))
    order = item & (rng.random(count) < config.order_rate * relevance * fit * quality)
    behaviour = np.full(count, BEHAVIOURS.index("show"), dtype=np.int8)
    behaviour[clicked] = BEHAVIOURS.index("query_click")
    behaviour[item] = BEHAVIOURS.index("item_click")
    behaviour[order] = BEHAVIOURS.index("order")
    paid = np.round(catalogue.price[query] * rng.lognormal(0.0, 0.1, count), 2)
    return Responses(place, behaviour, np.where(order, paid, 0.0), np.where(clicked, place + 1, depth))
