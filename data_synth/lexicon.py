"""The words of a market: one YAML file a language, read and checked here.

A type is written ``name|synonym``, a brand ``name|nickname``; a brand with a star shares its name with a type of
another department (an apple is a phone and a fruit). A modifier is written ``words@tag``; the tag names the audience or
the price tier that the words speak to, or ``event`` for words that come up once in a season. Brands are made up or
everyday words; a likeness to a company means nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from .config import MarketError

#: Parts a query is made of; ``order`` of a lexicon says in which order they are written.
SLOTS = ("type", "brand", "style", "attribute", "modifier")
EVENT = "event"


class Word(NamedTuple):
    """A word of the lexicon, its other name ("" for none), its tag ("" for none) and whether a type shares it."""

    text: str
    other: str = ""
    tag: str = ""
    shared: bool = False


class Shelf(NamedTuple):
    """Types that take the same styles and attributes."""

    types: list[Word]
    styles: list[Word]
    attributes: list[Word]


class Department(NamedTuple):
    """One department's words and its typical price."""

    name: str
    price: float
    brands: list[Word]
    modifiers: list[Word]
    shelves: list[Shelf]


class Lexicon(NamedTuple):
    """All words of one language."""

    locale: str
    separator: str  # between the parts of a query
    order: list[str]  # of SLOTS, as they are written
    audiences: list[str]
    tiers: list[str]
    places: list[str]
    profile: dict[str, str]  # how a profile attribute reads, with {} for its value
    departments: list[Department]


def read_lexicon(locale: str) -> Lexicon:
    """The lexicon of a language, checked.

    Raises:
        MarketError: there is none, or a word, a tag or a department in it is not as described above.
    """
    path = Path(__file__).with_name(f"lexicon_{locale}.yaml")
    if not path.is_file():
        raise MarketError(f"no words for locale {locale!r}: {path.name} is missing")
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    departments = [
        Department(
            entry["name"],
            float(entry["price"]),
            [_word(text) for text in entry["brands"]],
            [_word(text) for text in entry["modifiers"]],
            [Shelf(*([_word(text) for text in shelf[part]] for part in Shelf._fields)) for shelf in entry["shelves"]],
        )
        for entry in held["departments"]
    ]
    fields = {name: held[name] for name in Lexicon._fields if name != "departments"}
    lexicon = Lexicon(**fields, departments=departments)
    tags = {"", EVENT, *lexicon.audiences, *lexicon.tiers}
    for department in departments:
        wrong = [word.tag for word in department.modifiers if word.tag not in tags]
        if wrong:
            raise MarketError(
                f"{path.name}: modifier tag {wrong[0]!r}; expected one of {', '.join(sorted(tags - {''}))}"
            )
    if sorted(lexicon.order) != sorted(SLOTS):
        raise MarketError(f"{path.name}: order is {lexicon.order}; expected {', '.join(SLOTS)}, each once")
    return lexicon


def list_lexicon(names: list[str]) -> Lexicon:
    """The lexicon of a market that starts from a list of queries: departments are clusters, every query is a type."""
    departments = [Department(name, 50.0, [], [], [Shelf([], [], [])]) for name in names]
    profile = {
        "audience": "shops for {}",
        "tier": "{} prices",
        "department": "last bought {}",
        "place": "lives in a {}",
    }
    return Lexicon(
        "any", " ", ["brand", "style", "attribute", "type", "modifier"], ["women", "men", "kids", "seniors"],
        ["budget", "middle", "premium"], ["city", "suburb", "village"], profile, departments,
    )  # fmt: skip


def _word(text: str) -> Word:
    text, _, tag = str(text).partition("@")
    text, _, other = text.partition("|")
    return Word(text.rstrip("*").strip(), other.strip(), tag.strip(), text.endswith("*"))
