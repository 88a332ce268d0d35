r"""Preference training: one round of reward-weighted ranking turns a seed model into its successor.

Every recipe here is a row of settings of one loop (:class:`onesug_lite.losses.PreferenceConfig`): the paper's losses,
plain DPO, list-wise ranking without a reference model, and likelihood that counts a click by its worth or by how rarely
its query was shown.

Source: paper, section RWR; training loop of the authors' public repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from onesug_lite.batches import Prompt, collate
from onesug_lite.generator import query_logits
from onesug_lite.losses import PreferenceConfig, listwise_loss, pairwise_loss, sequence_log_probs
from onesug_lite.prompt import PromptConfig, encode_queries
from onesug_lite.reward import LEVELS, PreferenceSets
from onesug_lite.trainer import Steps, TrainResult, bf16_pays, fingerprint, run_trainer
from onesug_lite.training import Examples, check_examples, plan_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onesug_lite.trie import Trie


def candidate_log_probs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Log-probabilities of several queries for each request, its prompt being encoded once.

    Args:
        model: of either architecture.
        input_ids: (B, P) or (B, P, W) prompts.
        attention_mask: (B, P), 0 at padding.
        labels: (B * C, T) the C queries of request 0, then those of request 1; -100 at padding.
        allowed: (B * C, T, V) tokens among which the probability is; all when not given.

    Returns:
        (B, C) nats.
    """
    logits = query_logits(model, input_ids, attention_mask, labels)  # (B * C, T, V)
    return sequence_log_probs(logits, labels, allowed).view(len(input_ids), -1)


def example_weights(rows: pl.DataFrame, config: PreferenceConfig) -> np.ndarray:
    r"""What each row counts in the loss, its preference term and its anchor alike.

    ``level``: :math:`\exp(c(\lambda - 1))` of the click's base reward :math:`\lambda`; an order counts more.

    ``propensity``: :math:`\min(1 / \mu(q, k|x), \mathrm{clip})`, one over the probability that the policy which wrote
    the log put this query at the place of the click. A click on what is rarely shown stands for those that were not
    to be had. Reading is not divided out: a log does not hold it, and it need not. The policy we write for, one that
    puts every query at every place equally often, is read at a place as the logging one was, so in the quotient of
    the two only :math:`\mu` remains (the item-position estimator of offline evaluation). Where every query can come
    to every place, the expected weight of its clicks is then proportional to how well it is liked once read. Two
    limits: a query that only ever comes to some places is made up for at these alone, and the clip, which tames the
    variance, gives back part of the bias.

    Either is divided by its mean over all rows, so that learning rates keep their meaning.

    Args:
        rows: preference rows with ``chosen_behaviour`` and, for ``propensity``, that column.
        config: see there.

    Returns:
        (N,) float32 with mean 1.

    Raises:
        ValueError: a propensity is asked for and unknown.

    Source:
        Ours; controls that the paper does not report. The estimator: Li et al., Offline evaluation of ranking policies
        with click models, KDD 2018.
    """
    if config.example_weight == "none":
        return np.ones(len(rows), np.float32)
    if config.example_weight == "level":
        level = np.array([LEVELS[name] for name in rows["chosen_behaviour"].to_list()])
        weight = np.exp(config.level_scale * (level - 1))
    else:
        unknown = rows["propensity"].is_null().sum() if "propensity" in rows.columns else len(rows)
        if unknown:
            raise ValueError(
                f"example_weight is 'propensity' and {unknown} of {len(rows)} clicks have none; the log's table "
                "candidates needs its optional column 'propensity' (see onesug_lite.log)"
            )
        weight = np.minimum(1 / rows["propensity"].to_numpy(), config.clip)
    return (weight / weight.mean()).astype(np.float32)


def train_preference(
    model: PreTrainedModel,
    sets: PreferenceSets,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    config: PreferenceConfig,
    seed: int,
    work: Path,
    prompt: PromptConfig | None = None,
    trie: Trie | None = None,
) -> TrainResult:
    r"""One round of reward-weighted ranking: the seed model :math:`M_t` becomes :math:`M_{t+1}`.

    The reference is the model as it is given; its log-probabilities are computed once before training instead
    of in every step. The anchor is the log-probability of the whole chosen query (a sum over its tokens), as
    printed, so a longer query weighs more. Dropout is off: the log-ratio compares one policy with one
    reference, and a policy that drops units at random differs from its own seed before it has learnt
    anything, by noise that passes for preference.

    Checkpoints, interruption and reproducibility are those of :func:`onesug_lite.training.train_supervised`.

    Args:
        model: the seed model; trained in place, on one device.
        sets: N chosen queries with their rejected ones and weights.
        prompts: N encoder inputs, the prompt of each row of ``sets``.
        tokenizer: the model's own.
        config: see :class:`PreferenceConfig`.
        seed: of the data order.
        work: folder for the checkpoints.
        prompt: ``query_tokens`` is read; the defaults when not given.
        trie: of the known queries, read with ``config.known``.

    Returns:
        The model, seconds, and a history with the columns ``step``, ``loss``, ``accuracy`` (share of rejected
        queries that the chosen one leads), ``chosen_log_ratio``, ``margin`` (mean lead in implicit reward),
        ``preference`` (the loss without its anchor), ``rejected_log_ratio`` and ``sft_nll`` (nats a chosen
        query), each the mean over the last ``log_every`` steps; ``loss`` alone counts rows by their weight. A
        ``chosen_log_ratio`` below 0 is displacement: the chosen queries have become less likely than the seed model
        found them. Without a reference, both log-ratios are log-probabilities, and displacement is their fall since
        the first row; a supervised loss scores no rejected query and watches ``sft_nll`` alone, whose rise it is.

    Raises:
        ValueError: ``config.known`` without a trie or with a query that it does not hold, propensities asked for and
            unknown, no rows, prompts and rows differ in number, rows with different numbers of rejected queries, or a
            sequence longer than the model's positions.

    Source:
        Paper, section RWR; training loop of the authors' public repository.
    """
    rows = sets.rows
    if config.known and trie is None:
        raise ValueError("config.known is set and no trie of known queries was given; pass trie, or set known=False")
    if len(prompts) != len(rows):
        raise ValueError(f"{len(prompts)} prompts and {len(rows)} preference rows; expected one prompt for each row")
    if not len(rows):
        raise ValueError("no preference rows to train on; expected at least one clicked query in the training days")
    sizes = rows["rejected"].list.len().unique().sort().to_list()
    if len(sizes) > 1 or sizes[0] == 0:
        raise ValueError(f"rows have {sizes} rejected queries; expected the same number, 1 or more, in each row")
    counts = example_weights(rows, config)

    plan = plan_batches(np.array([len(ids) for ids in prompts]), config, seed)  # (steps, batch_size)
    used, plan = np.unique(plan, return_inverse=True)  # rows that no step reads cost nothing
    plan = plan.reshape(config.steps, config.batch_size)
    rows, counts = rows[used], counts[used]
    prompts = [prompts[row] for row in used]
    rejected = sizes[0] if config.loss != "supervised" else 0  # what the loss does not read is not scored
    texts = [[chosen, *others[:rejected]] for chosen, others in rows.select("chosen", "rejected").iter_rows()]
    ids = encode_queries(tokenizer, [text for row in texts for text in row], prompt or PromptConfig())
    targets = [ids[start : start + 1 + rejected] for start in range(0, len(ids), 1 + rejected)]  # chosen first
    weight = np.array(rows["weight"].to_list(), dtype=np.float32)[:, :rejected]  # (N, K)
    check_examples(model, Examples(prompts, [max(row, key=len) for row in targets]))

    def batch(which: np.ndarray) -> dict[str, Tensor]:
        flat = [query for row in which for query in targets[row]]
        tensors = collate([prompts[row] for row in which], flat, model.config.pad_token_id)
        if config.known:
            tensors["allowed"] = trie.allowed(tensors["labels"], model.config.vocab_size)
        return tensors

    bf16 = bf16_pays() if config.bf16 is None else config.bf16
    reference = torch.zeros(len(rows), 1 + rejected)
    if config.reference and config.loss != "supervised":
        reference = _reference(model, [len(ids) for ids in prompts], batch, config.batch_size, bf16)  # (N, 1 + K)

    def step(number: int) -> dict[str, Tensor]:
        which = plan[number]
        arrays = {"weight": weight[which], "counts": counts[which]}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return batch(which) | tensors | {"reference": reference[which]}

    run = fingerprint(
        model, config, seed, prompts, [query for row in targets for query in row], weight, counts, reference.numpy()
    )
    return run_trainer(_loss(config), model, Steps(config.steps, step), config, seed, work, run)


def _loss(config: PreferenceConfig):
    """Loss of a batch and the numbers that its history watches."""

    def loss(model, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        model.eval()  # no dropout; gradients flow all the same
        reference, weight, counts = (inputs.pop(name) for name in ("reference", "weight", "counts"))
        policy = candidate_log_probs(model, **inputs)  # (B, 1 + K)
        nll = -policy[:, 0]
        if config.loss == "supervised":
            return (config.alpha * nll * counts).mean(), {"sft_nll": nll}
        ratio = scores = policy - reference
        if config.length_normalised:
            scores = ratio / (inputs["labels"] != -100).sum(dim=1).view(ratio.shape)
        function = pairwise_loss if config.loss == "pairwise" else listwise_loss
        result = function(scores[:, 0], scores[:, 1:], weight, config)
        watched = {
            "accuracy": (result.margin > 0).float(),
            "chosen_log_ratio": ratio[:, 0],
            "margin": result.margin,
            "preference": result.loss,
            "rejected_log_ratio": ratio[:, 1:],
            "sft_nll": nll,
        }
        return ((config.alpha * nll + result.loss) * counts).mean(), watched

    return loss


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
