"""Response time of generator and cascade, side by side: stage by stage, batched, by threads, as sizes grow; and memory.

    python benchmarks/latency.py [--profile lite] [--requests 200] [--rounds 3]

The systems are those of the book, trained first when the store does not hold them: the full model as the book evaluates
it, the same model as it serves (exported graphs, tables instead of joins), freely and over a trie of known queries, and
the cascade with all channels. Every request is answered in each of several rounds, with nothing remembered from the
round before. *Best* takes the quickest round of a request, which is what a quiet machine would show; *all* takes every
round. Prints tables and writes build/bench/latency.json. Exit status 1 when the serving path or transformers' generate
answers otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

GOAL = {"p50": 5.0, "p99": 10.0, "times faster": 5.0}
TOLERANCE = 1e-3  # nats, over a whole query
NAMES = {
    "serving": "generator, serving",
    "known": "generator, serving, known queries",
    "policy": "generator, as evaluated",
    "cascade": "cascade",
}


def memory(folder: Path, kind: str) -> None:
    """Print the resident megabytes of this process: with the libraries, with the system, after some answers."""
    import psutil

    def resident() -> float:
        return psutil.Process().memory_info().rss / 1e6

    import onesug_lite.cascade
    import onesug_lite.serving
    from onesug_lite.onnx_export import OnnxGenerator

    held = [resident()]
    if kind == "cascade":
        policy = onesug_lite.cascade.Cascade.load(folder / "cascade")
    else:
        policy = onesug_lite.policy.OneSugPolicy.load(folder / ("known" if kind == "known" else "policy"))
        if kind != "policy":
            policy = onesug_lite.serving.ServingPolicy(policy, OnnxGenerator(folder / "onnx"))
    held.append(resident())
    for prefix in ("a", "sh", "red s", "zzqx"):
        policy.suggest(prefix)
    held.append(resident())
    print(json.dumps(dict(zip(("libraries", "loaded", "answering"), held, strict=True))))


def memory_of(folder: Path, kind: str) -> dict[str, float]:
    """The same in a process of its own."""
    line = [sys.executable, __file__, "--memory", kind, "--folder", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.strip().splitlines()[-1])


def response_times(policy, requests: pl.DataFrame, rounds: int) -> dict:
    """Quantiles of all rounds and of each request's best one, and the mean of each stage in its best round."""
    from onesug_lite.latency import mean_stages, measure, quantiles

    measured = [measure(policy, requests).with_columns(round=pl.lit(number)) for number in range(rounds)]
    every = pl.concat(measured)
    whole = every.group_by("round", "request", maintain_order=True).agg(pl.col("milliseconds").sum())
    best = whole.sort("milliseconds", "round").unique("request", keep="first", maintain_order=True)
    chosen = every.join(best.select("round", "request"), on=["round", "request"], maintain_order="left")
    return {
        "all": quantiles(whole["milliseconds"]),
        "best": quantiles(best["milliseconds"]),
        "stages": dict(mean_stages(chosen).iter_rows()),
    }


def against_generate(policy, serving, requests: pl.DataFrame) -> dict[str, float]:
    """Our two searches against the library's: queries, scores and time, the best of three for each request."""
    from onesug_lite.batches import collate_prompts
    from onesug_lite.decode import reference_search

    searches = {
        "generate": lambda ids, mask: reference_search(policy.model, ids, mask, policy.decode),
        "beam": policy._searcher.search,
        "serving": serving.searcher.search,
    }
    spent: dict[str, list[float]] = {name: [] for name in searches}
    differing, largest = 0, 0.0
    for prompt in policy.prompts(requests):
        inputs, found = collate_prompts([prompt], policy._searcher.pad), {}
        for name, search in searches.items():
            times = []
            for _ in range(3):
                start = time.perf_counter()
                found[name] = search(*inputs)
                times.append((time.perf_counter() - start) * 1e3)
            spent[name].append(min(times))
        reference = found.pop("generate")
        for mine in found.values():
            same = mine.tokens.shape == reference.tokens.shape and bool((mine.tokens == reference.tokens).all())
            differing += not same
            largest = max(largest, float((mine.scores - reference.scores).abs().max()))
    medians = {f"{name} p50": float(np.median(times)) for name, times in spent.items()}
    ratios = {
        f"{name} times faster": float(np.median(np.array(spent["generate"]) / np.array(spent[name])))
        for name in ("beam", "serving")
    }
    return {"requests": len(requests), **medians, **ratios, "differing": differing, "largest difference": largest}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=os.environ.get("ONESUG_PROFILE", "lite"))
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--requests", type=int, help="requests to time: 200, at smoke 40")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/latency.json"))
    parser.add_argument("--memory", choices=list(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(options.folder, options.memory)
        return 0
    small = options.profile == "smoke"
    number = options.requests or (40 if small else 200)

    import data_synth
    from onesug_lite.latency import threads
    from onesug_lite.latency_growth import beam_growth, layer_growth, pool_growth, predicted, prompt_growth
    from onesug_lite.onnx_export import OnnxGenerator, stored_export
    from onesug_lite.pipeline import Pipeline
    from onesug_lite.serving import ServingPolicy
    from onesug_lite.variants import VARIANTS

    market = data_synth.open_market(data_synth.PROFILES[options.profile], options.store)
    road = Pipeline(market / "log", options.profile, 0, options.store)
    parts = tqdm(total=3 * len(NAMES) + 7, desc="measured", unit="part", mininterval=0)
    policy, cascade = road.policy("onesug"), road.policy("online_mca")
    entry = road.trained(VARIANTS["onesug"]).folder.name
    rows = road.held_out("validation")
    requests = rows.select("prefix", "history", "profile").head(number)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(stored_export(road.store, policy.model, entry), folder / "onnx")
        policy.save(folder / "policy")
        over_trie = replace(policy.decode, known=True)
        bound = type(policy)(policy.model, policy.tokenizer, policy.search, policy.prompt, over_trie, road.known)
        bound.save(folder / "known")
        cascade.save(folder / "cascade")
        held = {}
        for name in NAMES:
            held[name] = memory_of(folder, name)
            parts.update()
        served = {
            count: [ServingPolicy(one, OnnxGenerator(folder / "onnx", count)) for one in (policy, bound)]
            for count in (1, 2)
        }
        times = {}
        for count, (serving, known) in served.items():
            systems = dict(zip(NAMES, (serving, known, policy, cascade), strict=True))
            with threads(count):
                for name, system in systems.items():
                    times[f"{name}, {count}"] = response_times(system, requests, options.rounds)
                    parts.update()
        serving = served[1][0]
        otherwise = 0
        for fast, slow in zip(served[1], (policy, bound), strict=True):
            fast.forget()
            otherwise += sum(mine != theirs for mine, theirs in zip(fast(requests), slow(requests), strict=True))
        compared = against_generate(policy, serving, requests.head(20 if small else 60))
        parts.update()
    batched = {}
    for name, system in (("policy", policy), ("cascade", cascade)):
        start = time.perf_counter()
        system(rows.head(500))
        batched[name] = min(len(rows), 500) / (time.perf_counter() - start)
        parts.update()

    prompts = policy.prompts(requests.head(8 if small else 30))
    bare = type(policy)(policy.model, policy.tokenizer, None, policy.prompt, policy.decode)
    item = policy.tokenizer("red shoes", add_special_tokens=False)["input_ids"]
    pools = (1_000, 10_000) if small else (10_000, 100_000, 1_000_000)
    rqvae, embedding = road.sizes.rqvae, policy.search.embeddings.shape[1]
    measurements = [
        lambda: pool_growth(pools, embedding, rqvae.codes, rqvae.levels, 6, 9, np.random.default_rng(0)),
        lambda: beam_growth(policy.model, prompts, (4, 8, 16, 32, 64), policy.decode),
        lambda: layer_growth(road.sizes.generator, policy.tokenizer, prompts[:8], (1, 2, 4, 6), policy.decode, 0),
        lambda: prompt_growth(
            policy.model, bare.prompts(requests.head(len(prompts))), (0, 6, 12, 24, 48), 2, item, policy.decode
        ),
    ]
    grown = []
    for measurement in measurements:
        grown.append(measurement())
        parts.update()
    parts.close()
    growth = pl.concat(grown, how="diagonal")

    fitted, machine = predicted(growth, policy.model.config)

    print(f"profile {options.profile}, {len(requests)} requests, {options.rounds} rounds, milliseconds")
    header = "".join(f"{name:>9}" for name in ("p50", "p95", "p99", "mean"))
    print(f"{'one request at a time':46}{header}{'| all p50':>12}{'p99':>9}")
    for name, found in times.items():
        system, count = name.split(", ")
        cells = "".join(f"{found['best'][key]:9.2f}" for key in ("p50", "p95", "p99", "mean"))
        label = f"{NAMES[system]}, {count} thread(s)"
        print(f"{label:46}{cells}{found['all']['p50']:12.2f}{found['all']['p99']:9.2f}")
    for name in NAMES:
        print(f"\n{NAMES[name]}, 1 thread: mean milliseconds by stage")
        for stage, milliseconds in times[f"{name}, 1"]["stages"].items():
            print(f"  {stage:24}{milliseconds:9.3f}")
    rates = ", ".join(f"{NAMES[name]} {rate:.0f}" for name, rate in batched.items())
    print(f"\nbatches, requests a second: {rates}")
    searches = ", ".join(f"{name} {compared[f'{name} p50']:.2f}" for name in ("generate", "beam", "serving"))
    print(f"search alone, ms p50: {searches}")
    ratios = ", ".join(f"{name} {compared[f'{name} times faster']:.1f}" for name in ("beam", "serving"))
    print(f"times faster than generate: {ratios}")
    unlike = f"{compared['differing']} of {2 * compared['requests']}, end to end {otherwise} of {2 * len(requests)}"
    print(f"other queries: {unlike}; largest difference of a score {compared['largest difference']:.1e} nats")
    print(f"\n{'resident memory, MB':38}" + "".join(f"{name:>12}" for name in ("libraries", "loaded", "answering")))
    for name, found in held.items():
        print(f"  {NAMES[name]:36}" + "".join(f"{value:12.0f}" for value in found.values()))
    print("\ngrowth, ms")
    for knob, label, x, milliseconds in growth.select("knob", "label", "x", "milliseconds").iter_rows():
        print(f"  {knob:32}{label:16}{x:>10,}{milliseconds:10.2f}")
    off = (fitted["predicted"] / fitted["measured"] - 1).abs()
    print(f"cost model: {machine.described()}; off by {off.median():.0%} (median), {off.max():.0%} (most)")
    best = times["serving, 1"]["best"]
    reached = {
        "p50": best["p50"] <= GOAL["p50"],
        "p99": best["p99"] <= GOAL["p99"],
        "times faster": compared["serving times faster"] >= GOAL["times faster"],
    }
    print(
        "\ngoals: " + ", ".join(f"{name} {GOAL[name]:g} {'met' if met else 'NOT met'}" for name, met in reached.items())
    )
    record = {
        "profile": options.profile, "requests": len(requests), "rounds": options.rounds, "times": times,
        "batched_requests_per_second": batched, "against_generate": compared, "otherwise_end_to_end": otherwise,
        "resident_megabytes": held, "growth": growth.to_dicts(), "goals": GOAL, "fitted": fitted.to_dicts(),
        "machine": vars(machine), "reached": reached,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    fresh.replace(options.out)
    print(f"written: {options.out}")
    return int(compared["differing"] > 0 or otherwise > 0 or compared["largest difference"] > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
