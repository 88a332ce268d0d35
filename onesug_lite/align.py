"""Alignment: a text encoder learns that a prefix and the queries clicked under it belong together.

The paper starts from BGE, a large pretrained encoder, and fine-tunes it on pairs mined from logs. Here the
default is a small BERT from random weights, with a tokeniser trained on the same texts, so that everything
runs in a minute on two cores; any sentence-transformers or BERT checkpoint takes its place by one field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from onesug_lite.encoder import padded, quiet, save_encoder, small_bert, tokenise, without_pooler
from onesug_lite.folders import replacing
from onesug_lite.pairs import Pairs
from onesug_lite.trainer import bf16_pays

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class AlignConfig:
    """The encoder and its contrastive training.

    Source:
        Paper, section PRE: BGE, fine-tuned contrastively; sizes of training are not given.
    """

    checkpoint: str | None = None  # paper: BGE [authors' article]; None: a small BERT from random weights, ours
    vocab_size: int = 2000  # ours: byte-level BPE; no text is out of vocabulary
    dim: int = 96  # ours: width, and the length of an embedding (BGE-base: 768)
    layers: int = 2  # ours (BGE-base: 12)
    heads: int = 4  # ours (BGE-base: 12)
    dropout: float = 0.0  # ours: one short pass over many pairs does not overfit (BERT: 0.1)
    max_length: int = 32  # ours: tokens of a text; the rest is cut
    steps: int = 1000  # ours: about a minute on two cores
    batch_size: int = 256  # ours: pairs in a batch, each the negative of the others
    learning_rate: float = 2e-3  # ours, for random weights; 2e-5 suits a pretrained checkpoint
    warmup: float = 0.1  # ours: share of the steps
    temperature: float = 0.05  # ours: the usual value of sentence-transformers, scale 20
    click_power: float = 0.5  # ours: a pair is drawn in proportion to clicks ** click_power
    query_pairs: float = 0.2  # ours: share of query-query pairs in what is drawn
    bf16: bool | None = None  # ours: None uses it where the processor multiplies bf16 natively: 1.7 times the speed

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "steps", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"AlignConfig.{name} is {getattr(self, name)}; expected 1 or more.")
        if self.batch_size < 2:
            raise ValueError(f"AlignConfig.batch_size is {self.batch_size}; expected 2 or more, one has no negative.")
        if self.dim % self.heads:
            raise ValueError(f"AlignConfig.dim is {self.dim}; expected a multiple of heads, {self.heads}.")


class AlignResult(NamedTuple):
    """A trained encoder.

    Attributes:
        history: ``step, loss``; the loss is the mean of the steps since the row before.
        path: folder of the encoder, for :func:`load_encoder`.
    """

    history: pl.DataFrame
    path: Path


def train_encoder(pairs: Pairs, config: AlignConfig, seed: int, out: Path) -> AlignResult:
    r"""Fine-tune an encoder so that the two texts of a pair lie closer than the texts of other pairs.

    .. math::

        L = -\frac{1}{B} \sum_i \log
            \frac{\exp(\cos(a_i, b_i) / \tau)}{\sum_j \exp(\cos(a_i, b_j) / \tau)}

    over a batch of B pairs in which no text occurs twice, for a repeated text would be its own negative.

    Args:
        pairs: mined from the training days.
        config: encoder and training.
        seed: of the weights, the batches and the dropout.
        out: folder to write; it is replaced when it exists, once training is over.

    Returns:
        The course of the loss and the folder.

    Raises:
        ValueError: fewer than two distinct pairs.

    Source:
        Paper, section PRE; in-batch negatives after Henderson et al. (2017).
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    texts, rows, weights = _training_pairs(pairs, config)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} pair(s) of different texts to align; expected 2 or more. Give a longer log.")
    batches = draw_batches(rows, weights, config, np.random.default_rng(seed))

    # The trainer seeds torch's global generator; what the caller had is put back afterwards.
    with TemporaryDirectory(prefix="align-") as scratch, torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        if config.checkpoint is None:
            encoder = small_bert(texts, config, Path(scratch) / "start")
        else:
            encoder = without_pooler(SentenceTransformer(config.checkpoint))
            encoder.max_seq_length = min(encoder.max_seq_length or config.max_length, config.max_length)
        trainer = Trainer(
            model=_contrastive(encoder, config),
            args=TrainingArguments(
                output_dir=str(Path(scratch) / "trainer"),
                max_steps=len(batches),
                per_device_train_batch_size=1,  # one item is a whole batch of pairs
                learning_rate=config.learning_rate,
                warmup_steps=round(config.warmup * len(batches)),
                lr_scheduler_type="cosine",
                bf16=bf16_pays() if config.bf16 is None else config.bf16,
                logging_steps=max(1, len(batches) // 50),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                use_cpu=not torch.cuda.is_available(),
                seed=seed,
            ),
            train_dataset=_Batches(encoder, texts, rows, batches),
            data_collator=lambda items: items[0],
            callbacks=[_bar(len(batches))],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        history = pl.DataFrame(
            [(entry["step"], float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry],
            schema={"step": pl.Int64, "loss": pl.Float64},
            orient="row",
        )
        with replacing(out) as fresh:
            save_encoder(encoder.eval(), fresh)
    return AlignResult(history, Path(out))


def draw_batches(
    rows: np.ndarray, weights: np.ndarray, config: AlignConfig, rng: np.random.Generator
) -> list[list[int]]:
    """Draw the pairs of every step, so that no text occurs twice in a batch.

    Args:
        rows: (P, 2) the texts of each pair, as numbers.
        weights: (P,) in proportion to which pairs are drawn.
        config: ``steps`` and ``batch_size`` are read.
        rng: draws.

    Returns:
        ``steps`` lists of at most ``batch_size`` pair numbers; shorter only when the draw holds too few
        different texts, never shorter than one.
    """
    share = np.cumsum(weights, dtype=np.float64)
    batches = []
    for _ in range(config.steps):
        drawn = np.searchsorted(share, rng.random(3 * config.batch_size) * share[-1], side="right")
        drawn = np.minimum(drawn, len(rows) - 1)
        _, first = np.unique(rows[drawn], return_index=True)  # where each text occurs first
        fresh = np.zeros(2 * len(drawn), dtype=bool)
        fresh[first] = True
        batches.append(drawn[fresh.reshape(-1, 2).all(axis=1)][: config.batch_size].tolist())
    return batches


def _training_pairs(pairs: Pairs, config: AlignConfig) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Distinct texts, pairs of their numbers (P, 2), and the weight of each pair (P,)."""
    first = pairs.prefix_query.select(a="prefix", b="query", weight=pl.col("clicks") ** config.click_power)
    # A pair that several methods found counts several times; scores do not compare between methods.
    second = pairs.query_query.group_by(a="query_a", b="query_b").agg(weight=pl.len().cast(pl.Float64)).sort("a", "b")
    parts = []
    shares = (1 - config.query_pairs, config.query_pairs) if len(second) else (1.0, 0.0)
    for part, share in zip((first, second), shares, strict=True):
        part = part.filter(pl.col("a") != pl.col("b"))
        if share > 0 and len(part):
            parts.append(part.with_columns(pl.col("weight").cast(pl.Float64) * share / part["weight"].sum()))
    if not parts:
        return [], np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    joined = pl.concat(parts)
    texts = pl.concat([joined["a"], joined["b"]]).unique().sort()
    number = pl.DataFrame({"text": texts, "number": np.arange(len(texts))})
    rows = np.stack(
        [joined.join(number, left_on=side, right_on="text", maintain_order="left")["number"] for side in ("a", "b")],
        axis=1,
    )
    return texts.to_list(), rows, joined["weight"].to_numpy()


class _Batches:
    """The drawn batches as tensors; texts are tokenised once, not once a step."""

    def __init__(self, encoder: SentenceTransformer, texts: list[str], rows: np.ndarray, batches: list[list[int]]):
        self.ids, self.pad = tokenise(encoder, texts)
        self.rows, self.batches = rows, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> dict:
        pairs = self.rows[self.batches[step]]  # (B, 2)
        return {
            side: padded([self.ids[text] for text in pairs[:, column]], self.pad)
            for column, side in enumerate(("anchor", "positive"))
        }


def _contrastive(encoder: SentenceTransformer, config: AlignConfig):
    """The encoder behind sentence-transformers' in-batch-negatives loss, as a model for a Trainer."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class Contrastive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = MultipleNegativesRankingLoss(encoder, scale=1 / config.temperature)

        def forward(self, anchor: dict, positive: dict) -> dict:
            return {"loss": self.loss([anchor, positive], None)}

    return Contrastive()


def _bar(steps: int):
    """A trainer callback that draws one progress bar."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.bar = tqdm(total=steps, desc="align", leave=False, disable=None)

        def on_step_end(self, args, state, control, **_):
            self.bar.update(1)

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    return Bar()
