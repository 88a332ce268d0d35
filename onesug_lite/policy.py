"""A trained suggester as a policy: from a batch of requests to ranked lists of query strings.

This is what serves: prefix -> related queries (PRE) -> prompt -> beam search -> up to 16 strings. It holds no training
code and can be saved to one folder, which is what ``onesug train`` writes and ``onesug suggest`` reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import polars as pl

from onesug_lite.batches import Prompt
from onesug_lite.decode import DecodeConfig, prepare, suggest_queries
from onesug_lite.folders import replacing
from onesug_lite.generator import load_generator, save_generator
from onesug_lite.prefix_search import PrefixSearch
from onesug_lite.prompt import PromptConfig, build_prompts
from onesug_lite.requests import history_and_profile, one_request
from onesug_lite.tokenizer import clean
from onesug_lite.trie import trie_of


class PolicyError(ValueError):
    """A policy folder that is missing, incomplete or of another kind."""


class OneSugPolicy:
    """Generative suggester.

    Args:
        model: generator in evaluation mode.
        tokenizer: its tokeniser.
        search: related queries of a prefix; ``None`` for a generator without PRE.
        prompt: how a request becomes encoder input.
        decode: beam search settings, 32 -> 16 in the paper.
        known: queries that it may write, read with ``decode.known``.
    """

    def __init__(
        self,
        model,
        tokenizer,
        search: PrefixSearch | None = None,
        prompt: PromptConfig | None = None,
        decode: DecodeConfig | None = None,
        known: Sequence[str] = (),
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.search = search
        self.prompt = prompt or PromptConfig()
        self.decode = decode or DecodeConfig()
        self.known = list(known) if self.decode.known else []

    @cached_property
    def _searcher(self):
        """The model as the search wants it, packed once and not at every request."""
        trie = trie_of(self.tokenizer, self.known, self.prompt) if self.decode.known else None
        return prepare(self.model, self.decode, trie)

    def prompts(self, requests: pl.DataFrame) -> list[Prompt]:
        """Encoder input ids of each request.

        Args:
            requests: frame with columns ``prefix`` (String), ``history`` and ``profile`` (List(String); null or a
                missing column means that nothing is known of the shopper); ``user_id`` where raw ids are read.

        Raises:
            PromptError: a prefix is empty or blank; the message names the row.
        """
        prefixes = requests["prefix"].to_list()
        histories, profiles = history_and_profile(requests)
        related = None if self.search is None else self.search.related([clean(text or "") for text in prefixes])
        users = requests["user_id"].to_list() if self.prompt.ids and "user_id" in requests.columns else None
        return build_prompts(self.tokenizer, prefixes, related, histories, profiles, self.prompt, users)

    def scored(self, requests: pl.DataFrame, batch_size: int = 64) -> list[list[tuple[str, float]]]:
        """Ranked (query, log-probability) lists, best first.

        Args:
            requests: as for :meth:`prompts`.
            batch_size: requests decoded at a time.

        Raises:
            PromptError: a prefix is empty or blank; the message names the row.
        """
        prompts = self.prompts(requests)
        return suggest_queries(self._searcher, self.tokenizer, prompts, self.decode, batch_size=batch_size)

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        """Ranked query strings of each request, best first, at most ``decode.results`` of them."""
        return [[query for query, _ in row] for row in self.scored(requests)]

    def suggest(self, prefix: str, history: Sequence[str] = (), profile: Sequence[str] = ()) -> list[tuple[str, float]]:
        """One request; see :meth:`scored`."""
        return self.scored(one_request(prefix, history, profile))[0]

    def save(self, folder: str | Path) -> Path:
        """Write the policy to ``folder`` (a temporary name first, then renamed); an older policy there is replaced.

        Raises:
            PolicyError: the folder exists and is no policy, so it is left alone.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "policy.json").exists():
            raise PolicyError(f"'{folder}' is not empty and holds no policy; choose another folder")
        settings = {
            "prompt": asdict(self.prompt),
            "decode": asdict(self.decode),
            "related_queries": self.search is not None,
        }
        with replacing(folder) as new:
            save_generator(self.model, self.tokenizer, new / "generator")
            if self.search is not None:
                self.search.save(new / "search")
            if self.known:
                pl.DataFrame({"query": self.known}).write_parquet(new / "known.parquet")
            (new / "policy.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> OneSugPolicy:
        """Read a policy written by :meth:`save`.

        Raises:
            PolicyError: there is none at ``folder``.
        """
        folder = Path(folder)
        if not (folder / "policy.json").is_file():
            raise PolicyError(f"no trained suggester at '{folder}'; make one with: onesug train LOG --out {folder}")
        settings = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        model, tokenizer = load_generator(folder / "generator")
        search = PrefixSearch.load(folder / "search") if settings["related_queries"] else None
        prompt, decode = PromptConfig(**settings["prompt"]), DecodeConfig(**settings["decode"])
        known = pl.read_parquet(folder / "known.parquet")["query"].to_list() if decode.known else ()
        return cls(model, tokenizer, search, prompt, decode, known)
