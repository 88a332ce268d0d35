"""The trie of known queries against a set of their beginnings."""

import time

import numpy as np
import pytest
import torch

from onesug_lite.trie import Trie

END = 2


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(1)
    return [(*rng.integers(3, 9, rng.integers(1, 5)).tolist(), END) for _ in range(200)]  # many begin alike


def test_what_may_follow_every_beginning(known):
    trie = Trie(known, 9)
    beginnings = sorted({row[:length] for row in known for length in range(len(row) + 1)})
    assert len(trie) == len(beginnings)
    for beginning in beginnings:
        node = torch.zeros(1, dtype=torch.int64)
        for token in beginning:
            node = trie.follow(node, torch.tensor([token]))
        follows = {row[len(beginning)] for row in known if row[: len(beginning)] == beginning and row != beginning}
        assert set(trie.mask(node, 12)[0].nonzero()[:, 0].tolist()) == follows
        children, there = trie.children(node)
        assert children[there].tolist() == sorted(follows) and children.shape[1] == max(1, len(follows))


def test_a_text_that_is_no_beginning_leaves_for_good(known):
    trie = Trie(known, 9)
    node = trie.follow(torch.tensor([0, 0]), torch.tensor([8 if (8, END) in known else 3, 0]))
    assert node[1] == -1 and not trie.mask(node, 9)[1].any()
    assert trie.follow(node, torch.tensor([3, 3]))[1] == -1


def test_children_of_many_nodes_and_of_none(known):
    trie = Trie(known, 9)
    nodes = torch.tensor([0, -1, int(trie.follow(torch.tensor([0]), torch.tensor([known[0][0]]))), len(trie) - 1])
    children, there = trie.children(nodes)
    for node, row, held in zip(nodes, children, there, strict=True):
        assert row[held].tolist() == trie.mask(node[None], 9)[0].nonzero()[:, 0].tolist()
    assert not there[1].any() and not there[3].any()
    moved = trie.to(torch.device("cpu"))
    assert len(moved) == len(trie) and torch.equal(moved.children(nodes)[0], children)


def test_tokens_outside_the_vocabulary_lead_nowhere():
    """An edge is a node and a token in one number, where token 9 of node 0 would be token 0 of node 1."""
    trie = Trie([[3, 0], [3, 4, 0]], 9)
    assert trie.follow(torch.tensor([0, 0, 1, 1]), torch.tensor([9, -100, 0, -6])).tolist() == [-1, -1, 2, -1]


def test_a_trie_hangs_on_the_set_of_its_sequences_alone(known):
    tries = [Trie(rows, 9) for rows in (known, known[::-1], sorted(set(known)), [np.array(row) for row in known])]
    nodes = torch.arange(len(tries[0]))
    assert all(torch.equal(trie.mask(nodes, 9), tries[0].mask(nodes, 9)) for trie in tries)


def test_twenty_five_thousand_queries_take_no_time():
    rng = np.random.default_rng(0)
    known = [(*row[: rng.integers(1, 7)], END) for row in (rng.zipf(1.3, (25_000, 6)) % 4000 + 3).tolist()]
    start = time.perf_counter()
    trie = Trie(known, 4003)
    assert time.perf_counter() - start < 2
    assert len(trie) == len({row[:length] for row in known for length in range(len(row) + 1)})


def test_allowed_tokens_of_known_queries(known):
    trie = Trie(known, 9)
    width = max(map(len, known))
    labels = torch.tensor([[*row, *[-100] * (width - len(row))] for row in known])
    allowed = trie.allowed(labels, 11)
    real = labels != -100
    assert allowed.gather(2, labels.clamp(min=0)[..., None])[..., 0][real].all()
    assert allowed[~real].all() and not allowed[real][:, 9:].any()
    with pytest.raises(ValueError, match=r"tokens \[3, 3, 3, 3, 3, 3, 2\] are no known query"):
        trie.allowed(torch.tensor([[3] * 6 + [END]]), 9)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "needs one or more"),
        ([[]], "none of them empty"),
        ([[9]], "has token 9; expected tokens from 0 on and below 9"),
        ([[-1, 2]], "has token -1"),
        ([[4, 2], [4, 5]], r"end in tokens \[2, 5\]"),
    ],
)
def test_queries_that_make_no_trie(sequences, message):
    with pytest.raises(ValueError, match=message):
        Trie(sequences, 9)
