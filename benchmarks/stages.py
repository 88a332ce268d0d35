"""Seconds and size of every stage in the store.

Run by ``make bench``; prints a table and writes ``build/bench/stages.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

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
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
