r"""Preference training: the pair-wise and list-wise losses of reward-weighted ranking, and their use.

The implicit reward of a query is how much more likely the policy makes it than the frozen seed model did,
:math:`\hat r(q) = \beta \log(\pi_\theta(q|x) / \pi_{ref}(q|x))`. With a chosen query :math:`w`, rejected
queries :math:`l`, and the weight of each pair :math:`rw_\Delta` (see :mod:`onesug_lite.reward`):

.. math::

    L_{pair} &= -\log \sigma\big(-rw_\Delta\, h(\hat r_l - \hat r_w)\big) \\
    L_{list} &= -\log \sigma\Big(-\log \sum_l \exp\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)\Big)

to which :math:`-\alpha \log \pi_\theta(w|x)` is added, the supervised anchor that keeps the policy a language
model. :math:`h(x)` is the hinge, with :math:`x = \hat r_l - \hat r_w` above 0 where the rejected query is
preferred:

- ``violated``: :math:`\max(0, x - \delta)`; only rejected queries that lead by more than :math:`\delta` are
  pushed.
- ``printed``: list-wise the same, for so it is printed; pair-wise :math:`-\max(0, -x - \delta)`, as printed
  too, with a gradient of zero wherever the pair is ranked wrongly and a push for pairs that are right
  already.
- ``none``: :math:`x`; with equal weights, pair-wise is DPO and list-wise is softmax-DPO.

At the start policy and reference agree, so every :math:`x` is 0 and with :math:`\delta > 0` both hinges are
flat: training begins as supervised training on the chosen queries and the preference term wakes up where that
leads the policy astray. A negative ``delta`` asks the chosen query to lead by that much instead. A list-wise
loss over one rejected query is the pair-wise one (``violated``, ``none``).

Source: paper, section RWR; both losses as third-party notes print them; hyper-parameters: authors' public
code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onesug_lite.generator import (
    Examples,
    Steps,
    TrainResult,
    bf16_pays,
    check_examples,
    collate,
    fingerprint,
    plan_batches,
    run_trainer,
)
from onesug_lite.prompt import PromptConfig, encode_queries
from onesug_lite.reward import PreferenceSets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

LOSSES = ("listwise", "pairwise", "supervised")
HINGES = ("violated", "printed", "none")


@dataclass(frozen=True)
class PreferenceConfig:
    """The preference stage. The paper states none of the fields below ``reward_weights``."""

    loss: str = "listwise"  # paper: list-wise; "pairwise": its ablation; "supervised": ours, the anchor alone
    hinge: str = "violated"  # paper: "printed", the same for list-wise; the other two are ours, see above
    beta: float = 0.5  # authors' public code
    alpha: float = 0.4  # authors' public code: weight of the supervised anchor, log-probability of the whole query
    delta: float = 0.5  # authors' public code: margin of the hinge
    reward_weights: bool = True  # paper: weight 1 / (r_w - r_l); False: every pair weighs 1
    steps: int = 300  # ours
    batch_size: int = 64  # ours: requests a step; each brings one chosen and four rejected queries
    learning_rate: float = 2e-4  # ours: a fifth of the supervised rate; 5e-6 suits a pretrained checkpoint
    warmup: int = 30  # ours: steps of rising rate, then it falls linearly to zero
    weight_decay: float = 0.01  # ours
    max_grad_norm: float = 1.0  # ours
    bf16: bool | None = None  # ours: None uses it where the processor multiplies bf16 natively
    group_batches: int = 32  # ours: batches sorted by prompt length together
    log_every: int = 10  # ours: steps one point of the curves averages over
    save_every: int = 100  # ours: steps that an interruption costs at most

    def __post_init__(self):
        for name, allowed in (("loss", LOSSES), ("hinge", HINGES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is '{value}'; expected one of {', '.join(allowed)}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a number above 0")
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; expected 0 or more")
        if self.loss == "supervised" and self.alpha == 0:
            raise ValueError("loss is 'supervised' and alpha is 0, so there is nothing to learn; give alpha above 0")


class PreferenceLoss(NamedTuple):
    """A preference loss, without the supervised anchor.

    Attributes:
        loss: (B,) one number a request.
        margin: (B, K) how far the chosen query leads each rejected one in implicit reward, without gradient.
    """

    loss: Tensor
    margin: Tensor


def sequence_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Log-probability of whole sequences, :math:`\sum_t \log \pi(q_t \mid q_{<t}, x)`.

    Args:
        logits: (B, T, V), position t scores ``labels[:, t]``.
        labels: (B, T) token ids, -100 where a position does not count.

    Returns:
        (B,) nats in float32, 0 for a row without labels.
    """
    return (
        -F.cross_entropy(  # (B * T,), 0 at ignored positions
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        )
        .view(labels.shape)
        .sum(dim=1)
    )


def pairwise_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, weight: Tensor, config: PreferenceConfig
) -> PreferenceLoss:
    r"""Pair-wise loss: each rejected query makes a pair with the chosen one, and a request counts their mean.

    .. math:: L = \frac{1}{K} \sum_l \mathrm{softplus}\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)

    ``softplus`` is :math:`-\log \sigma(-x)` in a form that does not overflow.

    Args:
        chosen_log_ratio: (B,) log of policy over reference probability of the chosen queries.
        rejected_log_ratio: (B, K) the same of the rejected ones.
        weight: (B, K) pair weights, above 0; not read unless ``config.reward_weights``.
        config: ``hinge``, ``beta``, ``delta`` and ``reward_weights`` are read.

    Returns:
        Loss and margin.

    Source:
        Paper, section RWR, eq. pair-wise loss (third-party notes). Without hinge and weights: DPO.
    """
    lead = config.beta * (rejected_log_ratio - chosen_log_ratio[:, None])  # (B, K)
    scored = -torch.relu(-lead - config.delta) if config.hinge == "printed" else _hinge(lead, config)
    return PreferenceLoss(F.softplus(_weighted(scored, weight, config)).mean(dim=1), -lead.detach())


def listwise_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, weight: Tensor, config: PreferenceConfig
) -> PreferenceLoss:
    r"""List-wise loss: the chosen query against all rejected ones at once (Plackett-Luce, first place only).

    .. math:: L = \mathrm{softplus}\Big(\log \sum_l \exp\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)\Big)

    The rejected query that leads most gets most of the gradient.

    Args:
        chosen_log_ratio: (B,) log of policy over reference probability of the chosen queries.
        rejected_log_ratio: (B, K) the same of the rejected ones.
        weight: (B, K) pair weights, above 0; not read unless ``config.reward_weights``.
        config: ``hinge``, ``beta``, ``delta`` and ``reward_weights`` are read.

    Returns:
        Loss and margin.

    Source:
        Paper, section RWR, eq. list-wise loss (third-party notes). Without hinge and weights: softmax-DPO.
    """
    lead = config.beta * (rejected_log_ratio - chosen_log_ratio[:, None])  # (B, K)
    scored = _weighted(_hinge(lead, config), weight, config)
    return PreferenceLoss(F.softplus(scored.logsumexp(dim=1)), -lead.detach())


def _hinge(lead: Tensor, config: PreferenceConfig) -> Tensor:
    return lead if config.hinge == "none" else torch.relu(lead - config.delta)


def _weighted(scored: Tensor, weight: Tensor, config: PreferenceConfig) -> Tensor:
    return scored * weight if config.reward_weights else scored


def candidate_log_probs(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of several queries for each request, its prompt being encoded once.

    Args:
        model: an encoder-decoder.
        input_ids: (B, S) prompts.
        attention_mask: (B, S), 0 at padding.
        labels: (B * C, T) the C queries of request 0, then those of request 1; -100 at padding.

    Returns:
        (B, C) nats.
    """
    from transformers.modeling_outputs import BaseModelOutput

    candidates = len(labels) // len(input_ids)
    states = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, S, D)
    logits = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(candidates, dim=0)),
        attention_mask=attention_mask.repeat_interleave(candidates, dim=0),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        use_cache=False,
    ).logits  # (B * C, T, V)
    return sequence_log_probs(logits, labels).view(-1, candidates)


def train_preference(
    model: PreTrainedModel,
    sets: PreferenceSets,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    config: PreferenceConfig,
    seed: int,
    work: Path,
    prompt: PromptConfig | None = None,
) -> TrainResult:
    r"""One round of reward-weighted ranking: the seed model :math:`M_t` becomes :math:`M_{t+1}`.

    The reference is the model as it is given; its log-probabilities are computed once before training instead
    of in every step. The anchor is the log-probability of the whole chosen query (a sum over its tokens), as
    printed, so a longer query weighs more. Dropout is off: the log-ratio compares one policy with one
    reference, and a policy that drops units at random differs from its own seed before it has learnt
    anything, by noise that passes for preference.

    Checkpoints, interruption and reproducibility are those of :func:`onesug_lite.generator.train_supervised`.

    Args:
        model: the seed model; trained in place, on one device.
        sets: N chosen queries with their rejected ones and weights.
        prompts: N encoder inputs, the prompt of each row of ``sets``.
        tokenizer: the model's own.
        config: see :class:`PreferenceConfig`.
        seed: of the data order.
        work: folder for the checkpoints.
        prompt: ``query_tokens`` is read; the defaults when not given.

    Returns:
        The model, seconds, and a history with the columns ``step``, ``loss``, ``accuracy`` (share of rejected
        queries that the chosen one leads), ``chosen_log_ratio``, ``margin`` (mean lead in implicit reward),
        ``preference`` (the loss without its anchor), ``rejected_log_ratio`` and ``sft_nll`` (nats a chosen
        query), each the mean over the last ``log_every`` steps.

    Raises:
        ValueError: no rows, prompts and rows differ in number, rows with different numbers of rejected
            queries, or a sequence longer than the model's positions.

    Source:
        Paper, section RWR; training loop of the authors' public repository.
    """
    rows = sets.rows
    if len(prompts) != len(rows):
        raise ValueError(f"{len(prompts)} prompts and {len(rows)} preference rows; expected one prompt for each row")
    if not len(rows):
        raise ValueError("no preference rows to train on; expected at least one clicked query in the training days")
    sizes = rows["rejected"].list.len().unique().sort().to_list()
    if len(sizes) > 1 or sizes[0] == 0:
        raise ValueError(f"rows have {sizes} rejected queries; expected the same number, 1 or more, in each row")
    negatives = sizes[0]

    plan = plan_batches(np.array([len(ids) for ids in prompts]), config, seed)  # (steps, batch_size)
    used, plan = np.unique(plan, return_inverse=True)  # rows that no step reads cost nothing
    plan = plan.reshape(config.steps, config.batch_size)
    rows = rows[used]
    prompts = [prompts[row] for row in used]
    texts = [[chosen, *rejected] for chosen, rejected in rows.select("chosen", "rejected").iter_rows()]
    ids = encode_queries(tokenizer, [text for row in texts for text in row], prompt or PromptConfig())
    width = 1 + negatives
    targets = [ids[start : start + width] for start in range(0, len(ids), width)]  # chosen first
    weight = np.array(rows["weight"].to_list(), dtype=np.float32)  # (N, K)
    check_examples(model, Examples(prompts, [max(row, key=len) for row in targets]))

    def batch(which: np.ndarray) -> dict[str, Tensor]:
        flat = [query for row in which for query in targets[row]]
        return collate([prompts[row] for row in which], flat, model.config.pad_token_id)

    bf16 = bf16_pays() if config.bf16 is None else config.bf16
    reference = _reference(model, [len(ids) for ids in prompts], batch, config.batch_size, bf16)  # (N, 1 + K)

    def step(number: int) -> dict[str, Tensor]:
        which = plan[number]
        return batch(which) | {"reference": reference[which], "weight": torch.from_numpy(weight[which])}

    run = fingerprint(model, config, seed, prompts, [query for row in targets for query in row], weight)
    steps = Steps(config.steps, step)
    return run_trainer(_trainer_class(), model, steps, config, seed, work, run, preference=config)


def _reference(model: PreTrainedModel, lengths: Sequence[int], batch, batch_size: int, bf16: bool) -> Tensor:
    """Log-probabilities (N, 1 + K) of the frozen seed model, in the arithmetic that training uses."""
    from tqdm.auto import tqdm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    order = np.argsort(lengths, kind="stable")  # prompts of one length together: little padding
    starts = range(0, len(order), batch_size)
    parts = []
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        for start in tqdm(starts, desc="reference", unit="batch", leave=False):
            tensors = {name: value.to(device) for name, value in batch(order[start : start + batch_size]).items()}
            parts.append(candidate_log_probs(model, **tensors).cpu())
    reference = torch.empty(len(order), parts[0].shape[1])
    reference[torch.from_numpy(order)] = torch.cat(parts)
    return reference


def _trainer_class() -> type[Trainer]:
    """A ``Trainer`` with the preference loss; made here because importing ``Trainer`` takes seconds."""
    from transformers import Trainer

    class PreferenceTrainer(Trainer):
        def __init__(self, *, preference: PreferenceConfig, **options):
            super().__init__(**options)
            self.preference, self.seen = preference, {}

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if not hasattr(model, "get_encoder"):
                raise ValueError("preference training runs on one device; start it as a single process with one GPU")
            config = self.preference
            model.eval()  # no dropout; gradients flow all the same
            reference, weight = inputs["reference"], inputs["weight"]
            with self.accelerator.autocast():
                policy = candidate_log_probs(
                    model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
                )  # (B, 1 + K)
            chosen, rejected = (policy - reference).split([1, weight.shape[1]], dim=1)  # (B, 1), (B, K)
            function = pairwise_loss if config.loss == "pairwise" else listwise_loss
            result = function(chosen[:, 0], rejected, weight, config)
            nll = -policy[:, 0]
            loss = config.alpha * nll
            if config.loss != "supervised":
                loss = loss + result.loss
            self._note(
                accuracy=(result.margin > 0).float(),
                chosen_log_ratio=chosen,
                margin=result.margin,
                preference=result.loss,
                rejected_log_ratio=rejected,
                sft_nll=nll,
            )
            return (loss.mean(), policy) if return_outputs else loss.mean()

        def _note(self, **values: Tensor) -> None:
            for name, value in values.items():
                self.seen.setdefault(name, []).append(value.detach().mean())

        def log(self, logs, *args, **options):
            if "loss" in logs:
                logs = logs | {name: torch.stack(values).mean().item() for name, values in self.seen.items()}
                self.seen = {}
            super().log(logs, *args, **options)

    return PreferenceTrainer
