r"""Text in, token ids out: the encoder's input and what the decoder has to write.

The encoder reads one line of text per request, in four segments::

    [CLS] prefix [SEP] related queries [SEP] history [SEP] profile

Related queries and earlier searches are lists, so an item token stands between their entries. Everything a
shopper typed is cleaned first (:mod:`onesug_lite.tokenizer`) and can never produce one of these control tokens.

A prompt is a row of *positions*. Written out, each token has its own; ``pooled``, an item (a related query, an earlier
search, a profile attribute) is one position that holds all its tokens, which enter the model as one vector. That makes
prompts shorter and training faster; ``benchmarks/training.py`` measures by how much.

An item in which a word begins with what was typed is *marked*: a match token stands with it. One search in five repeats
an earlier one, and a model that starts from random weights does not find out from a few hundred thousand clicks which
subwords begin with which letters; a pretrained one knows.

Source: paper, section "One encoder-decoder" (the four segments); the sizes and the marks are ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from onesug_lite.tokenizer import PromptError, clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from onesug_lite.batches import Prompt


_ID_DIGITS = 7  # of a raw id: larger ones are cut down to their last digits; a blank and a digit are two tokens at most


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the vocabulary and of the four segments."""

    vocab_size: int = 3000  # ours; BART-base has 50,265
    min_frequency: int = 2  # ours: a merge seen once is not worth a token
    related: int = 6  # ours; the paper gives no number of related queries
    history: int = 8  # ours; the paper says "recently searched queries" without a number
    max_prefix_chars: int = 64  # ours: nobody types more before choosing, and a paste must not cost a second
    prefix_tokens: int = 16  # ours
    item_tokens: int = 8  # ours: of one related query or of one earlier search
    profile_tokens: int = 24  # ours: of all profile attributes together
    query_tokens: int = 16  # ours: of the query to write, end of sequence included
    pooled: bool = True  # ours: an item is one position; False: the paper's plain text, and what checkpoints read
    marks: bool = True  # ours: related queries and searches in which a word begins as typed carry a match token
    ids: bool = False  # paper: raw ids of shopper and prefix in the prompt, which it found to hurt

    @property
    def longest(self) -> int:
        """The longest prompt these sizes allow, in positions."""
        items = (self.related + self.history) * (1 if self.pooled else self.item_tokens + 1 + self.marks)
        return 1 + self.prefix_tokens + 3 + items + self.profile_tokens + (4 * _ID_DIGITS + 2 if self.ids else 0)


def build_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    related: Sequence[Sequence[str] | None] | None,
    histories: Sequence[Sequence[str] | None] | None,
    profiles: Sequence[Sequence[str] | None] | None,
    config: PromptConfig,
    users: Sequence[int | None] | None = None,
) -> list[Prompt]:
    """Write one encoder input per request: ``[CLS] prefix [SEP] related [SEP] history [SEP] profile``.

    History stands newest first, so that the latest search is always at the same place. A missing segment is
    empty but keeps its separator. Every segment is cut at its own length, so no segment pushes out another.

    Args:
        tokenizer: ours, or that of any Hugging Face model; without a separator of its own, its end of sequence
            separates.
        prefixes: N typed texts.
        related: N lists of related queries, best first; ``None`` for no such segment.
        histories: N lists of earlier searches, oldest first; a row may be ``None``.
        profiles: N lists of text attributes; a row may be ``None``.
        config: the sizes, and whether items are ``pooled``.
        users: N shopper numbers, read with ``config.ids`` alone: a fifth segment then holds the digits of the
            shopper's number and of a number that stands for the prefix.

    Returns:
        N prompts without padding, each at most ``config.longest`` positions long (longer by a few where a foreign
        tokeniser separates items by more than one token): lists of token ids, one for each position, or, pooled,
        lists of lists of them.

    Raises:
        PromptError: when a prefix is empty once cleaned, or when the inputs differ in length.

    Source: paper, section "One encoder-decoder".
    """
    rows = len(prefixes)
    columns = {"related": related, "histories": histories, "profiles": profiles, "users": users}
    for name, column in columns.items():
        if column is not None and len(column) != rows:
            raise PromptError(f"{name} has {len(column)} rows and prefixes has {rows}; give one entry per prefix")
    typed = [clean(prefix[: config.max_prefix_chars] if prefix else "") for prefix in prefixes]
    for row, text in enumerate(typed):
        if not text:
            raise PromptError(
                f"prefix of row {row} is {_shorten(prefixes[row])}, which holds no visible character; "
                "expected some typed text: drop the row, or ask only once something is typed"
            )
    empty: list[Sequence[str]] = [()] * rows
    related_items = [(items or ())[: config.related] for items in related] if related is not None else empty
    history_items = empty
    if histories is not None and config.history:
        history_items = [(items[-config.history :][::-1] if items else ()) for items in histories]
    profile_items = empty
    if profiles is not None and config.profile_tokens:
        profile_items = [items or () for items in profiles]
    numbers = empty
    if config.ids:
        users = users if users is not None else [None] * rows
        numbers = [_raw_ids(user, text) for user, text in zip(users, typed, strict=True)]

    ids = _Encoded(tokenizer, typed, related_items, history_items, profile_items, numbers)
    start, separator, between, match = _control_ids(tokenizer)
    prompts = []
    for row in range(rows):

        def marked(items: Sequence[str], begins: str = f" {typed[row]}") -> list[list[int]]:
            held = [(ids.item(item)[: config.item_tokens], f" {ids.cleaned(item)}") for item in items]
            return [(match if config.marks and begins in text else []) + tokens for tokens, text in held if tokens]

        prefix = [[token] for token in ids.of(typed[row])[: config.prefix_tokens]]
        prompt = [[token] for token in start] + prefix
        attributes = [ids.item(item)[: config.item_tokens] for item in profile_items[row]]
        for held in (
            marked(related_items[row]),
            marked(history_items[row]),
            _cut(attributes, config.profile_tokens),
        ):
            prompt += [[token] for token in separator]
            prompt += held if config.pooled else _written_out(held, between)
        if config.ids:
            prompt += [[token] for token in separator]
            prompt += _written_out([ids.item(number) for number in numbers[row]], between)
        prompts.append(prompt if config.pooled else [token for (token,) in prompt])
    return prompts


def _cut(items: list[list[int]], limit: int) -> list[list[int]]:
    """The items that are not empty, up to ``limit`` tokens of all together."""
    held, left = [], limit
    for item in items:
        if item[:left]:
            held.append(item[:left])
        left -= len(item[:left])
    return held


def _written_out(items: list[list[int]], between: list[int]) -> list[list[int]]:
    """One token a position, ``between`` between the items."""
    line: list[int] = []
    for item in items:
        line += (between if line else []) + item
    return [[token] for token in line]


def _raw_ids(user: int | None, prefix: str) -> list[str]:
    """Digits, a blank between them so that each is a token, of the shopper's number and of the prefix's checksum."""
    numbers = ([] if user is None else [user]) + [zlib.crc32(prefix.encode())]
    return [" ".join(f"{number % 10**_ID_DIGITS:0{_ID_DIGITS}d}") for number in numbers]


def encode_queries(tokenizer: PreTrainedTokenizerBase, queries: Sequence[str], config: PromptConfig) -> list[list[int]]:
    """Turn queries into what the decoder has to write.

    Args:
        tokenizer: ours or that of a checkpoint.
        queries: N texts; they are cleaned first.
        config: uses ``query_tokens``.

    Returns:
        N lists of token ids, each ending with the end of sequence, at most ``query_tokens`` long with it.

    Raises:
        PromptError: when a query is empty once cleaned.
    """
    cleaned = [clean(query) for query in queries]
    for row, text in enumerate(cleaned):
        if not text:
            raise PromptError(
                f"query of row {row} is {_shorten(queries[row])}, which holds no visible character; drop the row"
            )
    ids = _Encoded(tokenizer, cleaned)
    end = [tokenizer.eos_token_id]
    return [ids.of(text)[: config.query_tokens - 1] + end for text in cleaned]


class _ControlIds(NamedTuple):
    start: list[int]
    separator: list[int]
    item: list[int]
    match: list[int]


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> _ControlIds:
    """Ids of the tokens between segments, with stand-ins for tokenisers that lack them."""
    start, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
    if separator is None:
        separator = tokenizer.eos_token_id
    item = tokenizer.get_vocab().get("<item>")
    between = [item] if item is not None else tokenizer.encode(" ; ", add_special_tokens=False)
    match = tokenizer.get_vocab().get("<match>")  # a pretrained model can read for itself what begins how
    return _ControlIds([] if start is None else [start], [separator], between, [] if match is None else [match])


class _Encoded:
    """Token ids of many texts, each distinct text tokenised once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *items: Sequence[Sequence[str]]):
        # dict.fromkeys rather than set: the order, and with it every batch, is the same in every process.
        raw = dict.fromkeys(text for column in items for row in column for text in row)
        self._cleaned = {text: clean(text) for text in raw}
        distinct = list(dict.fromkeys([*texts, *self._cleaned.values()]))
        encoded = tokenizer(distinct, add_special_tokens=False, split_special_tokens=True) if distinct else {}
        # Some vocabularies hold control tokens as ordinary pieces too, hence the second barrier.
        barred = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._ids = {
            text: [token for token in ids if token not in barred]
            for text, ids in zip(distinct, encoded.get("input_ids", []), strict=True)
        }

    def of(self, cleaned: str) -> list[int]:
        return self._ids[cleaned]

    def item(self, text: str) -> list[int]:
        """Ids of a text as it came, cleaned on the way."""
        return self._ids[self._cleaned[text]]

    def cleaned(self, text: str) -> str:
        """The same text, cleaned."""
        return self._cleaned[text]


def _shorten(text: object) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."
