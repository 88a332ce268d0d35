r"""Beam search for one request, over the exported graphs: the queries and scores of :mod:`onesug_lite.beam`, sooner.

A single request is too small to keep a processor busy: between matrix products :mod:`onesug_lite.beam` starts hundreds
of small tensor operations a step, each of which costs microseconds whatever its size. Here a step is one call of
``onnxruntime``, which joins operations and keeps the weights in the order in which it multiplies them, and the
bookkeeping is a few calls of numpy. What is pruned is the same: see :mod:`onesug_lite.beam`. So is decoding over a trie
of known queries, where a step looks at the few tokens that continue one instead of at the whole vocabulary.

For batches use :mod:`onesug_lite.beam`, where large products hide what the small operations cost.

Source: ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from onesug_lite.beam import Beams, DecodeConfig, check_trie
from onesug_lite.onnx_export import OnnxGenerator
from onesug_lite.packed import BLOCK, IMPOSSIBLE
from onesug_lite.trie import Trie


class _Best(NamedTuple):
    """At most 2K continuations, best first: their scores, the beams that they continue, and their tokens; (N,) each."""

    scores: np.ndarray
    parents: np.ndarray
    tokens: np.ndarray


class FastSearcher:
    """A search for one request at a time.

    Args:
        graphs: an exported generator.
        config: width and depth.
        trie: of the known queries, for ``config.known``.

    Raises:
        ValueError: there are not more tokens than beams, ``max_new_tokens`` exceeds the model's positions, or
            ``config.known`` and the trie, or the trie and the model, do not go together.
    """

    def __init__(self, graphs: OnnxGenerator, config: DecodeConfig, trie: Trie | None = None):
        check_trie(config, trie)
        end, vocabulary = graphs.settings["end"], graphs.settings["tokens"]
        if trie is not None and (trie.end != end or trie.vocabulary > vocabulary):
            raise ValueError(
                f"the trie has {trie.vocabulary} tokens and ends in {trie.end}, the model has {vocabulary} and ends "
                f"in {end}; make the trie with the model's tokeniser"
            )
        if graphs.settings["tokens"] <= config.beams:
            raise ValueError(
                f"{config.beams} beams need more than that many tokens; the model has {graphs.settings['tokens']}"
            )
        if config.max_new_tokens > graphs.settings["positions"]:
            raise ValueError(
                f"max_new_tokens is {config.max_new_tokens} and the model has {graphs.settings['positions']} positions"
            )
        self.graphs, self.config, self.trie = graphs, config, trie
        self.pad, self.eos, self.start = (graphs.settings[name] for name in ("pad", "end", "start"))

    def search(self, input_ids: Tensor, attention_mask: Tensor, results: int | None = None) -> Beams:
        """The best queries of one request.

        Args:
            input_ids: (1, P) or (1, P, W) prompt.
            attention_mask: (1, P).
            results: how many to return, ``config.results`` by default.

        Returns:
            As :meth:`onesug_lite.beam.BeamSearcher.search`.

        Raises:
            ValueError: more than one request, or a prompt longer than the model's positions.
        """
        if len(input_ids) != 1:
            raise ValueError(f"FastSearcher takes one request and was given {len(input_ids)}; use BeamSearcher")
        positions = self.graphs.settings["positions"]
        if input_ids.shape[1] > positions:  # perhaps of padding alone
            longest = int(attention_mask.sum())
            if longest > positions:
                raise ValueError(
                    f"the prompt has {longest} positions and the model has {positions}; shorten the prompt"
                )
            input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
        beams, steps = self.config.beams, self.config.max_new_tokens
        results = self.config.results if results is None else results
        mask = attention_mask.numpy()
        cross = self.graphs.encode(input_ids.numpy(), mask)
        past = self.graphs.empty(1)
        tokens, rows = np.array([self.start]), np.zeros(1, np.int64)
        scores, written = np.zeros(1, np.float32), np.zeros((1, 0), np.int64)
        nodes = np.zeros(1, np.int64)  # of the trie
        done: list[tuple[float, list[int]]] = []  # the best finished queries, best first
        for step in range(steps):
            log_probs, past = self.graphs.step(tokens, rows, past, cross, mask)
            best = self._best(log_probs, scores) if self.trie is None else self._best_known(log_probs, scores, nodes)
            ended = best.tokens == self.eos if step < steps - 1 else np.ones(len(best.tokens), bool)
            for place in np.flatnonzero(ended[:beams]).tolist():
                ids = [*written[best.parents[place]].tolist(), int(best.tokens[place])]
                done.append((float(best.scores[place]), ids))
            done.sort(key=lambda query: -query[0])
            del done[results:]
            worst = done[-1][0] if len(done) == results else IMPOSSIBLE / 2
            kept = np.flatnonzero(~ended & (best.scores > worst))[:beams]
            if not len(kept):
                break
            scores, tokens, rows = best.scores[kept], best.tokens[kept], best.parents[kept]
            written = np.concatenate([written[rows], tokens[:, None]], axis=1)
            if self.trie is not None:
                nodes = self.trie.follow(*map(torch.from_numpy, (nodes[rows], tokens))).numpy()
        found = np.full((1, results, max((len(ids) for _, ids in done), default=0)), self.pad)
        found_scores = np.full((1, results), IMPOSSIBLE, np.float32)
        for place, (score, ids) in enumerate(done):
            found[0, place, : len(ids)], found_scores[0, place] = ids, score
        return Beams(torch.from_numpy(found), torch.from_numpy(found_scores))

    def _best(self, log_probs: np.ndarray, scores: np.ndarray) -> _Best:
        """The best continuations of the beams (R,) by (R, V); as ``BeamSearcher._best``, blocks first."""
        keep, (running, vocabulary) = 2 * self.config.beams, log_probs.shape
        blocks = vocabulary // BLOCK
        dealt = log_probs.reshape(running, BLOCK, blocks)
        maxima = (dealt.max(axis=1) + scores[:, None]).ravel()
        top = _largest(maxima, keep)
        beam, block = np.divmod(top, blocks)
        totals = (dealt[beam, :, block] + scores[beam, None]).ravel()  # (N * BLOCK,)
        chosen = _best_first(totals, keep)
        at, inside = np.divmod(chosen, BLOCK)
        return _Best(totals[chosen], beam[at], inside * blocks + block[at])

    def _best_known(self, log_probs: np.ndarray, scores: np.ndarray, nodes: np.ndarray) -> _Best:
        """The best continuations of the beams (R,) at nodes (R,) of the trie; as ``BeamSearcher._best_known``."""
        children, there = (part.numpy() for part in self.trie.children(torch.from_numpy(nodes)))  # (R, C)
        known = np.where(there, np.take_along_axis(log_probs, children, axis=1), -np.inf)
        if self.config.among_known:  # no running query is without a continuation: each is the beginning of one
            known -= np.logaddexp.reduce(known, axis=1, keepdims=True)
        totals = (known + scores[:, None])[there]
        row, column = np.nonzero(there)
        chosen = _best_first(totals, 2 * self.config.beams)
        row, column = row[chosen], column[chosen]
        return _Best(totals[chosen], row, children[row, column])


def _largest(values: np.ndarray, number: int) -> np.ndarray:
    """Places of the largest values, in any order."""
    if len(values) <= number:
        return np.arange(len(values))
    return np.argpartition(values, -number)[-number:]


def _best_first(values: np.ndarray, number: int) -> np.ndarray:
    """Places of the largest values, the largest first."""
    chosen = _largest(values, number)
    return chosen[np.argsort(-values[chosen], kind="stable")]
