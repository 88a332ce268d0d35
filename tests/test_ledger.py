"""The ledger: every verdict recomputed by hand from the records, flipped with them, and the page that shows them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_experiments import fake_experiments
from fake_records import EFFECTS, fake_records
from typer.testing import CliRunner

from onesug_lite import claims, ledger
from onesug_lite.claims import (
    Measurement,
    conclude,
    judge,
    judge_claims,
    load_claims,
    published_difference,
    published_gain,
)
from onesug_lite.experiments import FOLDER, PAIRS, Experiments
from onesug_lite.experiments import METRICS as ONLINE
from onesug_lite.metrics import BANDS, SLICES
from onesug_lite.records import METRICS, Grid
from onesug_lite.significance import Estimate

ROOT = Path(__file__).resolve().parents[1]
ALL = EFFECTS | {"decoder_only": 0.7, "ids": -0.4, "without_weights": 0.85, "without_history": 0.1,
                 "without_profile": 0.6, "nearest": 0.9}  # fmt: skip
UPDATED = {"generator-daily": 0.6, "generator-never": 0.0, "generator-preference": 0.6, "cascade-daily": 0.2,
           "cascade-never": -0.6}  # fmt: skip
ROUNDS = {"rounds-seed": 0.0, "rounds-preference": 0.5, "rounds-supervised": 0.7, "rounds-market": 0.2}


def write(records, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record['variant']}-seed{record['seed']}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def records():
    return fake_records(ALL)


def updated(effects=UPDATED, seeds=3):
    """Records of updates, of a market of their own."""
    found = fake_records(effects, seeds, rows=3_000, wobble=0.0, seed=1, ceilings=False)
    return [record | {"log": "log1"} for record in found]


@pytest.fixture(scope="module")
def below():
    """Records in folders of their own, which some claims rest on alone."""
    return {"updates": updated(), "rounds": fake_records(ROUNDS, ceilings=False)}


@pytest.fixture(scope="module")
def everything(records, below, tmp_path_factory):
    folder = write(records, tmp_path_factory.mktemp("records"))
    for name, found in below.items():
        write(found, folder / name)
    return folder


@pytest.fixture(scope="module")
def entries(everything):
    return judge_claims(everything)


def estimate(low, high, seeds=(1.0, 1.0, 1.0)):
    return Estimate((low + high) / 2, low, high, 0.5, seeds, 100)


# ---------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("low", "high", "seeds", "published", "verdict"),
    [
        (1, 3, (1, 2, 3), 2, "reproduced"),
        (1, 3, (1, 2, 3), None, "reproduced"),
        (1, 3, (1, 2, 3), 4, "reproduced"),  # half of it
        (1, 3, (1, 2, 3), 4.1, "direction only"),
        (1, 3, (1, 2, 3), 0.9, "direction only"),  # more than twice
        (1, 3, (1, 2), 2, "direction only"),  # two seeds
        (1, 3, (-0.1, 2, 4), 2, "direction only"),  # a seed disagrees
        (-1, 5, (1, 2, 3), 2, "not found"),
        (0, 5, (1, 2, 3), 2, "not found"),
        (-3, -1, (-1, -2, -3), 2, "reversed"),
        (np.nan, np.nan, (1, 2, 3), 2, "no record yet"),
    ],
)
def test_a_measurement_is_judged_by_sign_seeds_and_size(low, high, seeds, published, verdict):
    assert judge(estimate(low, high, seeds), published) == verdict


@pytest.mark.parametrize(
    ("low", "high", "seeds", "verdict"),
    [
        (-1, 1.5, 3, "reproduced"),
        (-1, 1.5, 2, "direction only"),
        (-1, 2.5, 3, "not found"),
        (2.1, 2.5, 3, "reversed"),
        (-4, -2.5, 3, "reversed"),
    ],
)
def test_alike_means_inside_the_stated_points(low, high, seeds, verdict):
    assert judge(estimate(low, high, (0.0,) * seeds), -0.7, within=2) == verdict


def part(verdict, cell="click HR@16", condition="a", required=True):
    return Measurement("x", "y", cell, None, None, verdict, condition, required)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([part("reproduced"), part("reproduced")], "reproduced"),
        ([part("reproduced"), part("direction only")], "direction only"),
        ([part("reproduced"), part("not found", "click MRR@16")], "only under: click HR@16"),
        ([part("reproduced"), part("reversed", condition="b")], "only under: a"),
        (
            [part("reproduced"), part("not found", "click MRR@16"), part("direction only", condition="b")],
            "only under: a, click HR@16; b",
        ),
        ([part("not found"), part("reversed")], "reversed"),
        ([part("not found"), part("not found")], "not found"),
        ([part("reproduced"), part("no record yet")], "no record yet"),
        ([part("reproduced"), part("no record yet", required=False)], "reproduced"),
        ([part("no record yet", required=False)], "no record yet"),
    ],
)
def test_a_claim_concludes_from_its_measurements(parts, verdict):
    assert conclude(parts) == verdict


# ---------------------------------------------------------------- verdicts from records
def test_every_verdict_is_recomputed(entries, records, below):
    """Each measurement again from the bare records, and each verdict from those by the rule as the page states it."""
    grids, judged = {name: Grid(found) for name, found in {"": records, **below}.items()}, 0
    for entry in entries:
        if "tests" not in entry.claim:
            continue
        found = []
        tests = [
            (test, cell)
            for test in entry.claim["tests"]
            for cell in test.get("metrics", ["click HR@16", "click MRR@16", "order HR@16", "order MRR@16"])
        ]
        for measured in entry.measurements:
            test, cell = next((t, c) for t, c in tests
                              if (t["first"], t["second"]) == (measured.first, measured.second)
                              and measured.cell.startswith(c))  # fmt: skip
            rows, metric = ("", cell) if cell in METRICS else cell.split(" ")
            where = f"{rows} {test.get('where', '')}".strip()
            gap = grids[test.get("under", "")].difference(measured.first, measured.second, metric, where,
                                  f"{rows} {test['than']}" if "than" in test else "")  # fmt: skip
            assert gap == measured.estimate, entry.claim["id"]
            if "within" in test:
                inside = max(abs(gap.low), abs(gap.high)) < test["within"]
                outside = min(abs(gap.low), abs(gap.high)) > test["within"] and gap.low * gap.high > 0
                found.append("reproduced" if inside else "reversed" if outside else "not found")
            elif gap.low > 0:
                size = measured.published is None or 0.5 <= gap.mean / measured.published <= 2
                found.append("reproduced" if size and min(gap.each_seed) > 0 else "direction only")
            else:
                found.append("reversed" if gap.high < 0 else "not found")
        assert [measured.verdict for measured in entry.measurements] == found
        holds = [verdict in ("reproduced", "direction only") for verdict in found]
        expected = (
            ("reproduced" if set(found) == {"reproduced"} else "direction only") if all(holds)
            else "only under" if any(holds) else "reversed" if "reversed" in found else "not found"
        )  # fmt: skip
        assert entry.verdict.split(":")[0] == expected, entry.claim["id"]
        judged += 1
    assert judged == sum("tests" in claim for part in load_claims()["claims"].values() for claim in part)


def verdict_of(entries, name):
    return next(entry.verdict for entry in entries if entry.claim["id"] == name)


def test_planted_effects_are_told(entries):
    assert verdict_of(entries, "onesug-beats-cascade") in ("reproduced", "direction only")
    assert verdict_of(entries, "decoder-only-beats-bart") == "reversed"
    assert verdict_of(entries, "tail-gains-more") == "not found"
    assert verdict_of(entries, "rwr-helps").split(":")[0] in ("reproduced", "direction only")


@pytest.mark.parametrize("name", ["onesug-beats-cascade", "pre-helps", "ids-hurt", "listwise-beats-pairwise"])
def test_flipping_the_records_flips_the_verdict(entries, tmp_path, name):
    claim = next(entry.claim for entry in entries if entry.claim["id"] == name)
    first, second = claim["tests"][0]["first"], claim["tests"][0]["second"]
    flipped = fake_records(ALL | {first: ALL[second], second: ALL[first]})
    assert verdict_of(entries, name) in ("reproduced", "direction only")
    assert verdict_of(judge_claims(write(flipped, tmp_path)), name) == "reversed"


def of_updates(effects, seeds=3):
    """Verdicts on updates alone."""
    grid, found = Grid(updated(UPDATED | effects, seeds), draws=500), []
    for claim in load_claims()["claims"]["Updates"]:
        found.append(conclude([part for test in claim["tests"] for part in claims.measure(test, grid)]))
    return found


def test_verdicts_on_updates_follow_their_records(entries):
    assert verdict_of(entries, "updates-matter") == verdict_of(entries, "preference-refresh-suffices") == "reproduced"
    flipped = {"generator-daily": 0.0, "generator-never": 0.6, "cascade-daily": -0.6, "cascade-never": 0.2}
    assert of_updates(flipped | {"generator-preference": -0.6}) == ["reversed", "reversed"]
    one = of_updates({"cascade-never": 0.2})
    assert one[0].startswith("only under: the generator") and one[1] == "reproduced"
    middle = of_updates({"generator-preference": 0.3})
    assert middle[1] == "only under: better than no updates", "better than nothing is not yet enough"
    idle = of_updates({"generator-daily": 0.0, "generator-preference": 0.0})
    assert idle[1].startswith("only under: as good as full updates"), "whatever is done is as good where nothing helps"
    assert of_updates({}, seeds=2)[0] == "direction only"


def test_half_a_run_of_updates_leaves_its_claim_open(tmp_path):
    folder = tmp_path / "updates"
    write([record for record in updated() if record["variant"].startswith("generator")], folder)
    entries = judge_claims(tmp_path)
    assert verdict_of(entries, "updates-matter") == "no record yet"
    assert verdict_of(entries, "preference-refresh-suffices") == "reproduced"
    assert "9 record(s) of updates, of 3 seed(s)" in ledger.describe_records(tmp_path)
    assert "of updates" not in ledger.describe_records(folder) and "rounds" not in ledger.describe_records(tmp_path)
    write([record for record in updated() if record["seed"] < 2], tmp_path / "rounds")
    assert "record(s) of rounds of feedback, of 2 seed(s)" in ledger.describe_records(tmp_path)


def test_the_control_turns_a_gain_into_a_condition(tmp_path):
    trap = fake_records(ALL | {"continued": 1.5})
    verdict = verdict_of(judge_claims(write(trap, tmp_path)), "rwr-helps")
    assert verdict == "only under: compared with the seed model"


def test_a_gain_planted_on_the_tail_is_told(tmp_path):
    trap = fake_records(ALL, tail={"onesug": 1.0})
    verdict = verdict_of(judge_claims(write(trap, tmp_path)), "tail-gains-more")
    assert verdict.endswith("click MRR@16 on prefix tail, more than on prefix head") or verdict == "reproduced"


@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "reproduced"), (-1.0, "reversed"), (1.0, "reversed")])
def test_two_that_are_alike_are_told(effect, verdict):
    grid = Grid(fake_records({"sft": effect, "mca": 0.0}, rows=3000, wobble=0.0, ceilings=False))
    alike = {"first": "sft", "second": "mca", "within": 2, "metrics": ["click HR@16", "click MRR@16"]}
    found = claims.measure(alike, grid)
    assert {part.verdict for part in found} == {verdict} and len(found) == 2


def test_one_missing_record_leaves_its_claims_open(records, tmp_path):
    some = [record for record in records if record["variant"] != "continued"]
    found = judge_claims(write(some, tmp_path))
    assert verdict_of(found, "rwr-helps") == "no record yet"
    assert verdict_of(found, "pre-helps") != "no record yet"


def test_records_of_a_condition_lie_below(records, tmp_path, monkeypatch):
    claim = {"id": "x", "text": "t", "source": "s", "tests": [
        {"first": "onesug", "second": "sft", "metrics": ["click HR@16"], "condition": "the usual budget"},
        {"first": "onesug", "second": "sft", "metrics": ["click HR@16"], "under": "short", "condition": "a short one"},
    ]}  # fmt: skip
    monkeypatch.setattr(claims, "load_claims", lambda: load_claims() | {"claims": {"only": [claim]}})
    folder = write(records, tmp_path)
    (entry,) = judge_claims(folder)
    assert entry.verdict in ("reproduced", "direction only"), "the condition has no records, and need not"
    write(fake_records(ALL | {"onesug": ALL["sft"] - 0.5}), folder / "short")
    (entry,) = judge_claims(folder)
    assert entry.verdict == "only under: the usual budget" and entry.measurements[1].verdict == "reversed"


# ---------------------------------------------------------------- verdicts from experiments
MAIN, LISTWISE = ("onesug", "online_mca"), ("onesug", "pairwise")
AS_PUBLISHED = {
    MAIN: {"clicks": 0.0201, "orders": 0.0204, "revenue": 0.0169, "position": -0.0933, "typed": -0.0182,
           "head prefixes": 0.0115, "tail prefixes": 0.0359},
    LISTWISE: {"clicks": 0.0023, "orders": 0.0007, "revenue": 0.0020},
}  # fmt: skip


def write_experiments(folder, gains, **options):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for record in fake_experiments(gains, noise=0.001, **options):
        path = folder / FOLDER / f"{record['first']}-{record['second']}-seed{record['seed']}.json"
        path.write_text(json.dumps(record), encoding="utf-8")
    return folder


def online(folder):
    return {entry.claim["id"]: entry for entry in judge_claims(folder) if "experiments" in entry.claim}


def test_online_verdicts_follow_the_records(tmp_path):
    """What the paper reports, planted, is reproduced; planted with the other sign it is reversed."""
    entries = online(write_experiments(tmp_path / "one", AS_PUBLISHED))
    assert len(entries) == 8 and {entry.verdict for entry in entries.values()} == {"reproduced"}
    for name, entry in entries.items():
        for part in entry.measurements:
            assert part.estimate.low > 0 and len(part.estimate.each_seed) == 3, name
            assert name == "online-judgement" or part.published == pytest.approx(part.estimate.mean, rel=0.5), name
    turned = {pair: {metric: -gain for metric, gain in gains.items()} for pair, gains in AS_PUBLISHED.items()}
    entries = online(write_experiments(tmp_path / "other", turned, judged=-0.2))
    assert {entry.verdict for entry in entries.values()} == {"reversed"}
    nothing = online(write_experiments(tmp_path / "nothing", {}, seeds=2, judged=0.0))
    assert {entry.verdict for entry in nothing.values()} <= {"not found", "direction only", "reversed"}
    assert sum(entry.verdict == "not found" for entry in nothing.values()) >= 6


def test_less_is_better_where_the_paper_says_so(tmp_path):
    entries = online(write_experiments(tmp_path, AS_PUBLISHED))
    position, typed = (entries[f"online-{name}"].measurements[0] for name in ("position", "prefix-length"))
    assert (position.published, typed.published) == (9.33, 1.82)
    assert position.cell == "position of the click, % less" and typed.cell == "characters typed, % less"
    (tail,) = entries["online-tail"].measurements
    assert tail.published == 2.44 and tail.cell.endswith("on tail prefixes, more than on head prefixes")
    assert published_gain(*MAIN, "position") == -9.33 and published_gain(*MAIN, "clicks", "tail") == 3.59
    assert published_gain(*MAIN, "bait") is None and published_gain("onesug", "mca", "clicks") is None


def test_two_seeds_or_another_size_show_the_direction_only(tmp_path):
    assert online(write_experiments(tmp_path / "two", AS_PUBLISHED, seeds=2))["online-ctr"].verdict == "direction only"
    large = {MAIN: {"clicks": 0.05}}
    assert online(write_experiments(tmp_path / "large", large))["online-ctr"].verdict == "direction only"


def test_a_pair_without_records_leaves_its_claim_open(tmp_path):
    assert {entry.verdict for entry in online(tmp_path).values()} == {"no record yet"}
    entries = online(write_experiments(tmp_path, AS_PUBLISHED, pairs=[MAIN]))
    assert entries["online-listwise"].verdict == "no record yet" and entries["online-ctr"].verdict == "reproduced"


def test_the_page_shows_every_pair_in_the_market(records, tmp_path):
    folder, out = write(records, tmp_path / "records"), tmp_path / "page.md"
    write_experiments(folder, AS_PUBLISHED)
    assert run("--records", folder, "--out", out).exit_code == 0
    page = out.read_text(encoding="utf-8")
    table = page.split("## Every pair in the market")[1].splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in table if line.startswith("| ")}
    assert len(rows) == 1 + len(ONLINE) + 3 + 1 and {len(cells) for cells in rows.values()} == {5}
    gain = Experiments(fake_experiments(AS_PUBLISHED, noise=0.001)).gain(*MAIN, "position")
    assert rows["position of the click"][0] == (
        f"**{gain.mean:+.2f}** [{gain.low:+.2f}, {gain.high:+.2f}]<br>(paper -9.33)"
    )
    assert "(paper" not in rows["position of the click"][2] and "market's truth judges there" in page
    assert "15 record(s) of experiments stand beside them" in page


def test_experiments_of_another_market_are_refused(records, tmp_path):
    folder = write([record | {"log": "other"} for record in records], tmp_path)
    write_experiments(folder, {})
    with pytest.raises(ValueError, match="the experiments have log 'log0', the grid's records 'other'"):
        judge_claims(folder)


def test_calculations_hold_under_some_readings(entries):
    assert verdict_of(entries, "pairwise-is-a-special-case") == "only under: the hinge on the violated side; no hinge"
    assert verdict_of(entries, "reward-is-level-times-exp") == "only under: a click rate less its mean"
    conclude_identity = claims._conclude_identity
    assert conclude_identity({"a": True}) == "reproduced" and conclude_identity({"a": False}) == "not found"


# ---------------------------------------------------------------- the claims
def test_claims_are_complete_and_name_what_exists():
    data = load_claims()
    found = [claim for part in data["claims"].values() for claim in part]
    names = [claim["id"] for claim in found]
    assert len(names) == len(set(names)) >= 35
    for claim in found:
        ways = [key for key in ("tests", "experiments", "identity", "untested") if key in claim]
        assert len(ways) == 1 and claim["text"] and claim["source"], claim["id"]
        assert "chapter" not in claim or claim["chapter"] in data["chapters"], claim["id"]
        assert "untested" not in claim or (claim["verdict"] in ("here", "yet") and len(claim["untested"]) > 20)
        assert "identity" not in claim or (claim["identity"] in claims.IDENTITIES and "test" in claim)
        for test in claim.get("tests", []):
            known = {"first", "second", "metrics", "where", "than", "within", "under", "condition", "published"}
            assert set(test) <= known, claim["id"]
            assert {test.get("where", "all"), test.get("than", "all")} <= set(SLICES)
            assert all(cell in METRICS or cell in claims.CELLS for cell in test.get("metrics", []))
        for test in claim.get("experiments", []):
            assert set(test) <= {"first", "second", "metrics", "band", "than"} and test["metrics"], claim["id"]
            assert (test["first"], test["second"]) in PAIRS and set(test["metrics"]) <= {*ONLINE, "judgement"}
            assert {test.get("band", "tail"), test.get("than", "head")} <= set(BANDS)
    assert all(re.fullmatch(r"\d\d_\w+", stem) for stem in data["chapters"].values())


def test_named_tests_exist():
    named = [claim["test"] for part in load_claims()["claims"].values() for claim in part if "test" in claim]
    assert named
    for place in named:
        path, name = place.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), flags=re.M), place


def test_published_figures_are_those_of_the_page_on_the_paper():
    page = (ROOT / "book" / "paper.md").read_text(encoding="utf-8")
    offline = re.findall(r"^\| (.+?) \|" + r" \**(\d\d\.\d\d)\** \|" * 4 + "$", page, flags=re.M)
    printed = [tuple(map(float, row[1:])) for row in offline]
    assert len(printed) == 6 and printed == [tuple(row["scores"]) for row in load_claims()["published"].values()]
    removed = re.findall(r"^\| .+? \| −(\d\.\d\d) \| −(\d\.\d\d) \|$", page, flags=re.M)
    ours = [tuple(row["scores"]) for row in load_claims()["removed"].values()]
    assert [tuple(-float(value) for value in row) for row in removed] == ours
    assert published_difference("onesug", "without_pre", "click HR@16") == 3.68
    assert published_difference("onesug", "mca", "order MRR@16") == 12.31
    assert published_difference("onesug", "continued", "click HR@16") is None


# ---------------------------------------------------------------- the page
def run(*arguments):
    app = ledger.typer.Typer()
    app.command()(ledger.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_page_is_written_from_records(everything, entries, tmp_path):
    folder, out = everything, tmp_path / "book" / "ledger.md"
    assert run("--records", folder, "--out", out).exit_code == 0
    page = out.read_text(encoding="utf-8")
    assert page.startswith("# The ledger of claims\n") and f"{len(entries)} claims" in page
    assert "3 seed(s) at `lite`." in page and "made by" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 5 and cells[0].startswith(entry.claim["text"]) and cells[3] == f"**{entry.verdict}**"
    assert "(paper +3.53)" in page and "[chapter 5](../notebooks/05_preference.ipynb)" in page
    assert [path.name for path in out.parent.iterdir()] == ["ledger.md"]
    again = out.read_bytes()
    run("--records", folder, "--out", out)
    assert out.read_bytes() == again


def test_a_page_is_written_without_records(tmp_path):
    out = tmp_path / "ledger.md"
    assert run("--records", tmp_path / "nowhere", "--out", out).exit_code == 0
    page = out.read_text(encoding="utf-8")
    waiting = [
        claim for part in load_claims()["claims"].values() for claim in part if {"tests", "experiments"} & set(claim)
    ]
    assert "There are no records yet" in page and page.count("**no record yet**") == len(waiting) >= 26
    untested = [claim["verdict"] for part in load_claims()["claims"].values() for claim in part if "untested" in claim]
    assert "here" in untested
    for verdict in ("here", "yet"):
        assert page.count(f"**cannot be tested {verdict}**") == untested.count(verdict)


def test_records_of_two_markets_are_refused(records, tmp_path):
    folder = write([records[0], records[1] | {"log": "other"}], tmp_path / "records")
    done = run("--records", folder, "--out", tmp_path / "page.md")
    assert done.exit_code == 2 and "has log 'other'" in done.output and not (tmp_path / "page.md").exists()


def test_records_of_two_states_of_the_code_are_said(records, tmp_path):
    folder = write([records[0], records[1] | {"code": "code1"}], tmp_path)
    assert "made by 2 states of the code" in ledger.describe_records(folder)
