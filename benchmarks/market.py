"""How fast the market writes a log, and in how much memory, at three sizes.

    python benchmarks/market.py [--jobs 2] [--sizes 1e5,1e6,1e7] [--profile lite]

Each size is written to a folder that is removed again, by a process of its own, so that its memory is its own. The
world (words, shoppers' tables, the policies' counts) does not grow with the log; its seconds stand apart. Memory is the
sum of all processes, sampled ten times a second. Prints a table, writes build/bench/market.json and draws the line in
build/bench/market.png. Exit status 1 when a size falls short of 50,000 requests a second or takes 4 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil

import data_synth
from data_synth.market import for_each_shard, write_shard

REQUESTS_A_SESSION = 3.6  # of the lite market, to choose the number of sessions; what is written is counted
GOAL, LIMIT = 50_000, 4e9  # requests a second, bytes


class Memory(threading.Thread):
    """The largest sum of resident memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.1):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def measure(requests: float, profile: str, jobs: int) -> dict:
    """Write one log and count what it took."""
    sessions = round(requests / REQUESTS_A_SESSION)
    config = data_synth.market_config(profile, sessions=sessions, shoppers=max(sessions // 7, 1))
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    world = data_synth.build_world(config)
    built = time.perf_counter()
    out = Path(tempfile.mkdtemp(prefix="market-", dir=os.environ.get("BENCH_DIR")))
    try:
        shards = list(range(data_synth.shard_count(config)))
        written = sum(for_each_shard(world, write_shard, shards, jobs, out))
        seconds = time.perf_counter() - built
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(out, ignore_errors=True)
    memory.over.set()
    memory.join()
    return {
        "requests": written,
        "shown": written * config.shown,
        "shards": len(shards),
        "jobs": jobs,
        "world_seconds": round(built - start, 2),
        "write_seconds": round(seconds, 2),
        "requests_per_second": round(written / seconds),
        "peak_megabytes": round(memory.peak / 1e6),
        "bytes_per_request": round(size / written, 1),
    }


def draw(rows: list[dict], path: Path) -> None:
    """Requests a second and peak memory against the size of the log."""
    size = [row["requests"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(size, [row["requests_per_second"] for row in rows], "o-", color="#0173b2")
    left.axhline(GOAL, color="#6b6b6b", linestyle="--")
    left.set(
        xscale="log",
        ylim=(0, 1.15 * max(GOAL, *(row["requests_per_second"] for row in rows))),
        xlabel="requests in the log",
        ylabel="requests written a second",
    )
    left.set_title(f"{min(row['requests_per_second'] for row in rows):,} requests a second or more", loc="left")
    right.plot(size, [row["peak_megabytes"] / 1e3 for row in rows], "o-", color="#de8f05")
    right.axhline(LIMIT / 1e9, color="#6b6b6b", linestyle="--")
    right.set(xscale="log", ylim=(0, None), xlabel="requests in the log", ylabel="peak memory, all processes (GB)")
    grown = rows[-1]["peak_megabytes"] / rows[0]["peak_megabytes"]
    right.set_title(f"{size[-1] / size[0]:,.0f} times the log, {grown:.1f} times the memory", loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e5,1e6,1e7")
    parser.add_argument("--profile", default="lite")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench/market.json"))
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.profile, options.jobs)))
        return 0
    rows = []
    print(f"{'requests':>12s} {'world s':>8s} {'write s':>8s} {'requests/s':>11s} {'peak MB':>8s} {'B/request':>10s}")
    for size in options.sizes.split(","):
        command = [sys.executable, __file__, "--one", size, "--profile", options.profile, "--jobs", str(options.jobs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{row['requests']:12,d} {row['world_seconds']:8.1f} {row['write_seconds']:8.1f} "
            f"{row['requests_per_second']:11,d} {row['peak_megabytes']:8,d} {row['bytes_per_request']:10.1f}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, options.out.with_suffix(".png"))
    log = np.log([row["requests"] for row in rows])
    seconds = np.array([row["write_seconds"] for row in rows])
    if len(rows) > 1:
        rate = rows[-1]["requests_per_second"]
        slope = np.polyfit(log, np.log(seconds), 1)[0]
        minutes = 1e8 / rate / 60
        print(f"seconds grow as requests to the power of {slope:.2f}; 10^8 requests would take {minutes:.0f} minutes")
    short = [row for row in rows if row["requests_per_second"] < GOAL or row["peak_megabytes"] * 1e6 > LIMIT]
    return int(bool(short))


if __name__ == "__main__":
    raise SystemExit(main())
