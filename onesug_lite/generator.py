r"""The model that writes queries, and what goes into it.

The default is an encoder-decoder of BART's kind, as the paper serves; a decoder-only model of Qwen's kind is one
parameter away, and so is any checkpoint of either kind. Both read a prompt as a row of *positions*
(:mod:`onesug_lite.prompt`): a position that holds several tokens, such as a whole earlier search, enters as one vector.

Source: paper, section "One encoder-decoder" (BART-base online, Qwen2.5 offline).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from onesug_lite.folders import replacing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Fused attention is slow backwards in bf16 on a CPU: on two cores a training step of the lite model takes
# twice as long with torch's fused kernel as with the plain softmax(QK')V, and twice as long again in fp32.
ATTENTION = "eager"
TOKENIZER = "tokenizer"  # folder of the tokeniser inside that of a saved model
ARCHITECTURES = ("encoder-decoder", "decoder-only")


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of the model, or the checkpoint it comes from.

    Raises:
        ValueError: unknown architecture.
    """

    checkpoint: str | None = None  # a Hugging Face model of either kind; paper: BART-base online; None: random weights
    architecture: str = "encoder-decoder"  # paper: BART online; "decoder-only": as Qwen2.5, which it tried offline
    d_model: int = 128  # ours; BART-base: 768
    encoder_layers: int = 2  # ours; BART-base: 6
    decoder_layers: int = 2  # ours; BART-base: 6; a decoder-only model has the layers of both
    heads: int = 4  # ours; BART-base: 12
    ffn: int = 512  # ours; BART-base: 3072
    dropout: float = 0.0  # ours: in so few passes over the clicks it only slows learning; BART-base: 0.1
    max_positions: int = 160  # ours: the longest prompt; BART-base: 1024

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is '{self.architecture}'; expected one of {', '.join(ARCHITECTURES)}")


def build_generator(config: GeneratorConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Make the model: of the given shape with random weights, or a checkpoint.

    Args:
        config: the shape; with ``checkpoint`` set, the shape is the checkpoint's and the other fields are
            unused.
        tokenizer: gives the size of the vocabulary and the ids of its control tokens.
        seed: of the weights; no global generator is touched.

    Returns:
        The model in evaluation mode, without any forced or forbidden token in decoding.

    Raises:
        ValueError: when the checkpoint has fewer embeddings than the tokeniser has tokens.

    Source: paper, section "One encoder-decoder".
    """
    if config.checkpoint is not None:
        model = _read(config.checkpoint)
        embeddings = model.get_input_embeddings().num_embeddings
        if embeddings < len(tokenizer):
            raise ValueError(
                f"checkpoint {config.checkpoint!r} embeds {embeddings} tokens and the tokeniser has "
                f"{len(tokenizer)}; use the checkpoint's own tokeniser"
            )
        return _plain_decoding(model)
    make = _decoder_only if config.architecture == "decoder-only" else _encoder_decoder
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _plain_decoding(make(config, tokenizer))


def _encoder_decoder(config: GeneratorConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import BartConfig, BartForConditionalGeneration

    shape = BartConfig(
        vocab_size=len(tokenizer),
        d_model=config.d_model,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        encoder_attention_heads=config.heads,
        decoder_attention_heads=config.heads,
        encoder_ffn_dim=config.ffn,
        decoder_ffn_dim=config.ffn,
        dropout=config.dropout,
        max_position_embeddings=config.max_positions,
        # BART's 0.02 is meant for widths near 1,000. In a narrow model it makes what attention adds so faint that
        # hundreds of steps pass before the decoder takes notice of the prompt.
        init_std=config.d_model**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,  # as BART does
        forced_eos_token_id=None,
        attn_implementation=ATTENTION,
    )
    model = BartForConditionalGeneration(shape)
    # What the decoder attends to reaches it unchanged at first. As the output layer is the table of embeddings, to look
    # at a word is then to write it, and copying an earlier search has not to be discovered.
    for layer in model.model.decoder.layers:
        torch.nn.init.eye_(layer.encoder_attn.v_proj.weight)
        torch.nn.init.eye_(layer.encoder_attn.out_proj.weight)
    return model


def _decoder_only(config: GeneratorConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.d_model,
        num_hidden_layers=config.encoder_layers + config.decoder_layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=2 * config.ffn // 3,  # its gate is a third matrix: as many weights as BART's two
        attention_dropout=config.dropout,
        max_position_embeddings=2 * config.max_positions,
        initializer_range=config.d_model**-0.5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation=ATTENTION,
    )
    return Qwen2ForCausalLM(shape)


def embed_prompt(weight: Tensor, input_ids: Tensor, pad_id: int) -> Tensor:
    r"""Vectors of a batch of prompts.

    The embeddings of tokens that share a position are summed and divided by the square root of their number, which
    keeps a vector's length about that of a single token's.

    Args:
        weight: (V, D) token embeddings.
        input_ids: (B, P), or (B, P, W) with the tokens of each position.
        pad_id: token that stands for nothing.

    Returns:
        (B, P, D); a position of padding alone is zero where ``input_ids`` has three dimensions.
    """
    if input_ids.dim() == 2:
        return F.embedding(input_ids, weight)
    flat = input_ids.flatten(0, 1)  # (B * P, W)
    summed = F.embedding_bag(flat, weight, mode="sum", padding_idx=pad_id)
    number = (flat != pad_id).sum(dim=1, keepdim=True).clamp(min=1)
    return (summed * number.rsqrt().to(summed.dtype)).view(*input_ids.shape[:2], -1)


def prompt_vectors(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """(B, P, D) what the model is given as ``inputs_embeds``; see :func:`embed_prompt`."""
    table = model.get_input_embeddings()
    vectors = embed_prompt(table.weight, input_ids, model.config.pad_token_id)
    scale = getattr(table, "embed_scale", None)
    return vectors if scale is None else vectors * scale


def query_logits(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """Scores of every token of one or more queries for each prompt, the prompt being encoded once.

    Args:
        model: an encoder-decoder, or decoder-only: then a query follows its prompt and an end-of-sequence token.
        input_ids: (B, P) or (B, P, W) prompts.
        attention_mask: (B, P), 0 at padding.
        labels: (B * C, T) the C queries of prompt 0, then those of prompt 1; -100 at padding.

    Returns:
        (B * C, T, V); position t scores ``labels[:, t]``.
    """
    vectors, queries = prompt_vectors(model, input_ids), len(labels) // len(input_ids)
    each_mask = attention_mask.repeat_interleave(queries, dim=0)
    if model.config.is_encoder_decoder:
        from transformers.modeling_outputs import BaseModelOutput

        states = model.get_encoder()(inputs_embeds=vectors, attention_mask=attention_mask).last_hidden_state
        return model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(queries, dim=0)),
            attention_mask=each_mask,
            decoder_input_ids=_shifted(labels, model.config.decoder_start_token_id, model.config.pad_token_id),
            use_cache=False,
        ).logits
    before = _shifted(labels, model.config.eos_token_id, model.config.pad_token_id)
    mask = torch.cat([each_mask, torch.ones_like(before)], dim=1)
    return model(
        inputs_embeds=torch.cat(
            [vectors.repeat_interleave(queries, dim=0), prompt_vectors(model, before).to(vectors.dtype)], dim=1
        ),
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),  # padding between prompt and query counts no place
        use_cache=False,
        logits_to_keep=labels.shape[1],
    ).logits


def _shifted(labels: Tensor, start: int, pad_id: int) -> Tensor:
    """What the decoder reads: each row one place to the right, behind the start token."""
    before = torch.full_like(labels, start)
    before[:, 1:] = labels[:, :-1]
    return before.masked_fill(before == -100, pad_id)


def save_generator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Write weights (safetensors), configuration and tokeniser into one folder, whole or not at all.

    Args:
        model: the generator.
        tokenizer: the tokeniser it was trained with.
        folder: created or replaced.

    Returns:
        The folder.
    """
    with replacing(folder) as fresh, quiet():
        model.save_pretrained(fresh)
        # Apart from the model: beside a config of Qwen's, transformers reads any tokeniser as Qwen's own.
        tokenizer.save_pretrained(fresh / TOKENIZER)
    return Path(folder)


def load_generator(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read what ``save_generator`` wrote, or any Hugging Face model of either kind on disk.

    Args:
        folder: with config.json, the weights and the tokeniser.

    Returns:
        The model in evaluation mode and its tokeniser.

    Raises:
        FileNotFoundError: when the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; expected a folder written by save_generator")
    return _plain_decoding(_read(folder)), load_tokenizer(folder)


def load_tokenizer(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """The tokeniser of what ``save_generator`` wrote, or of any Hugging Face checkpoint."""
    from transformers import AutoTokenizer

    own = Path(checkpoint) / TOKENIZER
    with quiet():
        return AutoTokenizer.from_pretrained(own if own.is_dir() else checkpoint)


def _read(folder: str | Path) -> PreTrainedModel:
    """A checkpoint as what its config says it is."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    with quiet():
        return kind.from_pretrained(folder, attn_implementation=ATTENTION, dtype=torch.float32)


def _plain_decoding(model: PreTrainedModel) -> PreTrainedModel:
    """Drop what checkpoints bring along (forced tokens, penalties); a score is a log-probability."""
    from transformers import GenerationConfig

    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=getattr(config, "bos_token_id", None),
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and remarks out of the notebooks, and put them back as they were."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
