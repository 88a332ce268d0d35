"""From prompts to suggested queries: texts and scores, by our beam search or the library's.

``reference_search`` is :func:`onesug_lite.beam.beam_search` as ``transformers`` does it: what ours is tested against,
and what serves architectures that ours does not know.

Source: paper, section "One encoder-decoder" (32 -> 16) [third-party notes].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from onesug_lite.batches import Prompt, collate_prompts
from onesug_lite.beam import Beams, BeamSearcher, DecodeConfig, check_trie, searchable
from onesug_lite.beam import beam_search as beam_search  # callers find all of decoding here
from onesug_lite.generator import prompt_vectors
from onesug_lite.packed import IMPOSSIBLE
from onesug_lite.tokenizer import decode_queries
from onesug_lite.trie import Trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def reference_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: DecodeConfig,
    trie: Trie | None = None,
) -> Beams:
    """The same search by transformers' ``generate``, for any of its models.

    Args:
        model: any Hugging Face encoder-decoder or decoder-only model.
        input_ids: (B, P) or (B, P, W) prompts.
        attention_mask: (B, P).
        config: width and depth; ``among_known`` is not known to ``generate``.
        trie: of the known queries, for ``config.known``.

    Returns:
        As ``beam_search``.

    Raises:
        ValueError: ``config.known`` and the trie do not go together.
    """
    from transformers import GenerationConfig

    check_trie(config, trie)
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
        decoder_start_token_id=getattr(shape, "decoder_start_token_id", None),
    )
    if not (shape.is_encoder_decoder or attention_mask.all()):  # generate would want the padding on the left
        rows = zip(input_ids, attention_mask.bool(), strict=True)
        found = [reference_search(model, ids[None, held], held[None, held].long(), config, trie) for ids, held in rows]
        width = max(one.tokens.shape[2] for one in found)
        tokens = [F.pad(one.tokens, (0, width - one.tokens.shape[2]), value=shape.pad_token_id) for one in found]
        return Beams(torch.cat(tokens), torch.cat([one.scores for one in found]))
    vectors, written = prompt_vectors(model, input_ids), 1  # the decoder's start token is returned too
    if not shape.is_encoder_decoder:
        start = prompt_vectors(model, torch.full_like(attention_mask[:, :1], shape.eos_token_id))
        vectors, written = torch.cat([vectors, start], dim=1), 0
        attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)

    def allowed(_, ids: Tensor) -> list[int]:
        node = torch.zeros(1, dtype=torch.int64)
        for token in ids[written:]:
            node = trie.follow(node, token[None])
        return trie.mask(node, shape.vocab_size)[0].nonzero()[:, 0].tolist() or [shape.pad_token_id]

    habits = model.generation_config
    try:
        # generate fills gaps of its settings from the model's own, and a checkpoint may force or forbid
        # tokens there.
        model.generation_config = settings
        found = model.generate(
            inputs_embeds=vectors,
            attention_mask=attention_mask,
            generation_config=settings,
            prefix_allowed_tokens_fn=None if trie is None else allowed,
        )
    finally:
        model.generation_config = habits
    tokens = found.sequences[:, written:]
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


def prepare(
    model: PreTrainedModel | BeamSearcher, config: DecodeConfig, trie: Trie | None = None
) -> PreTrainedModel | BeamSearcher:
    """Make a searcher where our search knows the architecture; others stay as they are and use the library's.

    Args:
        model: a generator, or a searcher, which is returned as it is.
        config: width and depth.
        trie: of the known queries, for ``config.known``.
    """
    if isinstance(model, BeamSearcher) or not searchable(model):
        return model
    return BeamSearcher(model, config, trie)


def suggest_queries(
    model: PreTrainedModel | BeamSearcher,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: DecodeConfig,
    batch_size: int = 64,
    trie: Trie | None = None,
) -> list[list[tuple[str, float]]]:
    """Suggest queries for many prompts.

    Prompts of about one length are searched together. Where two token sequences spell the same query, their
    probabilities add up. What did not end within ``max_new_tokens``, is empty or holds broken characters is
    dropped; a quarter more queries than ``results`` are searched to fill the places that this leaves.

    Args:
        model: a generator, or a ``BeamSearcher`` made from one.
        tokenizer: the model's.
        prompts: N encoder inputs as of ``build_prompts``.
        config: width and depth; a ``BeamSearcher`` must have been made with the same.
        batch_size: prompts searched together.
        trie: of the known queries, for ``config.known``.

    Returns:
        For every prompt at most ``results`` pairs of query and log-probability, best first, equal ones by
        their text.

    Raises:
        ValueError: when a searcher was made with another config.
    """
    from tqdm.auto import tqdm

    found_per_prompt = min(config.beams, config.results + -(-config.results // 4))
    model = prepare(model, config, trie)
    if isinstance(model, BeamSearcher):
        if model.config != config:
            raise ValueError(f"the searcher was made with {model.config} and {config} was asked for; give it that one")
        search = partial(model.search, results=found_per_prompt)
        pad_id, eos_id, device = model.pad, model.eos, model.model.device
    else:
        search = partial(reference_search, model, config=replace(config, results=found_per_prompt), trie=trie)
        pad_id, eos_id, device = model.config.pad_token_id, model.config.eos_token_id, model.device

    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    suggestions: list[list[tuple[str, float]]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc="suggest", unit="prompt", leave=False, delay=2)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        found = search(*(part.to(device) for part in collate_prompts([prompts[row] for row in rows], pad_id)))
        texts = decode_queries(tokenizer, found.tokens.flatten(0, 1).tolist())
        whole = ((found.tokens == eos_id).any(dim=2) & (found.scores > IMPOSSIBLE / 10)).tolist()
        for place, (row, scores) in enumerate(zip(rows, found.scores.tolist(), strict=True)):
            queries = texts[place * found_per_prompt : (place + 1) * found_per_prompt]
            suggestions[row] = merge_queries(queries, scores, whole[place])[: config.results]
        bar.update(len(rows))
    bar.close()
    return suggestions


def merge_queries(queries: Sequence[str], scores: Sequence[float], whole: Sequence[bool]) -> list[tuple[str, float]]:
    """Join equal queries, drop the unusable and sort.

    Args:
        queries: texts of one request, as written.
        scores: their log-probabilities; those of equal texts are added as probabilities.
        whole: whether each was written to its end.

    Returns:
        (query, log-probability), best first; equals by their texts.
    """
    merged: dict[str, float] = {}
    for query, score, ended in zip(queries, scores, whole, strict=True):
        if ended and query and "\ufffd" not in query:
            merged[query] = _log_add(merged[query], score) if query in merged else score
    return sorted(merged.items(), key=lambda pair: (-pair[1], pair[0]))


def _log_add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))
