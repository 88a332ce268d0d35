"""Fine-to-coarse search against a loop, and prompts that never hold their own answer."""

import numpy as np
import polars as pl
import pytest
import torch

from onesug_lite import encoder
from onesug_lite.prefix_search import PrefixSearch, SearchConfig
from onesug_lite.rqvae import RQVAEConfig
from onesug_lite.rqvae_training import train_rqvae
from onesug_lite.sid_search import nearest, search


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute(sids, vectors, query_sids, query_vectors, k):
    found = []
    for sid, vector in zip(query_sids, query_vectors, strict=True):
        keys = []
        for row, (other, position) in enumerate(zip(sids, vectors, strict=True)):
            shared = 0
            while shared < len(sid) and sid[shared] == other[shared]:
                shared += 1
            keys.append((-shared, -round(float(vector @ position), 4), row))
        found.append([row for _, _, row in sorted(keys)[:k]])
    return np.array(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("codes", [2, 6, 40])  # many share a first code; few; hardly any
def test_search_equals_a_loop(seed, codes):
    rng = np.random.default_rng(seed)
    sids, query_sids = rng.integers(0, codes, (120, 3)), rng.integers(0, codes, (50, 3))
    # Coordinates of halves: cosines are exact, so ties are real ones and the row number has to decide.
    corners = np.array([[x, y, z, w] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1) for w in (-1, 1)]) / 2
    vectors, query_vectors = (corners[rng.integers(0, 16, n)].astype(np.float32) for n in (120, 50))
    found = search(sids, vectors, query_sids, query_vectors, 7)
    assert np.array_equal(found, brute(sids, vectors, query_sids, query_vectors, 7))


def test_a_full_match_beats_a_nearer_stranger():
    sids = np.array([[0, 1, 1], [0, 1, 2], [0, 2, 2], [5, 1, 2]])
    vectors = unit(np.array([[1.0, 0.1], [-1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]))
    query = unit(np.array([[1.0, 0.0]]))
    assert search(sids, vectors, np.array([[0, 1, 2]]), query, 4).tolist() == [[1, 0, 2, 3]]
    assert nearest(vectors, query, 4).tolist() == [[3, 0, 2, 1]]


def test_nearest_equals_a_loop():
    rng = np.random.default_rng(0)
    vectors, query_vectors = unit(rng.normal(size=(90, 5))), unit(rng.normal(size=(30, 5)))
    expected = np.argsort(-(query_vectors @ vectors.T), axis=1, kind="stable")[:, :8]
    assert np.array_equal(nearest(vectors, query_vectors, 8), expected)


def test_k_must_fit():
    vectors = unit(np.eye(3))
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k} and there are 3 rows"):
            nearest(vectors, vectors, k)
        with pytest.raises(ValueError, match=f"k is {k}"):
            search(np.zeros((3, 1), int), vectors, np.zeros((3, 1), int), vectors, k)


class LetterEncoder:
    """Stands for a text encoder: counts of letters, so that every text has a vector of its own."""

    def save_pretrained(self, folder, **_):
        from pathlib import Path

        Path(folder).mkdir()


def letters(encoder, texts):
    counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrst"] for text in texts], dtype=np.float32)
    return unit(counts.reshape(len(texts), 20) + 0.01)


QUERIES = [
    "red shoes",
    "red shirt",
    "blue shoes",
    "lamp",
    "desk lamp",
    "phone",
    "phone case",
    "mat",
    "tea pot",
]
CLICKS = pl.DataFrame(
    [
        ("re", "red shoes", 3),
        ("re", "red shirt", 1),  # a click that nobody else made
        ("la", "lamp", 1),  # the only click of its prefix
        ("ph", "phone", 2),
        ("ph", "phone case", 2),
    ],
    schema=["prefix", "query", "clicks"],
    orient="row",
)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(encoder, "embed", letters)
    config = RQVAEConfig(levels=2, codes=4, latent=4, hidden=8, steps=40, warmup_steps=10, batch_size=16)
    rqvae = train_rqvae(letters(None, QUERIES), config, torch.Generator().manual_seed(0)).model

    def build(clicks=CLICKS, queries=QUERIES, **settings):
        return PrefixSearch(LetterEncoder(), rqvae, clicks, queries, SearchConfig(**settings))

    return build


def without(clicks: pl.DataFrame, prefix: str, query: str) -> pl.DataFrame:
    """The clicks as they were, had one of them not happened."""
    own = (pl.col("prefix") == prefix) & (pl.col("query") == query)
    return clicks.with_columns(clicks=pl.col("clicks") - own.cast(pl.Int64)).filter(pl.col("clicks") > 0)


@pytest.mark.parametrize("cooccurring", [32, 1])
@pytest.mark.parametrize("damping", [True, False])
def test_a_row_sees_what_it_would_see_had_it_not_clicked(make, cooccurring, damping):
    search_all = make(cooccurring=cooccurring, damping=damping)
    for prefix, query, _ in CLICKS.rows():
        other = make(without(CLICKS, prefix, query), cooccurring=cooccurring, damping=damping)
        mine = search_all.vectors([prefix, "re"], [query, None])[0]
        assert np.array_equal(mine, other.vectors([prefix])[0]), (prefix, query)
        assert search_all.related([prefix], [query]) == other.related([prefix])


def test_a_click_that_nobody_else_made_never_shows(make):
    # Two markets that differ in nothing but what one row clicked: its own vector must be the same in both.
    planted = CLICKS.with_columns(query=pl.col("query").replace({"red shirt": "tea pot"}))
    one = make().vectors(["re", "la"], ["red shirt", "lamp"])
    two = make(planted).vectors(["re", "la"], ["tea pot", "lamp"])
    assert np.array_equal(one, two)
    assert np.allclose(one[1], letters(None, ["la"])[0], atol=1e-6)
    assert not np.array_equal(make().vectors(["re"]), make(planted).vectors(["re"]))  # others do see it


def test_pooling_by_hand(make):
    red, shirt, own = letters(None, ["red shoes", "red shirt", "re"])
    damped = own + (2 * red + 1 * shirt) / 3  # log2(1 + 3) and log2(1 + 1)
    plain = own + (3 * red + 1 * shirt) / 4
    assert np.allclose(make().vectors(["re"])[0], unit(damped[None])[0], atol=1e-6)
    assert np.allclose(make(damping=False).vectors(["re"])[0], unit(plain[None])[0], atol=1e-6)
    assert np.allclose(make(cooccurring=1).vectors(["re"])[0], unit((own + red)[None])[0], atol=1e-6)
    assert np.allclose(make(cooccurring=0).vectors(["re"])[0], own, atol=1e-6)


def test_rows_of_one_batch_do_not_touch_each_other(make):
    built = make()
    prefixes = ["re", "la", "never typed", "re", "", "re"]
    clicked = ["red shoes", "lamp", "lamp", None, None, "not clicked under it"]
    together = built.related(prefixes, clicked)
    assert together == [built.related([p], [c])[0] for p, c in zip(prefixes, clicked, strict=True)]
    assert together[3] == together[5] == built.related(["re"])[0]
    assert built.related([]) == []
    assert built.vectors([]).shape == (0, 20)


def test_related_queries_are_known_distinct_and_as_many_as_asked(make):
    for wanted, expected in ((3, 3), (50, len(QUERIES))):
        for found in make(related=wanted).related(["re", "la", "xyz"]):
            assert len(found) == len(set(found)) == expected
            assert set(found) <= set(QUERIES)


def test_a_clicked_query_need_not_be_one_to_choose_from(make):
    built = make(queries=QUERIES[2:])
    assert "red shoes" not in built.related(["re"], ["red shirt"])[0]
    assert np.array_equal(built.vectors(["re"]), make().vectors(["re"]))


def test_a_saved_search_answers_alike_and_reads_the_encoder_last(make, tmp_path, monkeypatch):
    built = make()
    built.save(tmp_path / "search")
    built.save(tmp_path / "search")  # again, over it
    loaded = PrefixSearch.load(tmp_path / "search")
    assert loaded.related(["re", "la"], ["red shoes", None]) == built.related(["re", "la"], ["red shoes", None])
    assert "encoder" not in loaded.__dict__
    read = []
    monkeypatch.setattr(encoder, "load_encoder", lambda folder: read.append(folder) or LetterEncoder())
    assert loaded.related(["unseen", "re"]) == built.related(["unseen", "re"])
    assert read == [tmp_path / "search" / "encoder"]
    PrefixSearch.load(tmp_path / "search").save(tmp_path / "second")  # an encoder that was never read is copied
    assert PrefixSearch.load(tmp_path / "second").related(["ph"]) == built.related(["ph"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search", "second"]
    (tmp_path / "second" / "clicks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="holds no clicks.parquet"):
        PrefixSearch.load(tmp_path / "second")


def test_senseless_input_is_refused(make):
    with pytest.raises(ValueError, match="2 queries, 1 of them distinct"):
        make(queries=["a", "a"])
    with pytest.raises(ValueError, match="pair twice"):
        make(pl.concat([CLICKS, CLICKS]))
    with pytest.raises(ValueError, match="1 clicked queries for 2 prefixes"):
        make().vectors(["re", "la"], ["lamp"])
    with pytest.raises(ValueError, match="SearchConfig.related is 0"):
        SearchConfig(related=0)
