"""Good, same, bad: the truth prefers what is in mind, a person's sheet hides who is who, and both are counted alike."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from data_synth import MarketError, build_world, market_config, write_shard
from data_synth.ceilings import batches_from_log, best_lists
from data_synth.judge import agreement, conclude, judge, read_sheet, sheet
from data_synth.oracle import Oracle
from data_synth.posteriors import posteriors_of

SMALL = {"sessions": 1_500, "shoppers": 200, "pilot_sessions": 1_500, "days": 8, "test_days": 2}


@pytest.fixture(scope="module")
def world():
    return build_world(market_config("smoke", **SMALL))


@pytest.fixture(scope="module")
def asked(world, tmp_path_factory):
    """Requests of the log with what was in mind, and the best lists for them."""
    out = tmp_path_factory.mktemp("log")
    write_shard(world, 0, out)
    log, truth = (pl.read_parquet(out / name / "requests" / "*.parquet") for name in ("log", "truth"))
    frame = log.join(truth.select("request_id", "intent"), on="request_id", maintain_order="left").tail(60)
    lists = [[] for _ in range(60)]
    for rows, batch in batches_from_log(world, frame):
        best = best_lists(world, Oracle(world).posterior(batch))
        for row, queries in zip(rows, best, strict=True):
            lists[row] = world.catalogue.texts(queries[queries >= 0]).to_pylist()
    return frame, lists


# ---------------------------------------------------------------- the truth
def test_the_truth_prefers_the_better_list_and_is_fair(world, asked):
    frame, best = asked
    worse = [row[::-1] for row in best]
    better = judge(world, frame, worse, best)
    good, same, bad = better.counts["requests"].to_list()
    assert good > 40 and good > 5 * bad and good + same + bad == 60
    assert better.low > 0 and better.p < 1e-6
    swapped = judge(world, frame, best, worse)
    assert swapped.counts["requests"].to_list() == [bad, same, good]
    assert (swapped.advantage, swapped.low, swapped.high) == (-better.advantage, -better.high, -better.low)
    alike = judge(world, frame, best, best)
    assert alike.counts["requests"].to_list() == [0, 60, 0]
    assert (alike.advantage, alike.p) == (0, 1)


def test_what_is_in_mind_counts_by_its_place(world, asked):
    frame, _ = asked
    frame = frame.head(4)
    wanted, other = frame["intent"].to_list(), "no query of the market"
    a = [[other, wanted[0]], [wanted[1]], [], [other]]
    b = [[wanted[0], other], [other], [wanted[2], wanted[2]], []]
    found = judge(world, frame, a, b, intents=wanted)
    patience = world.config.patience
    assert found.verdicts["verdict"].to_list() == ["good", "bad", "good", "same"]
    assert found.verdicts["score_a"].to_list() == pytest.approx([patience, 1, 0, 0])
    assert found.verdicts["score_b"].to_list() == pytest.approx([1, 0, 1, 0])
    wide = judge(world, frame, a, b, margin=0.5, intents=wanted)
    assert wide.verdicts["verdict"].to_list() == ["same", "bad", "good", "same"]


def test_the_expected_score_is_that_of_the_posterior(world, asked):
    frame, _ = asked
    ((rows, batch), *_) = batches_from_log(world, frame)
    posteriors = Oracle(world).posterior(batch)
    row = int(rows[0])
    top = world.catalogue.texts(posteriors[0].query[:2]).to_pylist()
    lists = [[] for _ in range(60)]
    found = judge(world, frame, lists, lists[:row] + [top] + lists[row + 1 :])
    first, second = posteriors[0].probability[:2]
    again = judge(world, frame, lists, lists[:row] + [top] + lists[row + 1 :], posteriors=posteriors_of(world, frame))
    assert again.verdicts.equals(found.verdicts)
    assert found.verdicts["score_b"][row] == pytest.approx(first + world.config.patience * second)


def test_a_judge_wants_one_list_a_request(world, asked):
    frame, best = asked
    with pytest.raises(MarketError, match="lists_a holds 59 for 60 requests; expected one each"):
        judge(world, frame, best[1:], best)


def test_counts_come_with_their_intervals():
    found = conclude(pl.DataFrame({"verdict": ["good"] * 30 + ["same"] * 60 + ["bad"] * 10}))
    assert found.p == pytest.approx(stats.binomtest(30, 40).pvalue)
    assert found.advantage == pytest.approx(0.2)
    signs = np.r_[np.ones(30), np.zeros(60), -np.ones(10)]
    assert found.high - found.low == pytest.approx(2 * 1.96 * signs.std() / 10, rel=1e-3)
    assert found.counts["share"].to_list() == [0.3, 0.6, 0.1]
    assert (found.counts["low"] < found.counts["share"]).all() and (found.counts["high"] > found.counts["share"]).all()
    for rows in ([], ["better"]):
        with pytest.raises(MarketError, match="expected rows of good, same, bad"):
            conclude(pl.DataFrame({"verdict": rows}, schema={"verdict": pl.String}))


# ---------------------------------------------------------------- two judges
def test_kappa_is_what_chance_does_not_explain():
    one = ["good"] * 45 + ["bad"] * 15 + ["good"] * 25 + ["bad"] * 15
    other = ["good"] * 60 + ["bad"] * 40
    found = agreement(one, other, np.random.default_rng(0))
    assert found.share == 0.6
    assert found.kappa == pytest.approx((0.6 - (0.7 * 0.6 + 0.3 * 0.4)) / (1 - (0.7 * 0.6 + 0.3 * 0.4)))
    assert found.kappa == pytest.approx(cohen_kappa_score(one, other))
    assert found.low < found.kappa < found.high
    assert agreement(one, one, np.random.default_rng(0))[:2] == (1.0, 1.0)
    assert np.isnan(agreement(["same"] * 5, ["same"] * 5, np.random.default_rng(0)).kappa)
    with pytest.raises(MarketError, match="4 verdicts and 5"):
        agreement(one[:4], one[:5], np.random.default_rng(0))


# ---------------------------------------------------------------- on paper
FRAME = pl.DataFrame(
    {"prefix": ["te", "<b>&"] * 20, "history": [["green tea"], None] * 20, "profile": [None, ["woman"]] * 20}
)
A, B = [["alpha tea"]] * 40, [["beta tea", '"<script>alert(1)</script>']] * 40


class Page(HTMLParser):
    """Questions of a sheet: the texts of each list, and the names and values of its buttons."""

    def __init__(self, text: str):
        super().__init__()
        self.lists, self.answers, self.tags, self.inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag == "li"
        if tag == "ol":
            self.lists.append([])
        if tag == "input":
            self.answers.append((dict(attributes)["name"], dict(attributes)["value"]))

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.lists[-1].append(data)


@pytest.fixture
def paper(tmp_path):
    path, key = tmp_path / "out" / "sheet.html", tmp_path / "kept" / "key.json"
    assert sheet(path, key, FRAME, A, B, np.random.default_rng(4)) == path
    return path, key, tmp_path / "answers.csv"


def fill(paper, choose) -> None:
    """Answer every question of a sheet by its two lists."""
    path, _, answers = paper
    text = path.read_text()
    lists = Page(text).lists
    name = re.search(r'data-sheet="(\w+)"', text)[1]
    rows = [f"{name},{row},{choose(*lists[2 * row : 2 * row + 2])}\n" for row in range(len(lists) // 2)]
    answers.write_text("sheet,row,answer\n" + "".join(rows))


def test_a_sheet_is_blinded_whole_and_needs_no_network(paper, tmp_path):
    path, key, _ = paper
    page, text = Page(path.read_text()), path.read_text()
    left = page.lists[::2]
    assert len(page.lists) == 80 and 8 < left.count(A[0]) < 32, "sides are drawn"
    assert all({str(one), str(two)} == {str(A[0]), str(B[0])} for one, two in zip(left, page.lists[1::2], strict=True))
    assert page.tags.count("script") == 1, "texts of the log are no markup"
    assert len(page.answers) == 120 and len(set(page.answers)) == 120
    assert not re.search(r"https?:|src=|left_is_b|true|false", text)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["key.json", "sheet.html"]
    assert [one == B[0] for one in left] == json.loads(key.read_text())["left_is_b"]


def test_same_seed_same_sheet(paper, tmp_path):
    again = sheet(tmp_path / "again.html", tmp_path / "again.json", FRAME, A, B, np.random.default_rng(4))
    assert again.read_bytes() == paper[0].read_bytes()
    other = sheet(tmp_path / "other.html", tmp_path / "other.json", FRAME, A, B, np.random.default_rng(5))
    assert other.read_bytes() != paper[0].read_bytes()


def test_what_a_person_prefers_comes_back(paper):
    fill(paper, lambda left, right: "left" if left == B[0] else "right")
    found = read_sheet(paper[2], paper[1])
    assert found.verdicts["verdict"].to_list() == ["good"] * 40 and found.advantage == 1
    fill(paper, lambda left, right: "left" if left == A[0] else "right")
    assert read_sheet(paper[2], paper[1]).counts["requests"].to_list() == [0, 0, 40]
    fill(paper, lambda left, right: "same")
    assert read_sheet(paper[2], paper[1]).counts["requests"].to_list() == [0, 40, 0]
    fill(paper, lambda left, right: "left")
    sides = json.loads(paper[1].read_text())["left_is_b"]
    assert read_sheet(paper[2], paper[1]).counts["requests"].to_list() == [sum(sides), 0, 40 - sum(sides)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-2], "lacks 2 answers, first that of row 38"),
        (lambda lines: [*lines, lines[-1]], "row '39'; expected 0 to 39, each once"),
        (lambda lines: [*lines[:-1], lines[-1].replace(",39,", ",40,")], "row '40'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("same", "better")], "row 39 is answered 'better'"),
        (lambda lines: [lines[0], *(f"0{line[1:]}x" for line in lines[1:])], "answers sheet 0"),
        (lambda lines: lines[1:], "expected sheet, row and answer"),
    ],
)
def test_a_sheet_filled_wrongly_is_refused(paper, change, message):
    fill(paper, lambda left, right: "same")
    name = json.loads(paper[1].read_text())["sheet"]
    assert not name.startswith("0")
    paper[2].write_text("\n".join(change(paper[2].read_text().splitlines())) + "\n")
    with pytest.raises(MarketError, match=message):
        read_sheet(paper[2], paper[1])


def test_the_key_is_kept_apart(tmp_path):
    with pytest.raises(MarketError, match="keep the key in another file"):
        sheet(tmp_path / "one", tmp_path / "one", FRAME, A, B, np.random.default_rng(0))
    with pytest.raises(MarketError, match="40 requests, 39 and 40 lists"):
        sheet(tmp_path / "one", tmp_path / "two", FRAME, A[1:], B, np.random.default_rng(0))
    assert not list(tmp_path.iterdir())
