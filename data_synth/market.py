"""The market as a whole: build its world, play its shards, write the log and, apart from it, the truth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm.auto import tqdm

from .catalogue import Pool
from .config import MarketConfig, MarketError
from .market_tables import (
    CANDIDATES,
    REQUESTS,
    TRUTH,
    candidate_table,
    request_table,
    shopper_table,
    truth_table,
    write_queries,
)
from .sessions import Play
from .shoppers import profile_texts
from .world import SPAN, World, build_world, play_shard, shard_count

_MARK = "made_by"
#: The modules that a market's bytes depend on.
_WRITERS = (
    "catalogue", "catalogue_building", "config", "counts", "keystrokes", "lexicon", "market", "market_tables",
    "policies", "responses", "sessions", "shoppers", "world",
)  # fmt: skip


def write_shard(world: World, shard: int, out: Path, play: Play | None = None) -> int:
    """Play one shard and write its four files below ``out``; each appears whole or not at all.

    Args:
        world: the market.
        shard: its number.
        out: folder of the market.
        play: under another policy than the market's; see :meth:`World.play`.

    Returns:
        Number of requests.
    """
    play = play or world.play()
    shoppers, days = play_shard(world, shard, play)
    name = f"shard-{shard:05d}.parquet"
    tables = ("log/requests", "log/candidates", "truth/requests", "truth/shoppers")
    for table in tables:
        (out / table).mkdir(parents=True, exist_ok=True)
    paths = {table: out / table / f".{name}-{os.getpid()}" for table in tables}
    total = 0
    profiles = profile_texts(world.catalogue, shoppers.profile)
    try:
        with (
            pq.ParquetWriter(paths["log/requests"], REQUESTS, **_WRITING) as requests,
            pq.ParquetWriter(paths["log/candidates"], CANDIDATES, **_WRITING) as candidates,
            pq.ParquetWriter(paths["truth/requests"], TRUTH, **_WRITING) as truth,
        ):
            for day in days:
                ids = shard * SPAN + total + 1 + np.arange(day.who.size)
                requests.write_table(request_table(play, day, shard, ids, profiles))
                candidates.write_table(candidate_table(world, day, ids))
                truth.write_table(truth_table(world, day, ids))
                total += day.who.size
        pq.write_table(shopper_table(world, shoppers, shard), paths["truth/shoppers"], compression="zstd")
        for table in tables:
            os.replace(paths[table], out / table / name)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    return total


def write_market(
    config: MarketConfig,
    out: Path,
    force: bool = False,
    jobs: int = 1,
    queries: Pool | None = None,
    shards: list[int] | None = None,
) -> Path:
    """Build a market and write its log and, apart from it, its truth.

    The folder appears whole or not at all: everything is written beside it under a temporary name and renamed.

    Args:
        config: the market.
        out: folder to write; ``log/`` holds requests and candidates, a file a shard and a row group a day, ``truth/``
            what no model may see.
        force: replace an earlier market at ``out``. Anything else there is never replaced.
        jobs: processes at a time (joblib; :func:`joblib.parallel_config` chooses dask or ray instead). The bytes do not
            depend on it.
        queries: see :func:`build_world`.
        shards: the shards to write; all by default.

    Returns:
        ``out``.

    Raises:
        MarketError: ``out`` is a file, holds something else, or holds a market and ``force`` is not given; a shard that
            does not exist.
    """
    out = Path(out).absolute()
    check_target(out, force)
    shards = list(range(shard_count(config))) if shards is None else shards
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fresh = work / "market"
        fresh.mkdir()
        world = build_world(config, queries)
        for_each_shard(world, write_shard, shards, jobs, fresh)
        write_queries(world, fresh / "truth")
        (fresh / "config.json").write_text(json.dumps({_MARK: "data_synth", "config": asdict(config)}, indent=2) + "\n")
        if out.exists():
            check_target(out, force)  # it may have appeared in the meantime
            os.rename(out, work / "before")
        try:
            os.rename(fresh, out)
        except OSError:
            if (work / "before").exists():
                os.rename(work / "before", out)  # never lose an earlier market to a failed replacement
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def for_each_shard(world: World, task: Callable, shards: list[int], jobs: int, *more) -> list:
    """``task(world, shard, *more)`` for every shard, in parallel where there are several; the results in their order.

    Raises:
        MarketError: a shard that does not exist.
    """
    wrong = [shard for shard in shards if not 0 <= shard < shard_count(world.config)]
    if wrong:
        raise MarketError(f"shard is {wrong[0]}; the market has {shard_count(world.config)}, numbered from 0")
    bar = tqdm(total=len(shards), desc="shards", disable=None, leave=False)
    results = []
    jobs = min(jobs, max(len(shards), 1))
    for result in joblib.Parallel(n_jobs=jobs, return_as="generator", pre_dispatch="2 * n_jobs")(
        joblib.delayed(task)(world, shard, *more) for shard in shards
    ):
        results.append(result)
        bar.update()
    bar.close()
    return results


def open_market(config: MarketConfig, root: Path, jobs: int = 2) -> Path:
    """The market of a config: built where it is absent, found at once where it is there.

    Args:
        config: the market.
        root: folder of all markets; each lies under a name made of its config and of the code and words that make it.
        jobs: processes at a time.

    Returns:
        The market's folder, with ``log`` and ``truth`` in it. A second process waits while the first one builds.
    """
    folder = Path(root) / f"market-{fingerprint(asdict(config))}"
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():
                write_market(config, folder, jobs=jobs)
    return folder


def fingerprint(told: object, *readers: str) -> str:
    """Twelve digits that stand for some settings, as JSON can hold them, and for the code and words of all markets.

    Args:
        told: the settings.
        *readers: further modules of this package, which read markets and write something of their own.
    """
    code = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    here = Path(__file__).parent
    modules = [here / f"{name}.py" for name in (*_WRITERS, *readers)]
    for source in [*modules, *sorted(here.glob("lexicon_*.yaml"))]:
        code.update(source.name.encode() + b"\0" + source.read_bytes())
    return code.hexdigest()[:12]


def check_target(out: Path, force: bool = False) -> None:
    """Say why a market cannot be written to a folder, before any work is done.

    Raises:
        MarketError: see :func:`write_market`.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MarketError(f"{out} is not a folder; expected an empty or a new one: choose another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not _is_market(out):
        raise MarketError(f"{out} holds files that are not a market; expected an empty or a new folder")
    if not force:
        raise MarketError(f"{out} already holds a market; choose another folder, or --force to replace it")


def _is_market(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text()).get(_MARK) == "data_synth"
    except (OSError, ValueError, AttributeError):
        return False


# Dictionaries are a matter of storage: readers see plain strings.
_WRITING = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**26}
