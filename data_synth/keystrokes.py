r"""Typing: how a query in mind becomes what stands in the search box.

Every query can be typed in a few *forms* (as written, by a synonym, type first, misspelt, by a brand's nickname), in a
script of the language (Chinese also in Latin letters, pinyin). Typing stops for a request after every burst of
characters. The probability of a form given the query is exact, and so is that of a prefix given the form.

A prefix is handled as a number: the key of the first L characters is :math:`k_L = (k_{L-1} + c_L) \cdot g` modulo
:math:`2^{64}`, so the keys of all prefixes of a text come from one pass over its characters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .catalogue import Catalogue, text_column
from .config import MarketConfig

FORMS = ("written", "synonym", "reordered", "misspelt", "alias")
WRITTEN, SYNONYM, REORDERED, MISSPELT, ALIAS = range(5)
SCRIPTS = ("characters", "pinyin")
HEAD = 12  # characters of a typed text that are kept; nobody looks at the list after them
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # neighbours on the keyboard
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Typing(NamedTuple):
    """The words of every slot in each script, other names and slips: what forms are put together from."""

    scripts: int
    separator: str
    written: list[dict[str, pa.Array]]  # by script, then slot; null for none
    other: list[dict[str, pa.Array]]  # synonyms of types, nicknames of brands
    slip: list[dict[str, pa.Array]]  # misspelt
    share: np.ndarray  # (5,) probability of each form of a query that has them all; the first is filled up
    script_share: np.ndarray  # (scripts,)
    burst: np.ndarray  # (HEAD,) probability of 1, 2, ... characters between two requests


def build_typing(config: MarketConfig, catalogue: Catalogue, rng: np.random.Generator) -> Typing:
    """Spell every word in every script, and misspell it once.

    Args:
        config: the market.
        catalogue: its words.
        rng: draws the slips.
    """
    written = [{slot: [word.text for word in words] for slot, words in catalogue.words.items()}]
    other = [{slot: [word.other for word in words] for slot, words in catalogue.words.items()}]
    chinese = any(ord(letter) > 0x2E80 for word in catalogue.words["type"] for letter in word.text)
    if chinese:  # a list of real queries may be Chinese too
        written.append({slot: [to_pinyin(text) for text in texts] for slot, texts in written[0].items()})
        other.append({slot: [to_pinyin(text) for text in texts] for slot, texts in other[0].items()})
    alike = _sound_alikes(written[0]) if chinese else {}
    slip: list[dict[str, list[str]]] = []
    for script in range(len(written)):
        slip.append({})
        for slot in written[script]:  # in a fixed order, so that every draw has its place
            slip[script][slot] = [misspell(text, rng, alike) if text else "" for text in written[script][slot]]
    burst = np.r_[1.0, np.zeros(HEAD - 1)]
    if config.burst > 1:  # 1 + a geometric number, so that bursts have no memory
        burst = (1 / config.burst) * (1 - 1 / config.burst) ** np.arange(HEAD)
        burst[-1] = 1 - burst[:-1].sum()
    share = np.array([0.0, config.synonym, config.reorder, config.misspell, config.alias])
    scripts = np.array([1 - config.pinyin, config.pinyin]) if chinese else np.ones(1)
    columns = [[{slot: text_column(texts) for slot, texts in by_slot.items()} for by_slot in kind]
               for kind in (written, other, slip)]  # fmt: skip
    return Typing(len(written), catalogue.lexicon.separator, *columns, share, scripts, burst)


def form_probability(typing: Typing, catalogue: Catalogue, queries: np.ndarray) -> np.ndarray:
    """Probability of each form given the query.

    Args:
        typing: the words.
        catalogue: the queries.
        queries: (N,) rows of the catalogue.

    Returns:
        (N, 5); what a query has no form for goes to the form as written.
    """
    parts = catalogue.split(queries)
    rows = catalogue.word_rows(parts)
    has = {slot: typing.other[0][slot].is_valid().to_numpy(zero_copy_only=False) for slot in ("type", "brand")}
    more = sum(code > 0 for code in parts[1:]) > 0
    there = np.stack(
        [
            np.zeros(more.size, bool),
            has["type"][rows["type"]],
            more,
            np.ones(more.size, bool),
            has["brand"][rows["brand"]],
        ],
        axis=1,
    )
    probability = there * typing.share
    probability[:, WRITTEN] = 1.0 - probability.sum(axis=1)
    return probability


def draw_forms(typing: Typing, catalogue: Catalogue, queries: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Form and script of each of (N,) queries that is about to be typed."""
    cumulative = np.cumsum(form_probability(typing, catalogue, queries), axis=1)
    form = (rng.random((queries.size, 1)) > cumulative[:, :-1]).sum(axis=1)
    script = (rng.random((queries.size, 1)) > np.cumsum(typing.script_share)[:-1]).sum(axis=1)
    return form, script


def typed_texts(typing: Typing, catalogue: Catalogue, queries: np.ndarray, form: int, script: int) -> pa.Array:
    """(N,) queries as typed in one form and script, to the end."""
    parts = catalogue.split(queries)
    rows = catalogue.word_rows(parts)
    order = list(catalogue.lexicon.order)
    if form == REORDERED:
        order = ["type", *(slot for slot in order if slot != "type")]
    columns, started = [], np.zeros(len(queries), dtype=bool)
    for slot in order:
        at = pa.array(rows[slot])
        column = typing.written[script][slot].take(at)
        if (form, slot) in ((SYNONYM, "type"), (ALIAS, "brand")):
            column = pc.coalesce(typing.other[script][slot].take(at), column)
        if form == MISSPELT:
            here = pc.is_valid(column).to_numpy(zero_copy_only=False)
            column = pc.if_else(pa.array(here & ~started), typing.slip[script][slot].take(at), column)
            started |= here
        columns.append(column)
    separator = typing.separator if script == 0 else ""
    return pc.binary_join_element_wise(*columns, separator, null_handling="skip")


def heads(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """First characters of texts as code points, and their full lengths.

    Returns:
        points: (N, HEAD) uint32, 0 behind the end.
        length: (N,) in characters.
    """
    cut = pc.utf8_slice_codeunits(texts, 0, HEAD)
    fixed = np.array(cut.to_pylist(), dtype=f"U{HEAD}")
    length = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(fixed).view(np.uint32).reshape(-1, HEAD), length


def typed_heads(typing: Typing, catalogue: Catalogue, queries, form, script) -> tuple[np.ndarray, np.ndarray]:
    """:func:`heads` of (N,) queries, each in its own form and script."""
    points = np.zeros((queries.size, HEAD), dtype=np.uint32)
    length = np.zeros(queries.size, dtype=np.int64)
    for kind in np.unique(form * 2 + script):
        at = np.flatnonzero(form * 2 + script == kind)
        points[at], length[at] = heads(typed_texts(typing, catalogue, queries[at], int(kind) // 2, int(kind) % 2))
    return points, length


def prefix_keys(points: np.ndarray) -> np.ndarray:
    """Key of every prefix.

    A prefix that ends in a blank has the key of the one without it, as the log's prefixes are stripped.

    Args:
        points: (N, HEAD) code points.

    Returns:
        (N, HEAD) uint64; column L - 1 is the key of the first L characters.
    """
    keys = np.empty(points.shape, dtype=np.uint64)
    key = np.zeros(points.shape[0], dtype=np.uint64)
    for place in range(points.shape[1]):
        key = (key + points[:, place].astype(np.uint64) + np.uint64(1)) * _FACTOR
        keys[:, place] = key
        if place:
            keys[:, place] = np.where(points[:, place] == ord(" "), keys[:, place - 1], key)
    return keys


def text_keys(prefixes: list[str]) -> np.ndarray:
    """Keys of whole texts, of which the first HEAD characters count: (N,) uint64."""
    points, _ = heads(pa.array([text[:HEAD] for text in prefixes], pa.string()))
    length = np.array([max(min(len(text), HEAD), 1) for text in prefixes], dtype=np.int64)
    return np.take_along_axis(prefix_keys(points), length[:, None] - 1, axis=1)[:, 0]


def prefix_texts(points: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(N,) first ``length`` characters as text, stripped: dtype U12."""
    cut = np.where(np.arange(points.shape[1]) < length[:, None], points, 0).astype(np.uint32)
    last = np.maximum(length - 1, 0)[:, None]
    np.put_along_axis(
        cut, last, np.where(np.take_along_axis(cut, last, 1) == ord(" "), 0, np.take_along_axis(cut, last, 1)), 1
    )
    return np.ascontiguousarray(cut).view(f"U{points.shape[1]}")[:, 0]


def to_pinyin(text: str) -> str:
    """Latin letters of a Chinese text, without tones and blanks; other letters stay."""
    from pypinyin import lazy_pinyin

    return "".join(lazy_pinyin(text)).replace(" ", "")


def misspell(text: str, rng: np.random.Generator, alike: dict[str, list[str]] | None = None) -> str:
    """A usual slip in the first word of a text, never in its first letter where it has more than one.

    Args:
        text: what should be typed.
        rng: chooses the slip.
        alike: for Chinese, characters that sound alike: one of the text's takes the place of its like.
    """
    swaps = [place for place, letter in enumerate(text) if alike and alike.get(letter)]
    if swaps:
        place = swaps[int(rng.integers(len(swaps)))]
        return text[:place] + alike[text[place]][int(rng.integers(len(alike[text[place]])))] + text[place + 1 :]
    word, blank, rest = text.partition(" ")
    if len(word) < 3:
        return word + word[-1] + blank + rest
    at = int(rng.integers(1, min(len(word) - 1, 5)))
    letter = word[at]
    slip = word[:at] + word[at + 1 :]  # a letter left out
    kind = int(rng.integers(4))
    keys = next((keys for keys in _ROWS if letter in keys), "")
    if kind == 1 and word[at + 1] != letter:  # two letters swapped
        slip = word[:at] + word[at + 1] + letter + word[at + 2 :]
    elif kind == 2:  # a letter doubled
        slip = word[:at] + letter + word[at:]
    elif kind == 3 and keys:  # the key beside it
        place = keys.index(letter)
        slip = word[:at] + keys[place - 1 if place else 1] + word[at + 1 :]
    return slip + blank + rest


def _sound_alikes(words: dict[str, list[str]]) -> dict[str, list[str]]:
    """Characters of the words by the others among them that have the same pinyin."""
    letters = sorted({letter for texts in words.values() for text in texts for letter in text if ord(letter) > 0x2E80})
    by_sound: dict[str, list[str]] = {}
    for letter in letters:
        by_sound.setdefault(to_pinyin(letter), []).append(letter)
    return {letter: [other for other in by_sound[to_pinyin(letter)] if other != letter] for letter in letters}
