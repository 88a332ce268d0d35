"""Prompts and queries of different lengths as tensors of one shape.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Prompt = Sequence[int] | Sequence[Sequence[int]]
"""One encoder input: a token, or the tokens of an item that share a vector, at each position."""


def pad(sequences: Sequence[Prompt], value: int, multiple: int = 1) -> Tensor:
    """Stack sequences of different lengths, the short ones filled up on the right.

    Args:
        sequences: B lists of ids, or of lists of ids.
        value: what to fill with.
        multiple: the number of positions is rounded up to a multiple of this.

    Returns:
        Ids of shape (B, P); (B, P, W) for lists of lists, W ids at most in each.
    """
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    positions = max(int(lengths.max(initial=1)), 1)
    positions = -(-positions // multiple) * multiple
    held = np.arange(positions) < lengths[:, None]  # (B, P)
    items = [item for sequence in sequences for item in sequence]
    if not items or isinstance(items[0], int | np.integer):
        rows = np.full(held.shape, value, np.int64)
        rows[held] = items
    else:
        widths = np.fromiter(map(len, items), np.int64, len(items))
        rows = np.full((*held.shape, max(int(widths.max()), 1)), value, np.int64)
        inside = np.zeros(rows.shape, bool)
        inside[held] = np.arange(rows.shape[2]) < widths[:, None]
        rows[inside] = [token for item in items for token in item]
    return torch.from_numpy(rows)


def collate_prompts(prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor]:
    """Stack prompts into a batch.

    Args:
        prompts: B prompts, all flat or all with several tokens a position.
        pad_id: id of the padding token.

    Returns:
        ``input_ids`` (B, P) or (B, P, W), and ``attention_mask`` (B, P), 1 where a prompt has a position. P is a
        multiple of 4: few distinct shapes let the processor's matrix library reuse what it has compiled.
    """
    input_ids = pad(prompts, pad_id, multiple=4)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return input_ids, (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()


def collate(prompts: Sequence[Prompt], targets: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Make a batch for training.

    Args:
        prompts: B encoder inputs.
        targets: queries, B or a multiple of it.
        pad_id: id of the padding token.

    Returns:
        ``input_ids`` and ``attention_mask`` as of :func:`collate_prompts`, and ``labels`` (B, T), -100 where nothing is
        to be learnt.
    """
    input_ids, mask = collate_prompts(prompts, pad_id)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": pad(targets, -100)}
