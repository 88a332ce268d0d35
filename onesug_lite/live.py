"""A policy that is served while its folder may be replaced: the new one is taken in whole, or the old one goes on.

A *release* is a folder as the store keeps its entries: ``policy/``, ``graphs/`` and a ``manifest.json`` with a checksum
of every file. :class:`LiveService` looks at the manifest between two requests. When it is another one, a thread checks
every file, reads the release, makes its tables and asks it something; the next look after that puts it in place, in
one assignment and with nothing remembered. A release that is damaged or not yet there whole changes nothing but a
count; it is tried again once one of its files has changed.

Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from onesug_lite.folders import replacing
from onesug_lite.onnx_export import OnnxGenerator
from onesug_lite.policy import OneSugPolicy
from onesug_lite.serving import ServingPolicy
from onesug_lite.store import StoreError, hash_file, hash_files, verify

MANIFEST = "manifest.json"


def release(policy: OneSugPolicy, graphs: str | Path, folder: str | Path) -> str:
    """Write a release, whole or not at all; one that is there is replaced.

    Args:
        policy: what is to be served.
        graphs: folder of its exported graphs; see :func:`onesug_lite.onnx_export.stored_export`.
        folder: created or replaced.

    Returns:
        The release's version.
    """
    with replacing(folder) as new:
        policy.save(new / "policy")
        shutil.copytree(graphs, new / "graphs")
        (new / MANIFEST).write_text(json.dumps({"files": hash_files(new)}, indent=1) + "\n", encoding="utf-8")
    return version_of(folder)


def version_of(folder: str | Path) -> str:
    """A release's version: 12 hex digits of its manifest's checksum, and so of its content.

    Raises:
        StoreError: the folder has no manifest.
    """
    try:
        return hash_file(Path(folder) / MANIFEST)[:12]
    except OSError as error:
        raise StoreError(f"release '{folder}' has no readable {MANIFEST} ({error}); write it with release()") from None


class Version(NamedTuple):
    """A release in memory.

    Attributes:
        name: its version.
        policy: it, ready to answer.
    """

    name: str
    policy: ServingPolicy


class LiveService:
    """Answers from the release in a folder, whichever is there.

    Args:
        folder: of the release.
        kept: as for :class:`onesug_lite.serving.ServingPolicy`.

    Attributes:
        live: the version in force.
        taken: releases taken in after the first one.
        refused: times that a release was found and could not be taken in.

    Raises:
        StoreError: the first release is missing or damaged; there is none to go on with.
        PolicyError: it holds no policy.
    """

    def __init__(self, folder: str | Path, kept: int = 20_000):
        self.folder, self.kept = Path(folder), kept
        self.taken = self.refused = 0
        self._seen = _stamps(self.folder / MANIFEST)  # of the manifest that was read last
        self._files_refused = ""  # stamps of all files of a release that could not be taken in
        self._coming: Future[Version] | None = None
        self.live = self._prepared()

    @property
    def version(self) -> str:
        """Name of the version in force."""
        return self.live.name

    @property
    def preparing(self) -> bool:
        """Whether a new release is being read."""
        return self._coming is not None

    def suggest(self, prefix: str, history: Sequence[str] = (), profile: Sequence[str] = ()) -> list[tuple[str, float]]:
        """As :meth:`onesug_lite.serving.ServingPolicy.suggest` of the version in force."""
        return self.live.policy.suggest(prefix, history, profile)

    def look(self, wait: bool = False) -> None:
        """Between two requests: begin to read what is new, put in place what is ready.

        Args:
            wait: until a new release has been read.

        Warns:
            UserWarning: a release could not be taken in, with the reason.
        """
        if self._coming is None and self._is_new():
            pool = ThreadPoolExecutor(1, thread_name_prefix="release")
            self._coming = pool.submit(self._prepared)
            pool.shutdown(wait=False)
        if self._coming is not None and (wait or self._coming.done()):
            self._settle()

    def _is_new(self) -> bool:
        manifest = _stamps(self.folder / MANIFEST)
        if not manifest:  # for a moment, while a folder takes another's place
            return False
        if manifest == self._seen and self._files_refused in ("", _stamps(self.folder)):
            return False
        # taken before reading: what is written from here on is seen as a change
        self._seen, self._files_refused = manifest, _stamps(self.folder)
        return True

    def _settle(self) -> None:
        coming, self._coming = self._coming, None
        error = coming.exception()
        if _stamps(self.folder / MANIFEST) != self._seen:  # replaced while it was read: the next look reads again
            return
        if error is None:
            self.live, self._files_refused = coming.result(), ""
            self.taken += 1
        else:
            self.refused += 1
            warnings.warn(f"{error}; version {self.version} goes on", stacklevel=3)

    def _prepared(self) -> Version:
        """The release in the folder, checked, read and warm."""
        name = version_of(self.folder)
        verify(self.folder)
        policy = OneSugPolicy.load(self.folder / "policy")
        serving = ServingPolicy(policy, OnnxGenerator(self.folder / "graphs"), self.kept)
        serving.suggest("\u2603")  # a prefix that nobody clicked under goes every way there is
        serving.forget()
        return Version(name, serving)


def _stamps(path: Path) -> str:
    """Names, lengths, times and places on disk of a file, or of all files of a folder, in short; empty without any."""
    found = []
    try:
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            state = each.stat()
            found.append((str(each), state.st_size, state.st_mtime_ns, state.st_ino))
    except OSError:
        return ""
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else ""
