"""The tables of a market's folder: the log that anybody may read, and the truth that no model may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .keystrokes import FORMS, prefix_texts
from .policies import (
    history_texts,
    query_column,
)
from .responses import BEHAVIOURS, price
from .sessions import Play, Requests
from .shoppers import Shoppers
from .world import SPAN, World

#: Midnight before the first request of every market.
FIRST_DAY = np.datetime64("2025-06-01T00:00:00", "us")


_LISTED = 1_000_000  # queries of a pool that is written out in the truth


def request_table(play: Play, day: Requests, shard: int, ids: np.ndarray, profiles: pa.Array) -> pa.Table:
    """Requests of a day as a log holds them.

    Args:
        play: the shard's policy, catalogue and names.
        day: R requests.
        shard: its number.
        ids: ``int64`` (R,) request ids.
        profiles: text attributes of each shopper of the shard.
    """
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
    return pa.Table.from_arrays(columns, schema=REQUESTS)


def candidate_table(world: World, day: Requests, ids: np.ndarray) -> pa.Table:
    """What became of every candidate of a day's requests, ids (R,), as a log holds it."""
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
    return pa.Table.from_arrays(columns, schema=CANDIDATES)


def truth_table(world: World, day: Requests, ids: np.ndarray) -> pa.Table:
    """What was in the mind behind each request of a day, ids (R,), and how far its list was read."""
    columns = [
        pa.array(ids),
        query_column(world.catalogue, day.intent),
        pa.DictionaryArray.from_arrays(pa.array(day.form.astype(np.int8)), pa.array(FORMS, pa.string())),
        pa.array(day.responses.read.astype(np.int8)),
        query_column(world.catalogue, day.searched, mask=day.searched < 0),
    ]
    return pa.Table.from_arrays(columns, schema=TRUTH)


def shopper_table(world: World, shoppers: Shoppers, shard: int) -> pa.Table:
    """What the shoppers of a shard like."""
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


def write_queries(world: World, folder: Path) -> None:
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


REQUESTS = pa.schema(
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


CANDIDATES = pa.schema(
    [
        ("request_id", pa.int64()),
        ("query", _TEXT),
        ("position", pa.int8()),
        ("behaviour", _LEVEL),
        ("revenue", pa.float32()),
        ("propensity", pa.float32()),
    ]
)


TRUTH = pa.schema(
    [("request_id", pa.int64()), ("intent", _TEXT), ("form", _LEVEL), ("read", pa.int8()), ("searched", _TEXT)]
)
