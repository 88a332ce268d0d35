"""The market as a whole: build its world, live through its days, write the log and the truth."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm.auto import tqdm

from .catalogue import Catalogue, build_catalogue
from .config import MarketConfig, MarketError
from .exposure import Exposure, believed_popularity, expose, recall_table
from .keystrokes import FORMS, Typing, build_typing, type_prefixes
from .lexicon import AUDIENCES, PRICE_TIERS
from .responses import BEHAVIOURS, Responses, respond
from .shoppers import Shoppers, draw_intents, draw_shoppers, draw_trends

#: Midnight before the first request of every market.
FIRST_DAY = np.datetime64("2025-06-01T00:00:00", "us")
_DAY = 86_400_000_000  # microseconds
_MARK = "made_by"
_BATCH = 16_384  # requests handled at once


class World(NamedTuple):
    """Everything that is fixed before the first request."""

    config: MarketConfig
    catalogue: Catalogue
    shoppers: Shoppers
    trends: np.ndarray  # (days + test_days, T)
    typing: Typing


class Searches(NamedTuple):
    """All requests in time order, and the timeline of searches of each shopper."""

    shopper: np.ndarray  # (N,)
    day: np.ndarray  # (N,)
    time: np.ndarray  # (N,) datetime64[us], ascending
    intent: np.ndarray  # (N,) rows of the catalogue
    prefix: np.ndarray  # (N,) indices into Typing.prefixes
    form: np.ndarray  # (N,) indices into FORMS
    searched: np.ndarray  # (N + U * H,) by shopper, then time; -1 where a cold shopper has no past
    slot: np.ndarray  # (N,) place of each request in searched
    head: np.ndarray  # (U,) place in searched of each shopper's first request


class Day(NamedTuple):
    """One batch of requests of one day, ready to be written."""

    rows: np.ndarray  # (N,) places in Searches
    history: np.ndarray  # (N, H) rows of the catalogue, oldest first, -1 for none
    exposure: Exposure
    responses: Responses


def build_world(config: MarketConfig) -> World:
    """Draw the catalogue, the shoppers, the trends and the ways of typing of a market.

    Args:
        config: the market.

    Returns:
        The world. Each room has its own random stream, so that a change in one leaves the others as they
        were.
    """
    catalogue = build_catalogue(config, _stream(config, 0))
    shoppers = draw_shoppers(config, catalogue, _stream(config, 1))
    trends = draw_trends(config, catalogue, _stream(config, 2))
    return World(config, catalogue, shoppers, trends, build_typing(config, catalogue, _stream(config, 3)))


def draw_searches(world: World) -> Searches:
    """Draw who searches when, with what in mind, and what is typed.

    Args:
        world: the market's world.

    Returns:
        All requests in time order. Every shopper has ``history_length`` searches from before the first day.
    """
    config, rng = world.config, _stream(world.config, 4)
    days, past = config.days + config.test_days, config.history_length
    week = np.array([1.1, 0.95, 0.9, 0.95, 1.0, 1.05, 1.1])[np.arange(days) % 7]
    per_day = np.diff(np.round(np.r_[0.0, np.cumsum(week) / week.sum()] * config.sessions).astype(np.int64))
    day = np.repeat(np.arange(days), per_day)
    hour = np.clip(rng.normal(19.0, 3.0, day.size), 0.0, 23.999)  # evenings, over an even spread of the day
    hour = np.where(rng.random(day.size) < 0.5, hour, rng.uniform(0.0, 24.0, day.size))
    moment = np.minimum((hour / 24.0 * _DAY).astype(np.int64), _DAY - 1)
    time = np.sort(day * _DAY + moment)
    shopper = rng.choice(config.shoppers, size=day.size, p=world.shoppers.activity)

    # One timeline a shopper: the past first, then the requests.
    who = np.concatenate([np.repeat(np.arange(config.shoppers), past), shopper])
    when = np.concatenate([np.full(config.shoppers * past, -1), day])
    order = np.argsort(who, kind="stable")
    intents = draw_intents(config, world.catalogue, world.shoppers, world.trends, who[order], when[order], rng)
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size)
    slot = place[config.shoppers * past :]
    searched = intents.copy()
    searched[(when[order] < 0) & world.shoppers.cold[who[order]]] = -1
    head = np.searchsorted(who[order], np.arange(config.shoppers)) + past
    intent = intents[slot]
    prefix, form = type_prefixes(world.typing, intent, rng)
    return Searches(
        shopper, day, FIRST_DAY + time.astype("timedelta64[us]"), intent, prefix, form, searched, slot, head
    )


def live(world: World, searches: Searches) -> Iterator[Day]:
    """Live through the days: show, respond, remember.

    History is refreshed each night: a request sees the searches of earlier days. What was searched is the
    clicked suggestion, or, without a click, the query in mind, typed to its end.

    Args:
        world: the market's world.
        searches: its requests; ``searched`` and ``head`` are brought up to date along the way.

    Yields:
        The days in order, a large one in several batches.
    """
    config, catalogue = world.config, world.catalogue
    rng, past = _stream(config, 5), np.arange(-config.history_length, 0)
    popularity = believed_popularity(config, catalogue, rng)
    test = searches.day >= config.days
    recalls = [
        recall_table(config, world.typing, np.unique(searches.prefix[part]), popularity, slice(0, stop), rng)
        for part, stop in ((~test, catalogue.known), (test, catalogue.text.size))
    ]
    edges = np.searchsorted(searches.day, np.arange(config.days + config.test_days + 1))
    for day in tqdm(range(config.days + config.test_days), desc="days", disable=None, leave=False):
        trend = world.trends[max(day - config.stale_days, 0)]
        for start in range(edges[day], edges[day + 1], _BATCH):
            rows = np.arange(start, min(start + _BATCH, edges[day + 1]))
            who = searches.shopper[rows]
            history = searches.searched[searches.head[who][:, None] + past]  # (N, H)
            exposure = expose(
                config,
                catalogue,
                recalls[day >= config.days],
                searches.prefix[rows],
                history,
                world.shoppers.profile_codes[who],
                trend,
                rng,
            )
            intent = searches.intent[rows]
            responses = respond(config, catalogue, intent, world.shoppers.tier[who], exposure.shown, rng)
            clicked = responses.place >= 0
            picked = exposure.shown[np.flatnonzero(clicked), responses.place[clicked]]
            searches.searched[searches.slot[rows[clicked]]] = picked
            yield Day(rows, history, exposure, responses)
        night = np.bincount(searches.shopper[edges[day] : edges[day + 1]], minlength=config.shoppers)
        np.add(searches.head, night, out=searches.head)


def write_market(config: MarketConfig, out: Path, force: bool = False) -> Path:
    """Build a market and write its log and, apart from it, its truth.

    The folder appears whole or not at all: everything is written beside it under a temporary name and
    renamed.

    Args:
        config: the market.
        out: folder to write; ``log/`` holds requests.parquet and candidates.parquet, ``truth/`` what no
            model may see.
        force: replace an earlier market at ``out``. Anything else there is never replaced.

    Returns:
        ``out``.

    Raises:
        MarketError: ``out`` is a file, holds something else, or holds a market and ``force`` is not given.
    """
    out = Path(out).absolute()
    check_target(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fresh = work / "market"
        (fresh / "log").mkdir(parents=True)
        (fresh / "truth").mkdir()
        world = build_world(config)
        searches = draw_searches(world)
        read = _write_log(world, searches, fresh / "log")
        _write_truth(world, searches, read, fresh / "truth")
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


def open_market(config: MarketConfig, root: Path) -> Path:
    """The market of a config: built where it is absent, found at once where it is there.

    Args:
        config: the market.
        root: folder of all markets; each lies under a name made of its config and of the code that makes it.

    Returns:
        The market's folder, with ``log`` and ``truth`` in it. A second process waits while the first one
        builds.
    """
    code = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        code.update(source.name.encode() + b"\0" + source.read_bytes())
    folder = Path(root) / f"market-{code.hexdigest()[:12]}"
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():
                write_market(config, folder)
    return folder


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


def _stream(config: MarketConfig, number: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, number])


def _write_log(world: World, searches: Searches, folder: Path) -> np.ndarray:
    """Write the two tables of the log, a row group a batch. Returns how far each request was read."""
    config = world.config
    queries = pa.array(world.catalogue.text.tolist(), pa.string())
    prefixes = world.typing.prefixes.to_arrow().cast(pa.string())
    behaviours = pa.array(BEHAVIOURS, pa.string())
    profiles = pa.array(world.shoppers.profile_texts(world.catalogue), pa.list_(pa.string()))
    read = np.zeros(searches.shopper.size, dtype=np.int8)
    width = config.shown + config.not_shown
    position = np.r_[np.arange(1, config.shown + 1), np.zeros(config.not_shown, dtype=np.int64)].astype(np.int8)
    with (
        pq.ParquetWriter(folder / "requests.parquet", _REQUESTS, compression="zstd") as requests,
        pq.ParquetWriter(folder / "candidates.parquet", _CANDIDATES, compression="zstd") as candidates,
    ):
        for day in live(world, searches):
            rows, count = day.rows, day.rows.size
            past = day.history >= 0
            offsets = np.r_[0, np.cumsum(past.sum(axis=1))].astype(np.int32)
            who = searches.shopper[rows]
            columns = [
                pa.array(rows + 1),
                pa.array(rows + 1),
                pa.array(who + 1),
                pa.array(searches.time[rows]),
                prefixes.take(pa.array(searches.prefix[rows])),
                profiles.take(pa.array(who)),
                pa.ListArray.from_arrays(pa.array(offsets), queries.take(pa.array(day.history[past]))),
            ]
            requests.write_table(pa.Table.from_arrays(columns, schema=_REQUESTS))
            codes = np.full((count, width), BEHAVIOURS.index("not_shown"), dtype=np.int8)
            codes[:, : config.shown] = BEHAVIOURS.index("show")
            paid = np.zeros((count, width), dtype=np.float32)
            clicked = np.flatnonzero(day.responses.place >= 0)
            place = day.responses.place[clicked]
            codes[clicked, place] = day.responses.behaviour[clicked]
            paid[clicked, place] = day.responses.revenue[clicked]
            listed = np.concatenate([day.exposure.shown, day.exposure.not_shown], axis=1)
            places = np.tile(position, count)
            columns = [
                pa.array(np.repeat(rows + 1, width)),
                queries.take(pa.array(listed.ravel())),
                pa.array(places, mask=places == 0),
                behaviours.take(pa.array(codes.ravel())),
                pa.array(paid.ravel()),
            ]
            candidates.write_table(pa.Table.from_arrays(columns, schema=_CANDIDATES))
            read[rows] = day.responses.read
    return read


_REQUESTS = pa.schema(
    [
        ("request_id", pa.int64()),
        ("session_id", pa.int64()),
        ("user_id", pa.int64()),
        ("time", pa.timestamp("us")),
        ("prefix", pa.string()),
        ("profile", pa.list_(pa.string())),
        ("history", pa.list_(pa.string())),
    ]
)
_CANDIDATES = pa.schema(
    [
        ("request_id", pa.int64()),
        ("query", pa.string()),
        ("position", pa.int8()),
        ("behaviour", pa.string()),
        ("revenue", pa.float32()),
    ]
)


def _write_truth(world: World, searches: Searches, read: np.ndarray, folder: Path) -> None:
    """Write what no model may see."""
    catalogue, shoppers, words = world.catalogue, world.shoppers, world.catalogue.vocabulary
    pl.DataFrame(
        {
            "query": pl.Series(catalogue.text.tolist(), dtype=pl.String),
            "department": _names(words.departments, catalogue.department),
            "type": _names(words.types, catalogue.type),
            "brand": _names(words.brands, catalogue.brand),
            "attribute": _names(words.attributes, catalogue.attribute),
            "modifier": _names(words.modifiers, catalogue.modifier),
            "new": np.arange(catalogue.text.size) >= catalogue.known,
            "popularity": catalogue.popularity,
            "attraction": catalogue.attraction,
            "quality": catalogue.quality,
            "clickbait": catalogue.clickbait,
            "price": catalogue.price,
        }
    ).write_parquet(folder / "queries.parquet")
    pl.DataFrame(
        {
            "user_id": np.arange(shoppers.tier.size) + 1,
            "department_taste": shoppers.department_taste.tolist(),
            "favourite_brand": [[words.brands[b] for b in row] for row in shoppers.favourite_brand.tolist()],
            "favourite_attribute": [
                [words.attributes[a] for a in row] for row in shoppers.favourite_attribute.tolist()
            ],
            "audience": _names(AUDIENCES, shoppers.audience),
            "price_tier": _names(PRICE_TIERS, shoppers.tier),
            "activity": shoppers.activity,
            "cold": shoppers.cold,
        }
    ).write_parquet(folder / "shoppers.parquet")
    pl.DataFrame(
        {
            "request_id": np.arange(searches.intent.size) + 1,
            "intent": pl.Series(catalogue.text.tolist(), dtype=pl.String).gather(searches.intent),
            "form": _names(FORMS, searches.form),
            "read": read,
        }
    ).write_parquet(folder / "intents.parquet")
    days = world.trends.shape[0]
    pl.DataFrame(
        {
            "day": np.repeat(np.arange(days), len(words.types)),
            "type": words.types * days,
            "factor": world.trends.ravel(),
        }
    ).write_parquet(folder / "trends.parquet")


def _names(names, codes: np.ndarray) -> pl.Series:
    return pl.Series(list(names), dtype=pl.String).gather(codes)
