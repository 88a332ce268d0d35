"""Training throughput of the default generator against a plain configuration, side by side.

The plain one is what a first attempt with transformers' ``Trainer`` would be: a position for each token of the prompt,
single precision, torch's own attention, batches in random order. Ours pools an item into one position, multiplies in
bf16 where the processor does, computes attention by plain products, and groups prompts by length. Both train the same
model on the same clicks; ``--quality`` trains both for the profile's steps and compares the loss on the validation day.

Run by ``make bench``; prints a table and writes ``build/bench/training.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
import torch.nn.functional as F

import data_synth
from onesug_lite.batches import collate
from onesug_lite.generator import build_generator, query_logits
from onesug_lite.pipeline import Pipeline
from onesug_lite.policy import OneSugPolicy
from onesug_lite.prompt import encode_queries
from onesug_lite.training import train_supervised


def validation_loss(model, road: Pipeline, rows: pl.DataFrame) -> float:
    """Nats a clicked query of the validation day."""
    prompts = OneSugPolicy(model, road.tokenizer, road.search, road.sizes.prompt).prompts(rows)
    targets = encode_queries(road.tokenizer, rows["query"].to_list(), road.sizes.prompt)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(prompts), 250):
            batch = collate(prompts[start : start + 250], targets[start : start + 250], road.tokenizer.pad_token_id)
            logits = query_logits(model, **batch).flatten(0, 1)
            total += float(F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100, reduction="sum"))
    return total / len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="lite")
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quality", action="store_true", help="train both to the end, which takes a while")
    parser.add_argument("--out", type=Path, default=Path("build/bench/training.json"))
    options = parser.parse_args()
    market = data_synth.open_market(data_synth.PROFILES[options.profile], options.store)
    ours = Pipeline(market / "log", options.profile, 0, options.store)
    plain = ours.changed({"prompt.pooled": False, "train.bf16": False, "train.group_batches": 1})
    rows = ours.held_out("validation")
    record = {}
    for name, road, attention in (("plain", plain, "sdpa"), ("ours", ours, "eager")):
        examples = road._examples(pre=True)
        model = build_generator(road.sizes.generator, road.tokenizer, 0)
        model.set_attn_implementation(attention)
        with TemporaryDirectory() as work:
            train_supervised(model, examples, replace(road.sizes.train, steps=5), 0, Path(work))  # warms up
            config = road.sizes.train if options.quality else replace(road.sizes.train, steps=options.steps)
            model = build_generator(road.sizes.generator, road.tokenizer, 0)
            model.set_attn_implementation(attention)
            start = time.perf_counter()
            train_supervised(model, examples, config, 0, Path(work))
            seconds = time.perf_counter() - start
        record[name] = {
            "samples_per_second": config.steps * config.batch_size / seconds,
            "positions": sum(map(len, examples.prompts)) / len(examples.prompts),
            "steps": config.steps,
            "validation_loss": validation_loss(model, road, rows) if options.quality else None,
        }
        shown = record[name]
        quality = "" if shown["validation_loss"] is None else f"{shown['validation_loss']:8.3f} nats a query"
        print(f"{name:6s} {shown['samples_per_second']:8.0f} samples/s {shown['positions']:6.1f} positions {quality}")
    record["times_faster"] = record["ours"]["samples_per_second"] / record["plain"]["samples_per_second"]
    print(f"times faster: {record['times_faster']:.1f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(options.out)


if __name__ == "__main__":
    main()
