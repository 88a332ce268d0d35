"""The catalogue: every query that can be suggested, what it is made of, and how much it is wanted and worth.

A query is a product type, with or without a brand, an attribute and a modifier: ``norvik waterproof running
shoes for men``. Popularity is a product of Zipf factors, so that what a shopper is likely to want stays in
closed form.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .config import MarketConfig, MarketError
from .lexicon import AUDIENCES, LEXICON, PRICE_TIERS, words

_ABSENT = (1.4, 2.2, 3.4)  # weight of no brand, no attribute, no modifier, beside Zipf weights that sum to 1


class Vocabulary(NamedTuple):
    """The lexicon as arrays. Index 0 of brands, attributes and modifiers means "none"."""

    departments: list[str]
    shelves: np.ndarray  # (S,) department of each shelf
    types: list[str]
    synonyms: list[str]  # "" where a type has none
    type_shelf: np.ndarray  # (T,)
    type_department: np.ndarray  # (T,)
    brands: list[str]
    brand_department: np.ndarray  # (B,) -1 for none
    brand_tier: np.ndarray  # (B,) index into PRICE_TIERS, -1 for none
    brand_launch: np.ndarray  # (B,) bool, true for a brand that starts on the first test day
    attributes: list[str]
    attribute_shelf: np.ndarray  # (A,) -1 for none
    modifiers: list[str]
    modifier_department: np.ndarray  # (M,) -1 for none
    modifier_audience: np.ndarray  # (M,) index into AUDIENCES, -1 where it names none
    modifier_tier: np.ndarray  # (M,) index into PRICE_TIERS, -1 where it names none
    shared: list[str]  # brands that share their name with a type of another department


class Catalogue(NamedTuple):
    """One row per query. Rows ``[0, known)`` exist on every day, the others on the test days alone.

    Both parts are sorted by type, hence by department. ``popularity`` sums to 1 in each part.
    """

    vocabulary: Vocabulary
    known: int
    text: np.ndarray  # (Q,) str objects, all different
    type: np.ndarray  # (Q,)
    department: np.ndarray  # (Q,)
    shelf: np.ndarray  # (Q,)
    brand: np.ndarray  # (Q,) 0 = none
    attribute: np.ndarray  # (Q,) 0 = none
    modifier: np.ndarray  # (Q,) 0 = none
    popularity: np.ndarray  # (Q,) before any personal taste
    attraction: np.ndarray  # (Q,) factor on the click probability of a near match
    quality: np.ndarray  # (Q,) in 0..1, hidden until after the click
    clickbait: np.ndarray  # (Q,) bool
    price: np.ndarray  # (Q,) in the market's currency


def read_vocabulary() -> Vocabulary:
    """Turn the word lists into indexed arrays."""
    shelves, types, synonyms, type_shelf = [], [], [], []
    brands, brand_department, launch, shared = [""], [-1], [False], []
    attributes, attribute_shelf = [""], [-1]
    modifiers, modifier_department, audience, tier = [""], [-1], [-1], [-1]
    for number, department in enumerate(LEXICON):
        for brand in words(department.brands):
            brands.append(brand.rstrip("*"))
            brand_department.append(number)
            launch.append(False)
            if brand.endswith("*"):
                shared.append(brand.rstrip("*"))
        brands.append(department.launch)
        brand_department.append(number)
        launch.append(True)
        for modifier in words(department.modifiers):
            text, _, tag = modifier.partition("@")
            modifiers.append(text)
            modifier_department.append(number)
            audience.append(AUDIENCES.index(tag) if tag in AUDIENCES else -1)
            tier.append(PRICE_TIERS.index(tag) if tag in PRICE_TIERS else -1)
        for shelf in department.shelves:
            for entry in words(shelf.types):
                name, _, synonym = entry.partition("|")
                types.append(name)
                synonyms.append(synonym)
                type_shelf.append(len(shelves))
            for attribute in words(shelf.attributes):
                attributes.append(attribute)
                attribute_shelf.append(len(shelves))
            shelves.append(number)
    brand_tier = np.arange(len(brands)) % len(PRICE_TIERS)
    brand_tier[0] = -1
    return Vocabulary(
        [department.name for department in LEXICON],
        np.array(shelves),
        types,
        synonyms,
        np.array(type_shelf),
        np.array(shelves)[type_shelf],
        brands,
        np.array(brand_department),
        brand_tier,
        np.array(launch),
        attributes,
        np.array(attribute_shelf),
        modifiers,
        np.array(modifier_department),
        np.array(audience),
        np.array(tier),
        shared,
    )


def join_words(vocabulary: Vocabulary, brand: int, attribute: int, type_: str, modifier: int) -> str:
    """Write a query as a shopper would: brand, attribute, type, modifier; the parts that are there."""
    parts = (
        vocabulary.brands[brand],
        vocabulary.attributes[attribute],
        type_,
        vocabulary.modifiers[modifier],
    )
    return " ".join(part for part in parts if part)


def build_catalogue(config: MarketConfig, rng: np.random.Generator) -> Catalogue:
    r"""Draw the queries of a market.

    All combinations are weighted by :math:`\prod_f \mathrm{zipf}_f \cdot e^{\epsilon}` and drawn without
    replacement by the square root of that weight, so that the pool holds the popular ones and a long tail.
    The new queries are combinations left over, half of them with a brand that nobody has seen before.

    Args:
        config: the market; ``queries`` and ``new_queries`` set the size.
        rng: source of every draw.

    Returns:
        The catalogue, sorted by type inside its known and its new part.

    Raises:
        MarketError: the lexicon has fewer combinations than asked for.
    """
    vocabulary = read_vocabulary()
    parts = _combinations(vocabulary)  # type, brand, attribute, modifier: (C,) each
    weight = _zipf_product(vocabulary, parts, config, rng)
    type_, brand, attribute, modifier = parts
    old = ~vocabulary.brand_launch[brand]
    if config.queries > old.sum() * 0.9:
        raise MarketError(
            f"queries is {config.queries}; the lexicon serves up to {int(old.sum() * 0.9)}: lower queries or "
            "add words to data_synth/lexicon.py"
        )
    # Gumbel top-k: a draw without replacement. The bare type always wins: every type can be searched.
    key = 0.5 * np.log(weight) + rng.gumbel(size=weight.size)
    key[(brand == 0) & (attribute == 0) & (modifier == 0)] = np.inf
    known = _top(np.where(old, key, -np.inf), config.queries)
    new = _new_rows(vocabulary, parts, key, known, config)
    known, new = np.sort(known), np.sort(new)  # combinations are written in the order of their types
    rows = np.concatenate([known, new])

    department = vocabulary.type_department[type_[rows]]
    popularity = weight[rows]
    for part in (slice(0, known.size), slice(known.size, rows.size)):
        popularity[part] /= popularity[part].sum() if rows[part].size else 1.0
    clickbait = rng.random(rows.size) < config.clickbait
    attraction = rng.lognormal(-0.08, 0.4, rows.size) * np.where(clickbait, config.bait_attraction, 1.0)
    quality = np.where(clickbait, rng.beta(1.5, 12.0, rows.size), rng.beta(4.0, 3.0, rows.size))
    base = np.array([entry.price for entry in LEXICON])[department]
    type_price = rng.lognormal(0.0, 0.5, len(vocabulary.types))[type_[rows]]
    tier = vocabulary.brand_tier[brand[rows]] + vocabulary.modifier_tier[modifier[rows]] - 1
    price = np.round(base * type_price * 1.4 ** np.clip(tier, -2, 2) * rng.lognormal(0.0, 0.15, rows.size), 2)
    text = np.empty(rows.size, dtype=object)
    text[:] = [
        join_words(vocabulary, brand[row], attribute[row], vocabulary.types[type_[row]], modifier[row])
        for row in rows.tolist()
    ]
    return Catalogue(
        vocabulary,
        known.size,
        text,
        type_[rows],
        department,
        vocabulary.type_shelf[type_[rows]],
        brand[rows],
        attribute[rows],
        modifier[rows],
        popularity,
        attraction,
        quality,
        clickbait,
        np.maximum(price, 0.5),
    )


def _combinations(vocabulary: Vocabulary) -> tuple[np.ndarray, ...]:
    """Every type with every brand, attribute and modifier of its department and shelf, none included."""
    parts = []
    for type_, (shelf, department) in enumerate(zip(vocabulary.type_shelf, vocabulary.type_department, strict=True)):
        brands = np.append(0, np.flatnonzero(vocabulary.brand_department == department))
        attributes = np.append(0, np.flatnonzero(vocabulary.attribute_shelf == shelf))
        modifiers = np.append(0, np.flatnonzero(vocabulary.modifier_department == department))
        grid = np.meshgrid([type_], brands, attributes, modifiers, indexing="ij")
        parts.append(np.stack([axis.ravel() for axis in grid]))
    return tuple(np.concatenate(parts, axis=1).astype(np.int32))


def _zipf_product(vocabulary: Vocabulary, parts, config: MarketConfig, rng) -> np.ndarray:
    """Popularity of every combination: Zipf factors of its parts, the size of the department, and noise."""
    groups = (
        (vocabulary.type_department, None),
        (vocabulary.brand_department, _ABSENT[0]),
        (vocabulary.attribute_shelf, _ABSENT[1]),
        (vocabulary.modifier_department, _ABSENT[2]),
    )
    weight = rng.lognormal(0.0, config.query_noise, parts[0].size)
    for part, (group, absent) in zip(parts, groups, strict=True):
        factor = np.empty(group.size)
        for member in range(group.max() + 1):
            rows = np.flatnonzero(group == member)
            zipf = (1.0 + np.arange(rows.size)) ** -config.zipf
            factor[rows] = rng.permutation(zipf / zipf.sum())
        if absent is not None:
            factor[0] = absent
        weight *= factor[part]
    size = rng.lognormal(0.0, 0.3, len(vocabulary.departments))
    return weight * size[vocabulary.type_department[parts[0]]]


def _new_rows(vocabulary: Vocabulary, parts, key, known, config: MarketConfig) -> np.ndarray:
    """Combinations for the test days: an equal share a department, half with the brand launched that day."""
    if config.new_queries == 0:
        return np.empty(0, dtype=np.int64)
    departments = len(vocabulary.departments)
    if config.new_queries < 2 * departments:
        raise MarketError(
            f"new_queries is {config.new_queries}; expected 0 or at least {2 * departments}, two a department"
        )
    free = key.copy()
    free[known] = -np.inf
    department = vocabulary.type_department[parts[0]]
    launched = vocabulary.brand_launch[parts[1]]
    rows = []
    for number in range(departments):
        share = config.new_queries // departments + (number < config.new_queries % departments)
        for group, count in ((launched, share // 2), (~launched, share - share // 2)):
            inside = group & (department == number) & np.isfinite(free)
            if inside.sum() < count:
                raise MarketError(
                    f"new_queries is {config.new_queries}; department {vocabulary.departments[number]!r} has "
                    f"only {int(inside.sum())} combinations left of {count} needed: lower new_queries or "
                    "queries"
                )
            rows.append(_top(np.where(inside, free, -np.inf), count))
    return np.concatenate(rows)


def _top(key: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-key, kind="stable")[:count]
