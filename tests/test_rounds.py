"""Rounds of feedback: each model learns from the day before it and from its own log alone, and numbers are by hand."""

import json
from datetime import timedelta

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import polars as pl
import pytest

from data_synth import build_world, market_config
from data_synth.days import DailyMarket
from onesug_lite import grid, round_figures, round_grid
from onesug_lite.claims import NO_RECORD, load_claims, measure
from onesug_lite.feedback import joined, played
from onesug_lite.generator_learner import UpdateConfig
from onesug_lite.learners import LeakError, first_answered, learner_of
from onesug_lite.log import clicked
from onesug_lite.profiles import sizes
from onesug_lite.records import Grid, read_records
from onesug_lite.round_figures import HELPS, HURTS, OPEN, after, against_controls, course, rounds_in
from onesug_lite.round_grid import SIZES, chapter_rounds, round_key, run_rounds, size_of
from onesug_lite.rounds import ARMS, CONTROLS, FEEDBACK, SEED, check_unseen, day_after, rounds_of, unseen_clicks
from onesug_lite.update_grid import plan_of

SMALL = {"sessions": 1_500, "shoppers": 200, "pilot_sessions": 1_000, "days": 8, "test_days": 2}
ROUNDS = 3


@pytest.fixture(scope="module")
def street():
    return DailyMarket(build_world(market_config("smoke", **SMALL)), 40, 0, 5)


@pytest.fixture(scope="module")
def feed(street):
    own = street.copy()
    return [played(own) for _ in range(ROUNDS)]


class Noting:
    """A generator that notes what it is trained on instead of training; it shows one query, its own number."""

    notes: list = []  # noqa: RUF012
    stages = ("preference",)

    def __init__(self, policy, config, train, preference, reward):
        self.policy, self.config, self.train, self.preference, self.reward = policy, config, train, preference, reward

    def __call__(self, requests):
        return [self.policy[1] for _ in range(len(requests))]

    def updated(self, stage, log, day, seed, work, days=1):
        from onesug_lite.learners import check_update

        check_update(self, stage, log, day)
        Noting.notes.append((stage, log, day, seed, self.preference.loss, self.policy[0]))
        made = self.policy[0] + 1, self.policy[1][::-1]
        return Noting(made, self.config, self.train, self.preference, self.reward)


@pytest.fixture
def ran(street, feed, tmp_path, monkeypatch):
    """Arm -> its rounds and what each update was given."""
    from onesug_lite import rounds
    from onesug_lite.losses import PreferenceConfig
    from onesug_lite.reward import RewardConfig
    from onesug_lite.training import TrainConfig

    monkeypatch.setattr(rounds, "GeneratorLearner", Noting)
    shown = feed[0].candidates["query"].unique().sort().to_list()[:16]
    start = Noting((0, shown), UpdateConfig(), TrainConfig(), PreferenceConfig(), RewardConfig())
    found = {}
    for name in ARMS:
        Noting.notes = []
        models = list(rounds_of(name, start, street.copy(), ROUNDS, 3, tmp_path, feed))
        found[name] = models, list(Noting.notes)
    return found


# ---------------------------------------------------------------- the loop
def test_every_model_learns_from_the_day_that_the_one_before_it_answered(ran, street, feed):
    models, notes = ran[FEEDBACK]
    assert [each.number for each in models] == [0, 1, 2, 3] and models[0].log is None
    assert [note[5] for note in notes] == [0, 1, 2], "each from the model before it"
    own = street.copy()
    for (_, log, day, *_), before, day_fed in zip(notes, models, feed, strict=False):
        again = played(own, before.model)
        assert log.requests.equals(again.requests) and log.candidates.equals(again.candidates)
        assert day == day_after(log) == day_after(day_fed), "one day is one round, and the one after is answered next"
    assert set(joined([note[1] for note in notes]).requests["policy"]) <= {"plugged_in", "random"}


def test_controls_differ_in_one_thing_each(ran, feed):
    notes = {name: found[1] for name, found in ran.items()}
    assert notes[SEED] == [] and len(ran[SEED][0]) == 1
    for name in CONTROLS[1:]:
        assert [note[0] for note in notes[name]] == ["preference"] * ROUNDS
        assert [note[3] for note in notes[name]] == [note[3] for note in notes[FEEDBACK]], "the same draws"
        assert [note[2] for note in notes[name]] == [note[2] for note in notes[FEEDBACK]], "the same days"
    assert {note[4] for note in notes["rounds-supervised"]} == {"supervised"}
    assert {note[4] for note in notes["rounds-market"]} == {note[4] for note in notes[FEEDBACK]} == {"listwise"}
    first = notes["rounds-supervised"][0][1], notes[FEEDBACK][0][1]
    assert first[0].candidates.equals(first[1].candidates), "all answer the first day as the seed model does"
    for note, day in zip(notes["rounds-market"], feed, strict=True):
        assert note[1] is day
    assert len({note[3] for note in notes[FEEDBACK]}) == ROUNDS


def test_the_loop_refuses_what_it_cannot_run(street, feed, tmp_path):
    with pytest.raises(ValueError, match="unknown arm 'rounds-both'; expected one of rounds-seed, rounds-preference"):
        next(rounds_of("rounds-both", None, street.copy(), 1, 0, tmp_path))
    models = rounds_of("rounds-market", None, street.copy(), 3, 0, tmp_path, feed[:2])
    next(models)
    with pytest.raises(ValueError, match="feed holds 2 days; 'rounds-market' needs one for each of 3 rounds"):
        next(models)


def test_a_round_that_knows_a_later_day_is_refused(ran, feed, street, tmp_path):
    late = [feed[0], joined([feed[1], feed[2]]), feed[2]]
    models = rounds_of("rounds-market", ran[SEED][0][0].model, street.copy(), 3, 0, tmp_path, late)
    with pytest.raises(LeakError, match="of that day or later"):
        list(models)


def test_nobody_is_asked_about_days_that_a_round_has_seen(feed):
    log, first = joined(feed), feed[2].requests["time"].dt.date().min()
    asked = unseen_clicks(log, first, 999)
    assert len(asked) == len(clicked(feed[2])) and set(asked["time"].dt.date()) == {first}
    assert unseen_clicks(log, first, 5).equals(unseen_clicks(log, first, 5)) and len(unseen_clicks(log, first, 5)) == 5
    for seen in (None, feed[0], feed[1]):
        check_unseen(asked, seen)
    with pytest.raises(LeakError, match=f"from {first} on"):
        check_unseen(asked, feed[2])
    with pytest.raises(ValueError, match="the log holds no click from"):
        unseen_clicks(log, first + timedelta(days=1), 5)


def test_real_rounds_move_the_model_and_are_the_same_again(road, tmp_path):
    import torch

    learner = learner_of(road, "generator", UpdateConfig(1, 1, 8, 8))
    first = (first_answered(road) - road.log.requests["time"].dt.date().min()).days
    market = DailyMarket(build_world(market_config("smoke")), 8, 0, first)
    feed = [played(market.copy())]

    def weights(name, seed=0):
        (_, last) = rounds_of(name, learner, market.copy(), 1, seed, tmp_path / f"{name}{seed}", feed)
        return torch.cat([value.flatten() for value in last.model.policy.model.state_dict().values()])

    start = torch.cat([value.flatten() for value in learner.policy.model.state_dict().values()])
    made = {name: weights(name) for name in ARMS if name != SEED}
    assert all(not torch.equal(found, start) for found in made.values())
    assert not torch.equal(made[FEEDBACK], made["rounds-supervised"])
    assert not torch.equal(made[FEEDBACK], made["rounds-market"])
    assert torch.equal(weights(FEEDBACK), made[FEEDBACK]) and not torch.equal(weights(FEEDBACK, 1), made[FEEDBACK])
    assert learner.preference.loss == "listwise", "what stood is left alone"


# ---------------------------------------------------------------- records
def fake_rounds(levels: dict[str, list[list[int]]], seeds: int = 3, profile: str = "lite") -> list[dict]:
    """Records in which each arm's model t clicks in the first ``levels[arm][t]`` of 40 sessions, two a shopper, and
    ranks as many clicks first; a seed more, one session more."""
    made = []
    for name, counts in levels.items():
        for seed in range(seeds):
            rounds = [
                {"round": number, "learnt": 9, "answered": 0.5, "rank": ([1] * (count + seed) + [0] * 40)[:40],
                 "click": ([1] * (count + seed) + [0] * 40)[:40]}
                for number, count in enumerate(counts)
            ]  # fmt: skip
            end = rounds[-1]
            made.append({
                "variant": name, "label": ARMS[name].label, "seed": seed, "profile": profile, "log": "log0",
                "parameters": 5, "rounds": rounds,
                "clicks": {"request_id": list(range(40)), "behaviour": ["order"] * 40, "rank": end["rank"]},
                "replay": {"request_id": [at // 2 for at in range(40)], "click": end["click"], "order": [0] * 40,
                           "revenue": [0.0] * 40},
            })  # fmt: skip
    return made


LEVELS = {SEED: [10], FEEDBACK: [10, 14, 22], "rounds-supervised": [10, 12, 14], "rounds-market": [10, 20, 34]}


def test_gains_by_round_by_hand():
    records = fake_rounds(LEVELS)
    assert rounds_in(records) == 2
    assert all(record["replay"]["click"] == record["rounds"][1]["click"] for record in after(records, 1)
               if record["variant"] != SEED)  # fmt: skip
    found = course(records, 300)
    assert len(found) == 3 * 3 * 3 and set(found["seeds"]) == {3}
    for metric in ("replay clicks", "HR@16", "MRR@16"):
        rows = found.filter(pl.col("metric") == metric, pl.col("arm") == FEEDBACK)
        assert rows["mean"].to_list() == pytest.approx([0, 100 * 4 / 40, 100 * 12 / 40])
        assert rows["seed_model"].to_list() == pytest.approx([100 * 11 / 40] * 3)
        assert rows["level"].to_list() == pytest.approx([100 * (count + 1) / 40 for count in (10, 14, 22)])
    start = found.filter(pl.col("round") == 0)
    assert set(start["mean"]) == set(start["low"]) == set(start["high"]) == {0}


def test_shoppers_are_resampled_whole():
    records = fake_rounds(LEVELS)
    alone = [{**r, "replay": r["replay"] | {"request_id": list(range(40))}} for r in records]
    wide, narrow = (
        course(each, 2000).filter(pl.col("metric") == "replay clicks", pl.col("round") == 2)
        for each in (records, alone)
    )
    assert ((wide["high"] - wide["low"]) > (narrow["high"] - narrow["low"])).all()


def test_what_is_left_beside_each_control():
    found = against_controls(fake_rounds(LEVELS), 300)
    clicks = {row["control"]: row for row in found.filter(pl.col("metric") == "replay clicks").to_dicts()}
    assert [clicks[name]["mean"] for name in CONTROLS] == pytest.approx([30, 20, -30])
    assert [clicks[name]["verdict"] for name in CONTROLS] == [HELPS, HELPS, HURTS]
    assert clicks[SEED]["each_seed"] == pytest.approx([30] * 3)
    for end in (14, 15):  # alike, or better by one session of one shopper
        near = against_controls(fake_rounds(LEVELS | {FEEDBACK: [10, 12, end]}), 300)
        near = near.filter(pl.col("control") == "rounds-supervised")
        assert near["mean"].to_list() == pytest.approx([2.5 * (end - 14)] * 3)
        assert near["verdict"].to_list() == [OPEN] * 3


def test_records_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"records of \[1, 2\] rounds; expected every arm with the same rounds"):
        rounds_in(fake_rounds(LEVELS | {FEEDBACK: [10, 14]}))
    with pytest.raises(ValueError, match="no record of 'rounds-market'"):
        course([record for record in fake_rounds(LEVELS) if record["variant"] != "rounds-market"])


def test_a_claim_can_be_measured_on_them():
    test = {"first": FEEDBACK, "second": "rounds-supervised", "metrics": ["click MRR@16", "replay clicks"]}
    found = measure(test, Grid(fake_rounds(LEVELS)), "rounds")
    assert [round(part.estimate.mean, 6) for part in found] == [20, 20] and NO_RECORD not in [p.verdict for p in found]
    (claim,) = [c for section in load_claims()["claims"].values() for c in section if c["id"] == "rounds-help"]
    assert {name for test in claim["tests"] for name in (test["first"], test["second"])} == set(ARMS)
    assert {test["under"] for test in claim["tests"]} == {round_grid.FOLDER} and claim["figure"] == "09_rounds"


# ---------------------------------------------------------------- running them
def test_sizes_leave_days_to_ask_about():
    for profile, size in SIZES.items():
        plan = plan_of(profile)
        settings = sizes(plan.sizes).changed(plan.changes)
        days = settings.test_days + settings.validation_days
        assert 2 <= size.rounds < days, profile
    with pytest.raises(ValueError, match="unknown profile 'tiny'"):
        size_of("tiny")


def test_keys_tell_settings_apart(monkeypatch):
    key = round_key(FEEDBACK, 0, "smoke")
    assert len({key, round_key(SEED, 0, "smoke"), round_key(FEEDBACK, 1, "smoke"), round_key(FEEDBACK, 0, "lite")}) == 4
    assert round_key(FEEDBACK, 0, "smoke", {"build": "elsewhere"}) == key
    assert round_key(FEEDBACK, 0, "smoke", {"session": 3}) != key
    monkeypatch.setitem(round_grid.SIZES, "smoke", round_grid.Size(2, 21, 24, 20))
    assert round_key(FEEDBACK, 0, "smoke") != key


def test_what_is_there_is_kept_and_the_rest_is_made_in_one_run(tmp_path, monkeypatch):
    asked = []

    def run(source, target, parameters, progress=True):
        asked.append(parameters)
        for name, key in {parameters["variant"]: parameters["key"], **parameters["also"]}.items():
            told = {"variant": name, "seed": parameters["seed"], "key": key, "profile": "smoke"}
            (tmp_path / f"{name}-seed{parameters['seed']}.json").write_text(json.dumps(told))

    monkeypatch.setattr(grid, "run_notebook", run)
    made = run_rounds(tmp_path, "smoke", 2)
    assert [(r["variant"], r["seed"]) for r in made] == [(name, seed) for seed in range(2) for name in ARMS]
    assert [(p["variant"], p["seed"], list(p["also"])) for p in asked] == [(SEED, s, list(ARMS)[1:]) for s in range(2)]
    assert run_rounds(tmp_path, "smoke", 2) == made and len(asked) == 2
    (tmp_path / f"{list(ARMS)[2]}-seed1.json").unlink()
    assert run_rounds(tmp_path, "smoke", 2) == made
    assert [(p["variant"], list(p["also"])) for p in asked[2:]] == [(list(ARMS)[2], list(ARMS)[3:])]
    with pytest.raises(ValueError, match="unknown profile 'tiny'"):
        run_rounds(tmp_path, "tiny")


def test_the_chapter_reads_what_is_committed_and_else_runs(tmp_path, monkeypatch):
    folder = tmp_path / "reference" / "rounds"
    folder.mkdir(parents=True)
    for record in fake_rounds(LEVELS, 1):
        (folder / f"{record['variant']}-seed0.json").write_text(json.dumps(record))
    monkeypatch.setattr(round_grid, "run_rounds", lambda out, profile, **rest: [(out, profile, rest)])
    found, name = chapter_rounds(tmp_path, "lite", folder.parent)
    assert name == "reference" and found == read_records(folder) and len(found) == len(ARMS)
    fresh = ([(tmp_path / "records" / "smoke" / "rounds", "smoke", {"build": str(tmp_path)})], "fresh")
    assert chapter_rounds(tmp_path, "smoke", folder.parent) == fresh, "of another profile"
    assert chapter_rounds(tmp_path, "smoke") == chapter_rounds(tmp_path, "smoke", tmp_path / "none") == fresh


def test_the_run_takes_the_parameters_that_it_is_given():
    notebook = nbformat.read(grid.NOTEBOOKS / round_grid.RUN, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    named = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert named == {"profile", "variant", "seed", "build", "record", "key", "also"}


# ---------------------------------------------------------------- figure
def test_the_figure_draws_what_it_is_given():
    data = course(fake_rounds(LEVELS), 100).filter(pl.col("metric") != "HR@16")
    figure = round_figures.rounds(data, "a finding")
    titles = ["".join(axes.get_title(loc=at) for at in ("left", "center")) for axes in figure.axes]
    assert titles == ["clicks per 100 sessions", "click MRR@16 (%)"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["less the seed model's 27.5"] * 2
    drawn = {bar.get_label(): bar.lines[0].get_ydata() for bar in figure.axes[0].containers}
    assert np.allclose(drawn[ARMS[FEEDBACK].label], [0, 10, 30]) and len(drawn) == 3
    assert figure.get_suptitle() == "a finding"
    assert {ARMS[name].label for name in ARMS} == {text.get_text() for text in figure.legends[0].get_texts()}
    plt.close("all")
