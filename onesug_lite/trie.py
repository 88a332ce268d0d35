"""A trie of known queries: which tokens may follow so that a text stays the beginning of one of them.

Decoding over it writes known queries alone, and training may take probabilities among its continuations only.

Source: ours; the paper decodes freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onesug_lite.batches import pad
from onesug_lite.prompt import PromptConfig, encode_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Trie:
    """Token sequences, merged where they begin alike; node 0 is the empty text, node -1 what is no beginning.

    An edge is kept as ``node * vocabulary + token``, all in order, and edge i leads to node i + 1: the children of a
    node are a run of edges, and a child is found by bisection, for many nodes at a time.

    Args:
        sequences: the queries' tokens, each ending in the end of sequence, as ``encode_queries`` gives them.
        vocabulary: tokens there are.

    Attributes:
        end: the token that all sequences end in.

    Raises:
        ValueError: no sequence, an empty one, one that ends in another token, or a token outside the vocabulary.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocabulary: int):
        if not len(sequences) or not all(map(len, sequences)):
            raise ValueError("a trie needs one or more known queries, none of them empty; give those of the log")
        tokens = pad(sequences, -1).numpy()  # (N, T)
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        held = np.arange(tokens.shape[1]) < lengths[:, None]
        low, high = tokens[held].min(), tokens.max()
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise ValueError(f"a known query has token {wrong}; expected tokens from 0 on and below {vocabulary}")
        ends = np.unique(tokens[np.arange(len(tokens)), lengths - 1])
        if len(ends) > 1:
            raise ValueError(f"known queries end in tokens {ends[:3].tolist()}; close each with the end of sequence")
        self.vocabulary, self.end = vocabulary, int(ends[0])

        edges, known = [], 0
        rows, nodes = np.arange(len(tokens)), np.zeros(len(tokens), np.int64)  # of the queries that go on
        for place, column in enumerate(tokens.T):
            going_on = lengths[rows] > place
            rows, nodes = rows[going_on], nodes[going_on]
            found, which = np.unique(nodes * vocabulary + column[rows], return_inverse=True)
            edges.append(found)
            nodes = known + 1 + which
            known += found.size
        self._edges = torch.from_numpy(np.concatenate(edges))
        bounds = np.searchsorted(self._edges.numpy(), np.arange(known + 2) * vocabulary)
        self._first, self._number = torch.from_numpy(bounds[:-1]), torch.from_numpy(np.diff(bounds))

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self._edges) + 1

    def to(self, device: torch.device) -> Trie:
        """The same trie with its tensors on a device."""
        moved = object.__new__(Trie)
        vars(moved).update({name: v.to(device) if isinstance(v, Tensor) else v for name, v in vars(self).items()})
        return moved

    def follow(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Children of nodes, of the same shape; -1 where no known query goes on so, or a node is -1 already."""
        key = nodes * self.vocabulary + tokens  # below 0 for node -1: no edge
        at = torch.searchsorted(self._edges, key.contiguous()).clamp(max=len(self._edges) - 1)
        real = (tokens >= 0) & (tokens < self.vocabulary)
        return torch.where((self._edges[at] == key) & real, at + 1, -1)

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that may follow, as a table.

        Args:
            nodes: (N,) nodes; -1 has no children.

        Returns:
            (N, C) tokens, C being the most that one of these nodes has and at least 1, and (N, C) which are there.
        """
        number = torch.where(nodes >= 0, self._number[nodes], 0)
        place = torch.arange(max(1, int(number.max())), device=nodes.device)
        edge = (self._first[nodes][:, None] + place).clamp(max=len(self._edges) - 1)
        return self._edges[edge] % self.vocabulary, place < number[:, None]

    def mask(self, nodes: Tensor, width: int) -> Tensor:
        """(N, width) bool: which tokens may follow nodes (N,); none behind -1 and behind an end."""
        found = torch.zeros(len(nodes), width, dtype=torch.bool, device=nodes.device)
        # A run of edges a node, all runs in one row: a table as wide as the root's would be mostly empty.
        number = torch.where(nodes >= 0, self._number[nodes], 0)
        row = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), number)
        inside = torch.arange(len(row), device=nodes.device) - (number.cumsum(0) - number)[row]
        found[row, self._edges[self._first[nodes][row] + inside] % self.vocabulary] = True
        return found

    def allowed(self, labels: Tensor, width: int) -> Tensor:
        """Which tokens may stand at each place of known queries.

        Args:
            labels: (N, T) token ids, -100 at padding.
            width: tokens of the model, at least the trie's.

        Returns:
            (N, T, width) bool; padding allows all.

        Raises:
            ValueError: a row is not the beginning of a known query.
        """
        real = labels != -100
        node = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        found = torch.ones(*labels.shape, width, dtype=torch.bool, device=labels.device)
        for place in range(labels.shape[1]):
            here = real[:, place]
            found[here, place] = self.mask(node[here], width)
            node[here] = self.follow(node[here], labels[here, place])
        if (node < 0).any():
            row = labels[int((node < 0).nonzero()[0])]
            raise ValueError(f"tokens {row[row != -100].tolist()} are no known query; build the trie with it")
        return found


def trie_of(tokenizer: PreTrainedTokenizerBase, queries: Sequence[str], prompt: PromptConfig) -> Trie:
    """The trie of queries as a tokeniser writes them, cut as targets of training are.

    Args:
        tokenizer: the generator's.
        queries: known ones.
        prompt: ``query_tokens`` is read.
    """
    return Trie(encode_queries(tokenizer, queries, prompt), len(tokenizer))
