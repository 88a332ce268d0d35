"""Traffic, hostile requests, releases that are replaced while they serve, and what a load run says of them."""

import json
import os
import shutil

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest

from onesug_lite import latency_figures, live
from onesug_lite.live import LiveService, release, version_of
from onesug_lite.load import BLOCKS, DAMAGED, REPLACED, Event, Referee, Run, load_run, put, simulate
from onesug_lite.load_report import FLAT, GREW, OPEN, by_part, latency_change, machine_change, memory_change, report
from onesug_lite.onnx_export import OnnxGenerator, stored_export
from onesug_lite.policy import OneSugPolicy
from onesug_lite.requests import REQUEST
from onesug_lite.serving import LONGEST, ServingPolicy
from onesug_lite.store import StoreError
from onesug_lite.traffic import HOSTILE, Arrival, Arrivals, Traffic, arrivals, traffic_of
from onesug_lite.variants import VARIANTS

ROWS = pl.DataFrame(
    [("shoes", ["red shoes"], ["30s"]), ("苹果", None, None), ("x", [], [])], schema=REQUEST, orient="row"
)


# ---------------------------------------------------------------- traffic
def test_shoppers_type_letter_by_letter():
    traffic = Traffic(seconds=2000, bursts=0, sessions_per_second=0.02, keystroke_seconds=0.1, hostile=0)
    coming = arrivals(traffic, ROWS, np.random.default_rng(0))
    found = list(coming.requests.iter_rows())
    assert {row[0] for row in found} == {"sh", "sho", "shoe", "shoes", "苹果", "x"}
    assert all(row[1:] == (["red shoes"], ["30s"]) for row in found if row[0].startswith("sh"))
    assert all(row[1:] == ([], []) for row in found if row[0] in ("苹果", "x")), "null stands for nothing"
    typed = [found[arrival.request][0] for arrival in coming.times]
    starts = [place for place, text in enumerate(typed) if text == "sh"]
    assert len(starts) >= 5
    assert all(typed[place : place + 4] == ["sh", "sho", "shoe", "shoes"] for place in starts)
    gaps = [coming.times[place + n + 1].at - coming.times[place + n].at for place in starts for n in range(3)]
    assert np.mean(gaps) == pytest.approx(0.1, rel=0.5)


def test_bursts_bring_as_many_more_as_they_should():
    traffic = Traffic(seconds=2000, sessions_per_second=5, bursts=3, burst_seconds=100, burst_factor=4)
    one = ROWS.filter(pl.col("prefix") == "x")  # a session is a request
    coming = arrivals(traffic, one, np.random.default_rng(1))
    assert (np.diff(coming.bursts.ravel()) > 0).all() and coming.bursts.min() >= 0 and coming.bursts.max() <= 2000
    assert np.allclose(np.diff(coming.bursts, axis=1), 100)
    at = np.array([arrival.at for arrival in coming.times])
    assert (np.diff(at) >= 0).all() and at.min() >= 0 and at.max() < 2000
    inside = ((at[:, None] >= coming.bursts[:, 0]) & (at[:, None] < coming.bursts[:, 1])).any(axis=1)
    within, outside = inside.sum() / 300, (~inside).sum() / 1700
    assert outside == pytest.approx(5 / 0.99, rel=0.05) and within / outside == pytest.approx(4, rel=0.08)
    hostile = [arrival for arrival in coming.times if arrival.hostile]
    assert len(hostile) == round(0.01 * len(at))
    assert len({arrival.request for arrival in hostile}) == len(HOSTILE), "every kind comes before one comes again"


def test_the_same_generator_brings_the_same_traffic():
    runs = [arrivals(traffic_of(60), ROWS, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert runs[0].times == runs[1].times and runs[0].requests.equals(runs[1].requests)
    assert runs[0].times != runs[2].times
    assert traffic_of(60).burst_seconds == 2 and traffic_of(600) == Traffic()


def test_traffic_that_cannot_be():
    for wrong in ({"seconds": 0}, {"keystroke_seconds": -1}, {"sessions_per_second": float("nan")}):
        with pytest.raises(ValueError, match=f"Traffic.{next(iter(wrong))} is .*expected more than 0"):
            Traffic(**wrong)
    with pytest.raises(ValueError, match="burst_factor is 0.5; expected 1 or more"):
        Traffic(burst_factor=0.5)
    with pytest.raises(ValueError, match="hostile is 1; expected a share"):
        Traffic(hostile=1)
    with pytest.raises(ValueError, match="4 bursts of 20 s do not fit into 60 s"):
        Traffic(seconds=60)
    with pytest.raises(ValueError, match="no requests to draw from"):
        arrivals(Traffic(), ROWS.clear(), np.random.default_rng(0))


# ---------------------------------------------------------------- hostile requests
@pytest.fixture(scope="module")
def policy(road):
    return road.policy("onesug")


@pytest.fixture(scope="module")
def graphs(road, policy):
    return stored_export(road.store, policy.model, road.trained(VARIANTS["onesug"]).folder.name)


@pytest.fixture(scope="module")
def bare(policy):
    """Another policy over the same graphs, whose prompts lack related queries."""
    return OneSugPolicy(policy.model, policy.tokenizer, None, policy.prompt, policy.decode)


@pytest.fixture(scope="module")
def serving(policy, graphs):
    return ServingPolicy(policy, OnnxGenerator(graphs))


@pytest.fixture(scope="module")
def referee(policy):
    return Referee(ROWS, {"a": policy}, np.random.default_rng(0))


@pytest.mark.parametrize("place", range(len(HOSTILE)), ids=[case.name for case in HOSTILE])
def test_hostile_requests_come_out_as_they_must(serving, referee, place):
    case = HOSTILE[place]
    try:
        outcome = serving.suggest(case.prefix, case.history, case.profile)
    except Exception as error:
        outcome = error
    assert referee.fault(Arrival(0, place, True), outcome, "a") == ""


def test_hostile_kinds_have_names_of_their_own_and_an_outcome(referee):
    names = [case.name for case in HOSTILE]
    assert len(set(names)) == len(names)
    assert all(bool(case.says) == (case.refused is not None) for case in HOSTILE)
    assert set(referee.hostile["a"]) == {place for place, case in enumerate(HOSTILE) if case.refused is None}


def test_what_is_not_read_costs_no_memory_and_changes_nothing(policy, graphs):
    serving = ServingPolicy(policy, OnnxGenerator(graphs))
    read = policy.prompt.history
    first = serving.suggest("sh", [f"search {place}" for place in range(read + 50)], [" ", "30s", None])
    again = serving.suggest("sh", tuple(f"search {place}" for place in range(50, read + 50)), ["30s"])
    assert first == again and serving.memory.answers.hits == 1
    held = len(serving.memory.answers), len(serving.memory.related)
    long = serving.suggest("shoes" * LONGEST)
    assert long == serving.suggest("shoes" * (LONGEST // 5)), "what lies behind is read after all"
    serving.suggest("sh", ["red shoes " * 100] * 2)
    assert (len(serving.memory.answers), len(serving.memory.related)) == held, "long texts are remembered"
    texts = len(serving.memory.tokens)
    serving.suggest("sh", (), [f"attribute {place}" for place in range(5_000)])
    assert len(serving.memory.tokens) - texts <= policy.prompt.profile_tokens


# ---------------------------------------------------------------- the referee
def test_the_referee_sees_what_is_wrong(referee):
    sound, refused = Arrival(0, 0, False), Arrival(0, 0, True)
    right = referee.sound["a"][0]
    assert referee.fault(sound, right, "a") == "" and len(right) == 16
    moved = [(query, score + 1e-5) for query, score in right]
    assert referee.fault(sound, moved, "a") == "", "rounding"
    for wrong, said in (
        ([], "nothing suggested"),
        (right[:-1], "expected"),
        (right[1::-1] + right[2:], "expected"),
        (right[:1] + right[:1] + right[2:], "suggested twice"),
        ([("<s> shoes", right[0][1]), *right[1:]], "control token"),
        ([("no such thing", -9.0), *right[1:]], "expected"),
        ([(right[0][0], right[0][1] - 0.1), *right[1:]], "expected"),
        (KeyError("x"), "KeyError: 'x'; expected a list"),
    ):
        assert said in referee.fault(sound, wrong, "a"), said
    assert "which nobody released" in referee.fault(sound, right, "b")
    assert HOSTILE[0].name == "empty"
    for wrong in (right, [], ValueError(HOSTILE[0].says), HOSTILE[0].refused("something else")):
        assert "expected PromptError" in referee.fault(refused, wrong, "a")
    tied = [right[1], (right[0][0], right[1][1]), *right[2:]]
    referee.sound["tied"] = {0: [right[0], (right[1][0], right[0][1]), *right[2:]]}
    assert referee.fault(sound, [(right[1][0], right[0][1]), right[0], *right[2:]], "tied") == "", "equal scores"
    assert referee.fault(sound, tied, "a") != ""


def test_a_sample_is_compared(policy):
    few = Referee(ROWS, {"a": policy}, np.random.default_rng(0), checked=2)
    assert len(few.checked) == len(few.sound["a"]) == 2
    left = ({0, 1, 2} - set(few.checked.tolist())).pop()
    assert few.fault(Arrival(0, left, False), [("anything", -1.0)], "a") == ""
    assert few.fault(Arrival(0, left, False), [], "a") != ""


# ---------------------------------------------------------------- the run
class Stand:
    """A service whose answers take what it is told, on a clock that stands still in between."""

    def __init__(self, spends):
        self.now, self.spends, self.asked = 0.0, list(spends), []
        self.version, self.preparing, self.taken, self.refused = "a", False, 0, 0

    def __call__(self):
        return self.now

    def look(self, wait=False):
        self.asked.append("look")

    def suggest(self, prefix, history, profile):
        self.asked.append(prefix)
        self.now += self.spends.pop(0)
        if prefix == "x":
            raise KeyError("x")
        return [("q", -1.0)]


class Lenient:
    """A referee that finds fault with errors alone."""

    checked = ()

    def fault(self, arrival, outcome, version):
        return f"error {outcome}" if isinstance(outcome, Exception) else ""


def test_requests_queue_on_a_virtual_clock():
    service = Stand([2.0, 2.0, 2.0, 1.0])
    times = [Arrival(at, request, False) for at, request in ((1.0, 0), (2.0, 1), (2.5, 0), (9.0, 2))]
    waited, megabytes = [], iter(range(1000))

    def begin():
        service.preparing, service.version = True, "b"

    events = [Event(2.0, begin), Event(8.0, lambda: service.asked.append("event")), Event(99.0, lambda: None)]
    traffic = Traffic(seconds=12, bursts=0)

    def measure():
        service.now += 0.5

    run = simulate(
        service, Arrivals(times, ROWS, np.zeros((0, 2))), traffic, Lenient(), events, lambda: next(megabytes), service,
        waited.append, measure,
    )  # fmt: skip
    assert run.answers["wait"].to_list() == [0.0, 1000.0, 2500.0, 0.0]
    assert run.answers["service"].to_list() == [2000.0, 2000.0, 2000.0, 1000.0]
    assert run.answers["response"].to_list() == [2000.0, 3000.0, 4500.0, 1000.0]
    assert run.answers["yardstick"].to_list() == [500.0] * 4, "the yardstick is no part of the service"
    assert run.versions == ["a", "b"] and run.answers["version"].to_list() == [0, 1, 1, 1]
    assert service.asked == ["look", "shoes", "look", "苹果", "look", "shoes", "event", "look", "x", "look"]
    assert waited == [2.0], "from the end of the third answer, at 7 s, to the last arrival"
    assert run.faults == [(False, "error 'x'")]
    assert run.memory["at"].to_list() == pytest.approx([0.1 + 0.2 * place for place in range(45)])
    assert run.memory["megabytes"].to_list() == list(range(45))
    with pytest.raises(ZeroDivisionError):
        simulate(
            service, Arrivals(times, ROWS, None), traffic, Lenient(), [Event(0, lambda: 1 / 0)], lambda: 1, service
        )


def made_up(seconds, drift, grown, faults=(), counts=(1, 1), seed=0, machine=0):
    """3,000 requests; the last third takes ``1 + drift`` times as long and holds ``1 + grown`` times as much.

    On the machine everything takes ``1 + machine`` times as long in the last third.
    """
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, seconds, 3000))
    late = at >= seconds * 2 / 3
    slow = np.where(late, 1 + machine, 1)
    spent = rng.gamma(20, 0.3, 3000) * np.where(late, 1 + drift, 1) * slow
    columns = {"at": at, "hostile": np.arange(3000) % 100 == 0, "wait": np.zeros(3000), "service": spent}
    columns["yardstick"] = np.random.default_rng([seed, 1]).gamma(1000, 0.0005, 3000) * slow
    answers = pl.DataFrame(columns | {"response": spent, "version": np.zeros(3000, int)})
    middles = (np.arange(BLOCKS) + 0.5) * seconds / BLOCKS
    memory = pl.DataFrame({"at": middles, "megabytes": 500 * np.where(middles >= seconds * 2 / 3, 1 + grown, 1)})
    return Run(answers, memory, ["a"], list(faults), 3, *counts, [])


@pytest.mark.parametrize("q", [50, 99])
def test_latency_is_flat_where_it_is(q):
    for seed in range(5):
        steady, slower = (made_up(60, drift, 0, seed=seed).answers for drift in (0, 0.3))
        change = latency_change(steady, 60, q, np.random.default_rng(0))
        assert change.low < 1 < change.high and change.ratio == change.last / change.middle
        assert change.verdict == (FLAT if change.high <= 1.1 else OPEN)
        change = latency_change(slower, 60, q, np.random.default_rng(0))
        assert 1.1 < change.low < 1.3 < change.high and change.verdict == GREW
        quicker = latency_change(made_up(60, -0.3, 0).answers, 60, q, np.random.default_rng(0))
        assert quicker.verdict == FLAT and quicker.high < 1
    hostile = steady.with_columns(hostile=True)
    with pytest.raises(ValueError, match="no sound request came in a third of the 60 s"):
        latency_change(hostile, 60, q, np.random.default_rng(0))


@pytest.mark.parametrize("q", [50, 99])
def test_a_slower_machine_is_no_slower_service(q):
    plain, slower = (made_up(60, 0, 0, machine=machine).answers for machine in (0, 0.4))
    assert machine_change(plain, 60) == pytest.approx(1, abs=0.02)
    assert machine_change(slower, 60) == pytest.approx(1.4, abs=0.03)
    alike = [latency_change(answers, 60, q, np.random.default_rng(0)) for answers in (plain, slower)]
    assert alike[0].ratio == pytest.approx(alike[1].ratio) and alike[0].verdict == alike[1].verdict != GREW
    hidden = made_up(60, 0.4, 0, machine=-0.3).answers  # a quicker machine hides nothing
    assert hidden.filter(pl.col("at") > 40)["service"].mean() < 1.05 * hidden["service"].mean()
    assert latency_change(hidden, 60, q, np.random.default_rng(0)).verdict == GREW


def test_too_few_requests_tell_nothing():
    answers = made_up(60, 0, 0).answers
    few = latency_change(answers[::40], 60, 99, np.random.default_rng(0))
    assert few.low < 1.1 < few.high and few.verdict == OPEN


def test_memory_is_flat_where_it_is():
    assert memory_change(made_up(60, 0, 0.005).memory, 60).verdict == FLAT
    grown = memory_change(made_up(60, 0, 0.02).memory, 60)
    assert grown.verdict == GREW and (grown.middle, grown.last) == (pytest.approx(500), pytest.approx(510))


def test_a_report_passes_only_where_everything_holds(tmp_path):
    coming, traffic = Arrivals([], ROWS, np.zeros((0, 2))), Traffic(seconds=60, bursts=0)

    def judged(*args, **options):
        return report(made_up(60, *args, **options), coming, traffic, np.random.default_rng(0))

    sound = judged(0, 0)
    assert sound.passed and sound.utilisation == pytest.approx(made_up(60, 0, 0).answers["service"].sum() / 60_000)
    assert (sound.requests, sound.hostile, sound.distinct, sound.compared) == (3000, 30, 3, 3)
    assert sum(part["requests"] for part in sound.parts) == 2970 and len(sound.parts) == 10
    for wrong, failing in (
        (judged(0.4, 0), {"service p50 not seen to grow", "service p99 not seen to grow"}),
        (judged(0, 0.05), {"memory not seen to grow"}),
        (judged(0, 0, faults=[(False, "x")]), {"sound requests answered as by the policy"}),
        (judged(0, 0, faults=[(True, "x")]), {"hostile requests came out as they must"}),
        (judged(0, 0, counts=(0, 2)), {"the whole release taken in, the damaged one refused"}),
        (judged(0, 0, counts=(2, 0)), {"the whole release taken in, the damaged one refused"}),
    ):
        assert {name for name, holds in wrong.checks.items() if not holds} == failing and not wrong.passed
        assert wrong.table().count("FAILS") == len(failing)
    assert judged(0, 0, machine=0.5).passed
    assert "FAILS" not in sound.table() and sound.finding.startswith("0 of 3,000 requests came out wrong; ")
    sound.write(tmp_path / "new" / "load.json")
    read = json.loads((tmp_path / "new" / "load.json").read_text(encoding="utf-8"))
    assert read["requests"] == 3000 and read["changes"]["memory"]["verdict"] == FLAT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["load.json"]


# ---------------------------------------------------------------- releases
@pytest.fixture(scope="module")
def releases(policy, bare, graphs, tmp_path_factory):
    """Folders of two releases."""
    folder = tmp_path_factory.mktemp("releases")
    names = [release(policy, graphs, folder / "first"), release(bare, graphs, folder / "second")]
    assert names == [version_of(folder / "first"), version_of(folder / "second")] and names[0] != names[1]
    return folder / "first", folder / "second"


@pytest.fixture
def service(releases, tmp_path):
    put(releases[0], tmp_path / "served")
    return LiveService(tmp_path / "served")


def queries(answer):
    return [query for query, _ in answer]


def test_a_whole_release_takes_the_place_of_the_one_before(service, releases, policy, bare):
    right, newer = queries(policy.suggest("sh")), queries(bare.suggest("sh"))
    assert right != newer
    first = service.live
    assert queries(service.suggest("sh")) == right and len(first.policy.memory.answers) == 1
    service.look()
    assert service.live is first and not service.preparing
    put(releases[1], service.folder)
    assert queries(service.suggest("sh")) == right, "nobody has looked"
    service.look()
    assert service.live is first and service.preparing, "it is read beside the requests"
    assert queries(service.suggest("sh")) == right
    service.look(wait=True)
    assert service.version == version_of(releases[1]) and (service.taken, service.refused) == (1, 0)
    assert len(service.live.policy.memory.answers) == 0 and queries(service.suggest("sh")) == newer
    service.look(wait=True)
    assert service.taken == 1, "the same release is read once"


@pytest.mark.parametrize("damage", ["cut short", "missing", "no manifest inside", "no policy"])
def test_a_damaged_release_changes_nothing(service, releases, tmp_path, policy, damage):
    shutil.copytree(releases[1], tmp_path / "damaged")
    if damage == "cut short":
        os.truncate(tmp_path / "damaged" / DAMAGED, 1000)
    elif damage == "missing":
        (tmp_path / "damaged" / DAMAGED).unlink()
    elif damage == "no manifest inside":
        (tmp_path / "damaged" / "manifest.json").write_text("{", encoding="utf-8")
    else:
        (tmp_path / "damaged" / "manifest.json").write_text('{"files": {}}', encoding="utf-8")
        shutil.rmtree(tmp_path / "damaged" / "policy")
    put(tmp_path / "damaged", service.folder)
    with pytest.warns(UserWarning, match=f"version {service.version} goes on"):
        service.look(wait=True)
    assert (service.version, service.taken, service.refused) == (version_of(releases[0]), 0, 1)
    assert queries(service.suggest("sh")) == queries(policy.suggest("sh"))
    service.look(wait=True)
    assert service.refused == 1, "what has not changed is not read again"
    put(releases[1], service.folder)
    service.look(wait=True)
    assert (service.version, service.taken) == (version_of(releases[1]), 1)


def test_a_release_that_arrives_file_by_file_is_taken_in_when_it_is_whole(service, releases):
    last = service.folder / DAMAGED
    for file in sorted(path for path in releases[1].rglob("*") if path.is_file()):  # over the files of the one before
        shutil.copyfile(file, service.folder / file.relative_to(releases[1]))
    os.truncate(last, 1000)
    with pytest.warns(UserWarning, match="cut short or altered"):
        service.look(wait=True)
    assert service.version == version_of(releases[0])
    shutil.copyfile(releases[1] / DAMAGED, last)
    service.look(wait=True)
    assert (service.version, service.taken, service.refused) == (version_of(releases[1]), 1, 1)


def test_a_folder_that_is_away_for_a_moment(service, releases, tmp_path):
    service.folder.rename(tmp_path / "aside")
    service.look(wait=True)
    assert (service.taken, service.refused) == (0, 0) and service.suggest("sh")
    (tmp_path / "aside").rename(service.folder)
    service.look(wait=True)
    assert (service.taken, service.refused) == (0, 0), "the same files again"


def test_a_release_that_is_replaced_while_it_is_read(service, releases, tmp_path, monkeypatch):
    checked = live.verify

    def replaced_meanwhile(folder):
        monkeypatch.setattr(live, "verify", checked)
        found = checked(folder)
        put(releases[0], folder)
        return found

    monkeypatch.setattr(live, "verify", replaced_meanwhile)
    put(releases[1], service.folder)
    service.look(wait=True)
    assert (service.taken, service.refused) == (0, 0), "half of one and half of the other"
    service.look(wait=True)
    assert (service.version, service.taken) == (version_of(releases[0]), 1)


def test_there_must_be_a_first_release(tmp_path, releases):
    with pytest.raises(StoreError, match="has no readable manifest.json"):
        LiveService(tmp_path)
    put(releases[0], tmp_path / "served")
    os.truncate(tmp_path / "served" / DAMAGED, 10)
    with pytest.raises(StoreError, match="cut short or altered"):
        LiveService(tmp_path / "served")


# ---------------------------------------------------------------- all together
@pytest.fixture(scope="module")
def loaded(road, policy, bare, graphs):
    traffic = traffic_of(8.0)
    rng = np.random.default_rng(0)
    coming = arrivals(traffic, road.split.validation.requests, rng)
    run = load_run([(policy, graphs), (bare, graphs)], coming, traffic, rng, lambda: 500.0)
    return run, coming, traffic


def test_a_run_with_replaced_releases_answers_everything_right(loaded):
    run, coming, traffic = loaded
    assert run.faults == [] and (run.taken, run.refused) == (1, 1)
    assert len(run.warned) == 1 and f"'{DAMAGED}'" in run.warned[0] and f"version {run.versions[1]}" in run.warned[0]
    assert len(run.versions) == 2 and run.answers["version"].is_sorted() and run.answers["version"][0] == 0
    changed = run.answers.filter(pl.col("version") == 1)["at"][0]
    assert changed >= REPLACED["new release"] * traffic.seconds
    assert len(run.answers) == len(coming.times) > 100 and run.compared == len(coming.requests)
    assert (run.answers["service"] > 0).all() and (run.answers["wait"] >= 0).all()
    free = ((run.answers["at"] * 1e3 + run.answers["response"]).shift(1) - run.answers["at"] * 1e3).fill_null(0)
    assert np.allclose(run.answers["wait"], free.clip(lower_bound=0)), "one server, first come first served"


def test_a_run_notices_a_wrong_release(loaded, policy, bare, graphs, monkeypatch):
    _, coming, traffic = loaded
    short = coming._replace(times=coming.times[:30])
    monkeypatch.setattr(ServingPolicy, "_suggest", lambda self, *key: [])
    run = load_run([(policy, graphs), (bare, graphs)], short, traffic, np.random.default_rng(0), lambda: 500.0, 5)
    assert sum(not hostile for hostile, _ in run.faults) == sum(not arrival.hostile for arrival in short.times) > 20
    assert run.compared == 5


def test_the_figure_of_a_run(loaded):
    run, coming, traffic = loaded
    lines = by_part(run, traffic.seconds, 20)
    assert lines["requests"].sum() == (~run.answers["hostile"]).sum() and lines["at"].is_sorted()
    marks = [(share * traffic.seconds, name) for name, share in REPLACED.items()]
    figure = latency_figures.under_load(lines, coming.bursts, marks, "title")
    times, memory = figure.axes
    assert len(times.lines) == 3 + len(marks) and len(memory.lines) == 1 + len(marks)
    assert len(times.patches) == len(memory.patches) == len(coming.bursts) == 4
    assert [text.get_text().strip() for text in memory.texts] == list(REPLACED)
    np.testing.assert_allclose(times.lines[2].get_ydata(), lines["response p99"])
    plt.close("all")
