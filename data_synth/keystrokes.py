r"""Typing: how a query in mind becomes a prefix in the search box.

Every query has a few *forms* in which it may be typed (as written, with a synonym, type first, misspelt),
each with its probability, and typing stops after a random number of characters. So the probability of a
prefix given a query is exact:
:math:`P(p \mid q) = \sum_f P(f \mid q) \sum_L P(L)\, [f_{1..L} = p]`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from .catalogue import Catalogue, join_words
from .config import MarketConfig

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # neighbours on the keyboard
FORMS = ("written", "synonym", "reordered", "misspelt", "misspelt")


class Typing(NamedTuple):
    """Every form of every query and every prefix that it may be cut to."""

    query: np.ndarray  # (F,) row of the catalogue, ascending
    form: np.ndarray  # (F,) index into FORMS
    probability: np.ndarray  # (F,) of the form given the query
    code: np.ndarray  # (F, max_prefix) index into prefixes when typing stops after 1, 2, ... characters
    length: np.ndarray  # (max_prefix,) probability of stopping there
    prefixes: pl.Series  # (P,) str, sorted


def build_typing(config: MarketConfig, catalogue: Catalogue, rng: np.random.Generator) -> Typing:
    """List the forms of every query and number the prefixes they start with.

    Args:
        config: the market; ``synonym``, ``reorder`` and ``misspell`` are the probabilities of the forms.
            What a query has no form for goes to the form as written.
        catalogue: its queries.
        rng: draws the two usual misspellings of each first word.

    Returns:
        The typing tables.
    """
    vocabulary, count = catalogue.vocabulary, catalogue.text.size
    written = catalogue.text.tolist()
    first = [text.partition(" ")[0] for text in written]
    slips = {word: misspellings(word, rng) for word in sorted(set(first))}
    synonym, reordered, slip = [""] * count, [""] * count, [[""] * count, [""] * count]
    parts = zip(
        catalogue.brand.tolist(),
        catalogue.attribute.tolist(),
        catalogue.type.tolist(),
        catalogue.modifier.tolist(),
        strict=True,
    )
    for row, (brand, attribute, type_, modifier) in enumerate(parts):
        if vocabulary.synonyms[type_]:
            synonym[row] = join_words(vocabulary, brand, attribute, vocabulary.synonyms[type_], modifier)
        if brand or attribute:
            rest = join_words(vocabulary, brand, attribute, "", modifier)
            reordered[row] = f"{vocabulary.types[type_]} {rest}"
        for number, wrong in enumerate(slips[first[row]]):
            slip[number][row] = wrong and wrong + written[row][len(first[row]) :]
    texts = np.array([written, synonym, reordered, *slip], dtype=object).T  # (Q, forms)
    share = np.array([0.0, config.synonym, config.reorder, 0.6 * config.misspell, 0.4 * config.misspell])
    probability = np.where(texts != "", share, 0.0)
    probability[:, 0] = 1.0 - probability.sum(axis=1)
    rows, forms = np.nonzero(probability > 0)
    length = _length_distribution(config)
    typed = pl.Series(texts[rows, forms].tolist(), dtype=pl.String)
    # Forms that agree in their first characters share every prefix: number the few distinct heads, not all
    # forms.
    heads = pl.DataFrame({"head": typed.str.slice(0, config.max_prefix)}).with_row_index("row")
    distinct = heads["head"].unique().sort()
    head_code = heads.join(
        pl.DataFrame({"head": distinct}).with_row_index("code"), on="head", how="left", maintain_order="left"
    )["code"].to_numpy()
    cuts = [distinct.str.slice(0, stop + 1).str.strip_chars_end() for stop in range(config.max_prefix)]
    cut = pl.concat(cuts)
    prefixes = cut.unique().sort().alias("prefix")
    numbered = pl.DataFrame({"prefix": prefixes}).with_row_index("code")
    codes = (
        pl.DataFrame({"prefix": cut})
        .join(numbered, on="prefix", how="left", maintain_order="left")["code"]
        .to_numpy()
        .reshape(config.max_prefix, len(distinct))
        .T
    )
    return Typing(rows, forms, probability[rows, forms], codes[head_code].astype(np.int32), length, prefixes)


def misspellings(word: str, rng: np.random.Generator) -> list[str]:
    """Two usual slips of a word, after its first letter; none for a word of one or two letters."""
    if len(word) < 3:
        return ["", ""]
    wrong: list[str] = []
    while len(wrong) < 2:
        at = int(rng.integers(1, min(len(word) - 1, 5)))
        kind = int(rng.integers(4))
        letter = word[at]
        if kind == 0:  # a letter left out
            slip = word[:at] + word[at + 1 :]
        elif kind == 1:  # two letters swapped
            slip = word[:at] + word[at + 1] + letter + word[at + 2 :]
        elif kind == 2:  # a letter doubled
            slip = word[:at] + letter + word[at:]
        else:  # the key beside it
            keys = next((keys for keys in _ROWS if letter in keys), letter)
            place = keys.index(letter)
            slip = word[:at] + keys[place - 1 if place else min(1, len(keys) - 1)] + word[at + 1 :]
        if slip == word:  # swapping equal letters
            slip = word[:at] + word[at + 1 :]
        wrong.append(slip)
    return wrong


def type_prefixes(typing: Typing, intents: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Type each intent: choose a form, then a length.

    Args:
        typing: the typing tables.
        intents: (N,) rows of the catalogue.
        rng: source of every draw.

    Returns:
        prefix: (N,) indices into ``typing.prefixes``.
        form: (N,) indices into ``FORMS``.
    """
    count = int(typing.query[-1]) + 1
    start = np.searchsorted(typing.query, np.arange(count + 1))
    cumulative = np.r_[0.0, np.cumsum(typing.probability)]  # each query takes one unit of it
    target = cumulative[start[intents]] + rng.random(intents.size)
    row = np.searchsorted(cumulative, target, side="right") - 1
    row = np.clip(row, start[intents], start[intents + 1] - 1)
    stop = np.searchsorted(np.cumsum(typing.length)[:-1], rng.random(intents.size), side="right")
    return typing.code[row, stop], typing.form[row]


def prefix_rows(typing: Typing, prefixes: np.ndarray, queries: slice) -> pl.DataFrame:
    """Which queries a prefix may mean, and how likely each types it.

    Args:
        typing: the typing tables.
        prefixes: indices into ``typing.prefixes`` to keep.
        queries: the part of the catalogue to keep, from row 0 or later.

    Returns:
        Columns prefix, query, probability (of the prefix given the query), sorted by prefix and query.
    """
    wanted = np.zeros(len(typing.prefixes), dtype=bool)
    wanted[prefixes] = True
    inside = (typing.query >= queries.start) & (typing.query < queries.stop)
    form, stop = np.nonzero(wanted[typing.code] & inside[:, None])
    return (
        pl.DataFrame(
            {
                "prefix": typing.code[form, stop],
                "query": typing.query[form].astype(np.int32),
                "probability": typing.probability[form] * typing.length[stop],
            }
        )
        .group_by("prefix", "query", maintain_order=True)
        .agg(pl.col("probability").sum())
        .sort("prefix", "query")
    )


def _length_distribution(config: MarketConfig) -> np.ndarray:
    """Typed length, a discretised gamma of shape 3: one letter is rare, and so are ten."""
    length = np.arange(1, config.max_prefix + 1)
    weight = length**2 * np.exp(-length / config.prefix_scale)
    return weight / weight.sum()
