"""Updates and feedback: nobody knows the day that is answered, runs resume by day, and numbers are those by hand."""

import copy
import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest

from data_synth import MarketError, build_world, market_config
from data_synth.days import DailyMarket
from onesug_lite import grid, update_figures, update_grid
from onesug_lite.decay import agreement, answers_of, chapter_answers, decay, loses_more
from onesug_lite.feedback import (
    MARKET,
    OWN,
    clicks_by_day,
    clicks_lost,
    diversity,
    head_of,
    joined,
    live,
    lived,
    played,
    sessions_of,
    shown_of,
)
from onesug_lite.generator_learner import GeneratorLearner, UpdateConfig
from onesug_lite.learners import (
    CascadeLearner,
    LeakError,
    PopularityLearner,
    check_past,
    counts_of,
    first_answered,
    learner_of,
    made_of,
    past,
)
from onesug_lite.log import Log, check_log, clicked
from onesug_lite.metrics import SLICES
from onesug_lite.records import Grid, read_records
from onesug_lite.store import Store
from onesug_lite.update_grid import PLANS, run_updates, schedule_of, update_key, variants
from onesug_lite.updates import SCHEDULES, Schedule, day_rows, follow, followed, schedules_of

FIRST = date(2025, 1, 10)


def tiny_log(rows: list[tuple[int, str, str]], first: date = FIRST) -> Log:
    """A log of (day number, prefix, clicked query): one request each, which also shows "other"."""
    times = [
        datetime.combine(first, datetime.min.time()) + timedelta(days=day, minutes=at)
        for at, (day, _, _) in enumerate(rows)
    ]
    ids = list(range(1, len(rows) + 1))
    requests = pl.DataFrame(
        {"request_id": ids, "session_id": ids, "user_id": ids, "time": times, "prefix": [row[1] for row in rows],
         "profile": [[] for _ in rows], "history": [[] for _ in rows], "policy": ["main"] * len(rows)},
        schema_overrides={"time": pl.Datetime("us"), "profile": pl.List(pl.String), "history": pl.List(pl.String)},
    )  # fmt: skip
    candidates = pl.DataFrame(
        {"request_id": [at for at in ids for _ in range(2)],
         "query": [query for row in rows for query in (row[2], "other")],
         "position": [1, 2] * len(rows), "behaviour": ["query_click", "show"] * len(rows),
         "revenue": [0.0] * 2 * len(rows)},
        schema_overrides={"position": pl.Int8, "revenue": pl.Float32},
    )  # fmt: skip
    log = Log(requests, candidates)
    check_log(log)
    return log


@pytest.fixture(scope="module")
def log():
    """Six days with a query of their own each, all under one prefix."""
    return tiny_log([(day, "a", f"a{day}") for day in range(6) for _ in range(2)])


DAYS = [FIRST + timedelta(days=number) for number in range(2, 6)]


def popularity(log: Log, day: date = DAYS[0]) -> PopularityLearner:
    return PopularityLearner(counts_of(past(log, day)))


# ---------------------------------------------------------------- what may be known
def test_the_past_ends_at_midnight(log):
    assert past(log, DAYS[0]).requests["time"].max() < datetime.combine(DAYS[0], datetime.min.time())
    assert set(past(log, DAYS[3], 2).requests["time"].dt.date()) == set(DAYS[1:3])
    assert set(past(log, DAYS[0]).candidates["request_id"]) == set(past(log, DAYS[0]).requests["request_id"])
    with pytest.raises(LeakError, match="no day before"):
        past(log, FIRST)
    with pytest.raises(LeakError, match="none of the 1 days before"):
        past(tiny_log([(0, "a", "a0"), (5, "a", "a5")]), DAYS[1], 1)


LEARNERS = {
    "counts": lambda log: popularity(log),
    "rankers": lambda _: CascadeLearner(None, None),
    "supervised": lambda _: GeneratorLearner(
        SimpleNamespace(search=object()), UpdateConfig(), *_settings(),
    ),
}  # fmt: skip


def _settings():
    from onesug_lite.losses import PreferenceConfig
    from onesug_lite.reward import RewardConfig
    from onesug_lite.training import TrainConfig

    return TrainConfig(), PreferenceConfig(), RewardConfig()


@pytest.mark.parametrize("stage", LEARNERS)
def test_a_planted_row_of_the_day_is_refused(log, stage, tmp_path):
    learner = LEARNERS[stage](log)
    good, whole = past(log, DAYS[0]), past(log, DAYS[1])
    planted = Log(whole.requests, good.candidates)  # requests of the day itself
    with pytest.raises(LeakError, match=r"holds 2 request\(s\) of that day or later, first request_id 5"):
        learner.updated(stage, planted, DAYS[0], 0, tmp_path)
    with pytest.raises(LeakError, match="request_id 5, which is not"):
        learner.updated(stage, Log(good.requests, whole.candidates), DAYS[0], 0, tmp_path)
    with pytest.raises(ValueError, match="stage is 'all'"):
        learner.updated("all", good, DAYS[0], 0, tmp_path)
    check_past(good, DAYS[0])


class Whole(PopularityLearner):
    """A cheat: whatever it is given, it learns from the whole log."""

    def __init__(self, counts, whole):
        super().__init__(counts)
        self.whole = whole

    def updated(self, stage, log, day, seed, work, days=1):
        return Whole(counts_of(self.whole), self.whole)


def rewritten(log: Log, day: date) -> Log:
    """The same log, but from ``day`` on everybody clicks something else."""
    late = log.requests.filter(pl.col("time").dt.date() >= day)["request_id"].implode()
    was = pl.col("request_id").is_in(late) & (pl.col("query") != "other")
    return Log(
        log.requests, log.candidates.with_columns(query=pl.when(was).then(pl.lit("b")).otherwise(pl.col("query")))
    )


def answers_on(learner, log: Log, number: int, schedule: Schedule, work) -> list[list[str]]:
    """What is answered on a day, caught on the way."""
    seen = []

    class Watched:
        def __init__(self, inner):
            self.inner, self.stages = inner, inner.stages

        def __call__(self, requests):
            seen.append(self.inner(requests))
            return seen[-1]

        def updated(self, *args):
            return Watched(self.inner.updated(*args))

        def save(self, folder):
            self.inner.save(folder)

    follow(Watched(learner), log, DAYS[: number + 1], schedule, 10, 0, work)
    return seen[number]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_answers_of_a_day_do_not_depend_on_it(log, number, tmp_path):
    daily = {schedule.name: schedule for schedule in SCHEDULES["popularity"]}["daily"]
    other = rewritten(log, DAYS[number])
    honest = [answers_on(popularity(seen), seen, number, daily, tmp_path / f"{at}")
              for at, seen in enumerate((log, other))]  # fmt: skip
    assert honest[0] == honest[1]
    assert f"a{number + 1}" in honest[0][0] and f"a{number + 2}" not in honest[0][0], "it knows yesterday, not today"
    cheat = [answers_on(Whole(counts_of(past(log, DAYS[0])), seen), seen, number, daily, tmp_path / f"cheat{at}")
             for at, seen in enumerate((log, other))]  # fmt: skip
    assert cheat[0] != cheat[1], "who knows the day is caught"


# ---------------------------------------------------------------- schedules
def test_schedules_are_due_and_age():
    due = {s.name: [number for number in range(8) if s.due(number)] for s in SCHEDULES["generator"]}
    assert due["never"] == [] and due["three_days"] == [3, 6]
    assert all(due[name] == list(range(1, 8)) for name in ("daily", "old_days", "index", "preference", "recent"))
    assert all({"never", "three_days", "daily"} <= {s.name for s in schedules} for schedules in SCHEDULES.values())
    with pytest.raises(ValueError, match="every is -1"):
        Schedule("backwards", "backwards", -1)


@pytest.mark.parametrize(
    ("name", "ages", "found"),
    [("never", [0, 1, 2, 3], 0), ("three_days", [0, 1, 2, 0], 0), ("daily", [0, 0, 0, 0], 0)],
)
def test_following_a_log_that_never_repeats(log, name, ages, found, tmp_path):
    schedule = next(s for s in SCHEDULES["popularity"] if s.name == name)
    answers = follow(popularity(log), log, DAYS, schedule, 1, 0, tmp_path)
    assert answers["age"].to_list() == ages and answers["day"].to_list() == DAYS
    assert (answers["rank"] > 0).sum() == found, "each day's query is new that day"


def test_fresh_days_are_worth_something_and_old_ones_nothing(tmp_path):
    log = tiny_log([(day, "a", query) for day in range(6) for query in ("old", f"a{day - 1}")])
    ranks = {
        schedule.name: follow(popularity(log), log, DAYS, schedule, 10, 0, tmp_path / schedule.name)["rank"].to_list()
        for schedule in (*SCHEDULES["popularity"], Schedule("old", "old", 1, (("counts", None),), fresh=False))
    }
    assert all(rank > 0 for rank in ranks["daily"][::2] + ranks["never"][::2])
    assert all(rank == 0 for rank in ranks["never"][3::2]), "what came up after the first day stays unknown"
    assert ranks["old"] == ranks["never"]
    assert sum(rank > 0 for rank in ranks["daily"]) >= sum(rank > 0 for rank in ranks["three_days"])


def test_an_interrupted_run_goes_on_from_its_day(log, tmp_path):
    made = []

    class Counted(PopularityLearner):
        limit = 2

        def updated(self, stage, log, day, seed, work, days=1):
            if len(made) == self.limit:
                raise KeyboardInterrupt
            made.append((day, seed))
            return Counted(super().updated(stage, log, day, seed, work, days).counts)

        def load(self, folder):
            return Counted(super().load(folder).counts)

    daily = next(s for s in SCHEDULES["popularity"] if s.name == "daily")
    whole = follow(popularity(log), log, DAYS, daily, 2, 0, tmp_path / "whole")
    start = Counted(popularity(log).counts)
    with pytest.raises(KeyboardInterrupt):
        follow(start, log, DAYS, daily, 2, 0, tmp_path / "cut")
    Counted.limit = 99
    (tmp_path / "cut" / "answers-002.parquet").unlink()  # stopped between update and answers
    resumed = follow(start, log, DAYS, daily, 2, 0, tmp_path / "cut")
    assert resumed.equals(whole)
    assert [day for day, _ in made] == DAYS[1:], "no update is made twice"


def test_rows_of_a_day_are_the_same_for_all(log):
    rows = day_rows(log, DAYS[0], 1)
    assert rows.equals(day_rows(log, DAYS[0], 1)) and len(rows) == 1 and len(day_rows(log, DAYS[0], 9)) == 2
    with pytest.raises(ValueError, match="no click on 2030-01-01"):
        day_rows(log, date(2030, 1, 1), 1)


def answered(ranks: dict[str, list[list[int]]], system: str = "generator") -> pl.DataFrame:
    """Frames as ``followed`` gives them: schedule -> ranks of each seed."""
    return pl.concat(
        pl.DataFrame({"system": system, "schedule": name, "label": name, "seed": seed, "number": [0, 0, 1, 1],
                      "age": [0, 0, 1, 1], "request_id": [1, 2, 3, 4], "rank": line})
        for name, lines in ranks.items() for seed, line in enumerate(lines)
    )  # fmt: skip


def test_decay_by_hand():
    found = decay(answered({"daily": [[1, 2, 1, 2]], "never": [[1, 2, 2, 0]]}))
    hr, mrr = found.to_dicts()
    assert hr["mean"] == 0.75 and hr["reference"] == 1.0 and hr["decay"] == pytest.approx(25)
    assert mrr["decay"] == pytest.approx(100 * (1 - (1 + 0.5 + 0.5) / 3)) and mrr["low"] <= mrr["decay"] <= mrr["high"]
    ages = decay(answered({"daily": [[1, 2, 1, 2]], "never": [[1, 2, 2, 0]]}), by_age=True)
    by_age = ages.filter(pl.col("metric") == "HR@16")
    assert by_age["age"].to_list() == [0, 1] and by_age["decay"].to_list() == pytest.approx([0, 50])
    same = decay(answered({"daily": [[1, 2, 1, 2]] * 2, "never": [[1, 2, 1, 2]] * 2}))
    assert same["decay"].to_list() == pytest.approx([0, 0]) and set(same["seeds"]) == {2}


def test_decay_of_several_seeds_is_their_mean_and_less_sure():
    one = decay(answered({"daily": [[1, 1, 1, 1]], "never": [[1, 1, 1, 0]]}))
    two = decay(answered({"daily": [[1, 1, 1, 1]] * 2, "never": [[1, 1, 1, 0], [1, 1, 0, 0]]}))
    assert two["decay"][0] == pytest.approx((25 + 50) / 2)
    assert two["high"][0] - two["low"][0] > one["high"][0] - one["low"][0]


def test_decay_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match="no schedule 'daily'"):
        decay(answered({"never": [[1, 1, 1, 1]]}))
    two = answered({"daily": [[1, 1, 1, 1]], "never": [[1, 1, 1, 1]]})
    other = pl.when(pl.col("schedule") == "never").then(pl.col("request_id") + 1).otherwise(pl.col("request_id"))
    with pytest.raises(ValueError, match="generator, never, seed 0 answered other clicks"):
        decay(two.with_columns(request_id=other))
    late = pl.when(pl.col("schedule") == "never").then(7).otherwise("seed")
    with pytest.raises(ValueError, match="generator-never and generator-daily share no seed"):
        decay(two.with_columns(seed=late))


def test_seeds_that_both_have_are_compared():
    three, two = [[1, 1, 1, 1]] * 3, [[1, 1, 1, 0], [1, 1, 0, 0]]
    for found in (decay(answered({"daily": three, "never": two})), decay(answered({"daily": two, "never": three}))):
        assert set(found["seeds"]) == {2}
    assert decay(answered({"daily": three, "never": two}))["decay"][0] == pytest.approx(37.5)


def both_systems() -> pl.DataFrame:
    """A cascade that loses a tenth and a generator that loses nothing, on many clicks."""
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 4, (3, 800))
    lost = np.where(rng.random((3, 800)) < 0.1, 0, ranks)
    parts = [("cascade", "daily", ranks), ("cascade", "never", lost)]
    parts += [("generator", "daily", ranks), ("generator", "never", ranks)]
    return pl.concat(
        pl.DataFrame({"system": system, "schedule": name, "label": name, "seed": seed, "age": 0,
                      "request_id": np.arange(800), "rank": line})
        for system, name, lines in parts for seed, line in enumerate(lines)
    )  # fmt: skip


def test_a_system_that_loses_more_is_told():
    answers = both_systems()
    more, less = loses_more(answers), loses_more(answers, "generator", "cascade")
    alone = decay(answers).filter(pl.col("system") == "cascade")
    for gap, back, own in zip(more.to_dicts(), less.to_dicts(), alone.to_dicts(), strict=True):
        assert (gap["metric"], gap["rows"], gap["seeds"]) == (own["metric"], 800, 3)
        assert gap["mean"] == pytest.approx(own["decay"]) and gap["mean"] == pytest.approx(-back["mean"])
        width = own["high"] - own["low"]  # of the ratio, resampled; here by the delta method
        assert gap["high"] - gap["low"] == pytest.approx(width, rel=0.05) and 0 < gap["low"] < 10 < gap["high"] + 3


def test_two_decays_that_move_together_are_told_apart():
    """Both lose on the same clicks: each is unsure, their difference is not."""
    answers = both_systems()
    lost = answers.filter(pl.col("system") == "cascade").with_columns(system=pl.lit("generator"))
    both = pl.concat([answers.filter(pl.col("system") == "cascade"), lost])
    for row in loses_more(both).to_dicts():
        assert row["low"] == row["mean"] == row["high"] == 0
    with pytest.raises(ValueError, match="popularity has no schedule 'never'"):
        loses_more(both, "popularity")


# ---------------------------------------------------------------- records
def test_names_of_records_are_systems_with_a_schedule_of_theirs():
    assert len(variants()) == len(set(variants())) == sum(map(len, SCHEDULES.values()))
    for name in variants():
        system, schedule = schedule_of(name)
        assert name == f"{system}-{schedule.name}" and schedule in SCHEDULES[system]
    assert [schedule.name for schedule in schedules_of("cascade", ["daily", "never"])] == ["never", "daily"]
    with pytest.raises(ValueError, match="no schedule 'index' of the cascade; expected one of never, three_days"):
        schedule_of("cascade-index")
    with pytest.raises(ValueError, match="system is 'oracle'"):
        schedule_of("oracle-daily")


def test_a_key_knows_what_its_record_depends_on(monkeypatch):
    key = update_key("generator-daily", 0, "smoke")
    others = [("generator-never", 0, "smoke"), ("generator-daily", 1, "smoke"), ("generator-daily", 0, "lite")]
    assert len({key, *(update_key(*other) for other in others)}) == 4
    with pytest.raises(ValueError, match="unknown profile 'tiny'; expected one of smoke, lite, full"):
        update_key("generator-daily", 0, "tiny")
    for change in ({"clicks": 31}, {"changes": {"train.steps": 3}}, {"update": UpdateConfig(5)}):
        monkeypatch.setitem(PLANS, "smoke", replace(PLANS["smoke"], **change))
        assert update_key("generator-daily", 0, "smoke") != key, change
        monkeypatch.undo()
    monkeypatch.setattr(update_grid, "update_code", lambda: "another")
    assert update_key("generator-daily", 0, "smoke") != key


def test_a_run_leaves_a_record_a_schedule_and_is_not_made_again(road, tmp_path, monkeypatch):
    names = ["popularity-never", "popularity-daily"]
    made = run_updates(tmp_path, "smoke", seeds=2, names=names)
    assert [(record["variant"], record["seed"]) for record in made] == [(name, 0) for name in names], (
        "it learns nothing"
    )
    records = Grid(read_records(tmp_path), draws=50)
    assert set(records.runs) == set(names) and all(not record["parameters"] for record in made)
    for where in SLICES:
        assert records.estimate(names[0], "HR@16", where).rows <= 60
    plan = PLANS["smoke"]
    answers = followed([road], "popularity", plan.days, plan.clicks)
    assert_same = answers_of(read_records(tmp_path))
    for name, ((schedule,), rows) in zip(
        names, assert_same.partition_by("schedule", as_dict=True).items(), strict=True
    ):
        own = answers.filter(pl.col("schedule") == schedule)
        assert name.endswith(schedule) and rows.select("label", "age", "request_id", "rank").equals(
            own.select("label", "age", "request_id", "rank").cast({"age": pl.Int64})
        )
    clicks, told = (
        made[0]["clicks"],
        clicked(road.log).filter(pl.col("request_id") == made[0]["clicks"]["request_id"][0]),
    )
    assert clicks["behaviour"][0] in told["behaviour"].to_list()
    before = road.training_clicks.group_by("prefix").len().filter(pl.col("prefix") == told["prefix"][0])["len"].sum()
    assert clicks["prefix_clicks"][0] == before
    assert clicks["seen"] == [int(count > 0) for count in clicks["training_clicks"]]

    # what is there is not made again; what was cut short is, together with what comes after it
    asked = []
    monkeypatch.setattr(grid, "run_notebook", lambda source, target, parameters, **_: asked.append(parameters))
    assert run_updates(tmp_path, "smoke", names=names) == made and asked == []
    (tmp_path / "popularity-never-seed0.json").write_text(json.dumps(made[0])[:-9])
    with pytest.raises(ValueError):
        run_updates(tmp_path, "smoke", names=names)
    (parameters,) = asked
    assert parameters["variant"] == names[0] and parameters["also"] == {names[1]: made[1]["key"]}


def test_every_seed_of_a_system_runs_once(tmp_path, monkeypatch):
    asked = []

    def kept(notebook, record, values):
        asked.append((record.name, list(values["also"])))
        return values

    monkeypatch.setattr(update_grid, "kept_or_run", kept)
    run_updates(tmp_path, "smoke", seeds=2, names=["popularity-daily", "cascade-never", "cascade-daily"])
    assert asked == [
        ("popularity-daily-seed0.json", []),
        ("cascade-never-seed0.json", ["cascade-daily"]), ("cascade-daily-seed0.json", []),
        ("cascade-never-seed1.json", ["cascade-daily"]), ("cascade-daily-seed1.json", []),
    ]  # fmt: skip
    asked.clear()
    assert len(run_updates(tmp_path, "smoke")) == len(asked) == len(variants())
    with pytest.raises(ValueError, match="no schedule 'index'"):
        run_updates(tmp_path, "smoke", names=["cascade-index"])


def test_a_chapter_reads_the_records_of_its_profile(tmp_path):
    fresh = answered({"daily": [[1, 2, 1, 2]], "never": [[1, 2, 2, 0]]})
    assert (
        chapter_answers(fresh, tmp_path, "lite") == (fresh, "fresh")
        and chapter_answers(fresh, "", "lite")[1] == "fresh"
    )
    (tmp_path / "updates").mkdir()
    for name, ranks in (("daily", [1, 1, 1, 1]), ("never", [1, 1, 1, 0])):
        record = {"variant": f"generator-{name}", "system": "generator", "schedule": name, "updated": name, "seed": 0,
                  "profile": "lite", "clicks": {"request_id": [1, 2, 3, 4], "age": [0] * 4, "rank": ranks}}  # fmt: skip
        (tmp_path / "updates" / f"generator-{name}-seed0.json").write_text(json.dumps(record))
    answers, source = chapter_answers(fresh, tmp_path, "lite")
    assert source == "reference" and answers["schedule"].unique(maintain_order=True).to_list() == ["never", "daily"]
    assert chapter_answers(fresh, tmp_path, "smoke")[1] == "fresh", "of another profile"
    with pytest.raises(ValueError, match="no records of updates"):
        answers_of([])


def test_fresh_and_reference_agree_where_their_intervals_overlap():
    ends = {"system": "cascade", "schedule": ["never", "daily2"], "label": "x", "metric": "HR@16"}
    one = pl.DataFrame(ends | {"decay": [1.04, 5.0], "low": [0.0, 4.0], "high": [2.0, 6.0]})
    other = pl.DataFrame(ends | {"decay": [3.0, 1.0], "low": [2.0, 0.0], "high": [4.0, 3.9]})
    for pair in ((one, other), (other, one)):
        assert agreement(*pair)["agree"].to_list() == [True, False]
    assert agreement(one, other)["fresh"][0] == "1.0 [0.0, 2.0]" and len(agreement(one, other[:1])) == 1


# ---------------------------------------------------------------- real systems
def test_the_generator_is_updated_stage_by_stage(road, tmp_path):
    import torch

    learner = learner_of(road, "generator", UpdateConfig(2, 2, 16, 8))
    assert learner.stages == ("search", "supervised", "preference")
    day = first_answered(road) + timedelta(days=1)
    known, asked = past(road.log, day), clicked(past(road.log, day, 1))[:4]
    before = learner(asked)
    weights = {name: value.clone() for name, value in learner.policy.model.state_dict().items()}
    found = learner.updated("search", known, day, 0, tmp_path)
    assert set(known.candidates["query"]) <= set(found.policy.search.queries)
    assert found.policy.search.clicks["clicks"].sum() == len(clicked(known))
    assert learner.policy.search.clicks["clicks"].sum() < len(clicked(known)), "the day before brought some"
    for stage in ("supervised", "preference"):
        trained = found.updated(stage, past(known, day, 3), day, 0, tmp_path / stage)
        moved = [not torch.equal(value, weights[name]) for name, value in trained.policy.model.state_dict().items()]
        assert sum(moved) > len(moved) / 2
        again = found.updated(stage, past(known, day, 3), day, 0, tmp_path / stage)
        assert trained(asked) == again(asked), "the same seed gives the same suggester"
    (tmp_path / "kept").mkdir()
    trained.save(tmp_path / "kept")
    assert learner.load(tmp_path / "kept")(asked) == trained(asked)
    assert learner(asked) == before, "what stood keeps answering as it did"


def test_a_cascade_built_anew_from_the_same_days_is_the_same(road, tmp_path):
    small = road.changed({"cascade.prerank_requests": 300, "cascade.rank_requests": 300})
    learner, day = learner_of(small, "cascade"), first_answered(small)
    asked = day_rows(small.log, day, 20)
    again = learner.updated("rankers", past(small.log, day), day, small.seed, tmp_path)
    assert again(asked) == learner(asked)
    other = learner.updated("rankers", past(small.log, day), day, small.seed + 1, tmp_path)
    assert other(asked) != learner(asked)
    other.save(tmp_path)
    assert learner.load(tmp_path)(asked) == other(asked)


def test_there_are_three_systems(road):
    for ask in (learner_of, made_of):
        with pytest.raises(ValueError, match="expected one of popularity, cascade, generator"):
            ask(road, "oracle")
    made = made_of(road, "popularity")
    assert made["first answered"] == str(first_answered(road)) and "seed" not in made
    assert learner_of(road, "popularity").counts.equals(road.click_counts)
    one, other = (made_of(road, "generator", UpdateConfig(steps)) for steps in (20, 21))
    assert [name for name in one if one[name] != other[name]] == ["settings"] and one["seed"] == str(road.seed)


# ---------------------------------------------------------------- the market day by day
SMALL = {"sessions": 1_500, "shoppers": 200, "pilot_sessions": 1_000, "days": 8, "test_days": 2}


@pytest.fixture(scope="module")
def street():
    return DailyMarket(build_world(market_config("smoke", **SMALL)), 30, 0, 5)


def nothing(requests: pl.DataFrame) -> list[list[str]]:
    return [[] for _ in range(len(requests))]


def test_days_are_a_log_and_the_same_again(street):
    one, other = (joined([played(own), played(own)]) for own in (street.copy(), street.copy()))
    assert one.requests.equals(other.requests) and one.candidates.equals(other.candidates)
    check_log(one)
    assert street.day == 5 and one.requests["session_id"].n_unique() == 60
    assert one.requests["time"].dt.date().n_unique() == 2
    fresh = DailyMarket(street.world, 30, 1, 5)
    assert not played(fresh).requests["user_id"].equals(one.requests["user_id"])


def test_two_policies_meet_the_same_shoppers(street):
    own, empty = street.copy(), street.copy()
    for _ in range(2):
        logs = played(own), played(empty, nothing)
        sessions = [log.requests.select("session_id", "user_id").unique().sort("session_id") for log in logs]
        assert sessions[0].equals(sessions[1])
    answered_by = clicked(logs[1]).join(logs[1].requests.select("request_id", "policy"), on="request_id")["policy"]
    assert set(answered_by) <= {"random"}, "an empty list is not clicked"
    assert len(clicked(logs[0])) > len(answered_by)
    assert not np.array_equal(own.history, empty.history), "what was clicked is what was searched"
    assert street.day == 5


def test_days_have_an_end(street):
    over = street.copy()
    over.day = 10
    with pytest.raises(MarketError, match="day 10 is asked for"):
        over.play()
    with pytest.raises(MarketError, match="first_day is 10"):
        DailyMarket(street.world, 30, 0, 10)
    with pytest.raises(MarketError, match="sessions is 0"):
        DailyMarket(street.world, 0)


# ---------------------------------------------------------------- feedback
class Recorder(PopularityLearner):
    """Popularity that notes from which requests it learnt."""

    notes: list = []  # noqa: RUF012

    def updated(self, stage, log, day, seed, work, days=1):
        Recorder.notes.append((day, log.requests["request_id"].to_list(), set(log.requests["policy"])))
        return Recorder(super().updated(stage, log, day, seed, work, days).counts)

    def load(self, folder):
        return Recorder(super().load(folder).counts)


@pytest.fixture(scope="module")
def lives(street, tmp_path_factory):
    """Start, and three days of popularity on its own and on the market's log."""
    own = street.copy()
    start = joined([played(own), played(own)])
    other = own.copy()
    feed = [played(other) for _ in range(3)]
    found, notes = {}, {}
    for learns, given in ((OWN, None), (MARKET, feed)):
        Recorder.notes = []
        work = tmp_path_factory.mktemp("life")
        found[learns] = live(Recorder(counts_of(start)), own.copy(), start, 3, ("counts",), 2, 0, work, given)
        notes[learns] = list(Recorder.notes)
    return start, feed, found, notes


def test_both_lives_are_one_on_the_first_morning(lives):
    _, _, found, notes = lives
    first = [found[learns][0].candidates for learns in (OWN, MARKET)]
    assert first[0].equals(first[1]) and notes[OWN][0] == notes[MARKET][0]
    assert not found[OWN][2].candidates.equals(found[MARKET][2].candidates), "then the loop parts them"


def test_each_life_learns_from_its_log_alone(lives):
    start, feed, found, notes = lives
    for learns, logs in ((OWN, found[OWN]), (MARKET, feed)):
        for number, (day, ids, policies) in enumerate(notes[learns]):
            wanted = past(joined([start, *logs[:number]]), day, 2)
            assert ids == wanted.requests["request_id"].to_list()
            assert ("plugged_in" in policies) == (learns == OWN and number > 0)


def test_a_life_goes_on_from_its_day(street, lives, tmp_path):
    start, _, found, _ = lives
    own = street.copy()
    for _ in range(2):
        played(own)
    args = ("counts",), 2, 0, tmp_path
    two = live(PopularityLearner(counts_of(start)), own.copy(), start, 2, *args)
    three = live(PopularityLearner(counts_of(start)), own.copy(), start, 3, *args)
    for one, other in zip(three, found[OWN], strict=True):
        assert one.requests.equals(other.requests) and one.candidates.equals(other.candidates)
    assert two[1].requests.equals(three[1].requests)
    with pytest.raises(ValueError, match="feed holds 1 days; expected at least 2"):
        live(PopularityLearner(counts_of(start)), own.copy(), start, 3, *args, feed=[three[0]])


def test_what_came_of_it_by_hand():
    log = tiny_log([(0, "a", "x"), (0, "a", "x"), (0, "b", "y"), (0, "c", "z"), (0, "d", "w")])
    assert head_of(log) == ["x", "w"] and head_of(log, 0.4) == ["x"]
    log = log._replace(requests=log.requests.with_columns(
        policy=pl.when(pl.col("prefix") == "d").then(pl.lit("random")).otherwise(pl.lit("main"))))  # fmt: skip
    assert dict(shown_of(log).select("query", "shown").iter_rows()) == {"x": 2, "y": 1, "z": 1, "other": 4}
    assert sessions_of(log)["click"].to_list() == [1, 1, 1, 1], "the random slice is left out"
    shown = pl.DataFrame({"system": ["s"] * 2 + ["t"] * 4, "learns": [OWN] * 6, "day": [FIRST] * 6,
                          "query": ["x", "y", "x", "y", "z", "w"], "shown": [3, 1, 1, 1, 1, 1]})  # fmt: skip
    two, four = diversity(shown, ["x"]).to_dicts()
    assert (two["distinct"], two["head"]) == (2, 0.75) and (four["distinct"], four["head"]) == (4, 0.25)
    assert four["effective"] == pytest.approx(4) and four["gini"] == pytest.approx(0)
    assert two["effective"] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert two["gini"] == pytest.approx(np.abs(np.subtract.outer([0, 0, 1, 3], [0, 0, 1, 3])).sum() / (2 * 4 * 4))


def stored(road, folder):
    """The road over a store of its own, and the lines that this store announces."""
    lines: list[str] = []
    other = copy.copy(road)
    other.store = Store(folder, lines.append)
    return other, lines


def test_what_was_lived_through_is_kept(road, tmp_path):
    own, lines = stored(road, tmp_path / "store")
    config = market_config("smoke")
    first = (first_answered(own) - own.log.requests["time"].dt.date().min()).days
    market = DailyMarket(build_world(config), 10, 0, first - 2)
    sessions, showings, before = lived(own, market, "the smoke market", ("popularity",), 2, 2)
    assert len(lines) == 6 and before.requests["time"].dt.date().max() == first_answered(own) - timedelta(days=1)
    again = lived(own, market, "the smoke market", ("popularity",), 2, 2)
    assert len(lines) == 6 and again[0].equals(sessions) and again[1].equals(showings), "opened, not lived again"
    groups = sessions.group_by("system", "learns").agg(pl.col("day").unique().sort())
    assert len(groups) == 3 and all(days == groups["day"][0].to_list() for days in groups["day"].to_list())
    assert groups["day"][0].to_list() == [first_answered(own) + timedelta(days=number) for number in range(2)]
    lived(own, market, "another market", ("popularity",), 1, 2)
    assert len(lines) == 12


def test_what_was_followed_is_kept(road, tmp_path):
    own, lines = stored(road, tmp_path / "store")
    answers = followed([own], "popularity", 2, 20)
    assert answers["schedule"].unique(maintain_order=True).to_list() == ["never", "three_days", "daily"]
    assert followed([own], "popularity", 2, 20).equals(answers) and len(lines) == 6
    assert len(decay(answers)) == 4
    followed([own], "popularity", 2, 19)
    assert len(lines) == 12, "other rows are another run"


def lived_frame(own: list[float], market: list[float]) -> pl.DataFrame:
    frame = {"day": [FIRST] * 4, "session_id": [1, 2, 3, 4], "user_id": [1, 1, 2, 3]}
    return pl.concat(
        pl.DataFrame({"system": ["s"] * 4, "learns": [learns] * 4} | frame | {"click": clicks})
        for learns, clicks in ((OWN, own), (MARKET, market))
    )


def test_clicks_are_compared_session_by_session():
    (row,) = clicks_lost(lived_frame([1.0, 0, 0, 0], [1.0, 1, 1, 0])).to_dicts()
    assert (row["own"], row["market"], row["mean"]) == (0.25, 0.75, -0.5) and row["low"] <= -0.5 <= row["high"]
    (same,) = clicks_lost(lived_frame([1.0, 0, 1, 0], [1.0, 0, 1, 0])).to_dicts()
    assert (same["low"], same["mean"], same["high"]) == (0, 0, 0)
    assert clicks_by_day(lived_frame([1.0, 0, 0, 0], [1.0, 1, 1, 0]))["clicks"].to_list() == [0.25, 0.75]


# ---------------------------------------------------------------- figures
def test_figures_draw_what_they_are_given():
    found = answered({"daily": [[1, 2, 1, 2]], "never": [[1, 2, 2, 0]], "old_days": [[1, 2, 1, 0]]})
    curve = decay(found, by_age=True).filter(pl.col("metric") == "MRR@16")
    figure = update_figures.decay_curves(curve, "a finding", {"generator": 0.6})
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    never = curve.filter(pl.col("schedule") == "never")
    assert drawn["never"].get_ydata().tolist() == never["decay"].to_list() and {"old_days"} <= set(drawn)
    assert drawn["the paper, without daily updates"].get_ydata()[0] == 0.6
    assert figure.get_suptitle() == "a finding"
    costs = update_figures.schedule_costs(decay(found), "a finding", {"generator": 0.6})
    assert [text.get_text() for text in costs.axes[0].get_yticklabels()] == ["generator: never", "generator: old_days"]
    course = clicks_by_day(lived_frame([1.0, 0, 0, 0], [1.0, 1, 1, 0])).with_columns(
        number=pl.lit(1), effective=pl.lit(2.0), head=pl.lit(0.5)
    )
    assert len(update_figures.loops(course, "a finding").axes) == 3
    cost = clicks_lost(lived_frame([1.0, 0, 0, 0], [1.0, 1, 1, 0]))
    assert update_figures.loop_costs(cost, "a finding").axes[0].get_yticklabels()[0].get_text() == "s"
    plt.close("all")
