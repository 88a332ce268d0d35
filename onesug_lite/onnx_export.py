"""The generator as two ONNX graphs: the encoder, and one step of the decoder with its cache.

``encoder.onnx`` runs once a request and returns the keys and values of cross-attention, so that no step computes them
again. ``decoder_step.onnx`` reads the last token of every running query, having picked of the cache the rows that these
queries continue, and returns log-probabilities and the longer cache. Any runtime of the ONNX standard can serve them,
in a browser too; :class:`OnnxGenerator` is ``onnxruntime``'s. ``generator.json`` names what a search must know.

======================  ==========  ===================================================================================
tensor                  type        shape
======================  ==========  ===================================================================================
``input_ids``           int64       (B, P, W) tokens of each position, filled up with padding; flat prompts have W = 1
``attention_mask``      int64       (B, P), 1 where a prompt has a position
``cross``               float32     (L, 2, B, H, P, D/H) keys and values of the decoder's L layers
``tokens``, ``rows``    int64       (R,) last tokens, R a multiple of B, and the rows of the cache that they continue
``step``                int64       (1,) tokens known so far, T
``past``, ``present``   float32     (L, 2, R', H, T, D/H) and (L, 2, R, H, T + 1, D/H); T = 0 at the first step
``log_probs``           float32     (R, V) of the next token; V is rounded up and what does not exist is impossible
======================  ==========  ===================================================================================

Source: ours.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onesug_lite.folders import replacing
from onesug_lite.packed import PackedBart

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onesug_lite.store import Store

OPSET = 20  # the first with Gelu as one operation
GRAPHS = ("encoder", "decoder_step")


class OnnxError(ValueError):
    """A model that cannot be exported, or a folder that holds no export."""


class EncoderGraph(nn.Module):
    """``input_ids``, ``attention_mask`` to ``cross``; see the module's table.

    Args:
        packed: the weights.
    """

    def __init__(self, packed: PackedBart):
        super().__init__()
        self.packed = packed

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        packed = self.packed
        requests, length = attention_mask.shape
        real = (input_ids != packed.pad).to(packed.dtype)  # (B, P, W)
        summed = (F.embedding(input_ids, packed.encoder_tokens) * real[..., None]).sum(dim=2)
        x = summed * real.sum(dim=2, keepdim=True).clamp(min=1).rsqrt() + packed.encoder_positions[:length]
        x = F.layer_norm(x, (packed.width,), *packed.encoder_norm)  # (B, P, D)
        mask = (1 - attention_mask[:, None, None].to(packed.dtype)) * -1e9  # (B, 1, 1, P)
        for attention, feed_forward in packed.encoder_layers:
            sides = F.linear(x, attention.w_in, attention.b_in).chunk(3, dim=2)
            q, k, v = (_by_head(side, packed.encoder_heads) for side in sides)  # (B, H, P, D/H)
            mixed = ((q @ k.transpose(2, 3) + mask).softmax(dim=3) @ v).transpose(1, 2)
            x = _joined(packed, x, mixed.reshape(requests, length, packed.width), attention)
            x = _fed_forward(packed, x, feed_forward)
        sides = F.linear(x, packed.w_cross, packed.b_cross).chunk(2 * len(packed.decoder_layers), dim=2)
        cross = torch.stack([_by_head(side, packed.heads) for side in sides])  # (2L, B, H, P, D/H)
        return cross.view(-1, 2, *cross.shape[1:])


class StepGraph(nn.Module):
    """``tokens``, ``rows``, ``step``, ``past``, ``cross``, ``attention_mask`` to ``log_probs`` and ``present``.

    Args:
        packed: the weights.
    """

    def __init__(self, packed: PackedBart):
        super().__init__()
        self.packed = packed

    def forward(
        self, tokens: Tensor, rows: Tensor, step: Tensor, past: Tensor, cross: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        packed = self.packed
        past = past.index_select(2, rows)  # (L, 2, R, H, T, D/H)
        requests, width = cross.shape[2], packed.width
        mask = (1 - attention_mask[:, None, None].to(packed.dtype)) * -1e9  # (A, 1, 1, P)
        x = F.embedding(tokens, packed.decoder_tokens) + packed.decoder_positions.index_select(0, step)
        x = F.layer_norm(x, (width,), *packed.decoder_norm)  # (R, D)
        present = []
        for layer, (own, other, feed_forward) in enumerate(packed.decoder_layers):
            sides = F.linear(x, own.w_in, own.b_in).chunk(3, dim=1)
            q, k, v = (side.view(-1, packed.heads, 1, width // packed.heads) for side in sides)
            keys, values = torch.cat([past[layer, 0], k], dim=2), torch.cat([past[layer, 1], v], dim=2)
            present += [keys, values]  # (R, H, T + 1, D/H)
            mixed = (q @ keys.transpose(2, 3)).softmax(dim=3) @ values
            x = _joined(packed, x, mixed.view(-1, width), own)

            q = F.linear(x, other.w_in, other.b_in).view(requests, -1, packed.heads, width // packed.heads)
            weights = (q.transpose(1, 2) @ cross[layer, 0].transpose(2, 3) + mask).softmax(dim=3)  # (A, H, K, P)
            mixed = (weights @ cross[layer, 1]).transpose(1, 2)
            x = _joined(packed, x, mixed.reshape(-1, width), other)
            x = _fed_forward(packed, x, feed_forward)
        log_probs = torch.addmm(packed.b_logits, x, packed.w_logits).log_softmax(dim=1)
        kept = torch.stack(present)
        return log_probs, kept.view(-1, 2, *kept.shape[1:])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, P, D) to (B, H, P, D/H)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(packed: PackedBart, x: Tensor, mixed: Tensor, attention) -> Tensor:
    added = x + F.linear(mixed, attention.w_out, attention.b_out)
    return F.layer_norm(added, (packed.width,), *attention.norm)


def _fed_forward(packed: PackedBart, x: Tensor, weights) -> Tensor:
    hidden = packed.activation(F.linear(x, weights.w_in, weights.b_in))
    return F.layer_norm(x + F.linear(hidden, weights.w_out, weights.b_out), (packed.width,), *weights.norm)


def export_onnx(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write both graphs of a generator into a folder, whole or not at all.

    Args:
        model: a BART encoder-decoder in single precision, in evaluation mode.
        folder: created or replaced.

    Returns:
        The folder: ``encoder.onnx``, ``decoder_step.onnx``, ``generator.json``.

    Raises:
        OnnxError: the model is decoder-only, of another architecture, or not in single precision.
    """
    shape = model.config
    if not shape.is_encoder_decoder:
        raise OnnxError(
            f"the model is decoder-only ({shape.model_type}), and the graphs are an encoder and a decoder step; "
            "export a generator with architecture 'encoder-decoder'"
        )
    if shape.model_type != "bart":
        raise OnnxError(f"the model is of architecture '{shape.model_type}'; expected 'bart'")
    if model.dtype != torch.float32:
        raise OnnxError(f"the model holds {model.dtype}; expected torch.float32: call model.float() first")
    packed = PackedBart(model.eval())
    heads, size = packed.heads, packed.width // packed.heads
    layers = len(packed.decoder_layers)
    # No dimension of the examples is 0 or 1, and none equals another: the exporter would take them for constants.
    ids, mask = torch.full((2, 5, 3), packed.start), torch.ones((2, 5), dtype=torch.int64)
    mask[1, 4] = 0
    step = {
        "tokens": torch.full((6,), packed.start),
        "rows": torch.arange(6) % 4,
        "step": torch.tensor([7]),
        "past": torch.zeros((layers, 2, 4, heads, 7, size)),
        "cross": torch.zeros((layers, 2, 2, heads, 5, size)),
        "attention_mask": mask,
    }
    requests, positions, running = (torch.export.Dim(name) for name in ("requests", "positions", "running"))
    step_dims = {
        "tokens": {0: running},
        "rows": {0: running},
        "step": None,
        "past": {2: torch.export.Dim("before"), 4: torch.export.Dim("known")},
        "cross": {2: requests, 4: positions},
        "attention_mask": {0: requests, 1: positions},
    }
    settings = {"pad": packed.pad, "end": shape.eos_token_id, "start": packed.start, "tokens": shape.vocab_size}
    settings |= {"positions": shape.max_position_embeddings, "layers": layers, "heads": heads, "head_size": size}
    with replacing(Path(folder)) as new, _quiet(), torch.no_grad():
        _export(
            EncoderGraph(packed),
            {"input_ids": ids, "attention_mask": mask},
            {
                "input_ids": {0: requests, 1: positions, 2: torch.export.Dim("tokens")},
                "attention_mask": {0: requests, 1: positions},
            },
            ["cross"],
            new / "encoder.onnx",
        )
        _export(StepGraph(packed), step, step_dims, ["log_probs", "present"], new / "decoder_step.onnx")
        (new / "generator.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


def stored_export(store: Store, model: PreTrainedModel, source: str) -> Path:
    """The graphs of a trained generator, exported once and kept in the store.

    Args:
        store: of the artefacts.
        model: the generator.
        source: name of the store's entry that it was read from.
    """

    def build(out: Path, work: Path) -> None:
        export_onnx(model, out / "graphs")

    return store.get("onnx", {"opset": OPSET}, {"model": source}, ["onnx_export"], build) / "graphs"


def _export(graph: nn.Module, inputs: dict[str, Tensor], dims: dict, outputs: list[str], file: Path) -> None:
    torch.onnx.export(
        graph.eval(), (), kwargs=inputs, input_names=list(inputs), output_names=outputs, opset_version=OPSET,
        dynamo=True, dynamic_shapes=dims, external_data=False, verbose=False,
    ).save(str(file))  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks about itself are no news to a reader."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class OnnxGenerator:
    """Both graphs in ``onnxruntime``.

    Args:
        folder: as :func:`export_onnx` wrote it.
        threads: of one operation.

    Attributes:
        settings: what ``generator.json`` holds.

    Raises:
        OnnxError: the folder lacks a file.
    """

    def __init__(self, folder: str | Path, threads: int = 1):
        import onnxruntime

        folder = Path(folder)
        for name in ("generator.json", *(f"{name}.onnx" for name in GRAPHS)):
            if not (folder / name).is_file():
                raise OnnxError(f"{folder} holds no {name}; write it with export_onnx(model, folder)")
        self.settings = json.loads((folder / "generator.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._encoder, self._step = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """``cross`` of prompts (B, P, W), or flat ones (B, P), with their mask (B, P), all int64."""
        input_ids = input_ids if input_ids.ndim == 3 else input_ids[:, :, None]
        return self._encoder.run(None, {"input_ids": input_ids, "attention_mask": attention_mask})[0]

    def empty(self, requests: int) -> np.ndarray:
        """``past`` of the first step: (L, 2, B, H, 0, D/H)."""
        layers, heads, size = (self.settings[name] for name in ("layers", "heads", "head_size"))
        return np.zeros((layers, 2, requests, heads, 0, size), np.float32)

    def step(
        self, tokens: np.ndarray, rows: np.ndarray, past: np.ndarray, cross: np.ndarray, attention_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step: ``log_probs`` (R, V) and ``present``; see the module's table."""
        given = {
            "tokens": tokens, "rows": rows, "step": np.array([past.shape[4]]), "past": past, "cross": cross,
            "attention_mask": attention_mask,
        }  # fmt: skip
        log_probs, present = self._step.run(None, given)
        return log_probs, present
