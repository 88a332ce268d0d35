"""Subwords: how a text is brought into one form, cut into tokens and read back.

Everything a shopper typed is cleaned first and can never produce a control token, whatever it spells.

Source: ours; BART's tokeniser is of the same kind.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from onesug_lite.prompt import PromptConfig


# In this order, so that <s>, <pad>, </s> and <unk> have the ids that BART gives them.
CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<sep>", "<item>", "<match>")


# Control characters, format characters, surrogates, private use and unassigned code points.
_DROPPED = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


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
        additional_special_tokens=["<item>", "<match>"],
        clean_up_tokenization_spaces=False,
        model_max_length=10**6,  # segments are cut one by one; the tokeniser itself has nothing to warn of
    )


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
