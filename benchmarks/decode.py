"""Beam search against transformers' ``generate``: time per request, requests a second, equality.

    python benchmarks/decode.py [--model FOLDER] [--prompts FILE] [--requests 60] [--threads 2]

Without ``--model`` a model of the lite shape is trained for half a minute on made-up queries, because an
untrained one never ends a query and so says nothing about time. ``FILE`` is a JSON list of lists of token ids
for the given model. Prints a table and writes build/bench/decode.json. Exit status 1 when a query or a score
differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from onesug_lite.decode import Beams, BeamSearcher, DecodeConfig, reference_search, suggest_queries
from onesug_lite.generator import (
    Examples,
    GeneratorConfig,
    TrainConfig,
    build_generator,
    load_generator,
    pad,
    set_seed,
    train_supervised,
)
from onesug_lite.prompt import PromptConfig, build_prompts, encode_queries, train_tokenizer

DECODE = DecodeConfig()
TOLERANCE = 1e-3  # nats, over a whole query


def made_up_examples(rng: np.random.Generator, count: int):
    """Prompts and targets as long as the lite market's: a prefix, six related queries, six searches."""
    syllables = ["ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu"]
    words = ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(1500)]
    queries = [" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(4000)]
    config = PromptConfig()
    tokenizer = train_tokenizer(queries, config)
    # Some queries are asked far more often than others.
    targets = [queries[int(4000 * share**2)] for share in rng.random(count)]
    prefixes = [query[: rng.integers(2, 7)] for query in targets]
    related = [[*rng.choice(queries, 5), query] for query in targets]
    histories = [list(rng.choice(queries, rng.integers(0, 7))) for _ in targets]
    prompts = build_prompts(tokenizer, prefixes, related, histories, [["adult", "low price"]] * count, config)
    return tokenizer, Examples(prompts, encode_queries(tokenizer, targets, config))


def train_model(seed: int):
    """A model of the lite shape, trained until it ends its queries."""
    tokenizer, examples = made_up_examples(np.random.default_rng(seed), 30_000)
    model = build_generator(GeneratorConfig(), tokenizer, seed)
    with tempfile.TemporaryDirectory() as work:
        config = TrainConfig(steps=200, batch_size=128, warmup=30)
        train_supervised(model, examples, config, seed, Path(work) / "work")
    return model, tokenizer, list(examples.prompts[:500])


def times(search: Callable[[], Beams], repeats: int) -> tuple[Beams, float]:
    """The result and the shortest of several times, in milliseconds."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = search()
        spent.append((time.perf_counter() - start) * 1e3)
    return found, min(spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder written by save_generator")
    parser.add_argument("--prompts", type=Path, help="JSON list of prompts for that model")
    parser.add_argument("--requests", type=int, default=60, help="single requests to time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench/decode.json"))
    options = parser.parse_args()
    if (options.model is None) != (options.prompts is None):
        parser.error("give --model and --prompts together, or neither")
    set_seed(0, options.threads)
    if options.model is None:
        model, tokenizer, prompts = train_model(0)
    else:
        model, tokenizer = load_generator(options.model)
        prompts = json.loads(options.prompts.read_text())
    searcher = BeamSearcher(model, DECODE)

    ours, theirs, differing, largest = [], [], 0, 0.0
    for prompt in prompts[: options.requests]:
        ids = pad([prompt], searcher.pad)
        mask = torch.ones_like(ids)
        mine, milliseconds = times(lambda ids=ids, mask=mask: searcher.search(ids, mask), 3)
        ours.append(milliseconds)
        reference, milliseconds = times(lambda ids=ids, mask=mask: reference_search(model, ids, mask, DECODE), 3)
        theirs.append(milliseconds)
        largest = max(largest, float((mine.scores - reference.scores).abs().max()))
        differing += mine.tokens.shape != reference.tokens.shape or not bool((mine.tokens == reference.tokens).all())
    start = time.perf_counter()
    suggest_queries(searcher, tokenizer, prompts, DECODE)
    per_second = len(prompts) / (time.perf_counter() - start)

    record = {
        "threads": options.threads,
        "requests": len(ours),
        "beams": DECODE.beams,
        "ours_p50_ms": float(np.percentile(ours, 50)),
        "ours_p95_ms": float(np.percentile(ours, 95)),
        "generate_p50_ms": float(np.percentile(theirs, 50)),
        "generate_p95_ms": float(np.percentile(theirs, 95)),
        "times_faster_p50": float(np.median(np.array(theirs) / np.array(ours))),
        "batched_requests_per_second": per_second,
        "requests_with_other_queries": differing,
        "largest_score_difference": largest,
    }
    print(f"{'one request, ' + str(options.threads) + ' threads':30}{'p50 ms':>10}{'p95 ms':>10}")
    print(f"{'transformers generate':30}{record['generate_p50_ms']:10.1f}{record['generate_p95_ms']:10.1f}")
    print(f"{'beam_search':30}{record['ours_p50_ms']:10.1f}{record['ours_p95_ms']:10.1f}")
    print(f"times faster: {record['times_faster_p50']:.1f} (median over {len(ours)} requests)")
    print(f"batches of 64: {per_second:.0f} requests a second, {len(prompts)} requests")
    print(f"requests with other queries: {differing}; largest difference of a score: {largest:.1e} nats")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(options.out)
    print(f"written: {options.out}")
    return int(differing > 0 or largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
