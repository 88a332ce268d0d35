"""The generator as it serves: the answers of :class:`onesug_lite.policy.OneSugPolicy`, one request at a time, sooner.

What depends on one text alone is remembered from keystroke to keystroke, which changes no answer: the related queries
of a prefix, the tokens of a text, and the whole answer to a request that comes again, as after a deleted letter. The
encoder's work is *not* reused. It attends both ways, so each letter changes what every position of history and profile
holds; only the first layer's projections of those positions would stay equal, and these only while prefix and related
queries keep their number of positions (see :func:`onesug_lite.cost_model.reusable_share`).

A request cannot cost more than others by its size: of a history the searches that the prompt holds are read, of a
profile as many attributes as it has room for, of any text the first :data:`LONGEST` characters. What is no text is
refused by name.

Source: ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from onesug_lite.batches import Prompt, collate_prompts
from onesug_lite.decode import merge_queries
from onesug_lite.fast_decode import FastSearcher
from onesug_lite.onnx_export import OnnxGenerator
from onesug_lite.policy import OneSugPolicy
from onesug_lite.prefix_search import PrefixSearch
from onesug_lite.prompt import build_prompts
from onesug_lite.requests import history_and_profile
from onesug_lite.sid_search import nearest, search
from onesug_lite.tokenizer import clean, decode_queries
from onesug_lite.trie import trie_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LONGEST = 1_000
"""Characters of a text that are read, and those that a request, or a text, may have in all to be remembered."""


class Memory:
    """The latest results of a function of hashable keys; the one not asked for longest goes first.

    Args:
        kept: results held at most; 0 remembers nothing, as do keys of more than :data:`LONGEST` characters.

    Attributes:
        hits: results that were there.
        misses: results that had to be made.
    """

    def __init__(self, kept: int):
        self.kept, self.hits, self.misses = kept, 0, 0
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of a key, made where it is not held."""
        if key in self._held:
            self.hits += 1
            self._held.move_to_end(key)
            return self._held[key]
        self.misses += 1
        result = make()
        if self.kept and _characters(key) <= LONGEST:
            self._held[key] = result
            if len(self._held) > self.kept:
                self._held.popitem(last=False)
        return result

    def get_all(self, keys: Sequence[Hashable], make: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        """The results of distinct keys; those that are not held are made in one call, in the order of the keys."""
        new = [key for key in keys if key not in self._held]
        results = {key: self._held[key] for key in keys if key in self._held}  # before any of them goes
        if new:
            results |= zip(new, make(new), strict=True)
        return [self.get(key, lambda key=key: results[key]) for key in keys]


def _characters(key: Hashable) -> int:
    """Characters of all texts in a key; a text counts one more, as nothing is free."""
    if isinstance(key, tuple):
        return sum(map(_characters, key))
    return 1 + (len(key) if isinstance(key, str) else 0)


def _texts(name: str, given: Iterable[str | None] | None) -> tuple[str, ...]:
    """A list of texts, checked and each cut to what is read; None stands for nothing, as a list and as an entry."""
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} is {_shown(given)}; expected a list of texts")
    texts = tuple(given)
    for place, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} entry {place} is {_shown(text)}; expected text or None")
    return tuple((text or "")[:LONGEST] for text in texts)


def _shown(value: object) -> str:
    """A value in an error: short, ASCII alone, with its type."""
    written = ascii(value)
    return f"{written if len(written) <= 40 else written[:37] + '...'} ({type(value).__name__})"


class SidIndex:
    """The search of :func:`onesug_lite.sid_search.search`, its rows grouped by their first code once.

    Args:
        sids: ``int`` (M, L) semantic ids, coarse to fine.
        vectors: ``float32`` (M, D) their unit vectors.
    """

    def __init__(self, sids: np.ndarray, vectors: np.ndarray):
        self.sids, self.vectors = sids, vectors
        order = np.argsort(sids[:, 0], kind="stable")
        codes, starts = np.unique(sids[order, 0], return_index=True)
        self._members = dict(zip(codes.tolist(), np.split(order, starts[1:]), strict=True))

    def find(self, sid: np.ndarray, vector: np.ndarray, k: int) -> np.ndarray:
        """The k best rows ``int64`` (k,) for one id (L,) and unit vector (D,), as ``search`` orders them.

        Raises:
            ValueError: k is more than M.
        """
        if not 1 <= k <= len(self.vectors):
            raise ValueError(f"k is {k} and there are {len(self.vectors)} rows to search in; expected 1 to that many")
        group = self._members.get(int(sid[0]), np.zeros(0, np.int64))
        here = min(k, len(group))
        found = group
        if here:
            found = group[search(self.sids[group], self.vectors[group], sid[None], vector[None], here)[0]]
        if here < k:  # what shares no code ranks behind, by cosine alone
            others = nearest(self.vectors, vector[None], min(k + here, len(self.vectors)))[0]
            found = np.concatenate([found, others[~np.isin(others, found)]])[:k]
        return found


class PrefixIndex:
    """Related queries of one prefix: those of :meth:`onesug_lite.prefix_search.PrefixSearch.related`.

    The prefixes that were clicked under are looked up in a table, made here once. For others there are no clicks to
    pool, so that the vector is the prefix's own embedding: that of ``PrefixSearch`` up to rounding.

    Args:
        source: the search.
    """

    def __init__(self, source: PrefixSearch):
        self.source = source
        self.queries = np.asarray(source.queries, dtype=object)
        self.sids = SidIndex(source.sids, np.ascontiguousarray(source.embeddings[: len(source.queries)]))
        self._row = {text: place for place, text in enumerate(source.texts)}
        prefixes = source.clicks["prefix"].unique().sort().to_list()
        self._known = dict(zip(prefixes, source.related(prefixes), strict=True))

    def related(self, prefix: str) -> list[str]:
        """The related queries of a cleaned prefix, best first."""
        known = self._known.get(prefix)
        return self.nearby(self.vector(prefix)) if known is None else known

    def vector(self, prefix: str) -> np.ndarray:
        """The unit vector (D,) of a prefix that nobody clicked under."""
        row = self._row.get(prefix)
        return self._embedded(prefix) if row is None else self.source.embeddings[row]

    @torch.inference_mode()
    def _embedded(self, text: str) -> np.ndarray:
        """A text alone through the encoder; ``encoder.embed`` fills up a batch so that every digit is the same."""
        encoder = self.source.encoder
        cut = encoder.max_seq_length or 512
        found = encoder.tokenizer([text], truncation=True, max_length=cut, return_tensors="pt")
        features = {name: found[name].to(encoder.device) for name in ("input_ids", "attention_mask")}
        pooled = encoder(features)["sentence_embedding"].float()  # (1, D)
        return F.normalize(pooled, dim=1)[0].cpu().numpy()

    def nearby(self, vector: np.ndarray) -> list[str]:
        """The related queries of a vector (D,), best first."""
        k = min(self.source.config.related, len(self.queries))
        if self.source.config.method == "nearest":
            found = nearest(self.sids.vectors, vector[None], k)[0]
        else:
            found = self.sids.find(self.source.rqvae.encode(vector[None]).numpy()[0], vector, k)
        return self.queries[found].tolist()


class RememberingTokenizer:
    """What ``build_prompts`` asks of a tokeniser, each text tokenised once.

    Args:
        tokenizer: the generator's.
        kept: texts remembered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kept: int):
        self.tokenizer, self.memory = tokenizer, Memory(kept)
        for name in ("cls_token_id", "sep_token_id", "eos_token_id", "unk_token_id", "all_special_ids"):
            setattr(self, name, getattr(tokenizer, name))
        self._vocabulary = tokenizer.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        return self._vocabulary

    def encode(self, text: str, **options: Any) -> list[int]:
        """As the tokeniser does."""
        return self.tokenizer.encode(text, **options)

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        """``input_ids`` of texts; the options are those of ``build_prompts``, always the same."""

        return {"input_ids": self.memory.get_all(texts, lambda new: self.tokenizer(new, **options)["input_ids"])}


class ServingPolicy:
    """A policy for one request at a time.

    Args:
        policy: the generator, whose answers these are.
        graphs: its export; see :func:`onesug_lite.onnx_export.export_onnx`.
        kept: prefixes, texts and answers remembered, each; 0 remembers nothing between requests.
    """

    def __init__(self, policy: OneSugPolicy, graphs: OnnxGenerator, kept: int = 20_000):
        self.policy, self.decode = policy, policy.decode
        trie = trie_of(policy.tokenizer, policy.known, policy.prompt) if policy.decode.known else None
        self.searcher = FastSearcher(graphs, policy.decode, trie)
        self.tokenizer = RememberingTokenizer(policy.tokenizer, kept)
        self.index = None if policy.search is None else PrefixIndex(policy.search)
        self.kept = kept
        self.forget()
        self._found = min(self.decode.beams, self.decode.results + -(-self.decode.results // 4))

    def forget(self) -> None:
        """Drop what is remembered of earlier requests."""
        self.tokenizer.memory = Memory(self.kept)
        self.memory = SimpleNamespace(
            related=Memory(self.kept), answers=Memory(self.kept), tokens=self.tokenizer.memory
        )

    def related(self, prefix: str) -> list[str] | None:
        """The related queries of a prefix as it was typed; None for a generator without PRE."""
        if self.index is None:
            return None
        text = clean(prefix or "")
        # a blank prefix is refused by the prompt and needs no search
        return self.memory.related.get(text, lambda: self.index.related(text)) if text else []

    def prompt(self, prefix: str, related: list[str] | None, history: Sequence[str], profile: Sequence[str]) -> Prompt:
        """The encoder's input.

        Raises:
            PromptError: the prefix is None, empty or blank.
        """
        held = None if related is None else [related]
        return build_prompts(self.tokenizer, [prefix], held, [history], [profile], self.policy.prompt)[0]

    def suggest(self, prefix: str, history: Sequence[str] = (), profile: Sequence[str] = ()) -> list[tuple[str, float]]:
        """Ranked (query, log-probability) pairs, best first: those of :meth:`OneSugPolicy.suggest`.

        They are those for the first :data:`LONGEST` characters of each text, should one be longer.

        Args:
            prefix: what was typed.
            history: earlier searches, oldest first.
            profile: attributes of the shopper.

        Raises:
            PromptError: the prefix is None, empty or blank.
            TypeError: the prefix is no text, or history or profile are no lists of texts; the message names which.
        """
        key = self._read(prefix, history, profile)
        return list(self.memory.answers.get(key, lambda: self._suggest(*key)))

    def _read(self, prefix: Any, history: Any, profile: Any) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
        """What of a request an answer depends on, checked."""
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f"prefix is {_shown(prefix)}; expected text")
        sizes, earlier = self.policy.prompt, _texts("history", history)
        said = filter(clean, _texts("profile", profile))  # each has a token or more
        return (
            prefix and prefix[:LONGEST],
            earlier[-sizes.history :] if sizes.history else (),
            tuple(islice(said, sizes.profile_tokens)),
        )

    def _suggest(self, prefix: str, history: Sequence[str], profile: Sequence[str]) -> list[tuple[str, float]]:
        prompt = self.prompt(prefix, self.related(prefix), history, profile)
        found = self.searcher.search(*collate_prompts([prompt], self.searcher.pad), results=self._found)
        texts = decode_queries(self.policy.tokenizer, found.tokens[0].tolist())
        whole = (found.tokens[0] == self.searcher.eos).any(dim=1).tolist()
        return merge_queries(texts, found.scores[0].tolist(), whole)[: self.decode.results]

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        """Ranked query strings of each request, one after another."""
        rows = zip(requests["prefix"].to_list(), *history_and_profile(requests), strict=True)
        return [[query for query, _ in self.suggest(*row)] for row in rows]
