"""Folders that are there whole or not at all: what is saved appears under its name when everything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of ``folder`` when the block ends without an error.

    An interrupt leaves what was there before, or nothing, and no leftover beside it. What the new content is copied
    from may lie in the folder that is replaced.

    Args:
        folder: created or replaced; folders above it are made.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:  # same disk: a rename is enough
        fresh, stale = Path(beside) / "fresh", Path(beside) / "stale"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            os.replace(folder, stale)
        try:
            os.replace(fresh, folder)
        except BaseException:
            if stale.exists():
                os.replace(stale, folder)
            raise
