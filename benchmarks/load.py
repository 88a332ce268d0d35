"""Ten minutes of traffic against the serving path: bursts, hostile requests, and releases replaced while it runs.

    python benchmarks/load.py [--profile lite] [--seconds 600] [--compared 1000]

Held-out requests of the validation day are typed letter by letter on a virtual clock (see onesug_lite/load.py), to the
full model; after a quarter of the run the generator with PRE alone takes its place, after half of it comes a damaged
release that must be refused. Both are trained first when the store does not hold them. Prints a table and writes
build/bench/load.json. Exit status 1 when a check fails: an answer other than the policy's, a hostile request that did
not come out as it must, a release not taken in or one wrongly taken in, latency or memory that grew.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import psutil

import data_synth
from onesug_lite.load import load_run
from onesug_lite.load_report import report
from onesug_lite.onnx_export import stored_export
from onesug_lite.pipeline import Pipeline
from onesug_lite.traffic import arrivals, traffic_of
from onesug_lite.variants import VARIANTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=os.environ.get("ONESUG_PROFILE", "lite"))
    parser.add_argument("--store", type=Path, default=Path("build/store"))
    parser.add_argument("--seconds", type=float, help="of traffic: 600, at smoke 60")
    parser.add_argument("--compared", type=int, help="distinct requests compared: 1,000, at smoke all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/bench/load.json"))
    options = parser.parse_args()
    small = options.profile == "smoke"
    market = data_synth.open_market(data_synth.PROFILES[options.profile], options.store)
    road = Pipeline(market / "log", options.profile, 0, options.store)
    releases = []
    for name in ("onesug", "sft_pre"):
        policy, entry = road.policy(name), road.trained(VARIANTS[name]).folder.name
        releases.append((policy, stored_export(road.store, policy.model, entry)))
    rng = np.random.default_rng(options.seed)
    traffic = traffic_of(options.seconds or (60.0 if small else 600.0))
    coming = arrivals(traffic, road.split.validation.requests, rng)
    process = psutil.Process()
    checked = options.compared or (None if small else 1000)
    done = load_run(releases, coming, traffic, rng, lambda: process.memory_info().rss / 1e6, checked)
    found = report(done, coming, traffic, rng)
    print(f"profile {options.profile}: {found.table()}")
    found.write(options.out)
    print(f"written: {options.out}")
    return int(not found.passed)


if __name__ == "__main__":
    sys.exit(main())
