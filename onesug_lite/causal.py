"""Decoder-only models in the beam search: a prompt's keys and values are computed once, then token by token.

Source: paper, section "One encoder-decoder" (Qwen2.5 offline).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from onesug_lite.generator import prompt_vectors
from onesug_lite.packed import IMPOSSIBLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CausalModel:
    """Any of transformers' causal language models, as the search wants it.

    Args:
        model: decoder-only.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.pad, self.start = model.config.pad_token_id, model.config.eos_token_id
        self.dtype, self.device = model.dtype, model.device

    def begin(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CausalRun:
        """Read prompts; see :class:`CausalRun`."""
        return CausalRun(self.model, input_ids, attention_mask)


class CausalRun:
    """One search in progress; the methods are those of :class:`onesug_lite.packed.BartRun`.

    Args:
        model: decoder-only.
        input_ids: (A, P) or (A, P, W) prompts, padded on the right; the padding is masked and counts no place.
        attention_mask: (A, P).
    """

    def __init__(self, model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        self.model, self.mask = model, attention_mask
        self.length = attention_mask.sum(dim=1)  # (A,), later (rows,): the place of a query's first token
        self.cache = model(
            inputs_embeds=prompt_vectors(model, input_ids),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values

    def logits(self, last: torch.Tensor, step: int, running: int, out: torch.Tensor) -> None:
        """Read the last tokens (rows,) and write the scores of the next ones to ``out`` (rows, V)."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        found = self.model(
            inputs_embeds=prompt_vectors(self.model, last[:, None]),
            attention_mask=self.mask,
            position_ids=(self.length + step)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        out[:, : found.shape[1]] = found
        out[:, found.shape[1] :] = IMPOSSIBLE

    def keep(self, going_on: torch.Tensor) -> None:
        """Nothing is held by request: :meth:`follow` drops the rows of those that are done."""

    def follow(self, rows: torch.Tensor) -> None:
        """Go on with the queries that continue these rows."""
        self.cache.batch_select_indices(rows)
        self.mask, self.length = self.mask[rows], self.length[rows]
