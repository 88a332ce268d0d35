"""The cascade taken apart: counted by hand, and held against what the cascade itself answers."""

import copy
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from onesug_lite.cascade import Stages, survival
from onesug_lite.cascade_faults import (
    STAGES,
    TOGETHER,
    channel_shares,
    disagreement,
    disagreement_summary,
    frequency_slices,
    known_by_day,
    lost_shares,
    permutation_losses,
    permuted_ranks,
    surviving,
)
from onesug_lite.features import CHANNELS, FEATURES
from onesug_lite.metrics import ranks, reciprocal_rank
from onesug_lite.significance import Resampled


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", params=["mca", "online_mca"])
def cascade(request, road):
    return road.policy(request.param)


@pytest.fixture(scope="module")
def rows(road):
    return road.held_out()


@pytest.fixture(scope="module")
def targets(rows):
    return rows["query"].to_list()


@pytest.fixture(scope="module")
def requests(cascade, rows):
    return cascade.encode(rows)


@pytest.fixture(scope="module")
def stages(cascade, rows):
    return cascade.stages(rows)


# ---------------------------------------------------------------- where clicks are lost
HAND = Stages([["a", "b", "c"], ["a", "b"], ["c"]], [["b", "c"], ["a"], ["c"]], [["c"], ["a"], ["c"]], [[], [], []])
POOL = SimpleNamespace(queries=["a", "b", "c", "d"])


def test_surviving_by_hand():
    slices = {"all": np.ones(3, bool), "two": np.array([True, True, False]), "none": np.zeros(3, bool)}
    found = surviving(POOL, HAND, ["b", "x", "c"], slices, rng())
    assert found["stage"].to_list() == list(STAGES) * 3 and found["kept"].to_list() == [4, 3, 2, 1] * 3
    means = dict(found.group_by("slice", maintain_order=True).agg("mean").iter_rows())
    assert means["all"] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3])  # "x" is beyond the pool, rank drops "b"
    assert means["two"] == [0.5, 0.5, 0.5, 0.0] and means["none"] == [None] * 4
    assert found["requests"].to_list() == [3] * 4 + [2] * 4 + [0] * 4


def test_surviving_refuses_other_requests():
    with pytest.raises(ValueError, match="2 targets for the stages of 3 requests"):
        surviving(POOL, HAND, ["a", "b"], {}, rng())


def test_surviving_agrees_with_survival(cascade, stages, targets):
    found = surviving(cascade, stages, targets, {"all": np.ones(len(targets), bool)}, rng())
    known = survival(stages, targets)
    assert found["mean"][1:].to_list() == pytest.approx(known["reached"].to_list())
    assert found["kept"][1:].to_list() == known["kept"].to_list()
    assert found["mean"].is_sorted(descending=True) and (found["low"] < found["high"]).any()


def test_lost_shares_by_hand():
    found = lost_shares(surviving(POOL, HAND, ["b", "x", "c"], {"all": np.ones(3, bool)}, rng()))
    assert found["stage"].to_list() == list(STAGES)
    assert found["lost"].to_list() == pytest.approx([0.5, 0.0, 0.0, 0.5])  # "x" before the pool, "b" by the last stage
    none = lost_shares(surviving(POOL, HAND, ["c", "a", "c"], {"all": np.ones(3, bool)}, rng()))
    assert [f"{share:.0%}" for share in none["lost"]] == ["0%"] * 4  # and not "-0%"


def test_slices_count_the_clicks_of_query_and_prefix():
    rows = pl.DataFrame({"request_id": ["1", "2", "3", "4"], "prefix": ["a", "b", "new", "a"],
                         "training_clicks": [100, 10, 9, 0]})  # fmt: skip
    clicks = pl.DataFrame({"prefix": ["a"] * 100 + ["b"] * 12})
    found = {name: where.tolist() for name, where in frequency_slices(rows, clicks).items()}
    assert list(found) == ["all", *(f"{band} {of}" for of in ("query", "prefix") for band in ("head", "torso", "tail"))]
    assert found["all"] == [True] * 4
    assert found["head query"] == [True, False, False, False] and found["torso query"] == [False, True, False, False]
    assert found["tail query"] == [False, False, True, True] and found["head prefix"] == [True, False, False, True]
    assert found["torso prefix"] == [False, True, False, False] and found["tail prefix"] == [False, False, True, False]


# ---------------------------------------------------------------- channels
class Channels:
    """Stands for recall over the pool above: what each channel holds for two requests."""

    number = {query: number for number, query in enumerate(POOL.queries)}
    lists = dict.fromkeys(CHANNELS, [[], []]) | {"embedding": [[0, 1], [2, 3]], "history": [[1], [0, 1]]}

    def channel(self, name, requests):
        return [np.array(row, dtype=np.int64) for row in self.lists[name]]

    def __call__(self, requests):
        return np.array([[0, 1], [2, -1]])


def test_channel_shares_by_hand():
    slices = {"all": np.ones(2, bool), "none": np.zeros(2, bool)}
    found = channel_shares(Channels(), None, ["b", "d"], slices, rng())
    whole = {row["channel"]: row for row in found.filter(pl.col("slice") == "all").to_dicts()}
    assert list(whole) == [*CHANNELS, TOGETHER]
    assert (whole["embedding"]["mean"], whole["embedding"]["only"], whole["embedding"]["queries"]) == (1.0, 0.5, 2.0)
    assert (whole["history"]["mean"], whole["history"]["only"], whole["history"]["queries"]) == (0.5, 0.0, 1.5)
    assert (whole["spelling"]["mean"], whole["spelling"]["queries"]) == (0.0, 0.0)
    assert (whole[TOGETHER]["mean"], whole[TOGETHER]["only"]) == (0.5, None)  # "d" was cut off, -1 is no query
    empty = found.filter(pl.col("slice") == "none")
    assert empty["mean"].null_count() == empty["only"].null_count() == len(empty) == len(CHANNELS) + 1


def test_channels_of_a_trained_cascade(cascade, requests, stages, targets):
    found = channel_shares(cascade.recall, requests, targets, {"all": np.ones(len(targets), bool)}, rng())
    held = dict(found.select("channel", "mean").iter_rows())
    assert held[TOGETHER] == pytest.approx(np.mean(ranks(stages.recalled, targets) > 0))
    assert (held["embedding"] == held[TOGETHER]) or cascade.config.channels == CHANNELS
    assert (found["only"].drop_nulls() <= found["mean"][:-1]).all() and found["only"].sum() <= 1


# ---------------------------------------------------------------- two rankers
def test_each_ranker_alone_stands_where_the_cascade_puts_it(cascade, requests, stages, targets):
    config, found = cascade.config, disagreement(cascade, requests, targets)
    passed = np.where(found["DCN"] <= config.preranked, found["DCN"], 0)
    assert passed.tolist() == ranks(stages.preranked, targets).tolist()
    same = (found["dropped"] == 0).to_numpy()  # DCN let everything through, so DIN's list is the cascade's
    shown = np.where(found["DIN"] <= config.results, found["DIN"], 0)
    assert same.any() and shown[same].tolist() == ranks(stages.ranked, targets)[same].tolist()
    assert (~same).any() and found["dropped"].max() <= config.results
    assert found["recalled"].drop_nulls().is_between(-1, 1).all() and 0 < found["recalled"].mean() < 1


def test_a_ranker_agrees_with_itself(road, rows, targets):
    twice = copy.copy(road.policy("mca"))
    twice.din = twice.dcn  # both read the same of MCA's features
    assert twice.cheap == twice.config.features
    found = disagreement(twice, twice.encode(rows), targets)
    assert found["recalled"].to_numpy() == pytest.approx(1) and found["kept"].to_numpy() == pytest.approx(1)
    assert found["dropped"].sum() == 0 and found["DCN"].to_list() == found["DIN"].to_list()


def test_the_summary_of_a_disagreement_by_hand():
    apart = pl.DataFrame({"recalled": [1.0, 0.0, None], "kept": [0.5, 0.5, 0.5], "dropped": [0, 4, 8]})
    found = disagreement_summary(apart, 16, rng())
    assert found["mean"].to_list() == pytest.approx([0.5, 0.5, 0.25, 2 / 3])
    assert found["measure"][2] == "share of DIN's 16 best that DCN dropped"
    assert (found["low"] <= found["mean"]).all() and found["high"][2] > 0.25


# ---------------------------------------------------------------- features
@pytest.fixture(scope="module")
def permuted(cascade, requests, targets):
    return permuted_ranks(cascade, requests, targets, rng())


def test_nothing_permuted_is_the_cascade(cascade, permuted, stages, targets):
    assert permuted["nothing"].tolist() == ranks(stages.ranked, targets).tolist()
    assert list(permuted) == ["nothing", *cascade.cheap, "history", "profile"]


def test_what_the_rankers_lean_on_is_missed(cascade, permuted, requests, targets):
    score = {group: reciprocal_rank(places).mean() for group, places in permuted.items()}
    assert score["text"] < score["nothing"] - 0.05
    for group in ("counts", "ctr", "history"):
        assert (permuted[group] != permuted["nothing"]).any()
    again = permuted_ranks(cascade, requests, targets, rng())
    assert all(np.array_equal(again[group], places) for group, places in permuted.items())


def test_shoppers_who_are_alike_cannot_be_mixed_up(cascade, requests, targets):
    alike = {name: np.repeat(getattr(requests, name)[:1], len(targets), axis=0) for name in ("history", "profile")}
    found = permuted_ranks(cascade, requests._replace(**alike), targets, rng())
    for group in ("history", "profile"):
        assert found[group].tolist() == found["nothing"].tolist()


def test_numbers_that_are_equal_cannot_be_shuffled(cascade, requests, targets):
    level = copy.copy(cascade)
    level.features = lambda *asked: np.zeros_like(cascade.features(*asked))
    found = permuted_ranks(level, requests, targets, rng())
    for group in cascade.cheap:
        assert found[group].tolist() == found["nothing"].tolist()


def test_losses_are_the_means_of_what_is_missed(permuted, rows):
    found = permutation_losses(permuted, Resampled(rows["request_id"].to_numpy()))
    assert found["group"].to_list() == [group for group in FEATURES if group in permuted]
    for group, loss in found.select("group", "mean").iter_rows():
        change = reciprocal_rank(permuted["nothing"]) - reciprocal_rank(permuted[group])
        assert loss == pytest.approx(100 * change.mean())
    assert found.filter(pl.col("group") == "text")["low"][0] > 0


# ---------------------------------------------------------------- what a day may know
@pytest.fixture(scope="module")
def pair(road):
    return road.click_counts.sort("clicks", "prefix", "query", descending=[True, False, False]).row(0)


def test_each_day_knows_the_days_before_it(road, pair):
    prefix, query, clicks = pair
    found = known_by_day(road.policy("mca"), road.split.train, prefix, query)
    assert found["day"].to_list() == list(range(len(found))) and found["clicks"].sum() == clicks
    for name in ("shown", "clicks"):
        assert found[f"{name} before"].to_list() == [0, *found[name].cum_sum()[:-1]]
    assert (found["clicks"] <= found["shown"]).all() and found["shown before"][-1] == found["shown"].sum()


def test_a_tally_that_knows_its_own_day_is_seen(road, pair):
    """What the check of the chapter is for."""
    cascade, (prefix, query, _) = copy.copy(road.policy("mca")), pair
    cascade.features = copy.copy(cascade.features)
    tally = cascade.features.by_pair

    class Leaking:
        span = tally.span

        def before(self, keys, days):
            return tally.before(keys, days + 1)

    cascade.features.by_pair = Leaking()
    found = known_by_day(cascade, road.split.train, prefix, query)
    assert found["clicks before"].to_list() != [0, *found["clicks"].cum_sum()[:-1]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_pair_that_was_never_there_is_refused(road, pair, place):
    texts = list(pair[:2])
    texts[place] = "no such text"
    with pytest.raises(ValueError, match="'no such text' is not in the training days"):
        known_by_day(road.policy("mca"), road.split.train, *texts)
