r"""Shoppers: what each likes, what a shop knows of it, and what each has in mind when a search starts.

Tastes are independent factors on the popularity of a query, so that the probability of every query for
every shopper is exact:

.. math::

    P(q \mid u) = \theta_{u,d(q)} \;
    \frac{w_q \, b_u(q) \, a_u(q) \, m_u(q)}{\sum_{q' \in d(q)} w_{q'} \, b_u(q') \, a_u(q') \, m_u(q')}

with :math:`\theta_u` the department taste, :math:`w` the popularity of a query inside its department, and
:math:`b, a, m` what its brand, attribute and modifier are worth to the shopper.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import Catalogue
from .config import MarketConfig
from .lexicon import AUDIENCES, PRICE_TIERS

_CHUNK = 32  # shoppers whose taste over all queries is held at a time
_PLACES = ("city", "suburb", "village")  # says nothing about taste: a model should learn to ignore it


class Shoppers(NamedTuple):
    """Latent taste, one row per shopper, and the noisy profile that a shop holds of it."""

    department_taste: np.ndarray  # (U, D) rows sum to 1
    favourite_brand: np.ndarray  # (U, D) brand index
    favourite_attribute: np.ndarray  # (U, S) attribute index
    audience: np.ndarray  # (U,) index into AUDIENCES
    tier: np.ndarray  # (U,) index into PRICE_TIERS
    activity: np.ndarray  # (U,) share of all sessions
    cold: np.ndarray  # (U,) bool: starts without history
    profile_codes: np.ndarray  # (U, 5) audience, tier, department, brand, place as the profile has them; -1 = missing

    def profile_texts(self, catalogue: Catalogue) -> list[list[str] | None]:
        """The profile of every shopper as plain-text attributes; None where there is none."""
        vocabulary = catalogue.vocabulary
        return [
            None
            if audience < 0
            else [
                f"shops for {AUDIENCES[audience]}",
                f"{PRICE_TIERS[tier]} prices",
                f"likes {vocabulary.departments[department]}",
                f"brand {vocabulary.brands[brand]}",
                f"lives in a {_PLACES[place]}",
            ]
            for audience, tier, department, brand, place in self.profile_codes.tolist()
        ]


def draw_shoppers(config: MarketConfig, catalogue: Catalogue, rng: np.random.Generator) -> Shoppers:
    """Draw every shopper's taste and the profile that tells of it.

    Args:
        config: the market.
        catalogue: its queries, for the sizes of departments and the brands there are.
        rng: source of every draw.

    Returns:
        The shoppers. Each profile attribute is true with probability ``profile_reliability`` and otherwise
        drawn at random, once for the whole log.
    """
    vocabulary, count = catalogue.vocabulary, config.shoppers
    departments = len(vocabulary.departments)
    size = np.bincount(catalogue.department[: catalogue.known], catalogue.popularity[: catalogue.known], departments)
    taste = rng.gamma(config.department_concentration * size / size.sum(), size=(count, departments)) + 1e-9
    taste /= taste.sum(axis=1, keepdims=True)
    audience = rng.integers(len(AUDIENCES), size=count)
    tier = rng.choice(len(PRICE_TIERS), size=count, p=(0.35, 0.4, 0.25))
    brand = np.empty((count, departments), dtype=np.int32)
    for department in range(departments):
        choices = np.flatnonzero((vocabulary.brand_department == department) & ~vocabulary.brand_launch)
        # A premium shopper's favourite is more often a premium brand.
        weight = np.where(vocabulary.brand_tier[choices][None, :] == tier[:, None], 3.0, 1.0)
        cumulative = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
        brand[:, department] = choices[np.minimum((rng.random((count, 1)) > cumulative).sum(axis=1), choices.size - 1)]
    attribute = np.empty((count, vocabulary.shelves.size), dtype=np.int32)
    for shelf in range(vocabulary.shelves.size):
        attribute[:, shelf] = rng.choice(np.flatnonzero(vocabulary.attribute_shelf == shelf), size=count)
    activity = rng.gamma(1.5, size=count)

    best = taste.argmax(axis=1)
    truth = np.stack(
        [audience, tier, best, brand[np.arange(count), best], rng.integers(len(_PLACES), size=count)], axis=1
    )
    noise = np.stack(
        [
            rng.integers(len(AUDIENCES), size=count),
            rng.integers(len(PRICE_TIERS), size=count),
            rng.integers(departments, size=count),
            rng.choice(np.flatnonzero(~vocabulary.brand_launch)[1:], size=count),
            truth[:, 4],
        ],
        axis=1,
    )
    codes = np.where(rng.random(truth.shape) < config.profile_reliability, truth, noise)
    codes[rng.random(count) < config.missing_profile] = -1
    cold = rng.random(count) < config.cold_shoppers
    return Shoppers(taste, brand, attribute, audience, tier, activity / activity.sum(), cold, codes)


def taste_weights(
    config: MarketConfig, catalogue: Catalogue, shoppers: Shoppers, rows: np.ndarray, part: slice
) -> np.ndarray:
    """Exact probability of every query of one part of the catalogue for some shoppers, trends left aside.

    Args:
        config: the market.
        catalogue: its queries.
        shoppers: its shoppers.
        rows: (U,) indices of the shoppers asked about.
        part: the known or the new queries of the catalogue.

    Returns:
        (U, Q) float64, each row sums to 1.
    """
    vocabulary, count = catalogue.vocabulary, rows.size
    tier = shoppers.tier[rows, None]  # (U, 1)
    brand = np.where(vocabulary.brand_tier == tier, 1.5, 0.8)  # (U, B)
    brand[:, 0] = 1.0
    np.put_along_axis(brand, shoppers.favourite_brand[rows], config.brand_boost, axis=1)
    attribute = np.ones((count, len(vocabulary.attributes)))
    np.put_along_axis(attribute, shoppers.favourite_attribute[rows], config.attribute_boost, axis=1)
    modifier = np.ones((count, len(vocabulary.modifiers)))
    for named, own, boost in (
        (vocabulary.modifier_audience, shoppers.audience[rows, None], config.audience_boost),
        (vocabulary.modifier_tier, tier, config.price_boost),
    ):
        modifier *= np.where(named < 0, 1.0, np.where(named == own, boost, 1.0 / boost))
    weight = brand.take(catalogue.brand[part], axis=1)  # (U, Q)
    weight *= attribute.take(catalogue.attribute[part], axis=1)
    weight *= modifier.take(catalogue.modifier[part], axis=1)
    weight *= catalogue.popularity[part]
    department = catalogue.department[part]
    starts = np.flatnonzero(np.r_[True, department[1:] != department[:-1]])
    share = shoppers.department_taste[rows][:, department[starts]]
    share = share / share.sum(axis=1, keepdims=True)  # (U, D present)
    factor = share / np.add.reduceat(weight, starts, axis=1)
    sizes = np.diff(np.r_[starts, department.size])
    weight *= np.repeat(factor, sizes, axis=1)
    return weight


def draw_trends(config: MarketConfig, catalogue: Catalogue, rng: np.random.Generator) -> np.ndarray:
    """How the popularity of each type moves over the days: exp of a slow autoregressive walk.

    Returns:
        (days + test_days, T) factors around 1.
    """
    days, types = config.days + config.test_days, len(catalogue.vocabulary.types)
    walk = np.empty((days, types))
    walk[0] = rng.normal(0.0, config.trend, types)
    for day in range(1, days):
        walk[day] = 0.9 * walk[day - 1] + rng.normal(0.0, config.trend * np.sqrt(1 - 0.9**2), types)
    return np.exp(walk)


def draw_intents(
    config: MarketConfig,
    catalogue: Catalogue,
    shoppers: Shoppers,
    trends: np.ndarray,
    shopper: np.ndarray,
    day: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the query that each search has in mind.

    A shopper's taste fixes the weight of every query; the day's trend moves the weight of whole types.

    Args:
        config: the market.
        catalogue: its queries.
        shoppers: its shoppers.
        trends: (days, T) from :func:`draw_trends`.
        shopper: (N,) the shopper of each search, ascending.
        day: (N,) its day; -1 for a search before the first day, without trend.
        rng: source of every draw.

    Returns:
        (N,) rows of the catalogue. New queries come up on the test days alone.
    """
    known, total = catalogue.known, catalogue.text.size
    intents = np.empty(shopper.size, dtype=np.int32)
    is_new = (day >= config.days) & (rng.random(day.size) < config.new_share) & (total > known)
    pick, place = rng.random(shopper.size), rng.random(shopper.size)
    types = len(catalogue.vocabulary.types)
    factors = np.vstack([trends, np.ones(types)])  # day -1 is the last row
    bounds = np.searchsorted(shopper, np.arange(0, config.shoppers + _CHUNK, _CHUNK))
    edges = np.searchsorted(catalogue.type[:known], np.arange(types + 1))
    for chunk, first in enumerate(range(0, config.shoppers, _CHUNK)):
        rows = np.arange(first, min(first + _CHUNK, config.shoppers))
        here = np.arange(bounds[chunk], bounds[chunk + 1])
        if here.size == 0:
            continue
        cumulative = np.zeros((rows.size, known + 1))
        np.cumsum(taste_weights(config, catalogue, shoppers, rows, slice(0, known)), axis=1, out=cumulative[:, 1:])
        own = shopper[here] - first
        mass = cumulative[:, edges[1:]] - cumulative[:, edges[:-1]]  # (U, T)
        by_type = np.cumsum(mass[own] * factors[day[here]], axis=1)  # (n, T)
        chosen = (by_type < (pick[here] * by_type[:, -1])[:, None]).sum(axis=1)
        low, high = cumulative[own, edges[chosen]], cumulative[own, edges[chosen + 1]]
        target = low + place[here] * (high - low)
        ends = np.searchsorted(own, np.arange(rows.size + 1))
        for row in range(rows.size):
            at = slice(ends[row], ends[row + 1])
            found = np.searchsorted(cumulative[row], target[at], side="right") - 1
            intents[here[at]] = np.clip(found, edges[chosen[at]], edges[chosen[at] + 1] - 1)
        new_here = here[is_new[here]]
        if new_here.size:
            fresh = np.cumsum(taste_weights(config, catalogue, shoppers, rows, slice(known, total)), axis=1)
            for index in new_here.tolist():
                row = fresh[shopper[index] - first]
                intents[index] = known + min(
                    int(np.searchsorted(row, pick[index] * row[-1], side="right")), total - known - 1
                )
    return intents
