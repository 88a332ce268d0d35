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
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm.auto import tqdm

from .catalogue import Pool
from .config import MarketConfig, MarketError
from .keystrokes import FORMS, prefix_texts
from .policies import (
    history_texts,
    query_column,
)
from .responses import BEHAVIOURS, price
from .sessions import Play, Requests
from .shoppers import Shoppers, profile_texts
from .world import SPAN, World, build_world, play_shard, shard_count

#: Midnight before the first request of every market.
FIRST_DAY = np.datetime64("2025-06-01T00:00:00", "us")
_MARK = "made_by"
#: The modules that a market's bytes depend on.
_WRITERS = (
    "catalogue", "config", "counts", "keystrokes", "lexicon", "market", "policies", "responses", "sessions", "shoppers",
    "world",
)  # fmt: skip
_LISTED = 1_000_000  # queries of a pool that is written out in the truth


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
            pq.ParquetWriter(paths["log/requests"], _REQUESTS, **_WRITING) as requests,
            pq.ParquetWriter(paths["log/candidates"], _CANDIDATES, **_WRITING) as candidates,
            pq.ParquetWriter(paths["truth/requests"], _TRUTH, **_WRITING) as truth,
        ):
            for day in days:
                ids = shard * SPAN + total + 1 + np.arange(day.who.size)
                requests.write_table(_request_table(play, day, shard, ids, profiles))
                candidates.write_table(_candidate_table(world, day, ids))
                truth.write_table(_truth_table(world, day, ids))
                total += day.who.size
        pq.write_table(_shopper_table(world, shoppers, shard), paths["truth/shoppers"], compression="zstd")
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
        _write_queries(world, fresh / "truth")
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


def _request_table(play: Play, day: Requests, shard: int, ids: np.ndarray, profiles: pa.Array) -> pa.Table:
    named = pa.array([play.name, "random"], pa.string())
    columns = [
        pa.array(ids),
        pa.array(shard * SPAN + day.session + 1),
        pa.array(shard * SPAN + day.who + 1),
        pa.array(FIRST_DAY + day.time.astype("timedelta64[us]")),
        pa.array(prefix_texts(day.batch.points, day.batch.length), pa.string()),
        profiles.take(pa.array(day.who)),
        history_texts(play.catalogue, day.batch.history).cast(pa.list_(pa.string())),
        named.take(pa.array(day.at_random.astype(np.int8))),
    ]
    return pa.Table.from_arrays(columns, schema=_REQUESTS)


def _candidate_table(world: World, day: Requests, ids: np.ndarray) -> pa.Table:
    page, count = day.page, ids.size
    listed = np.concatenate([page.shown, page.not_shown], axis=1)
    width, shown = listed.shape[1], page.shown.shape[1]
    codes = np.full((count, width), BEHAVIOURS.index("not_shown"), dtype=np.int8)
    codes[:, :shown] = BEHAVIOURS.index("show")
    paid = np.zeros((count, width), dtype=np.float32)
    clicked = np.flatnonzero(day.responses.place >= 0)
    place = day.responses.place[clicked]
    codes[clicked, place] = day.responses.behaviour[clicked]
    paid[clicked, place] = day.responses.revenue[clicked]
    chance = np.zeros((count, width), dtype=np.float32)
    chance[:, :shown] = page.propensity
    position = np.tile(np.r_[np.arange(1, shown + 1), np.zeros(width - shown, dtype=np.int64)].astype(np.int8), count)
    keep = listed.ravel() >= 0
    position = position[keep]
    columns = [
        pa.array(np.repeat(ids, width)[keep]),
        query_column(world.catalogue, listed.ravel()[keep]),
        pa.array(position, mask=position == 0),
        pa.DictionaryArray.from_arrays(pa.array(codes.ravel()[keep]), pa.array(BEHAVIOURS, pa.string())),
        pa.array(paid.ravel()[keep]),
        pa.array(chance.ravel()[keep], mask=position == 0),
    ]
    return pa.Table.from_arrays(columns, schema=_CANDIDATES)


def _truth_table(world: World, day: Requests, ids: np.ndarray) -> pa.Table:
    columns = [
        pa.array(ids),
        query_column(world.catalogue, day.intent),
        pa.DictionaryArray.from_arrays(pa.array(day.form.astype(np.int8)), pa.array(FORMS, pa.string())),
        pa.array(day.responses.read.astype(np.int8)),
        query_column(world.catalogue, day.searched, mask=day.searched < 0),
    ]
    return pa.Table.from_arrays(columns, schema=_TRUTH)


def _shopper_table(world: World, shoppers: Shoppers, shard: int) -> pa.Table:
    catalogue = world.catalogue
    lexicon, (_, brands, _, attributes, _) = catalogue.lexicon, catalogue.sizes
    departments, shelves = shoppers.favourite_brand.shape[1], shoppers.favourite_attribute.shape[1]
    brand = catalogue.shown["brand"].take(
        pa.array((shoppers.favourite_brand + np.arange(departments) * brands).ravel())
    )
    attribute = catalogue.shown["attribute"].take(
        pa.array((shoppers.favourite_attribute + np.arange(shelves) * attributes).ravel())
    )
    return pa.table(
        {
            "user_id": shard * SPAN + 1 + np.arange(shoppers.tier.size),
            "department_taste": pa.FixedSizeListArray.from_arrays(shoppers.department_taste.ravel(), departments),
            "favourite_brand": pa.FixedSizeListArray.from_arrays(brand, departments),
            "favourite_attribute": pa.FixedSizeListArray.from_arrays(attribute, shelves),
            "audience": pa.array(lexicon.audiences).take(pa.array(shoppers.audience)),
            "price_tier": pa.array(lexicon.tiers).take(pa.array(shoppers.tier)),
            "activity": shoppers.activity,
            "cold": shoppers.cold,
        }
    )


def _write_queries(world: World, folder: Path) -> None:
    """Write what no model may see of the queries, where the pool is small enough to be listed."""
    catalogue, config = world.catalogue, world.config
    folder.mkdir(exist_ok=True)
    if catalogue.size > _LISTED:
        return
    queries = np.arange(catalogue.size)
    rows = catalogue.word_rows(catalogue.split(queries))
    columns = {"query": catalogue.texts(queries)}
    names = pa.array([department.name for department in catalogue.lexicon.departments])
    columns["department"] = names.take(pa.array(catalogue.type_department[rows["type"]]))
    columns |= {slot: catalogue.shown[slot].take(pa.array(row)) for slot, row in rows.items()}
    columns |= {
        "born": catalogue.born(config, queries),
        "attraction": catalogue.attraction(queries, config),
        "quality": catalogue.quality(queries, config),
        "clickbait": catalogue.is_bait(queries, config.clickbait),
        "price": price(catalogue, queries),
    }
    pq.write_table(pa.table(columns), folder / "queries.parquet", compression="zstd")


_TEXT = pa.dictionary(pa.int32(), pa.string())
_LEVEL = pa.dictionary(pa.int8(), pa.string())
_REQUESTS = pa.schema(
    [
        ("request_id", pa.int64()),
        ("session_id", pa.int64()),
        ("user_id", pa.int64()),
        ("time", pa.timestamp("us")),
        ("prefix", pa.string()),
        ("profile", pa.list_(pa.string())),
        ("history", pa.list_(pa.string())),
        ("policy", pa.string()),
    ]
)
_CANDIDATES = pa.schema(
    [
        ("request_id", pa.int64()),
        ("query", _TEXT),
        ("position", pa.int8()),
        ("behaviour", _LEVEL),
        ("revenue", pa.float32()),
        ("propensity", pa.float32()),
    ]
)
_TRUTH = pa.schema(
    [("request_id", pa.int64()), ("intent", _TEXT), ("form", _LEVEL), ("read", pa.int8()), ("searched", _TEXT)]
)
# Dictionaries are a matter of storage: readers see plain strings.
_WRITING = {"compression": "zstd", "store_schema": False, "dictionary_pagesize_limit": 2**26}
