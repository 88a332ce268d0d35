"""The multi-stage cascade that the paper replaces: recall -> pre-rank (DCN) -> rank (DIN).

Recall looks up 200 queries that may fit, a cheap ranker keeps 64 of them, a costly one orders these and shows 16. Each
stage is made for itself: the encoder behind recall learns pairs of texts, DCN to tell shown queries from others, DIN to
tell clicked ones from the rest of their list. Therein the paper sees the cascade's faults: what one stage drops no
later one brings back, and the stages optimise different goals. :meth:`Cascade.stages` keeps what each stage let
through, and :func:`survival` says how many of the clicked queries were lost where.

``CascadeConfig()`` is the paper's baseline MCA: recall by embedding; text, counts and click rates for the rankers.
``replace(config, **ONLINE)`` is onlineMCA: five channels of recall and all groups of features.
:mod:`onesug_lite.cascade_training` trains either.
"""

from __future__ import annotations

import json
import shutil
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import torch

from onesug_lite.features import CHEAP, CascadeConfig, Features, Requests, Tally, tokenise
from onesug_lite.folders import replacing
from onesug_lite.rankers import DCN, DIN, batch_of
from onesug_lite.recall import Recall
from onesug_lite.requests import history_and_profile, one_request
from onesug_lite.tokenizer import clean

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Stages(NamedTuple):
    """What each stage let through: N lists of queries each, best first.

    Attributes:
        recalled: at most ``recalled`` each, as the channels gave them in turn.
        preranked: at most ``preranked``, by DCN.
        ranked: at most ``results``, by DIN; the answers.
        scores: N lists, the click probability that DIN gives each answer.
    """

    recalled: list[list[str]]
    preranked: list[list[str]]
    ranked: list[list[str]]
    scores: list[list[float]]


class Cascade:
    """A cascade as a policy: from a batch of requests to ranked lists of query strings.

    Made by :func:`onesug_lite.cascade_training.train_cascade` or :meth:`load`. It does without what a request may lack:
    history, profile, a prefix that was typed before. It never suggests a query beyond its pool.

    Args:
        recall: the first stage, with the pool of queries.
        by_query: tally of the pool's queries, by number.
        by_pair: tally of prefix and query, by ``code * Q + number``.
        tokenizer: of the encoder.
        config: sizes.
        encoder: embeds prefixes that the training days do not hold; None where :meth:`load` knows its folder.
        seed: of the rankers' first weights.

    Attributes:
        losses: ``stage, step, loss`` of the training of ``dcn`` and ``din``.
    """

    def __init__(
        self,
        recall: Recall,
        by_query: Tally,
        by_pair: Tally,
        tokenizer,
        config: CascadeConfig,
        encoder: SentenceTransformer | None = None,
        seed: int = 0,
    ):
        self.recall, self.tokenizer, self.config = recall, tokenizer, config
        if encoder is not None:
            self.encoder = encoder
        self.queries = recall.queries
        self.cheap = tuple(group for group in CHEAP if group in config.features)
        tokens = tokenise(tokenizer, self.queries, config.tokens)
        vocabulary = len(tokenizer) + 1
        self.features = Features(self.queries, recall.vectors, tokens, vocabulary, by_query, by_pair, config)
        sizes = (vocabulary, len(self.queries), config)
        with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
            torch.manual_seed(seed)
            self.dcn = DCN(self.features.width(self.cheap), *sizes).eval()
            self.din = DIN(self.features.width(config.features), *sizes).eval()
        self.losses = pl.DataFrame(schema={"stage": pl.String, "step": pl.Int64, "loss": pl.Float64})

    @cached_property
    def encoder(self) -> SentenceTransformer:
        """The text encoder; after :meth:`load` it is read only when a new prefix comes."""
        from onesug_lite.encoder import load_encoder

        return load_encoder(self._folder / "encoder")

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        """Ranked queries of each request, best first, at most ``results`` of them; see :meth:`stages`."""
        return self.stages(requests).ranked

    def suggest(self, prefix: str, history: Sequence[str] = (), profile: Sequence[str] = ()) -> list[tuple[str, float]]:
        """One request: ranked queries, each with the click probability that DIN gives it."""
        stages = self.stages(one_request(prefix, history, profile))
        return list(zip(stages.ranked[0], stages.scores[0], strict=True))

    def stages(self, requests: pl.DataFrame, batch_size: int = 128) -> Stages:
        """Answer requests and keep what each stage let through.

        Args:
            requests: column ``prefix`` (String); ``history`` and ``profile`` (List(String); null or a missing column
                means that nothing is known of the shopper).
            batch_size: requests at a time.
        """
        stages = Stages([], [], [], [])
        for start in range(0, len(requests), batch_size):
            batch = self.encode(requests[start : start + batch_size])
            recalled = self.recall(batch)
            preranked, _ = self._keep(self.dcn, batch, recalled, self.cheap, self.config.preranked)
            ranked, logits = self._keep(self.din, batch, preranked, self.config.features, self.config.results)
            for numbers, lists in zip((recalled, preranked, ranked), stages[:3], strict=True):
                lists.extend([self.queries[number] for number in row if number >= 0] for row in numbers.tolist())
            stages.scores.extend((1 / (1 + np.exp(-row[np.isfinite(row)]))).tolist() for row in logits)
        return stages

    @torch.inference_mode()
    def _keep(
        self, model: DCN | DIN, requests: Requests, candidates: np.ndarray, groups: Sequence[str], kept: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of the candidates (B, C) by a ranker, and their logits; equals keep their order."""
        batch = batch_of(requests, candidates, self.features(requests, candidates, groups))
        # Rounded, so that the noise of float products does not order equals.
        logits = np.where(candidates >= 0, model(batch).double().numpy().round(4), -np.inf)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :kept]
        return np.take_along_axis(candidates, best, axis=1), np.take_along_axis(logits, best, axis=1)

    def encode(self, requests: pl.DataFrame, days: np.ndarray | None = None) -> Requests:
        """Requests as recall, the features and the rankers read them.

        Args:
            requests: as for :meth:`stages`, B of them.
            days: ``int64`` (B,) day of each training request; None when serving, after all training days.
        """
        prefixes = [clean((text or "")[: self.config.max_prefix_chars]) for text in requests["prefix"].to_list()]
        histories, profiles = history_and_profile(requests)
        histories = [row[: -self.config.history - 1 : -1] for row in histories]  # newest first
        cleaned = {text: clean(text) for row in (*histories, *profiles) for text in row}
        # Texts beside the pool are numbered from Q on, for this batch alone.
        distinct = dict.fromkeys([*prefixes, *cleaned.values()])
        others = [text for text in distinct if text not in self.recall.number]
        number = ChainMap(self.recall.number, {text: len(self.queries) + at for at, text in enumerate(others)})

        def table(rows: list[list[str]], width: int) -> np.ndarray:
            found = np.full((len(rows), width), -1)
            for at, row in enumerate(rows):
                texts = [cleaned[text] for text in row[:width] if cleaned[text]]
                found[at, : len(texts)] = [number[text] for text in texts]
            return found

        code = np.array([self.recall.code.get(text, -1) for text in prefixes], dtype=np.int64)
        vectors = self.recall.prefix_vectors[code]  # those of new prefixes are replaced
        new = np.flatnonzero(code < 0)
        if len(new):
            from onesug_lite.encoder import embed

            vectors[new] = embed(self.encoder, [prefixes[at] for at in new])
        ids = np.concatenate([self.features.tokens, tokenise(self.tokenizer, [*others, ""], self.config.tokens)])
        return Requests(
            prefixes,
            code,
            vectors,
            np.full(len(prefixes), self.features.by_query.span - 1) if days is None else days,
            torch.from_numpy(ids),
            np.array([number[text] for text in prefixes], dtype=np.int64),
            table(histories, self.config.history),
            table(profiles, self.config.profile),
        )

    def save(self, folder: str | Path) -> None:
        """Write everything that :meth:`load` needs, encoder included.

        Args:
            folder: replaced when it exists.
        """
        from safetensors.numpy import save_file
        from safetensors.torch import save_model

        from onesug_lite.encoder import save_encoder

        with replacing(folder) as new:
            recall = self.recall
            pl.DataFrame({"query": recall.queries}).write_parquet(new / "queries.parquet")
            pl.DataFrame({"prefix": recall.prefixes}).write_parquet(new / "prefixes.parquet")
            recall.clicks.write_parquet(new / "clicks.parquet")
            recall.related.write_parquet(new / "related.parquet")
            self.losses.write_parquet(new / "losses.parquet")
            arrays = {"queries": recall.vectors, "prefixes": recall.prefix_vectors}
            for name in ("by_query", "by_pair"):
                tally = getattr(self.features, name)
                arrays |= {f"{name}.codes": tally.codes, f"{name}.totals": tally.totals}
            save_file(arrays, new / "arrays.safetensors")
            for name, model in (("dcn", self.dcn), ("din", self.din)):
                save_model(model, str(new / f"{name}.safetensors"))
            settings = {"config": asdict(self.config), "span": self.features.by_query.span}
            (new / "cascade.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            if "encoder" in self.__dict__:
                save_encoder(self.encoder, new / "encoder")
            else:  # loaded from a folder and never needed: copy it unread
                shutil.copytree(self._folder / "encoder", new / "encoder")

    @classmethod
    def load(cls, folder: str | Path) -> Cascade:
        """Open what :meth:`save` wrote.

        Args:
            folder: as given to :meth:`save`.

        Returns:
            A cascade that answers as the saved one did.

        Raises:
            FileNotFoundError: the folder holds no cascade.
        """
        from safetensors.numpy import load_file
        from safetensors.torch import load_model
        from transformers import AutoTokenizer

        folder = Path(folder)
        if not (folder / "cascade.json").is_file():
            raise FileNotFoundError(f"{folder} holds no cascade (no cascade.json); train one and save it there.")
        settings = json.loads((folder / "cascade.json").read_text(encoding="utf-8"))
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["config"].items()}
        config = CascadeConfig(**kept)
        arrays = load_file(folder / "arrays.safetensors")
        queries, prefixes = (
            pl.read_parquet(folder / name).to_series().to_list() for name in ("queries.parquet", "prefixes.parquet")
        )
        clicks, related = (pl.read_parquet(folder / name) for name in ("clicks.parquet", "related.parquet"))
        tallies = [
            Tally(arrays[f"{name}.codes"], arrays[f"{name}.totals"], settings["span"])
            for name in ("by_query", "by_pair")
        ]
        recall = Recall(queries, arrays["queries"], prefixes, arrays["prefixes"], clicks, related, config)
        tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
        cascade = cls(recall, *tallies, tokenizer, config)
        cascade._folder = folder
        for name in ("dcn", "din"):
            load_model(getattr(cascade, name), str(folder / f"{name}.safetensors"))
        cascade.losses = pl.read_parquet(folder / "losses.parquet")
        return cascade


def survival(stages: Stages, targets: Sequence[str]) -> pl.DataFrame:
    """Where the queries that shoppers clicked were lost.

    Args:
        stages: of N requests.
        targets: N clicked queries.

    Returns:
        A row a stage: ``stage``; ``kept``, the most queries that it let through; ``reached``, the share of targets
        among them, the ceiling of every later stage's hit rate; ``lost``, the share that it dropped.
    """
    rows, before = [], 1.0
    for name, lists in zip(("recall", "pre-rank", "rank"), stages[:3], strict=True):
        reached = float(np.mean([target in row for target, row in zip(targets, lists, strict=True)]))
        rows.append((name, max(map(len, lists)), reached, before - reached))
        before = reached
    schema = {"stage": pl.String, "kept": pl.Int64, "reached": pl.Float64, "lost": pl.Float64}
    return pl.DataFrame(rows, schema, orient="row")
