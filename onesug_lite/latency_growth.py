"""How the time of an answer grows: with the pool of queries, the beams, the layers and the related queries.

Every function measures at some sizes and returns ``knob``, ``label``, ``x``, ``milliseconds``; those of the generator
also what the search did, ``steps`` and ``rows`` (beams in a mean step), which :mod:`onesug_lite.cost_model` needs.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from onesug_lite.batches import Prompt, collate_prompts
from onesug_lite.beam import BeamSearcher, DecodeConfig
from onesug_lite.cost_model import GeneratorCost, Machine, fit_machine, total
from onesug_lite.generator import GeneratorConfig, build_generator
from onesug_lite.latency import Stopwatch, median_time
from onesug_lite.serving import SidIndex
from onesug_lite.sid_search import nearest


def pool_growth(
    pools: Sequence[int], dim: int, codes: int, levels: int, k: int, repeats: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Search of related queries in pools of made-up vectors.

    Args:
        pools: numbers of queries.
        dim: length of a vector.
        codes: codes of a level, drawn evenly.
        levels: of a semantic id.
        k: related queries wanted.
        repeats: searches that are timed.
        rng: draws vectors and codes.
    """
    rows = []
    for pool in pools:
        vectors = rng.standard_normal((pool, dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sids = rng.integers(0, codes, (pool, levels))
        asked = rng.integers(0, pool, repeats + 1)
        index = SidIndex(sids, vectors)
        searches = {
            "semantic ids": lambda at, index=index, s=sids, v=vectors: index.find(s[at], v[at], k),
            "all vectors": lambda at, v=vectors: nearest(v, v[at][None], k),
        }
        for label, find in searches.items():
            at = iter(asked.tolist())
            rows.append(("queries in the pool", label, pool, median_time(lambda f=find, a=at: f(next(a)), repeats)))
    return pl.DataFrame(rows, schema=["knob", "label", "x", "milliseconds"], orient="row")


def beam_growth(model, prompts: Sequence[Prompt], widths: Sequence[int], config: DecodeConfig) -> pl.DataFrame:
    """The search with more and more beams.

    Args:
        model: a BART generator.
        prompts: one request each.
        widths: numbers of beams.
        config: of the search but for its width.
    """
    rows = []
    for beams in widths:
        narrow = replace(config, beams=beams, results=min(config.results, beams))
        rows.append(_search("beams", "trained", beams, BeamSearcher(model, narrow), prompts))
    return pl.concat(rows)


def layer_growth(
    config: GeneratorConfig,
    tokenizer,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    decode: DecodeConfig,
    seed: int,
) -> pl.DataFrame:
    """The search with more and more layers in encoder and decoder, of random weights.

    Queries of random weights seldom end, so that all steps are taken: compare the points with each other alone.

    Args:
        config: shape of the generator but for its layers.
        tokenizer: gives the vocabulary.
        prompts: one request each.
        layers: numbers of layers of either side.
        decode: of the search.
        seed: of the weights.
    """
    rows = []
    for number in layers:
        deep = build_generator(replace(config, encoder_layers=number, decoder_layers=number), tokenizer, seed)
        rows.append(_search("layers", "random weights", number, BeamSearcher(deep, decode), prompts))
    return pl.concat(rows)


def prompt_growth(
    model, prompts: Sequence[Prompt], related: Sequence[int], at: int, item: Sequence[int], decode: DecodeConfig
) -> pl.DataFrame:
    """The search with more and more related queries in the prompt.

    Args:
        model: a BART generator.
        prompts: without related queries, one request each, several tokens a position.
        related: numbers of related queries.
        at: position of the prompt before which they are put.
        item: tokens of each of them.
        decode: of the search.
    """
    searcher, rows = BeamSearcher(model, decode), []
    for number in related:
        longer = [[*prompt[:at], *([list(item)] * number), *prompt[at:]] for prompt in prompts]
        rows.append(_search("related queries in the prompt", "trained", number, searcher, longer))
    return pl.concat(rows)


def _search(knob: str, label: str, x: int, searcher: BeamSearcher, prompts: Sequence[Prompt]) -> pl.DataFrame:
    """Median time of a search over the requests, each in the quickest of three rounds, and what a mean search did."""
    inputs = [collate_prompts([prompt], searcher.pad) for prompt in prompts]
    rows: list[list[int]] = []
    original = searcher.model.decode

    def counted(last, *arguments):
        rows[-1].append(len(last))
        return original(last, *arguments)

    searcher.model.decode = counted
    try:
        for part in inputs:  # also warms up
            rows.append([])
            searcher.search(*part)
    finally:
        del searcher.model.decode
    watch = Stopwatch()
    rounds = [
        [sum(watch.request(lambda part=part: searcher.search(*part)).values()) for part in inputs] for _ in range(3)
    ]
    spent = np.min(rounds, axis=0)
    return pl.DataFrame(
        {
            "knob": knob,
            "label": label,
            "x": x,
            "milliseconds": float(np.median(spent)),
            "steps": float(np.mean([len(one) for one in rows])),
            "rows": float(np.sum([sum(one) for one in rows]) / np.sum([len(one) for one in rows])),
            "positions": float(np.mean([part[0].shape[1] for part in inputs])),
        }
    )


def predicted(growth: pl.DataFrame, config) -> tuple[pl.DataFrame, Machine]:
    """Fit the cost model's machine to the searches that were measured, and predict them with it.

    Args:
        growth: rows of the generator, from the functions above.
        config: of the model (transformers' ``BartConfig``); ``x`` replaces its layers where layers grew.

    Returns:
        Frame ``label`` (what grew), ``x``, ``measured``, ``predicted`` in milliseconds; and the machine.
    """
    rows = growth.drop_nulls("steps").to_dicts()
    works = [[work for work in search_cost(config, row).works() if work.stage in ("encode", "decode")] for row in rows]
    measured = [row["milliseconds"] for row in rows]
    machine = fit_machine(works, measured)
    frame = pl.DataFrame(
        {
            "label": [row["knob"] for row in rows],
            "x": [row["x"] for row in rows],
            "measured": measured,
            "predicted": [total(some, machine) for some in works],
        }
    )
    return frame, machine


def search_cost(config, row: dict) -> GeneratorCost:
    """The cost model's sizes of one search that was measured, without PRE; see :func:`predicted`."""
    layers = row["x"] if row["knob"] == "layers" else None
    return GeneratorCost(
        d_model=config.d_model,
        ffn=config.encoder_ffn_dim,
        encoder_layers=layers or config.encoder_layers,
        decoder_layers=layers or config.decoder_layers,
        vocabulary=config.vocab_size,
        positions=round(row["positions"]),
        beams=row["x"] if row["knob"] == "beams" else GeneratorCost.beams,
        steps=row["steps"],
        rows=row["rows"],
        pool=0,
    )
