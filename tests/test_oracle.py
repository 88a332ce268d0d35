"""The oracle: its probabilities come true, wrong ones do not, and nothing beats the ceilings built on them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chi2

from data_synth import MarketConfig, MarketError, build_world, market_config, play_shard
from data_synth.catalogue import Parts, Pool, period_of
from data_synth.ceilings import Value, best_lists, given_shown, logged_clicks, ranked, value
from data_synth.counts import find_rows
from data_synth.keystrokes import heads, prefix_keys, prefix_texts
from data_synth.oracle import LIMIT, Oracle, Posterior
from data_synth.policies import Batch
from data_synth.responses import respond
from data_synth.sessions import play_days
from data_synth.shoppers import draw_shoppers

# Shoppers who look often, so that going on without a click tells much of what they want.
CONFIG = market_config("smoke", sessions=16_000, shoppers=1_200, glance=0.8)
DAYS = (6, 13, 20, 27, 30, 31)
PER_DAY = 360
GOALS = Value._fields
LIMIT_Z = 3.5


class Sample(NamedTuple):
    """Requests of one day, what each shopper had in mind, and what came of it."""

    batch: Batch
    intent: np.ndarray
    who: np.ndarray
    shown: np.ndarray
    place: np.ndarray


class Judged(NamedTuple):
    """Probabilities given to N requests, and what came true."""

    top: np.ndarray  # (N, 16) of the most probable queries
    hit: np.ndarray  # (N, 16) bool: which of them was in mind
    loss: np.ndarray  # (N,) minus the log-probability of what was in mind; all that is cut off counts as one
    promised: np.ndarray  # (N,) the loss that the probabilities themselves promise


def draw_sample(world, per_day: int, days=DAYS) -> list[Sample]:
    """Requests of a few days that the logging policy answered, all equally likely."""
    rng, found = np.random.default_rng(5), []
    for day in play_shard(world, 0)[1]:
        if day.day in days:
            own = np.flatnonzero(~day.at_random)
            at = np.sort(rng.choice(own, min(per_day, own.size), replace=False))
            found.append(
                Sample(some(day.batch, at), day.intent[at], day.who[at], day.page.shown[at], day.responses.place[at])
            )
    return found


def some(batch: Batch, rows) -> Batch:
    return Batch(batch.day, *(part[rows] for part in batch[1:]))


def judge(posteriors: list[Posterior], intents: np.ndarray, power: float = 1.0) -> Judged:
    top, hit = np.zeros((len(posteriors), 16)), np.zeros((len(posteriors), 16), dtype=bool)
    loss, promised = np.zeros((2, len(posteriors)))
    for number, (posterior, intent) in enumerate(zip(posteriors, intents, strict=True)):
        tempered = posterior.probability**power
        tempered *= posterior.probability.sum() / max(tempered.sum(), 1e-300)
        rest = max(1 - tempered.sum(), 1e-6)
        true = posterior.query == intent
        top[number, : tempered.size] = tempered[:16]
        hit[number, : tempered.size] = true[:16]
        loss[number] = -np.log(tempered[true].sum() if true.any() else rest)
        promised[number] = -(tempered * np.log(tempered)).sum() - rest * np.log(rest)
    return Judged(top, hit, loss, promised)


def distance(error: np.ndarray, who: np.ndarray) -> float:
    """Mean error in its standard errors; requests of one shopper lean on each other, so those are over shoppers."""
    sums = np.bincount(who, error)
    return float(sums.sum() / np.sqrt((sums**2).sum()))


def distances(judged: Judged, who: np.ndarray) -> dict[str, float]:
    """How far what was promised lies from what came true: the first, the first 16, the loss, and by probability."""
    top, hit = judged.top, judged.hit
    found = {
        "first": distance(top[:, 0] - hit[:, 0], who),
        "sixteen": distance((top - hit).sum(axis=1), who),
        "loss": distance(judged.promised - judged.loss, who),
    }
    bounds = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.01]
    owner = np.repeat(who, 16)
    for low, high in zip(bounds, bounds[1:], strict=False):
        some = ((top > low) & (top <= high)).ravel()
        assert top.ravel()[some].sum() > 25  # enough to tell
        found[f"{low} to {high}"] = distance(top.ravel()[some] - hit.ravel()[some], owner[some])
    return found


@pytest.fixture(scope="module")
def world():
    return build_world(CONFIG)


@pytest.fixture(scope="module")
def sample(world) -> list[Sample]:
    return draw_sample(world, PER_DAY)


@pytest.fixture(scope="module")
def oracle(world) -> Oracle:
    return Oracle(world, keep=600)


@pytest.fixture(scope="module")
def posteriors(oracle, sample) -> list[Posterior]:
    return [posterior for part in sample for posterior in oracle.posterior(part.batch)]


@pytest.fixture(scope="module")
def intents(sample) -> np.ndarray:
    return np.concatenate([part.intent for part in sample])


@pytest.fixture(scope="module")
def who(sample) -> np.ndarray:
    return np.concatenate([part.who for part in sample])


# Calibration


def test_probabilities_come_true(posteriors, intents, who):
    judged = judge(posteriors, intents)
    found = distances(judged, who)
    assert len(posteriors) > 2_000 and judged.hit[:, 0].mean() > 0.2
    assert max(map(abs, found.values())) < LIMIT_Z, found


@pytest.mark.parametrize("power", [2.0, 0.7])
def test_boastful_and_timid_probabilities_do_not(posteriors, intents, who, power):
    found = distances(judge(posteriors, intents, power), who)
    for name in ("first", "sixteen", "loss"):
        assert abs(found[name]) > LIMIT_Z, found


@pytest.mark.parametrize("ignored", ["history", "lists shown before"])
def test_an_oracle_that_knows_less_predicts_worse(world, sample, posteriors, intents, who, ignored):
    """Such an oracle may be calibrated, for what it knows; the loss tells it from the one that knows all."""
    config = replace(CONFIG, glance=0.0) if ignored == "lists shown before" else CONFIG
    blind, worse = Oracle(world._replace(config=config), keep=600), []
    for part in sample:
        nothing = part.batch._replace(history=np.full_like(part.batch.history, -1))
        worse += blind.posterior(nothing if ignored == "history" else part.batch)
    difference = judge(worse, intents).loss - judge(posteriors, intents).loss
    assert distance(difference, who) > LIMIT_Z


@pytest.mark.parametrize("repeat", [0.0, 0.4])
def test_posteriors_are_exact_where_all_shoppers_look_alike(repeat):
    """All requests at a prefix have one posterior then, which their intents must be drawn from.

    Nobody has a profile, and all have the same history, which tells of repeats and of nothing else. Nothing is
    approximate here but the lists shown before a slip was mended, and tens of thousands of searches tell.
    """
    config = market_config(
        "smoke", history_length=2, repeat=repeat, missing_profile=1.0, random_share=0.0, exploration=0, glance=0.9,
        give_up=0.1, misspell=0.3, notice=0.6, days=3, test_days=1, pilot_sessions=2_000, department_concentration=1e6,
    )  # fmt: skip
    world, rng, count = build_world(config)._replace(exact=0.0), np.random.default_rng(0), 60_000
    shoppers = draw_shoppers(config, world.catalogue, count, rng)._replace(activity=np.ones(count))
    history = np.tile(np.array([0, 30]) * world.catalogue.split_base, (count, 1))  # bare types
    (day,) = play_days(world.play(), shoppers, np.array([count]), rng, 1, history)
    texts = prefix_texts(day.batch.points, day.batch.length)
    prefixes, first, number = np.unique(texts, return_index=True, return_counts=True)
    often = np.flatnonzero(number > 250)
    batch = some(day.batch, first[often])
    total, freedom, worst = 0.0, 0, 1.0
    for prefix, posterior in zip(prefixes[often], Oracle(world, keep=10_000).posterior(batch), strict=True):
        own = np.flatnonzero(texts == prefix)
        seen = np.bincount(day.intent[own], minlength=world.catalogue.size)[posterior.query]
        assert seen.sum() == own.size  # nothing else can be meant
        expected = posterior.probability / posterior.probability.sum() * seen.sum()
        rare = expected < 8
        seen, expected = (np.r_[part[~rare], part[rare].sum()] for part in (seen, expected))
        seen, expected = seen[expected > 0], expected[expected > 0]
        twice = own.size - np.unique(day.session[own]).size  # before a blank and after it
        far, free = ((seen - expected) ** 2 / expected).sum() / (1 + 2 * twice / own.size), expected.size - 1
        total, freedom, worst = total + far, freedom + free, min(worst, chi2.sf(far, free) if free else 1.0)
    assert often.size > 60 and freedom > 600
    assert chi2.sf(total, freedom) > 1e-4 and worst > 1e-6, (total, freedom, worst)


def test_a_word_that_ends_and_one_that_goes_on_are_told_apart(monkeypatch):
    """An apple, and a phone of that brand: how often each is asked for at a prefix, by play and by the posterior.

    Where a text goes on after a blank, the log's stripped prefix is seen twice; where it ends, a long burst ends too.
    The phone is mostly typed the other way round, so that slips that were mended are much of what is left of it.
    """
    config = market_config(
        "smoke", history_length=0, missing_profile=1.0, random_share=0.0, exploration=0, glance=0.9, synonym=0.0,
        reorder=0.6, misspell=0.3, alias=0.0, notice=0.6, days=3, test_days=1, pilot_sessions=2_000,
    )  # fmt: skip
    world, rng, count = build_world(config), np.random.default_rng(0), 80_000
    both = world.catalogue.find(["apple", "apple smartphone"])
    monkeypatch.setattr("data_synth.sessions.draw_intents", lambda *_: np.resize(both, count))
    shoppers = draw_shoppers(config, world.catalogue, count, rng)
    (day,) = play_days(world.play(), shoppers, np.array([count]), rng, 1, np.empty((count, 0), dtype=int))
    texts, oracle = prefix_texts(day.batch.points, day.batch.length), Oracle(world, keep=10_000)
    taste = oracle._taste(oracle.latents(some(day.batch, [0])), 0, 1, both)
    for prefix in ("a", "app", "apple"):
        at = np.flatnonzero(texts == prefix)
        (posterior,) = oracle.posterior(some(day.batch, at[:1]))
        told = np.array([posterior.probability[posterior.query == query].sum() for query in both]) / taste
        seen = np.array([(day.intent[at] == query).sum() for query in both])
        error = np.sqrt(1.5 * (1 / seen).sum())  # a session may be there twice
        assert seen.min() > 1_500 and abs(np.log(seen[0] / seen[1]) - np.log(told[0] / told[1])) < 4 * error, prefix


def test_taste_is_what_history_and_profile_say_by_brute_force(world):
    """Many shoppers, each weighted by how likely the history and the profile are, against the closed form."""
    catalogue, rng, count = world.catalogue, np.random.default_rng(3), 100_000
    shoppers = draw_shoppers(CONFIG, catalogue, count, rng)
    department, shelf, row = catalogue.type_department, catalogue.type_shelf, catalogue.row
    brand, modifier = catalogue.brand.mean(axis=0), catalogue.modifier.mean(axis=0)  # no search tells its day
    period = int(period_of(CONFIG, 20))

    def likelihood(query, brand, modifier, type_share):
        kind, *codes = (int(part) for part in catalogue.split(np.array(query)))
        own, tier = department[kind], shoppers.tier
        return (
            shoppers.department_taste[:, own]
            * type_share[kind]
            * brand[row[kind], tier, shoppers.favourite_brand[:, own], codes[0]]
            * catalogue.style[row[kind], codes[1]]
            * catalogue.attribute[row[kind], shoppers.favourite_attribute[:, shelf[kind]], codes[2]]
            * modifier[row[kind], shoppers.audience, tier, codes[3]]
        )

    mine, other = 0, 7  # departments
    first = np.searchsorted(department, [mine, other])
    history = catalogue.join(
        Parts(first[[0, 0, 1]] + [0, 1, 2], *np.array([[2, 2, 1], [0, 1, 0], [1, 1, 0], [1, 0, 2]]))
    )
    audience, tier, told, liked, reliable = 1, 2, mine, 2, CONFIG.profile_reliability
    weight = np.prod([likelihood(query, brand, modifier, np.ones(row.size)) for query in history], axis=0)
    for right, choices in (
        (shoppers.audience == audience, len(catalogue.lexicon.audiences)),
        (shoppers.tier == tier, 3),
        (shoppers.department_taste[:, told], catalogue.department_share.size),
        (shoppers.favourite_brand[:, told] == liked, catalogue.favourites[told].sum()),
    ):
        weight *= reliable * right + (1 - reliable) / choices
    weight /= weight.sum()

    batch = Batch(20, np.zeros((1, 12), np.uint32), np.ones(1, int), np.r_[np.full(5, -1), history][None],
                  np.array([[audience, tier, told, liked, 0]]))  # fmt: skip
    certain, ignorant = (Oracle(world._replace(exact=exact)) for exact in (1.0, 0.0))
    every = np.arange(catalogue.size)
    closed, prior = (each._taste(each.latents(batch), 0, 20, every) for each in (certain, ignorant))
    assert closed.sum() == pytest.approx(1.0)
    asked = np.r_[np.argsort(-closed)[:40], history]
    brute, error = np.zeros((2, asked.size))
    for place, query in enumerate(asked):
        chance = likelihood(query, catalogue.brand[period], catalogue.modifier[period], catalogue.type_share[20])
        brute[place] = weight @ chance
        error[place] = np.sqrt((weight**2) @ (chance - brute[place]) ** 2)
    print(
        np.round((closed[asked] - brute) / error, 1),
        np.round(error / brute, 3),
        np.abs((prior[asked] - brute) / error).max(),
    )
    assert np.median(error / brute) < 0.05 and np.abs((closed[asked] - brute) / error).max() < 4.5
    assert np.abs((prior[asked] - brute) / error).max() > 10  # what the words of a history tell counts


def test_probabilities_come_true_on_a_list_of_queries():
    """One query a type and no words of its own: queries come and go, and nearly all that shoppers share is taste."""
    rng = np.random.default_rng(0)
    things = ["lamp", "mug", "rug", "desk", "sofa", "shelf"]
    words = ["red", "blue", "old", "new", "small", "large", "cheap", "round", "retro", "smart", "bold", "slim"]
    texts = [f"{word} {thing}" for thing in things for word in words]
    counts = np.sort(rng.zipf(1.7, len(texts)).clip(max=500))[::-1]
    place = np.arange(len(texts))
    pool = Pool(texts, rng.permutation(counts), place // 18, place // 6, ["one", "two", "three", "four"])
    world = build_world(replace(CONFIG, sessions=6_000), pool)
    parts = draw_sample(world, 250, (13, 20, 27, 31))
    posteriors = [posterior for part in parts for posterior in Oracle(world).posterior(part.batch)]
    judged = judge(posteriors, np.concatenate([part.intent for part in parts]))
    who = np.concatenate([part.who for part in parts])
    for error in ((judged.top - judged.hit)[:, 0], judged.promised - judged.loss):
        assert abs(distance(error, who)) < LIMIT_Z
    assert judged.hit[:, 0].mean() > 0.5 and judged.hit.sum(axis=1).mean() > 0.9


def test_a_posterior_holds_what_the_prefix_can_mean(world, oracle, sample, posteriors):
    for posterior in posteriors:
        assert (np.diff(posterior.probability) <= 0).all() and posterior.probability.sum() <= 1 + 1e-9
        assert np.unique(posterior.query).size == posterior.query.size and posterior.tier.sum() == pytest.approx(1)
    covered = np.array([posterior.probability.sum() for posterior in posteriors])
    assert (covered > 0.98).mean() > 0.5 and covered.min() > 0.5
    one = some(sample[2].batch, [0])
    strange = one._replace(points=heads(pa.array(["~~~"]))[0], length=np.array([3]))
    assert oracle.posterior(strange)[0].query.size == 0
    text = world.catalogue.texts(np.array([5_000]))[0].as_py()
    whole = one._replace(points=heads(pa.array([text]))[0], length=np.array([min(len(text), 12)]))
    meant = world.catalogue.texts(oracle.posterior(whole)[0].query[:3]).to_pylist()
    assert all(text[:6] in found for found in meant)


def test_a_pool_too_large_to_list_is_refused(world):
    large = world._replace(catalogue=world.catalogue._replace(sizes=(288, 26, 9, 12, 13)))
    with pytest.raises(MarketError, match=r"the pool has 10,513,152 queries; the oracle lists .* up to 600,000: lower"):
        Oracle(large)
    assert LIMIT == 600_000 and np.prod([96, 5, 3, 4, 5]) < 254_016 < LIMIT  # smoke and lite are not
    assert MarketConfig().types * 24 * 9 * 4 * 6 * 7 == 254_016


# Ceilings


@pytest.fixture(scope="module")
def few(sample, posteriors) -> tuple[Sample, list[Posterior]]:
    """Requests of the first test day, with the 200 queries that each shopper most probably has in mind."""
    first, part = DAYS.index(30) * PER_DAY, sample[DAYS.index(30)]
    assert part.batch.day == CONFIG.days
    kept = [posterior._replace(query=posterior.query[:200], probability=posterior.probability[:200])
            for posterior in posteriors[first : first + 160]]  # fmt: skip
    return Sample(some(part.batch, slice(160)), *(column[:160] for column in part[1:])), kept


@pytest.fixture(scope="module")
def rivals(world, few) -> dict[str, np.ndarray]:
    """Lists of policies that rank by something else than what they are judged by."""
    part, posteriors = few
    logged = logged_clicks(world, part.batch, posteriors)
    index = world.indexes[int(period_of(CONFIG, 30))]
    row = find_rows(index, prefix_keys(part.batch.points), part.batch.length)
    return {
        "shown": part.shown,
        "popularity": index.query[index.start[row][:, None] + np.arange(CONFIG.shown)],
        "posterior": np.stack([ranked(found.query, found.probability, 16) for found in posteriors]),
        "imitation": np.stack([ranked(queries, click, 16) for queries, click, _ in logged]),
        "imitated orders": np.stack([ranked(queries, order, 16) for queries, _, order in logged]),
    }


@pytest.mark.parametrize("examination", ["cascade", "position"])
def test_no_policy_exceeds_the_ceilings(world, few, rivals, examination):
    world = world._replace(config=replace(CONFIG, examination=examination))
    posteriors, rng = few[1], np.random.default_rng(0)
    best = {goal: best_lists(world, posteriors, goal) for goal in GOALS}
    worth = {goal: value(world, posteriors, lists) for goal, lists in best.items()}
    for goal in GOALS:
        ceiling = getattr(worth[goal], goal).mean()
        assert ceiling > 0
        others = rivals | {f"best {other}": best[other] for other in GOALS if other != goal}
        others["shuffled"] = rng.permuted(best[goal], axis=1)
        for name, lists in others.items():
            assert getattr(value(world, posteriors, lists), goal).mean() <= ceiling + 1e-9, (goal, name)
        assert getattr(value(world, posteriors, rivals["imitation"]), goal).mean() < 0.9 * ceiling


def test_best_lists_serve_many_intents_rather_than_one_twice(world, few):
    """Where shoppers settle easily, the queries that serve best by themselves serve the same shoppers."""
    world = world._replace(config=replace(CONFIG, satisficing=8.0))
    best = value(world, few[1], best_lists(world, few[1])).click.mean()
    alone = [ranked(found.query[:64], given_shown(world, found, found.query[:64])[0], 16) for found in few[1]]
    assert best > 1.005 * value(world, few[1], np.stack(alone)).click.mean()


@pytest.mark.parametrize("goal", GOALS)
def test_no_small_change_makes_the_best_lists_better(world, few, rivals, goal):
    """Two places swapped, or one given to another query, in each list, 200 times."""
    part, posteriors = few
    rng = np.random.default_rng(1)
    best = best_lists(world, posteriors, goal)
    changed = np.repeat(best[:, None], 200, axis=1)  # (N, 200, K)
    for pages, posterior, shown in zip(changed, posteriors, part.shown, strict=True):
        choice = np.union1d(posterior.query[:64], shown)
        for page in pages:
            one, two = rng.choice(16, 2, replace=False)
            if rng.random() < 0.5:
                page[[one, two]] = page[[two, one]]
            else:
                new = rng.choice(choice)
                page[page == new] = -1
                page[one] = new
    found = getattr(value(world, posteriors, changed), goal)  # (N, 200)
    ceiling = getattr(value(world, posteriors, best), goal)
    assert found.mean(axis=0).max() <= ceiling.mean() + 1e-9
    assert np.maximum(found.max(axis=1), ceiling).mean() <= 1.03 * ceiling.mean()  # greedy is nearly the best of all


@pytest.mark.parametrize("examination", ["cascade", "position"])
def test_value_is_what_shoppers_then_do(world, few, rivals, examination):
    """Shoppers drawn from the posteriors, let loose on lists."""
    config = replace(CONFIG, examination=examination, satisficing=2.0)
    world = world._replace(config=config)
    posteriors, lists = few[1], rivals["posterior"]
    each, rng = 1_500, np.random.default_rng(2)
    whole = [found._replace(probability=found.probability / found.probability.sum()) for found in posteriors]
    expected = value(world, whole, lists)
    intents, tiers = [], []
    for found in whole:
        intents.append(rng.choice(found.query, each, p=found.probability))
        tiers.append(rng.choice(3, each, p=found.tier))
    shown = np.repeat(lists, each, axis=0)
    looks = rng.random(len(shown)) < config.glance
    answers = respond(config, world.catalogue, np.concatenate(intents), np.concatenate(tiers), shown, rng, looks)
    came = answers.place >= 0, answers.revenue > 0, answers.revenue / np.exp(0.005)  # the mean of the noise on prices
    for goal, seen, hoped in zip(GOALS, came, expected, strict=True):
        by_request = seen.reshape(-1, each).mean(axis=1) - hoped
        error = seen.reshape(-1, each).std(axis=1) / np.sqrt(each)
        assert abs(by_request.sum()) < LIMIT_Z * np.sqrt((error**2).sum()), goal
        assert np.corrcoef(seen.reshape(-1, each).mean(axis=1), hoped)[0, 1] > 0.9, goal


@pytest.fixture(scope="module")
def clicks(world, sample, posteriors):
    """Every request's logged clicks as they were to be expected, and the query that was clicked, -1 for none."""
    expected, clicked, at = [], [], 0
    for part in sample:
        own = posteriors[at : at + part.intent.size]
        expected += logged_clicks(world, part.batch, own)
        chosen = part.shown[np.arange(part.place.size), np.maximum(part.place, 0)]
        clicked.append(np.where(part.place >= 0, chosen, -1))
        at += part.intent.size
    return expected, np.concatenate(clicked)


def test_clicks_of_the_log_come_where_they_were_expected(clicks, who):
    expected, clicked = clicks
    total = np.array([share.sum() for _, share, _ in expected])
    assert abs(distance(total - (clicked >= 0), who)) < LIMIT_Z
    first = np.array([share.max(initial=0.0) for _, share, _ in expected])
    best = np.array([ranked(queries, share, 1)[0] for queries, share, _ in expected])
    assert abs(distance(first - ((clicked == best) & (clicked >= 0)), who)) < LIMIT_Z
    assert abs(distance(1.3 * total - (clicked >= 0), who)) > LIMIT_Z
    assert all((order <= share + 1e-12).all() for _, share, order in expected)


def test_perfect_imitation_scores_best_on_the_log(world, sample, posteriors, clicks, who):
    """HR@16 and MRR@16 on the clicks of the log: no other ranking does better beyond noise."""
    expected, clicked = clicks
    some = np.flatnonzero(clicked >= 0)
    index = {part.batch.day: world.indexes[int(period_of(CONFIG, part.batch.day))] for part in sample}
    day = np.concatenate([np.full(part.intent.size, part.batch.day) for part in sample])
    keys = np.concatenate([prefix_keys(part.batch.points) for part in sample])
    length = np.concatenate([part.batch.length for part in sample])
    rankings = {"imitation": [], "posterior": [], "popularity": [], "best clicks": []}
    for number in some:
        queries, share, _ = expected[number]
        rankings["imitation"].append(ranked(queries, share, 16))
        rankings["posterior"].append(ranked(posteriors[number].query, posteriors[number].probability, 16))
        own = index[day[number]]
        row = find_rows(own, keys[number][None], length[number][None])[0]
        rankings["popularity"].append(own.query[own.start[row] + np.arange(16)])
        rankings["best clicks"].append(best_lists(world, [posteriors[number]])[0])
    hit = {name: np.stack(lists) == clicked[some][:, None] for name, lists in rankings.items()}
    scores = {name: (found.any(axis=1).astype(float), (found / np.arange(1, 17)).sum(axis=1))
              for name, found in hit.items()}  # fmt: skip
    assert some.size > 200
    for name in ("posterior", "popularity", "best clicks"):
        for best, other in zip(scores["imitation"], scores[name], strict=True):
            assert distance(best - other, who[some]) > -2, name
    for name, measure in (("posterior", 0), ("best clicks", 0), ("popularity", 1)):
        assert distance(scores["imitation"][measure] - scores[name][measure], who[some]) > LIMIT_Z, name
    shares = [np.sort(expected[number][1])[::-1] for number in some]
    promised = np.array([share[:16].sum() / share.sum() for share in shares])
    assert abs(distance(promised - scores["imitation"][0], who[some])) < LIMIT_Z
