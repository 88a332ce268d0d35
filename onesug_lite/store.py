"""Artefact store: what a stage made is kept under a fingerprint and never half there.

A fingerprint is the SHA-256 of four things: the stage's frozen config, the fingerprints of its inputs, the source of
the modules it runs (with everything they import from this package) and the versions of the numeric libraries. Change
one parameter and only the stages downstream of it are built again. An entry is a folder that was written under a
temporary name and renamed; ``manifest.json`` in it holds a checksum of every file.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

PACKAGE = "onesug_lite"
LIBRARIES = (
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "scikit-learn",
    "polars",
)


class StoreError(ValueError):
    """A store entry that cannot be trusted: a file is missing, cut short or altered."""


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its path in it, as :func:`verify` compares them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


class _Source(NamedTuple):
    """What counts of a module's source."""

    checksum: str  # 16 hex digits of its syntax tree without docstrings
    imports: frozenset[str]  # what of its own package it imports by name, functions and classes perhaps among them


@cache
def _source(module: str) -> _Source | None:
    """A module's source; None where there is no such module, or a folder without one."""
    spec, package, imports = importlib.util.find_spec(module), module.split(".")[0], set()
    if spec is None or spec.origin is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, (package, node.module))) if node.level == 1 else node.module or ""
            if source == package:
                imports |= {f"{package}.{alias.name}" for alias in node.names}
            elif source.startswith(f"{package}."):
                imports.add(source)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return _Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], frozenset(imports))


def code_fingerprint(modules: Sequence[str]) -> dict[str, str]:
    """Source checksum of the named modules and of all they import from this package.

    Comments and blank lines do not count: the checksum is taken over the syntax tree without docstrings, so that
    rewording a comment does not cost anybody an hour of training.
    """
    return source_checksums([f"{PACKAGE}.{module}" for module in modules])


def source_checksums(modules: Sequence[str]) -> dict[str, str]:
    """As :func:`code_fingerprint`, of modules of any package by their full names."""
    found: dict[str, str] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        source = None if name in found else _source(name)
        if source is not None:
            found[name] = source.checksum
            todo += source.imports
    return dict(sorted(found.items()))


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries whose numbers end up in an artefact."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def fingerprint(stage: str, config: Any, inputs: Mapping[str, str], modules: Sequence[str]) -> tuple[str, dict]:
    """Fingerprint (16 hex digits) of a stage's result and the record it was computed from.

    Args:
        stage: name of the stage, part of the folder's name.
        config: frozen dataclass or a JSON-able value.
        inputs: name -> fingerprint of each input.
        modules: modules of this package that the stage runs, without the package's name.
    """
    record = {
        "stage": stage,
        "config": asdict(config) if is_dataclass(config) else config,
        "inputs": dict(inputs),
        "code": code_fingerprint(modules),
        "libraries": library_versions(),
    }
    text = json.dumps(record, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16], record


class Store:
    """A folder of finished artefacts.

    Args:
        root: folder that holds the entries; made when missing.
        announce: called with one line when a stage is being built or waited for; ``print`` by default.
    """

    def __init__(self, root: str | Path, announce: Callable[[str], None] = print):
        self.root = Path(root).resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.announce = announce

    def get(
        self,
        stage: str,
        config: Any,
        inputs: Mapping[str, str],
        modules: Sequence[str],
        build: Callable[[Path, Path], None],
    ) -> Path:
        """Folder of the stage's result, built first when it is not there.

        ``build(out, work)`` writes its files into ``out``; ``work`` outlives an interruption, so that a training stage
        keeps its checkpoints there and goes on from them at the next call. A second process that asks for the same
        entry waits for the first. A damaged entry is set aside (never deleted), reported and built again.

        Args:
            stage: name of the stage.
            config: its frozen config.
            inputs: name -> fingerprint of each input.
            modules: modules it runs, for the code fingerprint.
            build: writes the result.

        Returns:
            Path of the finished folder; its name ends with the fingerprint.
        """
        key, record = fingerprint(stage, config, inputs, modules)
        entry = self.root / f"{stage}-{key}"
        if entry.exists() and self._sound(entry):
            return entry
        lock = FileLock(self.root / f".{entry.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.announce(f"{stage}: another process is building {entry.name}; waiting for it")
            lock.acquire()
        try:
            if entry.exists() and self._sound(entry):
                return entry
            return self._build(stage, entry, record, build)
        finally:
            lock.release()

    def _build(self, stage: str, entry: Path, record: dict, build: Callable[[Path, Path], None]) -> Path:
        work = self.root / f".work-{entry.name}"
        out = self.root / f".new-{entry.name}"
        resumed = " (going on from its last checkpoint)" if work.exists() and any(work.iterdir()) else ""
        self.announce(f"{stage}: building{resumed}")
        work.mkdir(exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        start = time.perf_counter()
        build(out, work)
        seconds = time.perf_counter() - start
        manifest = record | {"files": hash_files(out), "seconds": round(seconds, 2)}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str), encoding="utf-8")
        os.rename(out, entry)
        shutil.rmtree(work, ignore_errors=True)
        self.announce(f"{stage}: done in {seconds:.0f} s")
        return entry

    def _sound(self, entry: Path) -> bool:
        try:
            verify(entry)
            return True
        except StoreError as error:
            aside = entry.with_name(f"damaged-{entry.name}-{time.time_ns()}")
            try:
                os.rename(entry, aside)
            except FileNotFoundError:  # another process has just set it aside
                return False
            warnings.warn(f"{error}; set aside as {aside.name} and built again", stacklevel=3)
            return False


def verify(entry: Path) -> dict:
    """Check every file of an entry against its manifest.

    Returns:
        The manifest.

    Raises:
        StoreError: the manifest is missing or unreadable, or a file is missing, cut short or altered.
    """
    entry = Path(entry)
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"store entry {entry.name} has no readable manifest.json ({error})") from None
    for name, expected in files.items():
        path = entry / name
        if not path.is_file():
            raise StoreError(f"store entry {entry.name}: file '{name}' is missing")
        found = hash_file(path)
        if found != expected:
            raise StoreError(
                f"store entry {entry.name}: file '{name}' ({path.stat().st_size} bytes) has checksum {found[:12]}, "
                f"expected {expected[:12]}: it was cut short or altered"
            )
    return manifest
