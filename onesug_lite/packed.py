"""A BART model's weights, packed for decoding: few large matrices instead of many small ones.

The encoder and the keys and values of cross-attention are computed once per request and shared by its beams.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from onesug_lite.generator import embed_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPOSSIBLE = -1.0e9  # what generate gives to a place without a query; kept so that results stay equal
BLOCK = 32  # tokens that share one maximum in the search for the best continuations


def fill(vocabulary: int) -> int:
    """Tokens that do not exist fill the vocabulary up to whole blocks, by sixteens: a vector register's floats."""
    return -vocabulary % (BLOCK * 16)


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


class PackedBart:
    """The weights; packing copies them, so pack again after training.

    Args:
        model: a BART encoder-decoder.
    """

    def __init__(self, model: PreTrainedModel):
        shape = model.config
        self.width, self.heads = shape.d_model, shape.decoder_attention_heads
        self.encoder_heads = shape.encoder_attention_heads
        self.pad, self.start = shape.pad_token_id, shape.decoder_start_token_id
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
        vocabulary = model.lm_head.weight.shape[0]
        missing = fill(vocabulary)  # the bias of what does not exist makes it impossible
        self.w_logits = F.pad(model.lm_head.weight, (0, 0, 0, missing)).t().contiguous()  # (D, V)
        self.b_logits = F.pad(model.final_logits_bias[0].to(self.w_logits.dtype), (0, missing), value=IMPOSSIBLE)
        self.vocabulary = vocabulary + missing
        self.dtype, self.device = self.w_logits.dtype, self.w_logits.device

    def begin(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> BartRun:
        """Encode prompts; see :class:`BartRun`."""
        return BartRun(self, input_ids, attention_mask)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        """Run the encoder; return keys and values of cross-attention by layer, and the mask if one is needed."""
        requests, length = attention_mask.shape
        mask = None
        if not attention_mask.all():
            mask = torch.zeros(attention_mask.shape, dtype=self.w_logits.dtype, device=input_ids.device)
            mask = mask.masked_fill(attention_mask == 0, -math.inf)[:, None, None]  # (B, 1, 1, S)
        x = embed_prompt(self.encoder_tokens, input_ids, self.pad) + self.encoder_positions[:length]
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

    def decode(self, last, step: int, running: int, cache, cross, mask) -> torch.Tensor:
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

    def _normed(self, x: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor, float]) -> torch.Tensor:
        return F.layer_norm(x, (self.width,), *norm)

    def _feed_forward(self, x: torch.Tensor, weights: _FeedForward) -> torch.Tensor:
        hidden = self.activation(F.linear(x, weights.w_in, weights.b_in))
        return self._normed(x + F.linear(hidden, weights.w_out, weights.b_out), weights.norm)


class BartRun:
    """One search in progress: what the decoder remembers of every running query.

    Args:
        packed: the weights.
        input_ids: (A, P) or (A, P, W) prompts.
        attention_mask: (A, P).
    """

    def __init__(self, packed: PackedBart, input_ids: torch.Tensor, attention_mask: torch.Tensor):
        self.packed = packed
        self.cross, self.mask = packed.encode(input_ids, attention_mask)
        # Keys and values of the running queries, one step more than is known: (L, 2, step + 1, rows, D).
        self.cache = packed.w_logits.new_empty((len(packed.decoder_layers), 2, 1, len(input_ids), packed.width))

    def logits(self, last: torch.Tensor, step: int, running: int, out: torch.Tensor) -> None:
        """Read the last tokens (rows,) and write the scores of the next ones to ``out`` (rows, V)."""
        packed = self.packed
        x = packed.decode(last, step, running, self.cache, self.cross, self.mask)  # (rows, D)
        torch.addmm(packed.b_logits, x, packed.w_logits, out=out)

    def keep(self, going_on: torch.Tensor) -> None:
        """Forget the requests (A,) that are done."""
        self.cross = [(keys[going_on], values[going_on]) for keys, values in self.cross]
        self.mask = self.mask[going_on] if self.mask is not None else None

    def follow(self, rows: torch.Tensor) -> None:
        """Go on with the queries that continue these rows."""
        known = self.cache.shape[2]
        longer = self.cache.new_empty((*self.cache.shape[:2], known + 1, len(rows), self.packed.width))
        torch.index_select(self.cache, 3, rows, out=longer[:, :, :known])
        self.cache = longer


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
