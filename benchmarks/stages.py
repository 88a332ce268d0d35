"""Seconds of every stage in the store, and the speed and memory of writing a market.

Run by ``make bench``; prints a table and writes ``build/bench/stages.json``.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import data_synth

STORE = Path("build/store")
OUT = Path("build/bench/stages.json")


def main() -> None:
    rows = []
    for path in sorted(STORE.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "seconds" in manifest:
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            rows.append({"entry": path.parent.name, "seconds": manifest["seconds"], "megabytes": round(size / 1e6, 1)})
    print(f"{'stage in the store':44s} {'seconds':>9s} {'MB':>8s}")
    for row in sorted(rows, key=lambda row: -row["seconds"]):
        print(f"{row['entry']:44s} {row['seconds']:9.1f} {row['megabytes']:8.1f}")
    config = data_synth.PROFILES["lite"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data_synth.write_market(config, Path(folder) / "market")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    market = {
        "sessions": config.sessions,
        "seconds": round(seconds, 1),
        "per_second": round(config.sessions / seconds),
    }
    print(
        f"\nmarket: {config.sessions:,} sessions in {seconds:.1f} s, {market['per_second']:,} a second, {peak:.0f} MB"
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"stages": rows, "market": market | {"peak_megabytes": round(peak)}}, indent=1))


if __name__ == "__main__":
    main()
