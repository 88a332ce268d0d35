"""The encoder: pairs move together, every weight learns, and a text has one embedding."""

import numpy as np
import polars as pl
import pytest
import torch

from onesug_lite.align import AlignConfig, draw_batches, train_encoder
from onesug_lite.encoder import embed, load_encoder, save_encoder
from onesug_lite.pairs import Pairs

TYPES = ["shoes", "lamp", "phone case", "running shirt", "coffee mug", "红色连衣裙"]
COLOURS = ["red", "blue", "green", "small", "large", "cheap", "wooden", "new"]
QUERIES = [f"{colour} {kind}" for kind in TYPES for colour in COLOURS]
SMALL = AlignConfig(vocab_size=350, dim=32, layers=1, heads=2, steps=60, batch_size=32, learning_rate=5e-3)


def pairs_of_toys() -> Pairs:
    clicks = [(query[:cut], query, 1 + cut % 3) for query in QUERIES for cut in (3, 5, 7)]
    same = [(a, b) for a, b in zip(QUERIES, QUERIES[1:], strict=False) if a.split()[-1] == b.split()[-1]]
    frame = pl.DataFrame(clicks, schema=["prefix", "query", "clicks"], orient="row")
    prefix_query = frame.group_by("prefix", "query").agg(pl.col("clicks").sum()).sort("prefix", "query")
    query_query = pl.DataFrame(
        [(min(pair), max(pair), 1.0, "swing") for pair in same],
        schema=["query_a", "query_b", "score", "source"],
        orient="row",
    )
    return Pairs(prefix_query, query_query.unique().sort("query_a", "query_b"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    return train_encoder(pairs_of_toys(), SMALL, seed=3, out=folder / "encoder")


def recall(encoder) -> float:
    """Share of prefixes of 7 characters whose own query is among the 3 nearest."""
    found = embed(encoder, [query[:7] for query in QUERIES]) @ embed(encoder, QUERIES).T
    return float(np.mean([row in np.argsort(-found[row])[:3] for row in range(len(QUERIES))]))


def test_training_brings_a_prefix_to_its_query(trained, tmp_path):
    untrained = AlignConfig(**{**vars(SMALL), "steps": 1, "learning_rate": 1e-9})
    before = recall(load_encoder(train_encoder(pairs_of_toys(), untrained, 3, tmp_path / "start").path))
    after = recall(load_encoder(trained.path))
    assert after > 0.8 > before + 0.1
    assert trained.history["step"].is_sorted() and trained.history["step"][-1] == SMALL.steps
    assert trained.history["loss"][-1] < 0.6 * trained.history["loss"][0]


def test_every_parameter_moves(tmp_path):
    start = AlignConfig(**{**vars(SMALL), "steps": 1, "learning_rate": 1e-9, "warmup": 0.0})
    later = AlignConfig(**{**vars(SMALL), "steps": 3, "warmup": 0.0})
    weights = [
        dict(load_encoder(train_encoder(pairs_of_toys(), config, 3, tmp_path / name).path).named_parameters())
        for name, config in (("start", start), ("later", later))
    ]
    still = [name for name, value in weights[0].items() if torch.equal(value, weights[1][name])]
    assert still == []


def test_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    torch.manual_seed(99)  # the caller's generator must not matter, nor be changed
    state = torch.get_rng_state()
    again = train_encoder(pairs_of_toys(), SMALL, seed=3, out=tmp_path / "encoder")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.history.equals(trained.history)
    files = sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(trained.path) for path in trained.path.rglob("*") if path.is_file())
    for name in files:
        assert (again.path / name).read_bytes() == (trained.path / name).read_bytes(), name
    other = train_encoder(pairs_of_toys(), SMALL, seed=4, out=tmp_path / "encoder")  # replaces the first
    assert not other.history.equals(again.history)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]  # nothing temporary stays


def test_an_embedding_does_not_depend_on_its_neighbours(trained):
    encoder = load_encoder(trained.path)
    odd = [
        "",
        " ",
        "🛒🛒",
        "[SEP] shoes [CLS]",
        "z" * 10_000,
        "shoes",
        "red shoes with a very long name indeed",
    ]
    texts = QUERIES + odd + QUERIES[:5]
    together = embed(encoder, texts)
    assert together.dtype == np.float32 and together.shape == (len(texts), SMALL.dim)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row in (0, 17, *range(len(QUERIES), len(texts))):
        assert np.array_equal(embed(encoder, [texts[row]])[0], together[row]), texts[row]
    assert np.array_equal(embed(encoder, texts[::-1])[::-1], together)
    assert embed(encoder, []).shape == (0, SMALL.dim)
    # sentence-transformers' own path agrees up to the shape-dependent last digits
    assert np.allclose(encoder.encode(QUERIES, normalize_embeddings=True), together[: len(QUERIES)], atol=1e-5)


def test_a_typed_control_token_is_text(trained):
    tokenizer = load_encoder(trained.path).tokenizer
    ids = tokenizer("[SEP] shoes [MASK][PAD]")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.unk_token_id not in tokenizer("红🛒é\u0301")["input_ids"]


def test_saved_again_is_the_same(trained, tmp_path):
    save_encoder(load_encoder(trained.path), tmp_path / "copy")
    weights = "model.safetensors"
    (one,), (two,) = (list(folder.rglob(weights)) for folder in (trained.path, tmp_path / "copy"))
    assert one.read_bytes() == two.read_bytes()


def test_a_checkpoint_on_disk_takes_the_place_of_random_weights(trained, tmp_path):
    config = AlignConfig(checkpoint=str(trained.path), steps=1, batch_size=8, learning_rate=1e-9, warmup=0.0)
    tuned = load_encoder(train_encoder(pairs_of_toys(), config, 0, tmp_path / "encoder").path)
    assert np.allclose(embed(tuned, QUERIES), embed(load_encoder(trained.path), QUERIES), atol=1e-4)


def test_no_text_occurs_twice_in_a_batch_and_weights_count():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 60, 500), rng.integers(60, 160, 500)], axis=1)
    weights = np.where(np.arange(500) < 5, 10.0, 1.0)
    config = AlignConfig(steps=200, batch_size=16)
    batches = draw_batches(rows, weights, config, rng)
    assert len(batches) == 200
    for batch in batches:
        texts = rows[batch].ravel()
        assert len(batch) == 16 and len(np.unique(texts)) == len(texts)
    assert np.mean(np.concatenate(batches) < 5) > 0.04  # 1 % of the pairs, 9 % of the weight


def test_too_little_to_learn_from_is_refused(tmp_path):
    toys = pairs_of_toys()
    lonely = Pairs(toys.prefix_query[:1], toys.query_query[:0])
    with pytest.raises(ValueError, match="1 pair"):
        train_encoder(lonely, SMALL, 0, tmp_path / "encoder")
    with pytest.raises(FileNotFoundError, match="holds no encoder"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="multiple of heads"):
        AlignConfig(dim=30)
