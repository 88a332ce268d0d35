"""The text encoder: a small BERT or a checkpoint, and the unit vectors that it gives.

:mod:`onesug_lite.align` trains it. A text's vector depends on that text alone, to the last bit, whatever texts stand
beside it in a batch.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from onesug_lite.align import AlignConfig


SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in BERT's order: the pad is id 0


def save_encoder(encoder: SentenceTransformer, folder: str | Path) -> None:
    """Write an encoder, weights as safetensors, without a model card.

    Args:
        encoder: to save.
        folder: made when absent.
    """
    with quiet():
        encoder.save_pretrained(str(folder), create_model_card=False)


def load_encoder(path: str | Path) -> SentenceTransformer:
    """Load an encoder that :func:`onesug_lite.align.train_encoder` wrote, ready to embed.

    Args:
        path: its folder.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no encoder.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    path = Path(path)
    if not (path / "modules.json").is_file():
        raise FileNotFoundError(f"{path} holds no encoder (no modules.json); train one with train_encoder.")
    with quiet(), torch.random.fork_rng():
        return without_pooler(SentenceTransformer(str(path), local_files_only=True)).eval()


def embed(encoder: SentenceTransformer, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """Embed texts as unit vectors; a text gets the same one whatever texts stand beside it.

    The last digits of a matrix product depend on its shape. So every text is padded to a length that
    depends on itself alone (8, 16, 32, ... tokens), and every batch has the same number of rows.

    Args:
        encoder: from :func:`load_encoder`.
        texts: N texts, repeats allowed.
        batch_size: rows of each product.

    Returns:
        ``float32`` (N, D), each row of length 1.
    """
    import torch
    from tqdm.auto import tqdm

    if not len(texts):
        return np.zeros((0, encoder.get_embedding_dimension()), dtype=np.float32)
    distinct, place = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    ids, pad = tokenise(encoder, distinct.tolist())
    lengths = np.array([len(row) for row in ids])
    widths = 2 ** np.ceil(np.log2(np.maximum(lengths, 8))).astype(int)
    widths = np.minimum(widths, max(lengths.max(), encoder.max_seq_length or 512))
    vectors = np.zeros((len(distinct), encoder.get_embedding_dimension()), dtype=np.float32)
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode(), tqdm(total=len(distinct), desc="embed", leave=False, disable=None) as bar:
        for width in np.unique(widths):
            members = np.flatnonzero(widths == width)
            for start in range(0, len(members), batch_size):
                some = members[start : start + batch_size]
                features = padded([ids[member] for member in some], pad, int(width), batch_size)
                features = {name: value.to(encoder.device) for name, value in features.items()}
                pooled = encoder(features)["sentence_embedding"].float()  # (B, D)
                vectors[some] = torch.nn.functional.normalize(pooled, dim=1)[: len(some)].cpu().numpy()
                bar.update(len(some))
    encoder.train(was_training)
    return vectors[place.reshape(-1)]


def tokenise(encoder: SentenceTransformer, texts: list[str]) -> tuple[list[list[int]], int]:
    """Token ids of each text, cut at the encoder's length, and the id of the pad."""
    tokenizer = encoder.tokenizer
    cut = encoder.max_seq_length or 512
    return tokenizer(texts, truncation=True, max_length=cut)["input_ids"], tokenizer.pad_token_id or 0


def padded(ids: list[list[int]], pad: int, width: int | None = None, rows: int | None = None) -> dict:
    """Ids and mask (B, T) of texts; rows beyond the last hold one token, so that no mean is 0 / 0."""
    import torch

    lengths = np.array([len(row) for row in ids] + [1] * ((rows or len(ids)) - len(ids)))
    width = width or int(lengths.max())
    mask = np.arange(width) < lengths[:, None]
    tokens = np.full(mask.shape, pad, dtype=np.int64)
    tokens[: len(ids)][mask[: len(ids)]] = np.concatenate([np.asarray(row) for row in ids])
    return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def small_bert(texts: list[str], config: AlignConfig, folder: Path) -> SentenceTransformer:
    """A BERT from random weights over a tokeniser trained on ``texts``, mean-pooled."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokens.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokens.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=max(config.vocab_size, len(alphabet) + len(SPECIALS)),
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # split_special_tokens: a typed "[SEP]" is text, not a control token.
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=config.max_length,
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True)},
    ).save_pretrained(folder)
    bert = BertConfig(
        vocab_size=tokens.get_vocab_size(),
        hidden_size=config.dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.dim,
        max_position_embeddings=config.max_length,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=0,
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(folder)
    transformer = Transformer(
        str(folder),
        max_seq_length=config.max_length,
        # Explicit attention: torch's fused backward is several times slower on a CPU for short texts.
        model_kwargs={"attn_implementation": "eager", "add_pooling_layer": False},
    )
    return SentenceTransformer(modules=[transformer, Pooling(config.dim, "mean")])


def without_pooler(encoder: SentenceTransformer) -> SentenceTransformer:
    """Drop BERT's pooling layer, which no sentence embedding uses and which loading fills at random."""
    bert = getattr(encoder[0], "auto_model", None)
    if getattr(bert, "pooler", None) is not None and bert.config.model_type == "bert":
        bert.pooler = None
    return encoder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries log and draw at a model's loading, saving and training start."""
    from transformers.utils import logging as bars

    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "transformers")]
    levels = [logger.level for logger in loggers]
    drawn = bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if drawn:
            bars.enable_progress_bar()
