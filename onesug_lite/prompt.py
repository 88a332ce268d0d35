r"""Text in, token ids out: the tokeniser and the encoder's input.

The encoder reads one line of text per request, in four segments::

    [CLS] prefix [SEP] related queries [SEP] history [SEP] profile

Related queries and earlier searches are lists, so an item token stands between their entries. Everything a
shopper typed is cleaned first and can never produce one of these control tokens, whatever it spells.

Source: paper, section "One encoder-decoder" (the four segments); the sizes are ours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# In this order, so that <s>, <pad>, </s> and <unk> have the ids that BART gives them.
CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<sep>", "<item>")

# Control characters, format characters, surrogates, private use and unassigned code points.
_DROPPED = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the vocabulary and of the four segments."""

    vocab_size: int = 3000  # ours; BART-base has 50,265
    min_frequency: int = 2  # ours: a merge seen once is not worth a token
    related: int = 6  # ours; the paper gives no number of related queries
    history: int = 6  # ours; the paper says "recently searched queries" without a number
    max_prefix_chars: int = 64  # ours: nobody types more before choosing, and a paste must not cost a second
    prefix_tokens: int = 16  # ours
    item_tokens: int = 8  # ours: of one related query or of one earlier search
    profile_tokens: int = 24  # ours: of all profile attributes together
    query_tokens: int = 16  # ours: of the query to write, end of sequence included

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt these sizes allow, in tokens."""
        items = (self.related + self.history) * (self.item_tokens + 1)
        return 1 + self.prefix_tokens + 3 + items + self.profile_tokens


class PromptError(ValueError):
    """A request that no prompt can be built from; the message names the row."""


def clean(text: str | None) -> str:
    r"""Bring a text into the one form that all stages use.

    Compatibility forms are folded (NFKC: full-width letters, ligatures), letters are lowered, control and
    format characters go, runs of white space become one blank. Scripts without case, such as Chinese, and
    emoji pass through; invisible joiners between emoji are format characters and go. Never raises, and
    cleaning twice changes nothing.

    Args:
        text: any string, also one with lone surrogates; ``None`` counts as empty.

    Returns:
        The cleaned text, without blanks at its ends.

    Source: ours.
    """
    text = text or ""
    if text.isascii() and text.isprintable():
        return " ".join(text.lower().split())
    for _ in range(4):  # lowering can undo a composition and dropping can allow one; two rounds settle nearly all texts
        before = text
        spaced = "".join(" " if char.isspace() else char for char in unicodedata.normalize("NFKC", text).lower())
        kept = "".join(char for char in spaced if char != "\ufffd" and unicodedata.category(char) not in _DROPPED)
        text = " ".join(unicodedata.normalize("NFKC", kept).split())
        if text == before:
            break
    return text


def train_tokenizer(texts: Iterable[str], config: PromptConfig) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokeniser.

    Words are split into the most frequent byte sequences; since every byte has a token, any text, in any
    script, can be written and read back. Chinese has no blanks between words, and whole queries would become
    single tokens that share nothing with what was typed of them; so each Chinese character stands alone.
    Give it texts of the training days only, or the test leaks into the vocabulary.

    Args:
        texts: prefixes, queries and profile attributes; a text given twice counts twice.
        config: uses ``vocab_size`` and ``min_frequency``.

    Returns:
        A Hugging Face tokeniser with the control tokens as special tokens. The same texts give the same
        vocabulary.

    Raises:
        PromptError: when ``vocab_size`` has no room for the 256 bytes and the control tokens.

    Source: ours; BART's tokeniser is of the same kind.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(CONTROL_TOKENS)
    if config.vocab_size < smallest:
        raise PromptError(
            f"vocab_size is {config.vocab_size}; the bytes and the control tokens alone need {smallest}, so "
            "give at least that many"
        )
    tokenizer = Tokenizer(models.BPE())
    # A blank before each text makes a word the same token at the start of a query and inside one. Before a Chinese
    # character it would do the opposite.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\A (?=\p{Han})"), "removed"),
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((clean(text) for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="<sep>",
        additional_special_tokens=["<item>"],
        clean_up_tokenization_spaces=False,
        model_max_length=10**6,  # segments are cut one by one; the tokeniser itself has nothing to warn of
    )


def build_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[str],
    related: Sequence[Sequence[str] | None] | None,
    histories: Sequence[Sequence[str] | None] | None,
    profiles: Sequence[Sequence[str] | None] | None,
    config: PromptConfig,
) -> list[list[int]]:
    """Write one encoder input per request: ``[CLS] prefix [SEP] related [SEP] history [SEP] profile``.

    History stands newest first, so that the latest search is always at the same place. A missing segment is
    empty but keeps its separator. Every segment is cut at its own length, so no segment pushes out another.

    Args:
        tokenizer: ours, or that of any Hugging Face encoder-decoder; without a separator of its own, its end
            of sequence separates.
        prefixes: N typed texts.
        related: N lists of related queries, best first; ``None`` for no such segment.
        histories: N lists of earlier searches, oldest first; a row may be ``None``.
        profiles: N lists of text attributes; a row may be ``None``.
        config: the sizes.

    Returns:
        N lists of token ids, without padding, each at most ``config.prompt_tokens`` long (longer by a few
        where a foreign tokeniser separates items by more than one token).

    Raises:
        PromptError: when a prefix is empty once cleaned, or when the inputs differ in length.

    Source: paper, section "One encoder-decoder".
    """
    rows = len(prefixes)
    for name, column in (("related", related), ("histories", histories), ("profiles", profiles)):
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
    profile_items = [items or () for items in profiles] if profiles is not None else empty

    ids = _Encoded(tokenizer, typed, related_items, history_items, profile_items)
    control = _control_ids(tokenizer)
    start, separator, between = control.start, control.separator, control.item
    prompts = []
    for row in range(rows):
        prompt = start + ids.of(typed[row])[: config.prefix_tokens]
        for items in (related_items[row], history_items[row]):
            prompt += separator + ids.joined(items, between, config.item_tokens)
        prompt += separator + ids.joined(profile_items[row], between, config.item_tokens)[: config.profile_tokens]
        prompts.append(prompt)
    return prompts


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


def decode_queries(tokenizer: PreTrainedTokenizerBase, ids: Iterable[Sequence[int]]) -> list[str]:
    """Read token ids back as text, the inverse of ``encode_queries``.

    Args:
        tokenizer: the one that wrote the ids.
        ids: N sequences; control tokens and padding are left out.

    Returns:
        N texts. Bytes that form no character, as an untrained model writes them, appear as U+FFFD.
    """
    sequences = [[int(token) for token in sequence] for sequence in ids]
    if not sequences:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        texts = backend.decode_batch(sequences, skip_special_tokens=True)
    else:
        texts = [tokenizer.decode(sequence, skip_special_tokens=True) for sequence in sequences]
    return [text.strip() for text in texts]


@dataclass(frozen=True)
class _ControlIds:
    start: list[int]
    separator: list[int]
    item: list[int]


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> _ControlIds:
    """Ids of the tokens between segments, with stand-ins for tokenisers that lack them."""
    start, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
    if separator is None:
        separator = tokenizer.eos_token_id
    item = tokenizer.get_vocab().get("<item>")
    between = [item] if item is not None else tokenizer.encode(" ; ", add_special_tokens=False)
    return _ControlIds([] if start is None else [start], [separator], between)


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

    def joined(self, items: Sequence[str], between: list[int], limit: int) -> list[int]:
        """Ids of the non-empty items, each cut at ``limit``, with ``between`` between them."""
        line: list[int] = []
        for item in items:
            ids = self._ids[self._cleaned[item]]
            if ids:
                line += (between if line else []) + ids[:limit]
        return line


def _shorten(text: object) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."
