r"""Beam search: from a prompt to the most probable token sequences.

A query's score is its log-probability, :math:`\sum_t \log \pi_\theta(q_t \mid q_{<t}, x)`, without any
correction for its length. 32 beams run side by side and 16 queries come out.

The search does what ``transformers``' ``generate`` does and returns the same, several times faster: the first step runs
one row per request instead of 32 equal ones, beams that can no longer win and requests that are done are left out, and
only the best blocks of continuations are sorted. What the model is, :class:`onesug_lite.packed.BartRun` and
:class:`onesug_lite.causal.CausalRun` hide: ``logits`` of the next tokens, ``keep`` of requests, ``follow`` of beams.

With a trie of known queries only their tokens are continuations. A score stays what the model says of the query among
all texts, unless ``among_known`` asks for probabilities among known queries.

Source: paper, section "One encoder-decoder" (32 -> 16) [third-party notes]; the trie is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onesug_lite.causal import CausalModel
from onesug_lite.packed import BLOCK, IMPOSSIBLE, PackedBart, fill
from onesug_lite.trie import Trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DecodeConfig:
    """Width and depth of the search.

    Raises:
        ValueError: settings that contradict each other.
    """

    beams: int = 32  # paper: 32 [third-party notes]
    results: int = 16  # paper: 16 queries shown
    max_new_tokens: int = 16  # ours: end of sequence included
    known: bool = False  # ours: write queries of a trie alone; the paper decodes freely
    among_known: bool = False  # ours: probabilities among what continues a known query, as losses.known trains them

    def __post_init__(self) -> None:
        if not 1 <= self.results <= self.beams:
            raise ValueError(f"results is {self.results} and beams {self.beams}; expected 1 <= results <= beams")
        if self.among_known and not self.known:
            raise ValueError("among_known is set without known; set both, or neither")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")


def searchable(model: PreTrainedModel) -> bool:
    """Whether our search knows the architecture: BART, or any decoder-only model."""
    return not model.config.is_encoder_decoder or model.config.model_type == "bart"


def check_trie(config: DecodeConfig, trie: Trie | None) -> None:
    """Refuse a trie that the config does not ask for, and the reverse.

    Raises:
        ValueError: ``config.known`` and the trie do not go together.
    """
    if config.known != (trie is not None):
        raise ValueError(f"known is {config.known} and there is {'a' if trie else 'no'} trie; give both, or neither")


class Beams(NamedTuple):
    """What a search returns, best first.

    Attributes:
        tokens: (B, R, T) ids without the decoder's start token; padding after the end of sequence. A query
            that met ``max_new_tokens`` has no end of sequence.
        scores: (B, R) log-probabilities in nats, below -1e8 where there are no more queries.
    """

    tokens: Tensor
    scores: Tensor


class Continuations(NamedTuple):
    """The 2K best continuations of every request: (A, 2K) scores, the beams they continue and their tokens."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor


class BeamSearcher:
    """A model, prepared for beam search.

    BART's weights are packed, which copies them, so make a new searcher after training.

    Args:
        model: a BART encoder-decoder, or any decoder-only model.
        config: width and depth of the search.
        trie: of the known queries, for ``config.known``.

    Raises:
        ValueError: when the model is of another architecture (``reference_search`` takes any), when it names no single
            end or padding token, when the vocabulary is not larger than the number of beams, when ``max_new_tokens``
            exceeds the model's positions, or when ``config.known`` and the trie do not go together.
    """

    def __init__(self, model: PreTrainedModel, config: DecodeConfig, trie: Trie | None = None):
        shape = model.config
        if not searchable(model):
            raise ValueError(
                f"beam_search knows the architecture 'bart' and the model is {shape.model_type!r}; "
                "use reference_search, which takes any encoder-decoder"
            )
        for name in ("pad_token_id", "eos_token_id"):
            if not isinstance(getattr(shape, name), int):
                raise ValueError(f"{name} of the model's config is {getattr(shape, name)}; set it to one token's id")
        if shape.vocab_size <= config.beams:
            raise ValueError(f"{config.beams} beams need more than that many tokens; the model has {shape.vocab_size}")
        if config.max_new_tokens > shape.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens is {config.max_new_tokens} and the model has {shape.max_position_embeddings} positions"
            )
        check_trie(config, trie)
        if trie is not None and trie.end != shape.eos_token_id:
            raise ValueError(f"known queries end in token {trie.end} and the model's end is {shape.eos_token_id}")
        self.pad, self.eos = shape.pad_token_id, shape.eos_token_id
        # A decoder-only model writes behind the prompt, so both share its positions.
        self.positions = shape.max_position_embeddings - (0 if shape.is_encoder_decoder else config.max_new_tokens)
        self.vocabulary = shape.vocab_size + fill(shape.vocab_size)
        self.model = PackedBart(model) if shape.is_encoder_decoder else CausalModel(model)
        self.config, self.trie = config, None if trie is None else trie.to(self.model.device)

    @torch.inference_mode()
    def search(self, input_ids: Tensor, attention_mask: Tensor, results: int | None = None) -> Beams:
        """Find the best queries of every request; see ``beam_search``.

        Args:
            input_ids: (B, P) or (B, P, W) prompts, padded on the right.
            attention_mask: (B, P), 1 where a prompt has a position.
            results: how many to return, ``config.results`` by default, at most ``config.beams``.

        Returns:
            The queries and their scores, best first.

        Raises:
            ValueError: when the prompts are longer than the model's positions.
        """
        beams, steps = self.config.beams, self.config.max_new_tokens
        results = self.config.results if results is None else results
        requests, device = len(input_ids), input_ids.device
        if input_ids.shape[1] > self.positions:  # perhaps of padding alone
            longest = int(attention_mask.sum(dim=1).max())
            if longest > self.positions:
                raise ValueError(f"prompts of {longest} tokens and {self.positions} positions; shorten the prompts")
            input_ids, attention_mask = input_ids[:, :longest], attention_mask[:, :longest]
        run = self.model.begin(input_ids, attention_mask)

        # The best finished queries of all requests; the running ones of `active`, those not done yet. Token -1 is
        # nothing: a model may end and pad with the same token.
        done_tokens = torch.full((requests, results, steps), -1, device=device)  # (B, R, T)
        done_scores = torch.full((requests, results), IMPOSSIBLE, device=device)  # (B, R)
        active = torch.arange(requests, device=device)
        tokens = torch.full((requests, 1, steps), -1, device=device)
        scores = torch.zeros((requests, 1), device=device)
        nodes = torch.zeros((requests, 1), dtype=torch.int64, device=device)  # of the trie
        last = torch.full((requests,), self.model.start, device=device)

        # Written anew at each step; fresh memory would cost more than computing what goes into it.
        logits = torch.empty((requests * beams, self.vocabulary), dtype=self.model.dtype, device=device)
        log_probs = torch.empty_like(logits, dtype=torch.float32)

        for step in range(steps):
            running = scores.shape[1]  # one at the first step, then as many as can still win, at most K
            rows = len(last)
            run.logits(last, step, running, logits[:rows])
            if self.trie is None:
                best, parents, ids = self._best(logits[:rows], scores, log_probs[:rows])
            else:
                best, parents, ids = self._best_known(logits[:rows], scores, nodes, log_probs[:rows])
            ended = torch.ones_like(ids, dtype=torch.bool) if step == steps - 1 else ids == self.eos

            # A query that ends joins the finished ones only when it is among the `beams` best continuations.
            finishing = ended[:, :beams]
            if finishing.any():
                fresh = tokens.gather(1, parents[:, :beams, None].expand(-1, -1, steps))
                fresh[:, :, step] = ids[:, :beams]
                candidates = torch.where(finishing, best[:, :beams], IMPOSSIBLE)
                merged_scores = torch.cat([done_scores[active], candidates], dim=1)
                merged_tokens = torch.cat([done_tokens[active], fresh], dim=1)
                top_scores, top = merged_scores.topk(results, dim=1)
                done_scores[active] = top_scores
                done_tokens[active] = merged_tokens.gather(1, top[:, :, None].expand(-1, -1, steps))
            if step == steps - 1:
                break

            # Of the 2K best continuations at most K end, so K are left to go on with.
            scores, chosen = (best + ended * IMPOSSIBLE).topk(beams, dim=1)  # (A, K)
            parents, ids = parents.gather(1, chosen), ids.gather(1, chosen)
            rows = torch.arange(len(active), device=device)[:, None] * running + parents  # where the past lies
            # Scores only fall: a running query that does not beat the worst of R finished ones is lost, and
            # without a running query a request is done. generate goes on until K have finished, but of those
            # only R are returned, and a lost query ranks below all that matter. Scores are sorted, so the
            # lost ones are the last.
            alive = scores > done_scores[active].min(dim=1, keepdim=True).values  # (A, K)
            going_on = alive[:, 0]
            if not going_on.all():
                if not going_on.any():
                    break
                active, scores, alive, nodes = active[going_on], scores[going_on], alive[going_on], nodes[going_on]
                tokens, ids, parents, rows = (kept[going_on] for kept in (tokens, ids, parents, rows))
                run.keep(going_on)
            width = int(alive.sum(dim=1).max())
            scores, ids, parents, rows = (kept[:, :width] for kept in (scores, ids, parents, rows))
            tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, steps))
            tokens[:, :, step] = ids
            if self.trie is not None:
                nodes = self.trie.follow(nodes.gather(1, parents), ids)
            last = ids.flatten()
            run.follow(rows.flatten())

        done_tokens.masked_fill_((done_scores <= IMPOSSIBLE)[:, :, None], -1)
        length = int((done_tokens >= 0).sum(dim=2).max())
        done_tokens = done_tokens[:, :, :length]
        return Beams(done_tokens.masked_fill(done_tokens < 0, self.pad), done_scores)

    def _best(self, logits: Tensor, scores: Tensor, log_probs: Tensor) -> Continuations:
        """The best continuations, the logarithms of all probabilities written to ``log_probs`` (rows, V).

        The tokens of a beam are dealt into blocks. The 2K best continuations lie in the 2K blocks with the
        highest maxima, so only those are sorted; sorting all K * V takes several times as long.
        """
        torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=log_probs)
        requests, running = scores.shape
        keep = 2 * self.config.beams
        blocks = self.vocabulary // BLOCK
        if running * blocks <= keep:
            totals = (log_probs.view(requests, running, -1) + scores[:, :, None]).flatten(1)
            best, index = totals.topk(min(keep, totals.shape[1]), dim=1)
            return Continuations(best, index // self.vocabulary, index % self.vocabulary)
        dealt = log_probs.view(requests, running, BLOCK, blocks)
        maxima = (dealt.amax(dim=2) + scores[:, :, None]).flatten(1)  # (A, running * blocks)
        top = maxima.topk(keep, dim=1, sorted=False).indices  # (A, 2K)
        beam, block = top // blocks, top % blocks
        offsets = torch.arange(BLOCK, device=top.device) * blocks
        index = (beam * self.vocabulary + block)[:, :, None] + offsets  # (A, 2K, BLOCK)
        totals = log_probs.view(requests, -1).gather(1, index.flatten(1)).view(index.shape)
        totals = (totals + scores.gather(1, beam)[:, :, None]).flatten(1)
        best, place = totals.topk(keep, dim=1)
        index = index.flatten(1).gather(1, place)
        return Continuations(best, index // self.vocabulary, index % self.vocabulary)

    def _best_known(self, logits: Tensor, scores: Tensor, nodes: Tensor, log_probs: Tensor) -> Continuations:
        """The best continuations among the few that the trie has, -inf where there are fewer than 2K."""
        children, there = self.trie.children(nodes.flatten())  # (rows, C): seldom more than a few a row
        if self.config.among_known:
            known = logits.gather(1, children).masked_fill_(~there, -math.inf).log_softmax(dim=1, dtype=torch.float32)
        else:
            torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=log_probs)
            known = log_probs.gather(1, children)
        totals = known.view(*scores.shape, -1) + scores[:, :, None]  # (A, running, C)
        totals = totals.masked_fill_(~there.view(totals.shape), -math.inf).flatten(1)
        missing = max(0, 2 * self.config.beams - totals.shape[1])
        best, index = F.pad(totals, (0, missing), value=-math.inf).topk(2 * self.config.beams, dim=1)
        index = index.clamp(max=totals.shape[1] - 1)  # the added ones are somewhere too
        width = children.shape[1]
        return Continuations(best, index // width, children.view(len(scores), -1).gather(1, index))


def beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: DecodeConfig,
    trie: Trie | None = None,
) -> Beams:
    """Search the best queries of a batch of prompts.

    Each step continues every running query by every token and keeps the ``beams`` best continuations that go
    on; those that end are set aside. A request is done when no running query can beat its worst finished one.

    Args:
        model: a BART encoder-decoder or a decoder-only model; for many calls, make one ``BeamSearcher`` and call its
            ``search``.
        input_ids: (B, P) or (B, P, W) prompts, padded on the right.
        attention_mask: (B, P), 1 where a prompt has a position.
        config: width and depth.
        trie: of the known queries, for ``config.known``.

    Returns:
        The queries of ``reference_search``, their scores equal up to rounding.

    Raises:
        ValueError: as ``BeamSearcher`` does, or when the prompts are longer than the model's positions.

    Source: paper, section "One encoder-decoder" [third-party notes].
    """
    return BeamSearcher(model, config, trie).search(input_ids, attention_mask)
