"""How a catalogue is made: the words of each slot, how popular they are, and how that moves from period to period."""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue, Pool, period_of, text_column
from .config import MarketConfig, MarketError
from .lexicon import EVENT, SLOTS, Lexicon, Word, list_lexicon, read_lexicon

_ABSENT = {"brand": 1.5, "style": 2.8, "attribute": 2.2, "modifier": 3.2}  # weight of none, beside words that sum to 1


_PRICE_TIERS = 3


def build_catalogue(config: MarketConfig, rng: np.random.Generator, queries: Pool | None = None) -> Catalogue:
    """Draw the weights of all words of a market, and how they move over its days.

    Args:
        config: the market; ``types``, ``brands``, ``styles``, ``attributes`` and ``modifiers`` set how many of the
            lexicon's words are used, and so the size of the pool.
        rng: source of every draw.
        queries: real queries to make the market of, instead of the lexicon's words.
    """
    if queries is None:
        lexicon = read_lexicon(config.locale)
        words, departments, shelves, families = _lexicon_words(lexicon, config)
        base = np.concatenate(
            [rng.permutation(_zipf(config.types, config.zipf)) for _ in range(departments.max() * 2 + 2)]
        )
    else:
        lexicon = list_lexicon(queries.names)
        words = {slot: [Word("")] * len(queries.names) for slot in SLOTS} | {
            "type": [Word(text) for text in queries.text]
        }
        departments, shelves, families = queries.department, queries.department, queries.family
        base = np.asarray(queries.count, dtype=float)
    count = len(lexicon.departments)
    types = departments.size
    brands, modifiers = (len(words[slot]) // count for slot in ("brand", "modifier"))
    styles, attributes = (len(words[slot]) // (shelves.max() + 1) for slot in ("style", "attribute"))
    row = np.arange(types) if queries is None else np.zeros(types, dtype=np.int64)
    rows = int(row.max()) + 1
    periods = int(period_of(config, config.days + config.test_days - 1)) + 1

    base *= rng.lognormal(0.0, config.pairing, types) if queries is None else 1.0
    share = np.bincount(departments, base, count) * (rng.lognormal(0.0, 0.3, count) if queries is None else 1.0)
    since, until = _lives(config, rng, count, brands, periods)
    type_share = _type_shares(config, rng, base, departments)
    if brands == 1:  # a list has no brands: its queries come and go themselves
        type_share = _come_and_go(config, rng, type_share, departments)

    tier = np.full((count, brands), -1)
    tier[:, 1:] = (np.arange(brands - 1) + np.arange(count)[:, None]) % _PRICE_TIERS
    of_type = {slot: _slot_weights(config, rng, slot, size, rows) for slot, size in
               (("brand", brands), ("style", styles), ("attribute", attributes), ("modifier", modifiers))}  # fmt: skip
    home = departments if queries is None else np.zeros(1, dtype=np.int64)  # department of each row
    alive = (since <= np.arange(periods)[:, None, None]) & (np.arange(periods)[:, None, None] < until)  # (P, D, B)
    liked = np.where(tier[home][:, None, :] == np.arange(_PRICE_TIERS)[:, None], 1.5, 0.8)  # (rows, tiers, B)
    liked[:, :, 0] = 1.0
    own = np.where(np.eye(brands, dtype=bool), config.brand_boost, 1.0)  # (B favourite, B)
    own[0] = own[:, 0] = 1.0
    brand = (of_type["brand"] * alive[:, home])[:, :, None, None] * liked[:, :, None] * own  # (P, rows, tiers, B, B)
    own = np.where(np.eye(attributes, dtype=bool), config.attribute_boost, 1.0)
    own[0] = own[:, 0] = 1.0
    modifier = of_type["modifier"][:, None, None, :] * _modifier_factors(
        config, rng, lexicon, words["modifier"], home, modifiers, periods
    )
    shown = {slot: text_column(word.text for word in words[slot]) for slot in SLOTS}
    prices = np.array([department.price for department in lexicon.departments])[departments]
    return Catalogue(
        lexicon, (types, brands, styles, attributes, modifiers), words, shown, departments, shelves, families, row,
        share / share.sum(), type_share, tier, since, (since == 0) & (until >= periods) & (np.arange(brands) > 0),
        _normalised(brand), _normalised(of_type["style"]), _normalised(of_type["attribute"][:, None] * own),
        _normalised(modifier), prices * rng.lognormal(0.0, 0.5, types), rng.integers(2**63, size=2).astype(np.uint64),
    )  # fmt: skip


def _lexicon_words(lexicon: Lexicon, config: MarketConfig):
    """The first words of every list, group after group, and the department, shelf and family of every type."""
    words: dict[str, list[Word]] = {slot: [] for slot in SLOTS}
    shelves, owners = [], []
    none = [Word("")]
    for number, department in enumerate(lexicon.departments):
        words["brand"] += none + _first(department.brands, config.brands, "brands", department.name)
        words["modifier"] += none + _first(department.modifiers, config.modifiers, "modifiers", department.name)
        for shelf in department.shelves:
            words["type"] += _first(shelf.types, config.types, "types", department.name)
            words["style"] += none + _first(shelf.styles, config.styles, "styles", department.name)
            words["attribute"] += none + _first(shelf.attributes, config.attributes, "attributes", department.name)
            shelves += [len(owners)] * config.types
            owners.append(number)
    shelf = np.array(shelves)
    return words, np.array(owners)[shelf], shelf, np.arange(shelf.size)


def _first(words: list[Word], count: int, name: str, department: str) -> list[Word]:
    if len(words) < count:
        raise MarketError(
            f"{name} is {count}; department {department!r} has {len(words)}: lower {name} or add words to the lexicon"
        )
    return words[:count]


def _zipf(count: int, exponent: float) -> np.ndarray:
    weight = (1.0 + np.arange(count)) ** -exponent
    return weight / weight.sum()


def _slot_weights(config: MarketConfig, rng, slot: str, size: int, rows: int) -> np.ndarray:
    """(rows, size) weights: Zipf in an order of its own for each row of words, some pairs closer than others."""
    weight = np.ones((rows, size))
    if size > 1:
        weight[:, 1:] = _zipf(size - 1, config.zipf) * rng.lognormal(0.0, config.pairing, (rows, size - 1))
        weight[:, 0] = _ABSENT[slot]
    return weight


def _lives(config: MarketConfig, rng, departments: int, brands: int, periods: int) -> tuple[np.ndarray, np.ndarray]:
    """First period of every brand and the first without it. One a department is launched on the first test day."""
    since = np.zeros((departments, brands), dtype=np.int64)
    until = np.full((departments, brands), periods)
    first_test = int(period_of(config, config.days))
    launched = 0 if config.launched == 0 else 1 + round(config.launched * (brands - 1))
    retired = round(config.retired * (brands - 1))
    for department in range(departments if brands > 2 else 0):
        launch, retire = np.split(1 + rng.permutation(brands - 1)[: launched + retired], [launched])
        since[department, launch] = rng.integers(1, max(first_test, 2), launch.size)
        since[department, launch[:1]] = first_test
        until[department, retire] = rng.integers(1, periods, retire.size)
    return since, until


def _type_shares(config: MarketConfig, rng, base: np.ndarray, departments: np.ndarray) -> np.ndarray:
    """(days + 1, T) share of each type in its department: a slow random walk and a weekly season on its base."""
    days, types = config.days + config.test_days, base.size
    walk = np.zeros((days + 1, types), dtype=np.float64)
    walk[0] = rng.normal(0.0, config.trend, types)
    for day in range(1, days):
        walk[day] = 0.9 * walk[day - 1] + rng.normal(0.0, config.trend * np.sqrt(1 - 0.9**2), types)
    walk[:days] += config.season * np.sin(2 * np.pi * (np.arange(days)[:, None] / 7 + rng.random(types)))
    weight = np.exp(walk) * base
    start = np.flatnonzero(np.r_[True, departments[1:] != departments[:-1]])
    total = np.add.reduceat(weight, start, axis=1)
    return weight / np.repeat(total, np.diff(np.r_[start, types]), axis=1)


def _come_and_go(config: MarketConfig, rng, share: np.ndarray, departments: np.ndarray) -> np.ndarray:
    """Let some types start late and some end early; no department loses its most wanted one."""
    days, types = config.days + config.test_days, share.shape[1]
    number = rng.random(types)
    periods = period_of(config, np.arange(days))
    since = np.where(number < config.launched, rng.integers(1, periods[-1] + 1, types), 0)
    until = np.where(number > 1 - config.retired, rng.integers(1, periods[-1] + 1, types), periods[-1] + 1)
    for department in np.unique(departments):
        at = np.flatnonzero(departments == department)
        best = at[share[-1, at].argmax()]
        since[best], until[best] = 0, periods[-1] + 1
    alive = (since <= periods[:, None]) & (periods[:, None] < until)
    share = share * np.vstack([alive, since == 0])
    start = np.flatnonzero(np.r_[True, departments[1:] != departments[:-1]])
    total = np.add.reduceat(share, start, axis=1)
    return share / np.repeat(total, np.diff(np.r_[start, types]), axis=1)


def _modifier_factors(config, rng, lexicon: Lexicon, words: list[Word], home, size: int, periods: int) -> np.ndarray:
    """(P, rows, audiences, tiers, M) what each modifier is worth to a shopper in a period."""
    tags = np.array([word.tag for word in words], dtype=object).reshape(-1, size)
    factor = np.ones((periods, tags.shape[0], len(lexicon.audiences), _PRICE_TIERS, size))
    for names, axis, boost in ((lexicon.audiences, 2, config.audience_boost), (lexicon.tiers, 3, config.price_boost)):
        for number, name in enumerate(names):
            own = np.full(len(names), 1.0 / boost)
            own[number] = boost
            shape = [1] * 5
            shape[axis] = len(names)
            factor *= np.where((tags == name)[None, :, None, None, :], own.reshape(shape), 1.0)
    peak = rng.integers(0, periods, tags.shape)  # of each event, each department's by itself
    near = np.exp(-0.5 * (np.arange(periods)[:, None, None] - peak) ** 2)
    height = np.where(tags == EVENT, 0.3 + (config.event - 0.3) * near, 1.0)  # (P, D, M)
    return (factor * height[:, :, None, None, :])[:, home]


def _normalised(weight: np.ndarray) -> np.ndarray:
    return weight / weight.sum(axis=-1, keepdims=True)
