"""The generator's updates: its related queries, its supervised training and its preference stage, each by itself.

``search`` renews the queries and clicks that related queries are looked up in. ``supervised`` trains the model on
clicks, starting from the weights that it has (a warm start). ``preference`` does so by reward-weighted ranking, one
round :math:`M_t \\to M_{t+1}`. Encoder, semantic ids and tokeniser stay as they were: a query that nobody knew before
is written in old tokens and found by its text.

Source: the paper's training loop (authors' public repository) for the rounds; sizes and the warm start are ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from onesug_lite.learners import check_update, counts_of
from onesug_lite.log import Log, clicked
from onesug_lite.policy import OneSugPolicy
from onesug_lite.prefix_search import PrefixSearch
from onesug_lite.prompt import build_prompts, encode_queries
from onesug_lite.requests import history_and_profile

if TYPE_CHECKING:
    from onesug_lite.losses import PreferenceConfig
    from onesug_lite.reward import RewardConfig
    from onesug_lite.training import TrainConfig


@dataclass(frozen=True)
class UpdateConfig:
    """What a day is worth in an update of the generator. The paper states none of these."""

    steps: int = 20  # ours: supervised steps
    preference_steps: int = 20  # ours: steps of reward-weighted ranking
    batch_size: int = 128  # ours: of either; clicks a supervised step reads
    preference_batch_size: int = 32  # ours: each chosen click brings its rejected queries along
    learning_rate: float = 5e-4  # ours: a quarter of the rate for random weights; what is known must not be lost
    preference_rate: float = 2e-4  # ours: as in PreferenceConfig


class GeneratorLearner:
    """The generator with its related queries.

    Args:
        policy: as it stands; without related queries it has no stage ``search``.
        config: size of an update.
        train: settings of supervised training that ``config`` does not name.
        preference: the same of reward-weighted ranking.
        reward: how behaviour becomes pairs.
    """

    def __init__(
        self,
        policy: OneSugPolicy,
        config: UpdateConfig,
        train: TrainConfig,
        preference: PreferenceConfig,
        reward: RewardConfig,
    ):
        self.policy, self.reward = policy, reward
        self.stages = ("search", "supervised", "preference")[policy.search is None :]
        self.train = replace(
            train,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup=min(train.warmup, config.steps // 5),
        )
        self.preference = replace(
            preference,
            steps=config.preference_steps,
            batch_size=config.preference_batch_size,
            learning_rate=config.preference_rate,
            warmup=min(preference.warmup, config.preference_steps // 5),
        )
        self.config = config

    def __call__(self, requests: pl.DataFrame) -> list[list[str]]:
        return self.policy(requests)

    def updated(self, stage: str, log: Log, day: date, seed: int, work: Path, days: int = 1) -> GeneratorLearner:
        """See :class:`Learner`."""
        from onesug_lite.trainer import set_seed

        check_update(self, stage, log, day)
        set_seed(seed)
        if stage == "search":
            return self._with(search=_search(self.policy.search, log))
        train = {"supervised": self._supervised, "preference": self._preferred}[stage]
        return self._with(model=train(log, seed, work, days))

    def save(self, folder: Path) -> None:
        """See :class:`Learner`."""
        self.policy.save(folder / "policy")

    def load(self, folder: Path) -> GeneratorLearner:
        """See :class:`Learner`."""
        policy = OneSugPolicy.load(folder / "policy")
        if policy.search is not None:
            policy.search.encoder = self.policy.search.encoder  # the same, and the folder may go away
        return self._with(policy=policy)

    def _with(self, policy=None, model=None, search=None) -> GeneratorLearner:
        old = self.policy
        if policy is None:  # a policy packs its model once, so another model needs another policy
            parts = model or old.model, old.tokenizer, search or old.search
            policy = OneSugPolicy(*parts, old.prompt, old.decode, old.known)
        return GeneratorLearner(policy, self.config, self.train, self.preference, self.reward)

    def _prompts(self, rows: pl.DataFrame):
        """Encoder inputs of rows with ``prefix``, ``history``, ``profile`` and the clicked ``query``."""
        policy, prefixes = self.policy, rows["prefix"].to_list()
        related = None
        if policy.search is not None:  # a row's own click is left out of what it may see
            related = policy.search.related(prefixes, rows["query"].to_list())
        users = rows["user_id"].to_list() if policy.prompt.ids else None
        return build_prompts(policy.tokenizer, prefixes, related, *history_and_profile(rows), policy.prompt, users)

    def _supervised(self, log: Log, seed: int, work: Path, days: int):
        from onesug_lite.training import Examples, train_supervised

        config = replace(self.train, steps=days * self.train.steps)
        rows = _some(clicked(log), config.steps * config.batch_size, seed)
        targets = encode_queries(self.policy.tokenizer, rows["query"].to_list(), self.policy.prompt)
        examples = Examples(self._prompts(rows), targets)
        return train_supervised(_twin(self.policy.model), examples, config, seed, work).model

    def _preferred(self, log: Log, seed: int, work: Path, days: int):
        from onesug_lite.preference import train_preference
        from onesug_lite.reward import preference_sets

        config = replace(self.preference, steps=days * self.preference.steps)
        queries = log.candidates["query"].unique().sort().to_list()
        sets = preference_sets(log, queries, self.reward, np.random.default_rng(seed))
        sets = sets._replace(rows=_some(sets.rows, config.steps * config.batch_size, seed))
        rows = sets.rows.rename({"chosen": "query"})
        if self.policy.prompt.ids:
            rows = rows.join(log.requests.select("request_id", "user_id"), on="request_id", maintain_order="left")
        model, prompt, trie = _twin(self.policy.model), self.policy.prompt, None
        if config.known:
            from onesug_lite.trie import trie_of

            written = sorted({*queries, *rows["query"].to_list()})
            trie = trie_of(self.policy.tokenizer, written, prompt)
        prompts, tokenizer = self._prompts(rows), self.policy.tokenizer
        return train_preference(model, sets, prompts, tokenizer, config, seed, work, prompt, trie).model


def _some(rows: pl.DataFrame, size: int, seed: int) -> pl.DataFrame:
    """At most ``size`` rows, those that an update reads once at most, in their order."""
    chosen = np.random.default_rng(seed).choice(len(rows), min(size, len(rows)), replace=False)
    return rows[np.sort(chosen)]


def _twin(model):
    """A copy to train, so that what stands keeps answering as it does."""
    return copy.deepcopy(model)


def _search(search, log: Log):
    """Related queries over the queries and clicks of a log, with the encoder and the semantic ids as they are."""
    queries = log.candidates["query"].unique().sort().to_list()
    return PrefixSearch(search.encoder, search.rqvae, counts_of(log), queries, search.config)
