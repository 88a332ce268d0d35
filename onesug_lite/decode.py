r"""Beam search: from a prompt to the best queries.

A query's score is its log-probability, :math:`\sum_t \log \pi_\theta(q_t \mid q_{<t}, x)`, without any
correction for its length. 32 beams run side by side and 16 queries come out.

``beam_search`` does what ``transformers``' ``generate`` does and returns the same, several times faster: the
encoder and the keys and values of cross-attention are computed once per request and shared by its beams, the
first step runs one row per request instead of 32 equal ones, beams that can no longer win and requests that
are done are left out, and the weights are packed once into few large matrices.

Source: paper, section "One encoder-decoder" (32 -> 16) [third-party notes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from onesug_lite.generator import pad
from onesug_lite.prompt import decode_queries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IMPOSSIBLE = -1.0e9  # what generate gives to a place without a query; kept so that results stay equal
_BLOCK = 32  # tokens that share one maximum in the search for the best continuations


@dataclass(frozen=True)
class DecodeConfig:
    """Width and depth of the search."""

    beams: int = 32  # paper: 32 [third-party notes]
    results: int = 16  # paper: 16 queries shown
    max_new_tokens: int = 16  # ours: end of sequence included

    def __post_init__(self) -> None:
        if not 1 <= self.results <= self.beams:
            raise ValueError(f"results is {self.results} and beams {self.beams}; expected 1 <= results <= beams")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")


class Beams(NamedTuple):
    """What a search returns, best first.

    Attributes:
        tokens: (B, R, T) ids without the decoder's start token; padding after the end of sequence. A query
            that met ``max_new_tokens`` has no end of sequence.
        scores: (B, R) log-probabilities in nats.
    """

    tokens: torch.Tensor
    scores: torch.Tensor


class _Attention(NamedTuple):
    """Weights of one attention block; the query's already hold the factor 1/sqrt(head size)."""

    w_in: torch.Tensor  # self: (3D, D) query, key, value; cross: (D, D) query
    b_in: torch.Tensor
    w_out: torch.Tensor  # (D, D)
    b_out: torch.Tensor
    norm: tuple[torch.Tensor, torch.Tensor, float]


class _FeedForward(NamedTuple):
    w_in: torch.Tensor  # (F, D)
    b_in: torch.Tensor
    w_out: torch.Tensor  # (D, F)
    b_out: torch.Tensor
    norm: tuple[torch.Tensor, torch.Tensor, float]


class BeamSearcher:
    """A model's weights, packed for beam search.

    Packing copies the weights, so make a new searcher after training.

    Args:
        model: a BART encoder-decoder.
        config: width and depth of the search.

    Raises:
        ValueError: when the model is of another architecture (``reference_search`` takes any), when the
            vocabulary is not larger than the number of beams, or when ``max_new_tokens`` exceeds the model's
            positions.
    """

    def __init__(self, model: PreTrainedModel, config: DecodeConfig):
        shape = model.config
        if shape.model_type != "bart":
            raise ValueError(
                f"beam_search knows the architecture 'bart' and the model is {shape.model_type!r}; "
                "use reference_search, which takes any encoder-decoder"
            )
        if shape.vocab_size <= config.beams:
            raise ValueError(f"{config.beams} beams need more than that many tokens; the model has {shape.vocab_size}")
        if config.max_new_tokens > shape.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens is {config.max_new_tokens} and the model has {shape.max_position_embeddings} positions"
            )
        self.config = config
        self.width, self.heads = shape.d_model, shape.decoder_attention_heads
        self.encoder_heads = shape.encoder_attention_heads
        self.pad, self.eos, self.start = shape.pad_token_id, shape.eos_token_id, shape.decoder_start_token_id
        self.positions = shape.max_position_embeddings
        with torch.inference_mode():
            self._pack(model)

    def _pack(self, model: PreTrainedModel) -> None:
        encoder, decoder = model.model.encoder, model.model.decoder
        self.activation = encoder.layers[0].activation_fn if len(encoder.layers) else None
        self.encoder_layers = [
            (_pack_self(layer.self_attn, layer.self_attn_layer_norm), _pack_feed_forward(layer))
            for layer in encoder.layers
        ]
        self.decoder_layers = [
            (
                _pack_self(layer.self_attn, layer.self_attn_layer_norm),
                _pack_cross(layer.encoder_attn, layer.encoder_attn_layer_norm),
                _pack_feed_forward(layer),
            )
            for layer in decoder.layers
        ]
        # Keys and values of cross-attention, all layers in one product: (2LD, D).
        cross = [layer.encoder_attn for layer in decoder.layers]
        self.w_cross = torch.cat([side.weight for block in cross for side in (block.k_proj, block.v_proj)]).clone()
        self.b_cross = torch.cat([side.bias for block in cross for side in (block.k_proj, block.v_proj)]).clone()
        scale = getattr(model.model.shared, "embed_scale", 1.0)
        self.encoder_tokens = model.model.encoder.embed_tokens.weight * scale  # (V, D)
        self.decoder_tokens = model.model.decoder.embed_tokens.weight * scale  # (V, D)
        offset = encoder.embed_positions.offset
        self.encoder_positions = encoder.embed_positions.weight[offset:].clone()
        self.decoder_positions = decoder.embed_positions.weight[offset:].clone()
        self.encoder_norm, self.decoder_norm = (
            _norm(encoder.layernorm_embedding),
            _norm(decoder.layernorm_embedding),
        )
        # Tokens that do not exist fill the vocabulary up to whole blocks; their bias makes them impossible.
        vocabulary = model.lm_head.weight.shape[0]
        missing = -vocabulary % (_BLOCK * 16)  # blocks by sixteens: as many floats as a vector register holds
        self.w_logits = F.pad(model.lm_head.weight, (0, 0, 0, missing)).t().contiguous()  # (D, V)
        self.b_logits = F.pad(model.final_logits_bias[0].to(self.w_logits.dtype), (0, missing), value=_IMPOSSIBLE)
        self.vocabulary = vocabulary + missing

    @torch.inference_mode()
    def search(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, results: int | None = None) -> Beams:
        """Find the best queries of every request; see ``beam_search``.

        Args:
            input_ids: (B, S) prompts, padded on the right.
            attention_mask: (B, S), 1 where a prompt has a token.
            results: how many to return, ``config.results`` by default, at most ``config.beams``.

        Returns:
            The queries and their scores, best first.

        Raises:
            ValueError: when the prompts are longer than the model's positions.
        """
        beams, steps = self.config.beams, self.config.max_new_tokens
        results = self.config.results if results is None else results
        requests, device = len(input_ids), input_ids.device
        if input_ids.shape[1] > self.positions:
            raise ValueError(
                f"prompts of {input_ids.shape[1]} tokens and {self.positions} positions; shorten the prompts"
            )
        cross, mask = self._encode(input_ids, attention_mask)

        # The best finished queries of all requests; the running ones of `active`, those not done yet.
        done_tokens = torch.full((requests, results, steps), self.pad, device=device)  # (B, R, T)
        done_scores = torch.full((requests, results), _IMPOSSIBLE, device=device)  # (B, R)
        active = torch.arange(requests, device=device)
        tokens = torch.full((requests, 1, steps), self.pad, device=device)
        scores = torch.zeros((requests, 1), device=device)
        last = torch.full((requests,), self.start, device=device)
        # Keys and values of the running queries, one step more than is known: (L, 2, step + 1, rows, D).
        cache = self.w_logits.new_empty((len(self.decoder_layers), 2, 1, requests, self.width))

        # Written anew at each step; fresh memory would cost more than computing what goes into it.
        logits = self.w_logits.new_empty((requests * beams, self.vocabulary))
        log_probs = torch.empty_like(logits, dtype=torch.float32)

        for step in range(steps):
            running = scores.shape[1]  # one at the first step, then as many as can still win, at most K
            x = self._decode(last, step, running, cache, cross, mask)  # (A * running, D)
            torch.addmm(self.b_logits, x, self.w_logits, out=logits[: len(x)])
            torch.log_softmax(logits[: len(x)], dim=-1, dtype=torch.float32, out=log_probs[: len(x)])
            best, parents, ids = self._best(log_probs[: len(x)], scores)  # (A, 2K) each
            ended = torch.ones_like(ids, dtype=torch.bool) if step == steps - 1 else ids == self.eos

            # A query that ends joins the finished ones only when it is among the `beams` best continuations.
            finishing = ended[:, :beams]
            if finishing.any():
                fresh = tokens.gather(1, parents[:, :beams, None].expand(-1, -1, steps))
                fresh[:, :, step] = ids[:, :beams]
                candidates = torch.where(finishing, best[:, :beams], _IMPOSSIBLE)
                merged_scores = torch.cat([done_scores[active], candidates], dim=1)
                merged_tokens = torch.cat([done_tokens[active], fresh], dim=1)
                top_scores, top = merged_scores.topk(results, dim=1)
                done_scores[active] = top_scores
                done_tokens[active] = merged_tokens.gather(1, top[:, :, None].expand(-1, -1, steps))
            if step == steps - 1:
                break

            # Of the 2K best continuations at most K end, so K are left to go on with.
            scores, chosen = (best + ended * _IMPOSSIBLE).topk(beams, dim=1)  # (A, K)
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
                active, scores, alive = active[going_on], scores[going_on], alive[going_on]
                tokens, ids, parents, rows = (kept[going_on] for kept in (tokens, ids, parents, rows))
                cross = [(keys[going_on], values[going_on]) for keys, values in cross]
                mask = mask[going_on] if mask is not None else None
            width = int(alive.sum(dim=1).max())
            scores, ids, parents, rows = (kept[:, :width] for kept in (scores, ids, parents, rows))
            tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, steps))
            tokens[:, :, step] = ids
            last, rows = ids.flatten(), rows.flatten()
            longer = cache.new_empty((*cache.shape[:2], step + 2, len(rows), self.width))
            torch.index_select(cache, 3, rows, out=longer[:, :, : step + 1])
            cache = longer

        length = int((done_tokens != self.pad).any(dim=1).any(dim=0).nonzero().max()) + 1
        return Beams(done_tokens[:, :, :length].contiguous(), done_scores)

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        """Run the encoder; return keys and values of cross-attention by layer, and the mask if one is needed."""
        requests, length = input_ids.shape
        mask = None
        if not attention_mask.all():
            mask = torch.zeros(attention_mask.shape, dtype=self.w_logits.dtype, device=input_ids.device)
            mask = mask.masked_fill(attention_mask == 0, -math.inf)[:, None, None]  # (B, 1, 1, S)
        x = F.embedding(input_ids, self.encoder_tokens) + self.encoder_positions[:length]
        x = self._normed(x, self.encoder_norm)  # (B, S, D)
        for attention, feed_forward in self.encoder_layers:
            projected = F.linear(x, attention.w_in, attention.b_in).view(requests, length, 3, self.encoder_heads, -1)
            q, k, v = projected.permute(2, 0, 3, 1, 4)  # (B, H, S, D/H) each
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            mixed = mixed.transpose(1, 2).reshape(requests, length, self.width)
            x = self._normed(x + F.linear(mixed, attention.w_out, attention.b_out), attention.norm)
            x = self._feed_forward(x, feed_forward)
        layers = len(self.decoder_layers)
        projected = F.linear(x, self.w_cross, self.b_cross).view(requests, length, 2 * layers, self.heads, -1)
        projected = projected.permute(2, 0, 3, 1, 4).contiguous()  # (2L, B, H, S, D/H)
        return [(projected[2 * layer], projected[2 * layer + 1]) for layer in range(layers)], mask

    def _decode(self, last, step: int, running: int, cache, cross, mask) -> torch.Tensor:
        """One step of the decoder: the last tokens of all running queries in, hidden states (rows, D) out."""
        rows = len(last)
        x = F.embedding(last, self.decoder_tokens) + self.decoder_positions[step]
        x = self._normed(x, self.decoder_norm)  # (rows, D)
        for layer, (own, other, feed_forward) in enumerate(self.decoder_layers):
            q, k, v = F.linear(x, own.w_in, own.b_in).split(self.width, dim=1)
            cache[layer, 0, step], cache[layer, 1, step] = k, v
            if step:
                # (rows, H, T, D/H); with one query a row, products along T are cheaper than small matrix
                # products.
                keys, values = cache[layer].view(2, step + 1, rows, self.heads, -1)
                weights = (q.view(1, rows, self.heads, -1) * keys).sum(dim=-1, keepdim=True).softmax(dim=0)
                v = (weights * values).sum(dim=0).view(rows, self.width)
            x = self._normed(x + F.linear(v, own.w_out, own.b_out), own.norm)

            keys, values = cross[layer]  # (A, H, S, D/H), shared by the beams of a request
            q = F.linear(x, other.w_in, other.b_in).view(-1, running, self.heads, self.width // self.heads)
            weights = torch.matmul(q.transpose(1, 2), keys.transpose(2, 3))  # (A, H, K, S)
            weights = (weights if mask is None else weights + mask).softmax(dim=-1)
            mixed = torch.matmul(weights, values).transpose(1, 2).reshape(rows, self.width)
            x = self._normed(x + F.linear(mixed, other.w_out, other.b_out), other.norm)
            x = self._feed_forward(x, feed_forward)
        return x

    def _best(self, log_probs: torch.Tensor, scores: torch.Tensor):
        """The 2K best continuations of every request: scores, the beams they continue and their tokens.

        The tokens of a beam are dealt into blocks. The 2K best continuations lie in the 2K blocks with the
        highest maxima, so only those are sorted; sorting all K * V takes several times as long.
        """
        requests, running = scores.shape
        keep = 2 * self.config.beams
        blocks = self.vocabulary // _BLOCK
        if running * blocks <= keep:
            totals = (log_probs.view(requests, running, -1) + scores[:, :, None]).flatten(1)
            best, index = totals.topk(min(keep, totals.shape[1]), dim=1)
            return best, index // self.vocabulary, index % self.vocabulary
        dealt = log_probs.view(requests, running, _BLOCK, blocks)
        maxima = (dealt.amax(dim=2) + scores[:, :, None]).flatten(1)  # (A, running * blocks)
        top = maxima.topk(keep, dim=1, sorted=False).indices  # (A, 2K)
        beam, block = top // blocks, top % blocks
        offsets = torch.arange(_BLOCK, device=top.device) * blocks
        index = (beam * self.vocabulary + block)[:, :, None] + offsets  # (A, 2K, _BLOCK)
        totals = log_probs.view(requests, -1).gather(1, index.flatten(1)).view(index.shape)
        totals = (totals + scores.gather(1, beam)[:, :, None]).flatten(1)
        best, place = totals.topk(keep, dim=1)
        index = index.flatten(1).gather(1, place)
        return best, index // self.vocabulary, index % self.vocabulary

    def _normed(self, x: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor, float]) -> torch.Tensor:
        return F.layer_norm(x, (self.width,), *norm)

    def _feed_forward(self, x: torch.Tensor, weights: _FeedForward) -> torch.Tensor:
        hidden = self.activation(F.linear(x, weights.w_in, weights.b_in))
        return self._normed(x + F.linear(hidden, weights.w_out, weights.b_out), weights.norm)


def beam_search(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, config: DecodeConfig
) -> Beams:
    """Search the best queries of a batch of prompts with a BART model.

    Each step continues every running query by every token and keeps the ``beams`` best continuations that go
    on; those that end are set aside. A request is done when no running query can beat its worst finished one.

    Args:
        model: a BART encoder-decoder; for many calls, make one ``BeamSearcher`` and call its ``search``.
        input_ids: (B, S) prompts, padded on the right.
        attention_mask: (B, S), 1 where a prompt has a token.
        config: width and depth.

    Returns:
        The queries of ``reference_search``, their scores equal up to rounding.

    Raises:
        ValueError: as ``BeamSearcher`` does, or when the prompts are longer than the model's positions.

    Source: paper, section "One encoder-decoder" [third-party notes].
    """
    return BeamSearcher(model, config).search(input_ids, attention_mask)


@torch.inference_mode()
def reference_search(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, config: DecodeConfig
) -> Beams:
    """The same search by transformers' ``generate``, for any encoder-decoder.

    Args:
        model: any Hugging Face encoder-decoder.
        input_ids: (B, S) prompts.
        attention_mask: (B, S).
        config: width and depth.

    Returns:
        As ``beam_search``.
    """
    from transformers import GenerationConfig

    shape = model.config
    of_beams = {"early_stopping": False, "length_penalty": 0.0} if config.beams > 1 else {}
    settings = GenerationConfig(
        **of_beams,
        num_beams=config.beams,
        num_return_sequences=config.results,
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=shape.pad_token_id,
        bos_token_id=getattr(shape, "bos_token_id", None),
        eos_token_id=shape.eos_token_id,
        decoder_start_token_id=shape.decoder_start_token_id,
    )
    habits = model.generation_config
    try:
        # generate fills gaps of its settings from the model's own, and a checkpoint may force or forbid
        # tokens there.
        model.generation_config = settings
        found = model.generate(input_ids, attention_mask=attention_mask, generation_config=settings)
    finally:
        model.generation_config = habits
    tokens = found.sequences[:, 1:]  # without the decoder's start token
    ends = tokens == shape.eos_token_id
    after = ends.cumsum(dim=1) - ends.long() > 0
    tokens = tokens.masked_fill(after, shape.pad_token_id)
    requests = len(input_ids)
    if config.beams == 1:  # generate has another road for a single beam, which reports no score for the sequence
        steps = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        scores = steps.masked_fill(after, 0.0).sum(dim=1)
    else:
        scores = found.sequences_scores
    return Beams(tokens.view(requests, config.results, -1), scores.view(requests, config.results))


def prepare(model: PreTrainedModel | BeamSearcher, config: DecodeConfig) -> PreTrainedModel | BeamSearcher:
    """Pack a BART-like model's weights for our search; other architectures stay as they are and use the library's.

    Args:
        model: an encoder-decoder, or a searcher, which is returned as it is.
        config: width and depth.
    """
    if isinstance(model, BeamSearcher) or model.config.model_type != "bart":
        return model
    return BeamSearcher(model, config)


def suggest_queries(
    model: PreTrainedModel | BeamSearcher,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    batch_size: int = 64,
) -> list[list[tuple[str, float]]]:
    """Suggest queries for many prompts.

    Prompts of about one length are searched together. Where two token sequences spell the same query, their
    probabilities add up. What did not end within ``max_new_tokens``, is empty or holds broken characters is
    dropped; a quarter more queries than ``results`` are searched to fill the places that this leaves.

    Args:
        model: an encoder-decoder, or a ``BeamSearcher`` made from one.
        tokenizer: the model's.
        prompts: N encoder inputs as of ``build_prompts``.
        config: width and depth; a ``BeamSearcher`` must have been made with the same.
        batch_size: prompts searched together.

    Returns:
        For every prompt at most ``results`` pairs of query and log-probability, best first, equal ones by
        their text.

    Raises:
        ValueError: when a searcher was made with another config.
    """
    from tqdm.auto import tqdm

    found_per_prompt = min(config.beams, config.results + -(-config.results // 4))
    model = prepare(model, config)
    if isinstance(model, BeamSearcher):
        if model.config != config:
            raise ValueError(f"the searcher was made with {model.config} and {config} was asked for; give it that one")
        search = partial(model.search, results=found_per_prompt)
        pad_id, eos_id, device = model.pad, model.eos, model.w_logits.device
    else:
        search = partial(reference_search, model, config=replace(config, results=found_per_prompt))
        pad_id, eos_id, device = model.config.pad_token_id, model.config.eos_token_id, model.device

    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    suggestions: list[list[tuple[str, float]]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc="suggest", unit="prompt", leave=False, delay=2)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        input_ids = pad([prompts[row] for row in rows], pad_id).to(device)
        lengths = torch.tensor([len(prompts[row]) for row in rows], device=device)
        attention_mask = (torch.arange(input_ids.shape[1], device=device) < lengths[:, None]).long()
        found = search(input_ids, attention_mask)
        texts = decode_queries(tokenizer, found.tokens.flatten(0, 1).tolist())
        whole = (found.tokens == eos_id).any(dim=2).tolist()
        for place, (row, scores) in enumerate(zip(rows, found.scores.tolist(), strict=True)):
            queries = texts[place * found_per_prompt : (place + 1) * found_per_prompt]
            suggestions[row] = _merge(queries, scores, whole[place])[: config.results]
        bar.update(len(rows))
    bar.close()
    return suggestions


def _merge(queries: Sequence[str], scores: Sequence[float], whole: Sequence[bool]) -> list[tuple[str, float]]:
    """Join equal queries, drop the unusable and sort."""
    merged: dict[str, float] = {}
    for query, score, ended in zip(queries, scores, whole, strict=True):
        if ended and query and "\ufffd" not in query:
            merged[query] = _log_add(merged[query], score) if query in merged else score
    return sorted(merged.items(), key=lambda pair: (-pair[1], pair[0]))


def _log_add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def _norm(norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor, float]:
    return norm.weight.clone(), norm.bias.clone(), norm.eps


def _pack_self(attention: nn.Module, norm: nn.LayerNorm) -> _Attention:
    sides = (attention.q_proj, attention.k_proj, attention.v_proj)
    scales = (attention.scaling, 1.0, 1.0)
    return _Attention(
        torch.cat([side.weight * scale for side, scale in zip(sides, scales, strict=True)]),
        torch.cat([side.bias * scale for side, scale in zip(sides, scales, strict=True)]),
        attention.out_proj.weight.clone(),
        attention.out_proj.bias.clone(),
        _norm(norm),
    )


def _pack_cross(attention: nn.Module, norm: nn.LayerNorm) -> _Attention:
    return _Attention(
        attention.q_proj.weight * attention.scaling,
        attention.q_proj.bias * attention.scaling,
        attention.out_proj.weight.clone(),
        attention.out_proj.bias.clone(),
        _norm(norm),
    )


def _pack_feed_forward(layer: nn.Module) -> _FeedForward:
    return _FeedForward(
        layer.fc1.weight.clone(),
        layer.fc1.bias.clone(),
        layer.fc2.weight.clone(),
        layer.fc2.bias.clone(),
        _norm(layer.final_layer_norm),
    )
