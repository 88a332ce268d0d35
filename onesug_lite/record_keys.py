"""Fingerprints of records: all that the numbers of one run depend on.

A record that is there and carries the key of the run that is asked for is not made again. So a killed grid goes on
where it was, and a changed row is the only one that runs.

Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from onesug_lite.profiles import sizes
from onesug_lite.store import code_fingerprint, fingerprint, hash_file, library_versions, source_checksums
from onesug_lite.variants import variant

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


RUN = "grid_run.ipynb"


def record_key(
    name: str,
    seed: int,
    profile: str,
    changes: Mapping[str, object] | None = None,
    market: Mapping[str, object] | None = None,
) -> str:
    """Fingerprint (32 hex digits) of all that a record depends on.

    These are the row and the sizes it resolves to, the seed, the code of both packages and of the notebook that runs
    it, and the versions of the libraries. The table of rows is not code: changing one row leaves the others' keys
    alone.

    Args:
        name: variant.
        seed: of its models.
        profile: sizes.
        changes: settings of all rows that differ from the profile's.
        market: knobs of the market that differ.

    Raises:
        ValueError: unknown variant, profile or setting.
    """
    row = variant(name)
    told = {
        "row": {key: value for key, value in asdict(row).items() if key != "label"},
        "sizes": asdict(sizes(profile).changed(changes or {}).changed(row.changes)),
        "market": dict(market or {}),
        "seed": seed,
        "profile": profile,
        "code": code_key(),
    }
    return _digest(told)


@cache
def code_key() -> str:
    """Fingerprint (32 hex digits) of what all records of a grid share: code of both packages and the run, libraries."""
    code = _code(["pipeline"])
    run, imported = run_code(RUN)
    market = source_checksums([*imported, "data_synth.market"])
    words = {path.name: hash_file(path) for path in sorted((NOTEBOOKS.parent / "data_synth").glob("lexicon_*.yaml"))}
    return _digest({"code": code, "market": market | words, "notebook": run, "libraries": library_versions()})


def study_code(study: str, notebook: str, modules: Sequence[str]) -> str:
    """Fingerprint (16 hex digits) of what all records of a study beside the grid share.

    Args:
        study: its name.
        notebook: the one that writes its records.
        modules: those that it runs, without the package's name.
    """
    run, imported = run_code(notebook)
    told = _code(modules) | {"run": run, "market": source_checksums(imported)}
    return fingerprint(study, told, {"grid": code_key()}, [])[0]


def run_code(notebook: str) -> tuple[list[str], list[str]]:
    """The code cells of a notebook that writes records, and the modules of the market that it imports from, sorted."""
    # read as plain JSON: nbformat takes seconds to import, and every run of a grid would wait for it
    cells = json.loads((NOTEBOOKS / notebook).read_text(encoding="utf-8"))["cells"]
    run = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return run, sorted(set(re.findall(r"^from (data_synth\S*) import", "\n".join(run), re.MULTILINE)))


def _code(modules: Sequence[str]) -> dict[str, str]:
    """Checksums of modules and of what they import, without the tables that count by what they say of a row."""
    tables = {"onesug_lite.variants", "onesug_lite.profiles"}
    return {name: checksum for name, checksum in code_fingerprint(modules).items() if name not in tables}


def _digest(told: dict) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]
