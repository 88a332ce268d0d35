r"""Supervised fine-tuning of the generator, and how any of its trainings is run.

The generator maximises the likelihood of the clicked query given the prompt,

.. math:: L_{SFT} = -\frac{1}{|q|} \sum_t \log \pi_\theta(q_t \mid q_{<t}, x),

averaged over the tokens of a batch. What comes out is the seed model :math:`M_t` that preference training
starts from. :mod:`onesug_lite.trainer` runs it.

Source: paper, section "One encoder-decoder"; authors' public repository for the name seed model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onesug_lite.batches import Prompt, collate
from onesug_lite.generator import query_logits
from onesug_lite.trainer import Steps, TrainResult, fingerprint, run_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainConfig:
    """Supervised fine-tuning. The paper states none of these."""

    steps: int = 1500  # ours: about 3 passes over 120,000 clicks
    batch_size: int = 256  # ours
    learning_rate: float = 2e-3  # ours: for random weights; 3e-5 suits a pretrained checkpoint
    warmup: int = 100  # ours: steps of rising rate, then it falls linearly to zero
    weight_decay: float = 0.01  # ours
    max_grad_norm: float = 1.0  # ours
    bf16: bool | None = None  # ours: None uses it where the processor multiplies bf16 natively
    group_batches: int = 32  # ours: batches sorted by length together; 1 leaves the order random
    log_every: int = 10  # ours: steps one point of the loss curve averages over
    save_every: int = 250  # ours: steps that an interruption costs at most


class Examples(NamedTuple):
    """What supervised training reads.

    Attributes:
        prompts: N encoder inputs without padding.
        targets: N queries to write, token ids that end with the end of sequence.
    """

    prompts: Sequence[Prompt]
    targets: Sequence[Sequence[int]]


def plan_batches(lengths: np.ndarray, config: TrainConfig, seed: int) -> np.ndarray:
    """Lay out which examples each step sees, before training starts.

    Examples come in a new random order at each pass. Inside a window of ``group_batches`` batches they are
    sorted by length, so that a batch holds prompts of about one length and little padding, and the batches of
    a window are shuffled. Knowing the plan in advance makes a resumed run see what the interrupted one would
    have seen.

    Args:
        lengths: (N,) prompt lengths in tokens.
        config: uses ``steps``, ``batch_size`` and ``group_batches``.
        seed: of the order.

    Returns:
        Example numbers of shape (steps, batch_size); over a pass every example comes once.
    """
    rng = np.random.default_rng(seed)
    needed = config.steps * config.batch_size
    passes = -(-needed // len(lengths))
    stream = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])[:needed]
    window = config.group_batches * config.batch_size
    plan = []
    for first in range(0, needed, window):
        rows = stream[first : first + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, config.batch_size)
        plan.append(rows[rng.permutation(len(rows))])
    return np.concatenate(plan)


def train_supervised(
    model: PreTrainedModel, examples: Examples, config: TrainConfig, seed: int, work: Path
) -> TrainResult:
    """Fine-tune on clicked queries by transformers' ``Trainer``.

    Checkpoints under ``work`` let an interrupted run go on: call again with the same arguments, and the
    result is, byte for byte, that of a run without interruption. They go away at the end. When the call ends
    early, by Ctrl-C or an error, ``model`` gets back the weights it came with.

    Args:
        model: of either architecture; trained in place.
        examples: prompts and targets.
        config: steps, rates and sizes.
        seed: of the data order and of dropout. The global generators of Python, numpy and torch are seeded
            with it.
        work: folder for the checkpoints; what another run left there is removed.

    Returns:
        Model, loss curve and seconds.

    Raises:
        ValueError: when there is no example, when prompts and targets differ in number, or when a sequence is
            longer than the model's positions.

    Source: paper, section "One encoder-decoder"; eq. supervised loss.
    """
    check_examples(model, examples)
    plan = plan_batches(np.array([len(prompt) for prompt in examples.prompts]), config, seed)
    pad_id = model.config.pad_token_id

    def batch(step: int) -> dict[str, torch.Tensor]:
        rows = plan[step]
        return collate([examples.prompts[row] for row in rows], [examples.targets[row] for row in rows], pad_id)

    def loss(model, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = query_logits(model, **inputs).float().flatten(0, 1)  # (B * T, V)
        return F.cross_entropy(logits, inputs["labels"].flatten(), ignore_index=-100), {}

    run = fingerprint(model, config, seed, examples.prompts, examples.targets)
    return run_trainer(loss, model, Steps(config.steps, batch), config, seed, work, run)


def check_examples(model: PreTrainedModel, examples: Examples) -> None:
    """Refuse examples that cannot be trained on; see ``train_supervised`` for the errors."""
    if len(examples.prompts) != len(examples.targets):
        raise ValueError(f"{len(examples.prompts)} prompts and {len(examples.targets)} targets; expected as many")
    if not len(examples.prompts):
        raise ValueError("no examples to train on; expected at least one clicked query in the training days")
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, sequences in examples._asdict().items():
        longest = max(map(len, sequences))
        if positions is not None and longest > positions:
            raise ValueError(
                f"the longest of the {name} has {longest} tokens and the model {positions} positions; "
                "raise GeneratorConfig.max_positions or lower the sizes in PromptConfig"
            )
