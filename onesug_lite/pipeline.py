"""The whole road from a log to evaluated suggesters, each stage built once and kept in the store.

A pipeline is opened on a log folder and asked for what is wanted; ``Pipeline(log).policy("onesug").suggest("appl")``
builds whatever is missing on the way, with progress. Every stage is a property or a method, in the order in which the
data flows.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from onesug_lite.groundwork import Groundwork
from onesug_lite.log import clicked
from onesug_lite.metrics import invalid_share, ranks, summary_table
from onesug_lite.policy import OneSugPolicy
from onesug_lite.popularity import PopularityCompletion
from onesug_lite.reward import PreferenceSets
from onesug_lite.training import Examples
from onesug_lite.variants import Variant, variant

if TYPE_CHECKING:
    from onesug_lite.trie import Trie


class Trained(NamedTuple):
    """A trained generator as the store holds it."""

    folder: Path
    history: pl.DataFrame


class Pipeline(Groundwork):
    """Lazy chain of stages over one log; its arguments are those of :class:`onesug_lite.groundwork.Groundwork`."""

    def _generator(self, stage: str, pre: bool, config, inputs: dict[str, str], modules: list[str], train) -> Trained:
        """Run a stage that trains a generator; ``train(work)`` returns its ``model`` and ``history``."""
        from onesug_lite.generator import save_generator

        def build(out: Path, work: Path) -> None:
            self._seed()
            result = train(work)
            save_generator(result.model, self.tokenizer, out / "generator")
            result.history.write_parquet(out / "history.parquet")

        inputs = inputs | self._days() | {"prompt": repr(self.sizes.prompt), "generator": repr(self.sizes.generator)}
        if pre:
            inputs["sid_search"] = self.search_folder.name
        folder = self.store.get(stage, config, inputs, modules, build)
        return Trained(folder, pl.read_parquet(folder / "history.parquet"))

    def _examples(self, pre: bool) -> Examples:
        from onesug_lite.prompt import encode_queries

        rows = self.targets
        return Examples(
            self.prompts(rows, pre),
            encode_queries(self.tokenizer, rows["query"].to_list(), self.sizes.prompt),
        )

    def supervised(self, pre: bool) -> Trained:
        """Generator fine-tuned on the clicked queries of the training days: the seed model M_t."""
        from onesug_lite.generator import build_generator
        from onesug_lite.training import train_supervised

        def train(work: Path):
            model = build_generator(self.sizes.generator, self.tokenizer, self.seed)
            return train_supervised(model, self._examples(pre), self.sizes.train, self.seed, work)

        stage = "supervised_pre" if pre else "supervised"
        inputs, modules = {"targets": self.sizes.targets}, ["training", "prompt"]
        if self.sizes.targets == "outcomes":
            modules.append("outcomes")
        return self._generator(stage, pre, self.sizes.train, inputs, modules, train)

    # ---------------------------------------------------------------- preference
    @cached_property
    def preference_sets(self) -> PreferenceSets:
        """Chosen clicks with their rejected queries, rewards and weights, from the training days."""
        from onesug_lite.reward import preference_sets

        rng = np.random.default_rng(self.seed)
        return preference_sets(self.split.train, self.queries, self.sizes.reward, rng)

    def preferred(self, pre: bool, **changes) -> Trained:
        """The seed model after reward-weighted ranking (RWR): M_{t+1}.

        Args:
            pre: related queries in the prompt.
            **changes: fields of the preference config to override.
        """
        from onesug_lite.generator import load_generator
        from onesug_lite.preference import train_preference

        seed_model = self.supervised(pre).folder
        config = replace(self.sizes.preference, **changes)

        def train(work: Path):
            sets = self.preference_sets
            model, tokenizer = load_generator(seed_model / "generator")
            rows = sets.rows.rename({"chosen": "query"})
            if self.sizes.prompt.ids:
                rows = rows.join(
                    self.log.requests.select("request_id", "user_id"), on="request_id", maintain_order="left"
                )
            prompts, trie = self.prompts(rows, pre), self.trie if config.known else None
            return train_preference(model, sets, prompts, tokenizer, config, self.seed, work, self.sizes.prompt, trie)

        inputs = {"seed model": seed_model.name, "reward": repr(self.sizes.reward)}
        return self._generator("preference", pre, config, inputs, ["preference", "reward"], train)

    @cached_property
    def trie(self) -> Trie:
        """Trie of the :attr:`known` queries."""
        from onesug_lite.trie import trie_of

        return trie_of(self.tokenizer, self.known, self.sizes.prompt)

    # ---------------------------------------------------------------- cascade
    @cached_property
    def cascade_folder(self) -> Path:
        """Folder of the multi-stage baseline."""
        from onesug_lite.cascade_training import train_cascade
        from onesug_lite.encoder import load_encoder

        def build(out: Path, work: Path) -> None:
            self._seed()
            encoder, rng = load_encoder(self.align_folder / "encoder"), np.random.default_rng(self.seed)
            train_cascade(self.split.train, self.pairs, encoder, self.sizes.cascade, rng).save(out / "cascade")

        inputs = self._days() | {"pairs": self.pairs_folder.name, "align": self.align_folder.name}
        return self.store.get("cascade", self.sizes.cascade, inputs, ["cascade_training"], build) / "cascade"

    # ---------------------------------------------------------------- systems
    def trained(self, row: Variant) -> Trained:
        """The trained generator behind a row of the table."""
        road = self.changed(row.changes)
        return road.preferred(row.pre) if row.preferred else road.supervised(row.pre)

    def policy(self, name: str):
        """The system of a row of the table as a callable from a frame of requests to ranked lists of queries.

        Raises:
            ValueError: no such row, or one that is no system, as the ceiling.
        """
        from onesug_lite.cascade import Cascade
        from onesug_lite.generator import load_generator

        row = variant(name)
        road = self.changed(row.changes)
        if row.system == "ceiling":
            raise ValueError(f"'{name}' is no system but what the market's truth allows; choose another row")
        if row.system == "popularity":
            return PopularityCompletion(self.click_counts)
        if row.system == "cascade":
            return Cascade.load(road.cascade_folder)
        model, tokenizer = load_generator(self.trained(row).folder / "generator")
        search = road.search if row.pre else None
        known = road.known if road.sizes.decode.known else ()
        return OneSugPolicy(model, tokenizer, search, road.sizes.prompt, road.sizes.decode, known)

    def held_out(self, days: str = "test") -> pl.DataFrame:
        """Clicked rows that every system answers: one fixed sample of the test (or validation) days.

        Columns as :func:`onesug_lite.log.clicked` gives them, ``training_clicks`` of the clicked query, and ``random``:
        whether the log says that the request was answered at random.
        """
        log = getattr(self.split, days)
        rows = clicked(log)
        rng = np.random.default_rng(0)  # the same rows whatever the model's seed, so that systems can be paired
        size = min(self.sizes.evaluated, len(rows))
        rows = rows[np.sort(rng.choice(len(rows), size, replace=False))]
        counts = self.training_clicks.group_by("query").agg(training_clicks=pl.len())
        by_chance = log.requests.select("request_id", random=pl.lit(False))
        if "policy" in log.requests.columns:
            by_chance = log.requests.select("request_id", random=(pl.col("policy") == "random").fill_null(False))
        return (
            rows.join(counts, on="query", how="left", maintain_order="left")
            .join(by_chance, on="request_id", how="left", maintain_order="left")
            .with_columns(pl.col("training_clicks").fill_null(0))
        )

    def asked(self, days: str = "test", number: int = 400) -> pl.DataFrame:
        """A fixed sample of requests of the held-out days, clicked or not, for what a list is worth in replay."""
        rows = getattr(self.split, days).requests.sort("time", "request_id")
        rng = np.random.default_rng(1)
        return rows[np.sort(rng.choice(len(rows), min(number, len(rows)), replace=False))]

    def evaluate(self, name: str, days: str = "test") -> pl.DataFrame:
        """Answer the held-out rows with one system.

        Returns:
            Frame with ``request_id``, ``query``, ``behaviour``, ``training_clicks``, ``random``, ``rank`` (1-16, 0 is
            absent), ``suggestions`` and ``unknown`` (the share of these that are no query of the training log).
        """
        return pl.read_parquet(self.answered(name, days) / "clicked.parquet")

    def replayed(self, name: str, days: str = "test") -> pl.DataFrame:
        """One system's answers to :meth:`asked`: ``request_id``, ``suggestions`` and ``unknown``."""
        return pl.read_parquet(self.answered(name, days) / "asked.parquet")

    def answered(self, name: str, days: str = "test") -> Path:
        """Folder of what one system answers to the rows of :meth:`held_out` and :meth:`asked`."""
        row = variant(name)

        def build(out: Path, work: Path) -> None:
            self._seed()
            policy, known = self.policy(name), set(self.queries)

            def answer(requests: pl.DataFrame, *columns: str) -> pl.DataFrame:
                lists = policy(requests)
                return requests.select("request_id", *columns).with_columns(
                    unknown=pl.Series([invalid_share([shown], known) for shown in lists], dtype=pl.Float64),
                    suggestions=pl.Series(lists, dtype=pl.List(pl.String)),
                )

            rows = self.held_out(days)
            answers = answer(rows, "query", "behaviour", "training_clicks", "random")
            found = ranks(answers["suggestions"].to_list(), rows["query"].to_list())
            answers.with_columns(rank=pl.Series(found).cast(pl.Int32)).write_parquet(out / "clicked.parquet")
            answer(self.asked(days)).write_parquet(out / "asked.parquet")

        road = self.changed(row.changes)
        inputs = self._days() | {"days": days, "evaluated": str(self.sizes.evaluated)}
        inputs |= {"prompt": repr(road.sizes.prompt), "system": row.system}
        if row.system == "generator":
            inputs["system"] = self.trained(row).folder.name
        elif row.system == "cascade":
            inputs["system"] = road.cascade_folder.parent.name
        modules = {"generator": ["policy"]}.get(row.system, [row.system])
        return self.store.get(f"answers_{name}", road.sizes.decode, inputs, modules, build)

    def account(self, name: str) -> dict[str, Any]:
        """What a system took to make: ``seconds`` by stage, as the store noted them, ``parameters`` and ``curves``."""
        row = variant(name)
        road = self.changed(row.changes)
        stages = {"answers": self.answered(name)}
        curves, files = {}, []
        if row.system == "cascade" or row.pre:
            stages |= {"pairs": self.pairs_folder, "align": self.align_folder}
        if row.pre:
            stages |= {"rqvae": self.rqvae_folder, "sid_search": road.search_folder}
        if row.system == "cascade":
            stages["cascade"] = road.cascade_folder.parent
            losses = pl.read_parquet(road.cascade_folder / "losses.parquet")
            curves = {stage: losses.filter(pl.col("stage") == stage).drop("stage") for stage in ("dcn", "din")}
            files = [road.cascade_folder / f"{stage}.safetensors" for stage in curves]
        if row.system == "generator":
            seed_model = road.supervised(row.pre)
            stages["supervised"], curves["supervised"] = seed_model.folder, seed_model.history
            if row.preferred:
                preferred = road.preferred(row.pre)
                stages["preference"], curves["preference"] = preferred.folder, preferred.history
            files = [road.trained(row).folder / "generator" / "model.safetensors"]
        seconds = {
            stage: json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["seconds"]
            for stage, folder in stages.items()
        }
        return {
            "seconds": seconds,
            "parameters": sum(map(_parameters, files)) or None,
            "curves": {stage: curve.to_dict(as_series=False) for stage, curve in curves.items()},
        }

    def summary(self, answers: pl.DataFrame) -> pl.DataFrame:
        """HR@16 and MRR@16 of answered rows with intervals, by click or order and by frequency of the clicked query."""
        return summary_table(
            answers["suggestions"].to_list(),
            answers["query"].to_list(),
            answers["behaviour"].to_list(),
            dict(answers.select("query", "training_clicks").iter_rows()),
            np.random.default_rng(0),
            self.sizes.decode.results,
        )


def _parameters(file: Path) -> int:
    """Numbers in a file of weights."""
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
