"""Measuring a path, the serving path's answers, and the cost model."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
import pytest

from onesug_lite import cost_model, decode, latency_figures
from onesug_lite.cost_model import CascadeCost, GeneratorCost, Machine, Work
from onesug_lite.latency import REST, Point, Stopwatch, mean_stages, measure, quantiles, stages_of, totals
from onesug_lite.latency_growth import beam_growth, pool_growth, predicted, prompt_growth, search_cost
from onesug_lite.onnx_export import OnnxGenerator, stored_export
from onesug_lite.policy import OneSugPolicy
from onesug_lite.popularity import PopularityCompletion
from onesug_lite.prefix_search import PrefixSearch
from onesug_lite.requests import history_and_profile
from onesug_lite.serving import Memory, PrefixIndex, ServingPolicy, SidIndex
from onesug_lite.sid_search import search
from onesug_lite.tokenizer import clean
from onesug_lite.variants import VARIANTS


# ---------------------------------------------------------------- stopwatch
class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Kitchen:
    """Three stages, one of them inside another."""

    def __init__(self, clock):
        self.clock = clock

    def serve(self):
        self.clock.now += 1
        self.cook()
        self.cook()
        self.clock.now += 2

    def cook(self):
        self.clock.now += 4
        self.chop()

    def chop(self):
        self.clock.now += 8


def test_stages_leave_out_what_lies_inside_them():
    clock = Clock()
    kitchen, watch = Kitchen(clock), Stopwatch(clock)
    points = [Point(kitchen, "cook", "cook #"), Point(kitchen, "chop", lambda: "chop")]
    with watch.watching(points):
        spent = [watch.request(kitchen.serve) for _ in range(2)]
    expected = {"chop": 16_000.0, "cook 1": 4_000.0, "cook 2": 4_000.0, REST: 3_000.0}
    assert spent == [expected, expected]
    assert vars(kitchen) == {"clock": clock}, "the functions were not put back"
    assert watch.request(kitchen.serve) == {REST: 27_000.0}


def test_functions_are_put_back_after_an_error():
    kitchen, watch = Kitchen(Clock()), Stopwatch()
    kitchen.chop = original = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError), watch.watching([Point(kitchen, "chop", "chop")]):
        watch.request(kitchen.serve)
    assert kitchen.chop is original
    with pytest.raises(AttributeError), watch.watching([Point(kitchen, "chop", "x"), Point(kitchen, "fry", "y")]):
        pass
    assert kitchen.chop is original


def test_means_stand_in_the_order_of_the_path_and_add_up():
    rows = [(0, "encode", 1.0), (0, "decode step 1", 2.0), (0, "write", 3.0), (0, REST, 1.0)]
    rows += [
        (1, "encode", 3.0),
        (1, "decode step 1", 2.0),
        (1, "decode step 2", 5.0),
        (1, "write", 1.0),
        (1, REST, 2.0),
    ]
    frame = pl.DataFrame(rows, schema=["request", "stage", "milliseconds"], orient="row")
    means = mean_stages(frame)
    assert means["stage"].to_list() == ["encode", "decode step 1", "decode step 2", "write", REST]
    assert means["milliseconds"].to_list() == [2.0, 2.0, 2.5, 2.0, 1.5]
    assert totals(frame).to_list() == [7.0, 13.0] and means["milliseconds"].sum() == totals(frame).mean()
    assert quantiles([1.0, 2.0, 3.0]) == {
        "p50": 2.0,
        "p95": pytest.approx(2.9),
        "p99": pytest.approx(2.98),
        "mean": 2.0,
    }


# ---------------------------------------------------------------- serving path
@pytest.fixture(scope="module")
def policy(road):
    return road.policy("onesug")


@pytest.fixture(scope="module")
def graphs(road, policy):
    return OnnxGenerator(stored_export(road.store, policy.model, road.trained(VARIANTS["onesug"]).folder.name))


@pytest.fixture(scope="module")
def requests(road):
    """Held-out requests and those of the training days: prefixes seen and unseen, with and without a history."""
    columns = ["prefix", "history", "profile"]
    trained = road.split.train.requests.sort("request_id")
    rows = np.random.default_rng(0).choice(len(trained), 900, replace=False)
    return pl.concat([road.asked("validation", 100).select(columns), trained[np.sort(rows)].select(columns)])


@pytest.fixture(scope="module")
def expected(policy, requests):
    return policy.scored(requests)


def test_the_policy_answers_as_generate_over_a_thousand_requests(policy, requests, expected, monkeypatch):
    monkeypatch.setattr(decode, "searchable", lambda model: False)  # any model that our search does not know
    monkeypatch.setattr(decode.BeamSearcher, "search", None)
    prompts = policy.prompts(requests)
    by_generate = decode.suggest_queries(policy.model, policy.tokenizer, prompts, policy.decode)
    assert len(by_generate) == 1000
    for found, wanted in zip(expected, by_generate, strict=True):
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-4)
        right = dict(wanted)
        last = wanted[-1][1]  # where scores are one number but for rounding, another query may take the last place
        assert all(abs(score - right.get(query, last)) < 1e-4 for query, score in found), (found, wanted)


def test_serving_answers_as_the_policy_over_a_thousand_requests(policy, graphs, requests, expected):
    serving = ServingPolicy(policy, graphs)
    rows = zip(requests["prefix"].to_list(), *history_and_profile(requests), strict=True)
    assert len(expected) == 1000
    for row, wanted in zip(rows, expected, strict=True):
        found = serving.suggest(*row)
        assert [query for query, _ in found] == [query for query, _ in wanted], row
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-3)
    assert serving.memory.related.hits > 100 and serving.memory.tokens.hits > 1000
    forgetful = ServingPolicy(policy, graphs, kept=0)
    assert forgetful(requests.head(20)) == [[query for query, _ in wanted] for wanted in expected[:20]]
    assert forgetful.memory.related.hits == 0


def test_a_request_that_comes_again_is_answered_from_memory(policy, graphs, monkeypatch):
    serving = ServingPolicy(policy, graphs)
    first = serving.suggest("re", ["red shoes"])
    monkeypatch.setattr(serving.searcher, "search", None)
    again = serving.suggest("re", ["red shoes"])
    assert again == first
    again.clear()
    assert serving.suggest("re", ["red shoes"]) == first, "a caller changed what is remembered"
    serving.forget()
    with pytest.raises(TypeError):
        serving.suggest("re", ["red shoes"])


def test_serving_without_related_queries(policy, graphs):
    bare = OneSugPolicy(policy.model, policy.tokenizer, None, policy.prompt, policy.decode)
    for prefix in ("s", "  RED ", "苹果", "zzqx"):
        found, wanted = ServingPolicy(bare, graphs).suggest(prefix), bare.suggest(prefix)
        assert [query for query, _ in found] == [query for query, _ in wanted]


@pytest.mark.parametrize("among", [False, True])
def test_serving_over_a_trie_of_known_queries(road, policy, graphs, requests, among):
    """As the recommended recipe answers: known queries alone, those of the policy."""
    decode = replace(policy.decode, known=True, among_known=among)
    bound = OneSugPolicy(policy.model, policy.tokenizer, policy.search, policy.prompt, decode, road.known)
    some = requests.gather_every(10)
    serving, expected = ServingPolicy(bound, graphs), bound.scored(some)
    for row, wanted in zip(zip(some["prefix"], *history_and_profile(some), strict=True), expected, strict=True):
        found = serving.suggest(*row)
        assert [query for query, _ in found] == [query for query, _ in wanted], row
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-3)
    assert {query for row in serving(some) for query in row} <= set(road.known)
    assert serving(some) != ServingPolicy(policy, graphs)(some), "the trie changed nothing"


def test_related_queries_of_the_index(road, policy, requests):
    index = PrefixIndex(policy.search)
    prefixes = [*{clean(text): None for text in requests["prefix"].to_list()}, "zzqx", "苹果"]
    expected = policy.search.related(prefixes)
    assert [index.related(prefix) for prefix in prefixes] == expected
    new = [prefix for prefix in prefixes if prefix not in policy.search._row]
    assert len(new) >= 10, "too few prefixes that the search never saw"
    near = PrefixSearch.load(road.search_folder / "search")
    near.config = replace(near.config, method="nearest")
    assert [PrefixIndex(near).related(prefix) for prefix in prefixes[:30]] == near.related(prefixes[:30])


@pytest.mark.parametrize("codes", [2, 40])  # all groups large; most smaller than what is asked for
def test_grouped_search_equals_the_search(codes):
    rng = np.random.default_rng(codes)
    vectors = rng.standard_normal((120, 4)).astype(np.float32)
    vectors[60:] = vectors[:60]  # equal cosines
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sids = rng.integers(0, codes, (120, 3))
    asked = np.concatenate([vectors[:40], -vectors[:40]])
    asked_sids = rng.integers(0, codes + 1, (80, 3))  # the last code has no member
    index = SidIndex(sids, vectors)
    for k in (1, 6, 120):
        expected = search(sids, vectors, asked_sids, asked, k)
        found = [index.find(sid, vector, k) for sid, vector in zip(asked_sids, asked, strict=True)]
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="k is 121 and there are 120 rows"):
        index.find(asked_sids[0], asked[0], 121)


def test_memory_keeps_the_latest():
    memory, made = Memory(2), []
    for key in "abacab":
        memory.get(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"] and len(memory) == 2 and (memory.hits, memory.misses) == (2, 4)
    empty = Memory(0)
    assert [empty.get("a", lambda: 1), empty.get("a", lambda: 2)] == [1, 2] and len(empty) == 0


def test_memory_makes_what_it_lacks_in_one_call():
    memory, asked = Memory(2), []

    def double(keys):
        asked.append(keys)
        return [2 * key for key in keys]

    assert memory.get_all([1, 2], double) == [2, 4]
    # 3 pushes out 1, and 4 pushes out 2, before their turn comes
    assert memory.get_all([3, 4, 1, 2], double) == [6, 8, 2, 4]
    assert asked == [[1, 2], [3, 4]] and (memory.hits, memory.misses) == (0, 6)
    assert memory.get_all([1, 2], double) == [2, 4] and memory.get_all([], double) == []
    assert asked == [[1, 2], [3, 4]] and memory.hits == 2
    with pytest.raises(ValueError, match="zip"):
        memory.get_all([5, 6], lambda keys: [0])


# ---------------------------------------------------------------- measuring
def test_every_system_is_measured_stage_by_stage(road, policy, graphs, requests):
    few = requests.head(12)
    stages = {}
    for name, system in {
        "serving": ServingPolicy(policy, graphs),
        "policy": policy,
        "cascade": road.policy("online_mca"),
    }.items():
        measured = measure(system, few, warm=2)
        assert measured["request"].unique().to_list() == list(range(12))
        assert measured["milliseconds"].min() >= 0
        stages[name] = set(measured["stage"])
        share = measured.filter(pl.col("stage") == REST)["milliseconds"].sum() / measured["milliseconds"].sum()
        assert share < 0.5, f"half of {name}'s time lies in no stage"
    path = {"PRE search", "build prompt", "encode", "decode step 1", "decode step 2", "bookkeeping", "detokenise", REST}
    assert path <= stages["serving"] and path <= stages["policy"]
    assert {"embed", "recall: embedding", "recall: spelling", "pre-rank (DCN)", "rank (DIN)", REST} == stages[
        "cascade"
    ] - {"recall: completion", "recall: cooccurrence", "recall: history"}
    with pytest.raises(TypeError, match="stages of a PopularityCompletion are not known"):
        stages_of(PopularityCompletion(road.click_counts))


def test_growth_counts_what_the_search_did(policy, requests):
    prompts = OneSugPolicy(policy.model, policy.tokenizer, None, policy.prompt, policy.decode).prompts(requests.head(3))
    beams = beam_growth(policy.model, prompts, [4, 32], policy.decode)
    assert beams["x"].to_list() == [4, 32] and beams["rows"][0] < beams["rows"][1] <= 32
    assert (beams["steps"] <= policy.decode.max_new_tokens).all() and (beams["milliseconds"] > 0).all()
    longer = prompt_growth(policy.model, prompts, [0, 8], 2, [10], policy.decode)
    assert longer["positions"][1] == longer["positions"][0] + 8
    config = policy.model.config
    cost = search_cost(config, longer.row(1, named=True))
    assert (cost.d_model, cost.encoder_layers, cost.beams) == (64, 2, 32)
    assert cost.positions == round(longer["positions"][1]) and cost.rows == longer["rows"][1]
    deep = longer.row(0, named=True) | {"knob": "layers", "x": 5}
    assert search_cost(config, deep).decoder_layers == search_cost(config, deep).encoder_layers == 5
    fitted, machine = predicted(pl.concat([beams, longer]), config)
    assert fitted["measured"].to_list() == [*beams["milliseconds"], *longer["milliseconds"]]
    assert (fitted["predicted"] > 0).all() and machine.hop_milliseconds == 0
    pools = pool_growth([50, 100], 8, 4, 2, 3, 2, np.random.default_rng(0))
    assert pools["label"].to_list() == ["semantic ids", "all vectors"] * 2 and (pools["milliseconds"] > 0).all()


# ---------------------------------------------------------------- cost model
def test_work_of_a_tiny_generator_by_hand():
    cost = GeneratorCost(d_model=2, ffn=3, encoder_layers=1, decoder_layers=1, vocabulary=5, positions=4, beams=2,
                         steps=2.0, rows=1.5, pool=100, codes=10, embedding=8, hops=3)  # fmt: skip
    works = {work.stage: work for work in cost.works()}
    assert works["PRE search"].flops == 2 * 10 * 8 and works["PRE search"].bytes == 10 * 8 * 4
    layer = 4 * 2 * 2 + 2 * 2 * 3  # four projections of attention, two of the feed-forward part
    cross = 2 * 2 * 2  # keys and values of cross-attention
    assert works["encode"].flops == 2 * 4 * (layer + cross) + 4 * 4 * 4 * 2
    step = layer + 2 * 2 * 2 + 2 * 5  # with cross-attention's query and output, and the vocabulary
    assert works["decode"].flops == 2 * 1.5 * (2 * step + 4 * (4 + 1) * 2)
    assert works["network"].hops == 3
    assert cost_model.reusable_share(cost, 1) == 2 * 3 * 3 * 2 * 2 / works["encode"].flops
    assert cost_model.reusable_share(cost, 9) == 0


def test_more_of_anything_costs_more():
    machine = Machine(1e10, 1e10, 1e-6, 1.0)
    for cost, names in (
        (GeneratorCost(), ("d_model", "ffn", "encoder_layers", "decoder_layers", "vocabulary", "positions", "pool")),
        (CascadeCost(), ("pool", "embed_layers", "recalled", "preranked", "features", "hidden", "history", "hops")),
    ):  # fmt: skip
        before = cost_model.total(cost.works(), machine)
        for name in names:
            more = replace(cost, **{name: getattr(cost, name) * 2 + 1})
            assert cost_model.total(more.works(), machine) > before, name


def test_a_fit_finds_the_machine_again():
    truth = Machine(3e10, 5e9, 2e-6)
    shapes = [GeneratorCost(beams=b, rows=b, decoder_layers=n) for b in (4, 16, 32) for n in (1, 2, 6)]
    works = [shape.works()[:3] for shape in shapes]
    found = cost_model.fit_machine(works, [cost_model.total(some, truth) for some in works])
    assert found.flops == pytest.approx(truth.flops, rel=1e-3) and found.bytes == pytest.approx(truth.bytes, rel=1e-3)
    assert found.operation_seconds == pytest.approx(truth.operation_seconds, rel=1e-3)
    two = replace(truth, operation_seconds=0.0)
    found = cost_model.fit_machine(works, [cost_model.total(some, two) for some in works], operations=False)
    assert found.flops == pytest.approx(truth.flops, rel=1e-3) and found.operation_seconds == 0
    assert found.described() == "30 GFLOP/s, 5 GB/s, 0.0 µs to start an operation"
    assert replace(found, bytes=np.inf).described().startswith("30 GFLOP/s, no limit by memory seen")
    with pytest.raises(ValueError, match="1 works and 2 times; expected as many, 3 or more"):
        cost_model.fit_machine(works[:1], [1.0, 2.0])


def test_the_hop_at_which_the_reduction_is_reached():
    machine = Machine(1e9, 1e9)
    generator = [Work("a", 4e6, 0, 0, 1)]  # 4 ms and a hop
    cascade = [Work("b", 2e6, 0, 0, 5)]  # 2 ms and five hops
    hop = cost_model.hop_for(0.432, generator, cascade, machine)
    assert hop == pytest.approx((4 - 0.568 * 2) / (0.568 * 5 - 1))
    assert cost_model.reduction(generator, cascade, replace(machine, hop_milliseconds=hop)) == pytest.approx(0.432)
    assert cost_model.hop_for(0.432, [Work("a", 1e6, 0, 0, 1)], cascade, machine) == 0.0, "sooner without any hop"
    assert cost_model.hop_for(0.9, generator, cascade, machine) is None, "not even with hops of any length"
    assert cost_model.hop_for(0.5, [Work("a", 1, 0, 0, 1)], [Work("b", 1, 0, 0, 2)], machine) is None
    assert cost_model.reduction(generator, cascade, machine) == pytest.approx(-1.0)


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="GeneratorCost.steps is 0; expected more than 0"):
        GeneratorCost(steps=0)
    with pytest.raises(ValueError, match="CascadeCost.pool is -1"):
        CascadeCost(pool=-1)
    with pytest.raises(ValueError, match="expected speeds above 0"):
        Machine(0.0, 1.0)


# ---------------------------------------------------------------- figures
def test_figures_draw_every_row():
    bars = pl.DataFrame({"system": ["a", "a", "b"], "stage": ["x", "y", "x"], "milliseconds": [1.0, 2.0, 3.0]})
    figure = latency_figures.time_by_stage(bars, "title")
    assert [(axes.get_title("left") or axes.get_title()) for axes in figure.axes] == ["a: 3.0 ms", "b: 3.0 ms"]
    assert [len(axes.patches) for axes in figure.axes] == [2, 1]
    lines = pl.DataFrame(
        {"knob": ["p"] * 4 + ["q"] * 2, "label": ["a", "a", "b", "b", "a", "a"], "x": [1, 100, 1, 100, 2, 4],
         "milliseconds": [1.0, 90.0, 1.0, 2.0, 1.0, 2.0]}
    )  # fmt: skip
    figure = latency_figures.growth(lines, "title")
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert figure.axes[0].get_xscale() == "log" and figure.axes[1].get_xscale() == "linear"
    points = pl.DataFrame({"label": ["a", "b"], "measured": [1.0, 2.0], "predicted": [1.5, 2.0]})
    assert len(latency_figures.predicted_against_measured(points, "title").axes[0].lines) == 3
    hops = pl.DataFrame({"label": ["a", "a"], "hop": [0.0, 5.0], "reduction": [-3.0, 0.4]})
    drawn = latency_figures.reduction_by_hop(hops, 0.432, "title").axes[0]
    assert 0.432 in [line.get_ydata()[0] for line in drawn.lines]
    plt.close("all")
