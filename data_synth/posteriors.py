"""Posteriors of logged requests, found once and kept: what every system's lists are put before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import polars as pl
from filelock import FileLock

from .ceilings import batches_from_log
from .config import MarketConfig
from .market import fingerprint
from .oracle import Oracle, Posterior
from .world import World, build_world

_READ = ("time", "prefix", "history", "profile")
_COLUMNS = dict(zip(Posterior._fields, map(pl.List, (pl.Int64, pl.Float64, pl.Float64)), strict=True))


def open_posteriors(config: MarketConfig, frame: pl.DataFrame, root: Path) -> list[Posterior]:
    """What the shoppers of logged requests may have in mind: found where it is absent, read at once where it is there.

    Args:
        config: the market that wrote the log.
        frame: N requests as for :func:`data_synth.ceilings.batches_from_log`.
        root: folder of all markets; the file's name stands for the market, the requests and the code that reads them.

    Returns:
        N posteriors in the frame's order, to the last bit those of :meth:`data_synth.oracle.Oracle.posterior` day by
        day. A second process waits while the first one finds them.

    Raises:
        MarketError: requests that are not this market's, or a market too large for an oracle.
    """
    asked = hashlib.sha256(frame.select(_READ).write_ndjson().encode()).hexdigest()
    path = Path(root) / f"posteriors-{fingerprint([asdict(config), asked], 'oracle', 'ceilings', 'posteriors')}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                new = path.with_suffix(".new")
                rows = [[part.tolist() for part in one] for one in posteriors_of(build_world(config), frame)]
                pl.DataFrame(rows, schema=_COLUMNS, orient="row").write_parquet(new)
                os.replace(new, path)
    columns = pl.read_parquet(path, columns=list(_COLUMNS))
    return [Posterior(*(part.to_numpy() for part in row)) for row in zip(*columns, strict=True)]


def posteriors_of(world: World, frame: pl.DataFrame) -> list[Posterior]:
    """What the shoppers of logged requests may have in mind, in the frame's order.

    Args:
        world: the market that wrote the log.
        frame: N requests as for :func:`data_synth.ceilings.batches_from_log`.
    """
    oracle, found = Oracle(world), {}
    for rows, batch in batches_from_log(world, frame):
        found |= dict(zip(rows.tolist(), oracle.posterior(batch), strict=True))
    return [found[row] for row in range(len(frame))]
