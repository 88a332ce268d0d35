r"""Shoppers: what each likes, what a shop knows of it, and what each has in mind when a search starts.

A search either repeats one of the shopper's last ones or is drawn anew from taste: a department by the shopper's own
shares :math:`\theta_u`, a type in it by the day, then each word by the table that fits the shopper's favourite brand
and attribute, audience and price tier. All latents are finite or Dirichlet, so
:mod:`data_synth.oracle` can invert them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .catalogue import Catalogue, Parts, period_of
from .config import MarketConfig, MarketError

TIER_SHARE = np.array([0.35, 0.4, 0.25])  # of shoppers, budget to premium
_MOST_ACTIVE = 40.0  # relative to a scale on which the median is below 1: nobody searches all day
SAME_TIER = 3.0  # how much likelier the favourite brand is one of the shopper's own tier


class Shoppers(NamedTuple):
    """Latent taste, one row a shopper, and the noisy profile that a shop holds of it."""

    department_taste: np.ndarray  # (U, D) rows sum to 1
    favourite_brand: np.ndarray  # (U, D) brand of the department, 0 where it has none
    favourite_attribute: np.ndarray  # (U, S) attribute of the shelf, 0 where it has none
    audience: np.ndarray  # (U,) index into the lexicon's audiences
    tier: np.ndarray  # (U,) index into its price tiers
    activity: np.ndarray  # (U,) relative number of searches
    cold: np.ndarray  # (U,) bool: starts without history
    profile: np.ndarray  # (U, 5) audience, tier, department, brand of that department, place as told; -1 = unknown


def draw_shoppers(config: MarketConfig, catalogue: Catalogue, count: int, rng: np.random.Generator) -> Shoppers:
    """Draw the taste of some shoppers and the profile that tells of it.

    Args:
        config: the market.
        catalogue: its queries.
        count: U.
        rng: source of every draw.

    Returns:
        The shoppers. Each profile attribute is true with probability ``profile_reliability`` and otherwise drawn at
        random, once for the whole log. The department told is one that the shopper has bought in, so a draw from taste.
    """
    lexicon, departments = catalogue.lexicon, catalogue.department_share.size
    taste = rng.gamma(config.department_concentration * catalogue.department_share, size=(count, departments)) + 1e-12
    taste /= taste.sum(axis=1, keepdims=True)
    audience = rng.integers(len(lexicon.audiences), size=count)
    tier = rng.choice(TIER_SHARE.size, size=count, p=TIER_SHARE)
    weight = favourite_weights(catalogue)[:, tier]  # (D, U, B)
    brand = (rng.random((departments, count, 1)) > np.cumsum(weight, axis=2)[:, :, :-1]).sum(axis=2).T
    shelves, attributes = int(catalogue.type_shelf.max()) + 1, catalogue.sizes[3]
    attribute = 1 + rng.integers(max(attributes - 1, 1), size=(count, shelves)) if attributes > 1 else np.zeros(
        (count, shelves), dtype=np.int64)  # fmt: skip
    bought = _draw(taste, rng)
    everyone = np.arange(count)
    place = rng.integers(len(lexicon.places), size=count)  # says nothing: a model should learn to ignore it
    true = rng.random((count, 4)) < config.profile_reliability
    department = np.where(true[:, 2], bought, rng.integers(departments, size=count))
    likes = np.where(true[:, 3], brand[everyone, department], _random_brand(catalogue, department, rng))
    profile = np.stack(
        [
            np.where(true[:, 0], audience, rng.integers(len(lexicon.audiences), size=count)),
            np.where(true[:, 1], tier, rng.integers(TIER_SHARE.size, size=count)),
            department,
            likes,
            place,
        ],
        axis=1,
    )
    profile[rng.random(count) < config.missing_profile] = -1
    activity = np.minimum(rng.pareto(config.activity, count) + 0.2, _MOST_ACTIVE)
    cold = rng.random(count) < config.cold_shoppers
    return Shoppers(taste, brand, attribute, audience, tier, activity, cold, profile)


def favourite_weights(catalogue: Catalogue) -> np.ndarray:
    """(D, tiers, B) probability of each favourite brand by price tier; the first is certain where there is none."""
    same = catalogue.brand_tier[:, None, :] == np.arange(TIER_SHARE.size)[:, None]
    weight = np.where(same, SAME_TIER, 1.0) * catalogue.favourites[:, None, :]
    weight[weight.sum(axis=2) == 0, 0] = 1.0
    return weight / weight.sum(axis=2, keepdims=True)


def profile_texts(catalogue: Catalogue, profile: np.ndarray) -> pa.ListArray:
    """Profiles (U, 5) as plain-text attributes, null where there is none."""
    lexicon, brands = catalogue.lexicon, catalogue.sizes[1]
    names = {
        "audience": (lexicon.audiences, profile[:, 0]),
        "tier": (lexicon.tiers, profile[:, 1]),
        "department": ([department.name for department in lexicon.departments], profile[:, 2]),
        "brand": (catalogue.shown["brand"], profile[:, 2] * brands + profile[:, 3]),
        "place": (lexicon.places, profile[:, 4]),
    }
    told = profile[:, 0] >= 0
    columns = []
    for name, pattern in lexicon.profile.items():
        texts, rows = names[name]
        before, _, after = pattern.partition("{}")
        values = pa.array(texts, pa.string()).take(pa.array(np.maximum(rows, 0)))
        columns.append(pc.binary_join_element_wise(before, values, after, ""))
    width = len(columns)
    rows = np.arange(told.size * width).reshape(width, -1).T[told]  # one profile after the other, the missing left out
    flat = pa.concat_arrays(columns).take(pa.array(rows.ravel()))
    offsets = pa.array(np.r_[0, np.cumsum(told)].astype(np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, flat.fill_null("unknown"), mask=pa.array(~told))


def profile_codes(catalogue: Catalogue, profiles: list[list[str] | None]) -> np.ndarray:
    """Profiles (U, 5) from plain-text attributes, -1 where there are none: :func:`profile_texts` the other way round.

    Raises:
        MarketError: an attribute that no profile of this market has.
    """
    lexicon, brands = catalogue.lexicon, catalogue.sizes[1]
    audiences, tiers, departments, places = map(
        len, (lexicon.audiences, lexicon.tiers, lexicon.departments, lexicon.places)
    )
    each = np.arange(max(departments * brands, audiences, tiers, places))  # shows every code, and every pair of 2 and 3
    every = [each % audiences, each % tiers, each // brands % departments, each % brands, each % places]
    known: dict[str | tuple[str, str], tuple[int, int]] = {}
    for texts, *codes in zip(profile_texts(catalogue, np.stack(every, axis=1)).to_pylist(), *every, strict=True):
        told = dict(zip(lexicon.profile, texts, strict=True))
        for column, slot in enumerate(("audience", "tier", "department", "brand", "place")):
            if slot in told:  # a brand is one of its department
                key = (told["department"], told["brand"]) if slot == "brand" else told[slot]
                known[key] = column, int(codes[column])
    found = np.full((len(profiles), len(every)), -1)
    for row, texts in enumerate(profiles):
        for text in texts or ():
            hits = [known[key] for key in (text, *((other, text) for other in texts)) if key in known]
            if not hits:
                raise MarketError(f"profile attribute {text!r} of row {row} is none that this market writes")
            found[row, hits[0][0]] = hits[0][1]
    told = found[:, 2] >= 0
    found[told, 3] = np.maximum(found[told, 3], 0)  # where there are no brands, none is told
    return found


def draw_intents(
    config: MarketConfig,
    catalogue: Catalogue,
    shoppers: Shoppers,
    who: np.ndarray,
    day: int,
    history: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The query that each search has in mind.

    Args:
        config: the market.
        catalogue: its queries.
        shoppers: its shoppers.
        who: (N,) the shopper of each search.
        day: of all of them; -1 for before the first day.
        history: (N, H) what each searched lately, -1 for nothing; (N, 0) switches repeats off.
        rng: source of every draw.

    Returns:
        (N,) rows of the catalogue.
    """
    period = int(period_of(config, day))
    department = _draw(shoppers.department_taste[who], rng)
    share = np.cumsum(catalogue.type_share[day])  # goes up by one a department
    kind = np.searchsorted(share, department + rng.random(who.size), side="right")
    first = np.searchsorted(catalogue.type_department, np.arange(catalogue.department_share.size + 1))
    kind = np.clip(kind, first[department], first[department + 1] - 1)
    row, shelf = catalogue.row[kind], catalogue.type_shelf[kind]
    tier = shoppers.tier[who]
    parts = Parts(
        kind,
        _draw(catalogue.brand[period, row, tier, shoppers.favourite_brand[who, department]], rng),
        _draw(catalogue.style[row], rng),
        _draw(catalogue.attribute[row, shoppers.favourite_attribute[who, shelf]], rng),
        _draw(catalogue.modifier[period, row, shoppers.audience[who], tier], rng),
    )
    intents = catalogue.join(parts)
    if history.shape[1]:
        there = (history >= 0).sum(axis=1)  # what is known stands at the end
        again = (rng.random(who.size) < config.repeat) & (there > 0)
        back = (rng.random(who.size) * np.maximum(there, 1)).astype(np.int64)
        intents = np.where(again, history[np.arange(who.size), history.shape[1] - 1 - back], intents)
    return intents


def _draw(probability: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw from each row of (N, K) probabilities."""
    if probability.shape[1] == 1:
        return np.zeros(probability.shape[0], dtype=np.int64)
    cumulative = np.cumsum(probability, axis=1)
    return (rng.random((probability.shape[0], 1)) * cumulative[:, -1:] > cumulative[:, :-1]).sum(axis=1)


def _random_brand(catalogue: Catalogue, department: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    choices = catalogue.favourites[department]
    return np.where(choices.any(axis=1), np.where(choices, rng.random(choices.shape), -1.0).argmax(axis=1), 0)
