"""Experiments: the same searches for both, and luck that belongs to what it decides."""

import numpy as np
import polars as pl
import pytest
import small_market
from scipy import stats
from small_market import SMALL, nothing

from data_synth import MarketError, build_world, market_config, play_shard
from data_synth.ab_tests import compare
from data_synth.experiment import _click as click
from data_synth.experiment import _uniform as uniform
from data_synth.experiment import draw_searches, experiment, experiments, logging_policy, meet, suggester_policy
from data_synth.keystrokes import prefix_texts
from data_synth.policies import Batch, Page
from data_synth.responses import click_places, click_probability


@pytest.fixture(scope="module")
def world():
    return small_market.world()


@pytest.fixture(scope="module")
def own():
    return small_market.own()


@pytest.fixture(scope="module")
def better():
    return small_market.better()


@pytest.fixture(scope="module")
def trial():
    return small_market.trial()


def knowing(intents: dict[bytes, int], place: int):
    """A policy that is told what is in mind, and shows it at one place alone."""

    def answer(batch: Batch, rng) -> Page:
        page = np.full((batch.length.size, 16), -1)
        page[:, place] = [intents[row.tobytes()] for row in batch.points]
        return Page(page, page[:, :0], np.ones(page.shape, dtype=np.float32))

    return answer


# ---------------------------------------------------------------- play
@pytest.mark.parametrize("changes", [{}, {"examination": "position"}, {"locale": "zh"}], ids=str)
def test_sessions_behave_as_the_markets_own(changes):
    """The market plays its sessions in another way; what they come to must not differ."""
    world = build_world(market_config("smoke", **SMALL | changes))
    arm = meet(world, draw_searches(world, 10, 1, 4_000, 0), logging_policy(world), 1)
    days = list(play_shard(world, 0)[1])
    session = np.concatenate([day.session for day in days])
    requests, place = np.bincount(session), np.concatenate([day.responses.place for day in days])
    paid = np.concatenate([day.responses.revenue for day in days])
    searched = np.concatenate([day.searched for day in days])
    prefixes = np.concatenate([prefix_texts(day.batch.points, day.batch.length) for day in days])
    theirs = {
        "requests": requests,
        "click": np.bincount(session, place >= 0),
        "order": np.bincount(session, paid > 0),
        "revenue": paid[paid > 0],
        "position": place[place >= 0] + 1,
        "abandoned": 1 - np.bincount(session, searched >= 0),
        "bait": world.catalogue.is_bait(searched[place >= 0], world.config.clickbait),
    }
    per = {"revenue": "order", "position": "click", "bait": "click"}
    ours = {name: arm.sessions.filter(pl.col(per.get(name, "sessions")) > 0)[name] for name in theirs}
    theirs["prefix"], ours["prefix"] = np.char.str_len(prefixes), arm.requests["prefix"].str.len_chars()
    for name in theirs:
        left, right = np.asarray(theirs[name], float), np.asarray(ours[name], float)
        error = np.sqrt(left.var() / left.size + right.var() / right.size)
        assert abs(left.mean() - right.mean()) < 4 * error and error < 0.15 * left.mean(), name


@pytest.mark.parametrize("examination", ["cascade", "position"])
def test_clicks_fall_where_the_closed_form_says(examination):
    world = build_world(market_config("smoke", **SMALL, examination=examination))
    catalogue, many = world.catalogue, 40_000
    shown = np.arange(1_000, 1_016)[None, :]
    intent = np.array([1_003])
    probability = click_probability(world.config, catalogue, intent, shown)
    expected = world.config.glance * click_places(world.config, probability)[0]
    place = click(world, np.repeat(intent, many), np.repeat(shown, many, axis=0), 3, np.arange(many), 1)
    counts = np.bincount(place[place >= 0], minlength=16)
    assert expected[3] > 0.1
    assert stats.chisquare(np.r_[counts, (place < 0).sum()], many * np.r_[expected, 1 - expected.sum()]).pvalue > 0.001


def test_the_same_policy_twice_is_the_same(world, own):
    """Although it fills places by chance."""
    test = experiment(world, own, logging_policy(world), 2, 3, 300)
    assert test.a.sessions.equals(test.b.sessions) and test.a.requests.equals(test.b.requests)
    assert (test.paired["difference"] == 0).all() and (test.paired["p"] == 1).all()
    assert (test.split["standard_error"] > 0).all(), "halves differ even so"


def test_same_seed_same_bytes_and_another_seed_others(world, own, better, trial):
    again = experiment(world, own, better, 2, 0, 1_500)
    assert all(left.equals(right) for left, right in zip(again[:2], trial[:2], strict=True))
    assert again.b.sessions.equals(trial.b.sessions)
    assert not experiment(world, own, better, 2, 1, 1_500).paired.equals(trial.paired)


def test_several_pairs_are_each_as_if_alone(world, own, better):
    """And each policy is played once, however many pairs it is in."""
    played = []

    def counted(batch: Batch, rng) -> Page:
        played.append(batch.length.size)
        return better(batch, rng)

    policies = {"own": own, "better": counted, "none": nothing}
    pairs = [("better", "own"), ("better", "none"), ("none", "own")]
    found = experiments(world, policies, pairs, 2, 3, 200)
    assert list(found) == pairs and len(played) > 0
    once = len(played)
    for treatment, control in pairs:
        alone = experiment(world, policies[control], policies[treatment], 2, 3, 200)
        both = found[treatment, control]
        assert alone.paired.equals(both.paired) and alone.split.equals(both.split)
        assert alone.a.requests.equals(both.a.requests) and alone.b.sessions.equals(both.b.sessions)
    assert len(played) == 3 * once, "twice alone, once together"
    with pytest.raises(MarketError, match="no policy 'worse'; pairs are of own, better, none"):
        experiments(world, policies, [("worse", "own")], 2, 3, 200)


def test_draws_are_uniform_and_belong_to_what_they_decide():
    session, query = np.arange(300)[:, None], np.arange(200)
    table = uniform(0, 2, session, 1, query)
    assert stats.kstest(table.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(table[:, 0], table[:, 1])[0, 1]) < 0.2
    moved = uniform(0, 2, session, 1, query[::-1])
    assert np.array_equal(moved[:, ::-1], table), "the draw goes with the query, wherever it stands"
    for other in (uniform(1, 2, session, 1, query), uniform(0, 3, session, 1, query), uniform(0, 2, session, 2, query)):
        assert abs(np.corrcoef(table.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_policy_that_shows_nothing_gets_no_click(world):
    searches = draw_searches(world, 2, 0, 200)
    rows = meet(world, searches, nothing, 0).sessions
    assert rows["click"].sum() == rows["revenue"].sum() == rows["position"].sum() == 0
    left = rows["abandoned"].to_numpy() == 1
    assert 0 < left.sum() < 200
    assert np.array_equal(rows["typed"].to_numpy()[~left], searches.full[~left]), "the others typed to the end"
    assert np.array_equal(rows["requests"].to_numpy()[~left], searches.there.sum(axis=0)[~left])


def test_what_is_in_mind_higher_up_is_clicked_sooner(world):
    searches = draw_searches(world, 2, 0, 400)
    intents = {row.tobytes(): intent for step in searches.points for row, intent in zip(step, searches.intent)}  # noqa: B905
    high, low = (meet(world, searches, knowing(intents, place), 0) for place in (0, 9))
    table = {row["metric"]: row for row in compare(low, high).to_dicts()}
    assert table["clicks"]["difference"] > 0 and table["clicks"]["p"] < 0.01
    assert table["position"]["a"] == 10 and table["position"]["b"] == 1
    assert table["typed"]["difference"] < 0 and table["typed"]["p"] < 0.01
    both = high.sessions["click"].to_numpy() >= low.sessions["click"].to_numpy()
    assert both.mean() > 0.97, "luck is common: who finds it far down finds it at the top, but for who left before"


def test_days_and_sessions_are_checked(world, own):
    with pytest.raises(MarketError, match="days is 3 from day 8 on; the market has days 0 to 9"):
        experiment(world, own, own, 3)
    with pytest.raises(MarketError, match="sessions is 1; expected at least one for each of the 2 days"):
        draw_searches(world, 2, 0, 1)


# ---------------------------------------------------------------- suggesters
def test_a_suggester_is_asked_each_request_once(world):
    searches = draw_searches(world, 2, 0, 100)
    known = world.catalogue.texts(np.array([7, 5])).to_pylist()
    asked = []

    def suggest(frame: pl.DataFrame) -> list[list[str]]:
        asked.extend(map(str, frame.rows()))
        assert frame.columns == ["prefix", "history", "profile"]
        return [[known[0], "no such query", known[1]]] * len(frame)

    policy = suggester_policy(world.catalogue, suggest)
    batch = Batch(8, searches.points[0], searches.length[0], searches.history, searches.profile)
    twice = Batch(8, *(np.concatenate([part, part]) for part in batch[1:]))
    page = policy(twice, np.random.default_rng(0))
    assert len(asked) == len(set(asked)) < 200
    assert page.shown.shape == (200, 16) and np.array_equal(page.shown[0], [7, -1, 5] + [-1] * 13)
    policy(batch, np.random.default_rng(0))
    assert len(asked) == len(set(asked)), "and not again in a later batch"
    texts = set(prefix_texts(batch.points, batch.length).tolist())
    assert {eval(row)[0] for row in asked} == texts


def test_a_suggester_that_lacks_a_list_is_refused(world):
    searches = draw_searches(world, 2, 0, 20)
    with pytest.raises(MarketError, match=r"gave 0 lists for \d+ requests"):
        meet(world, searches, suggester_policy(world.catalogue, lambda frame: []), 0)
