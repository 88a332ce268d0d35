"""Beam search against transformers' ``generate`` on the trained model: time per request, requests a second, equality.

The same search over the trie of the queries known from the training days is timed beside it.

    python benchmarks/decode.py [--profile lite] [--requests 60] [--threads 1]

The model and the prompts are those of the book: the generator with PRE and held-out requests of the validation day,
trained first when the store does not hold it. Prints a table and writes build/bench/decode.json. Exit status 1 when a
query or a score differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import data_synth
from onesug_lite.batches import collate_prompts
from onesug_lite.decode import Beams, BeamSearcher, DecodeConfig, reference_search, suggest_queries
from onesug_lite.pipeline import Pipeline
from onesug_lite.prompt import encode_queries
from onesug_lite.trainer import set_seed
from onesug_lite.trie import Trie

DECODE = DecodeConfig()
KNOWN = DecodeConfig(known=True)
TOLERANCE = 1e-3  # nats, over a whole query


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
    parser.add_argument("--profile", default="lite")
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--requests", type=int, default=60, help="single requests to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/decode.json"))
    options = parser.parse_args()
    market = data_synth.open_market(data_synth.PROFILES[options.profile], options.store)
    road = Pipeline(market / "log", options.profile, 0, options.store)
    policy = road.policy("sft_pre")
    model, tokenizer, prompts = policy.model, policy.tokenizer, policy.prompts(road.held_out("validation").head(500))
    set_seed(0, options.threads)
    searcher = BeamSearcher(model, DECODE)
    start = time.perf_counter()
    trie = Trie(encode_queries(tokenizer, road.queries, policy.prompt), model.config.vocab_size)
    build_seconds = time.perf_counter() - start
    known_searcher = BeamSearcher(model, KNOWN, trie)

    ours, known, theirs, differing, largest = [], [], [], 0, 0.0
    for prompt in prompts[: options.requests]:
        ids, mask = collate_prompts([prompt], searcher.pad)
        mine, milliseconds = times(lambda ids=ids, mask=mask: searcher.search(ids, mask), 3)
        ours.append(milliseconds)
        _, milliseconds = times(lambda ids=ids, mask=mask: known_searcher.search(ids, mask), 3)
        known.append(milliseconds)
        reference, milliseconds = times(lambda ids=ids, mask=mask: reference_search(model, ids, mask, DECODE), 3)
        theirs.append(milliseconds)
        largest = max(largest, float((mine.scores - reference.scores).abs().max()))
        differing += mine.tokens.shape != reference.tokens.shape or not bool((mine.tokens == reference.tokens).all())
    per_second = {}
    for name, prepared in (("free", searcher), ("known", known_searcher)):
        start = time.perf_counter()
        suggest_queries(prepared, tokenizer, prompts, prepared.config)
        per_second[name] = len(prompts) / (time.perf_counter() - start)

    record = {
        "threads": options.threads,
        "requests": len(ours),
        "beams": DECODE.beams,
        "ours_p50_ms": float(np.percentile(ours, 50)),
        "ours_p95_ms": float(np.percentile(ours, 95)),
        "known_p50_ms": float(np.percentile(known, 50)),
        "known_p95_ms": float(np.percentile(known, 95)),
        "known_queries": len(road.queries),
        "trie_build_seconds": build_seconds,
        "generate_p50_ms": float(np.percentile(theirs, 50)),
        "generate_p95_ms": float(np.percentile(theirs, 95)),
        "times_faster_p50": float(np.median(np.array(theirs) / np.array(ours))),
        "batched_requests_per_second": per_second["free"],
        "batched_known_requests_per_second": per_second["known"],
        "requests_with_other_queries": differing,
        "largest_score_difference": largest,
    }
    print(f"{'one request, ' + str(options.threads) + ' threads':30}{'p50 ms':>10}{'p95 ms':>10}")
    print(f"{'transformers generate':30}{record['generate_p50_ms']:10.1f}{record['generate_p95_ms']:10.1f}")
    print(f"{'beam_search':30}{record['ours_p50_ms']:10.1f}{record['ours_p95_ms']:10.1f}")
    print(f"{'beam_search, known queries':30}{record['known_p50_ms']:10.1f}{record['known_p95_ms']:10.1f}")
    print(f"times faster: {record['times_faster_p50']:.1f} (median over {len(ours)} requests)")
    rates = f"{per_second['free']:.0f} requests a second, known queries alone {per_second['known']:.0f}"
    print(f"batches of 64: {rates}; {len(prompts)} requests")
    print(f"trie of {len(road.queries):,} known queries, tokens included: {build_seconds:.2f} s")
    print(f"requests with other queries: {differing}; largest difference of a score: {largest:.1e} nats")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(options.out)
    print(f"written: {options.out}")
    return int(differing > 0 or largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
