"""The cascade: each channel and feature by hand, rankers against their formulas, no look at the day to predict."""

from dataclasses import fields, replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import torch

from onesug_lite import cascade_training
from onesug_lite.cascade import Cascade, Stages, survival
from onesug_lite.cascade_training import train_cascade
from onesug_lite.encoder import load_encoder
from onesug_lite.features import (
    CHANNELS,
    COLUMNS,
    FEATURES,
    ONLINE,
    CascadeConfig,
    Features,
    Requests,
    Tally,
    tokenise,
)
from onesug_lite.log import CLICKS, clicked
from onesug_lite.metrics import ranks, reciprocal_rank
from onesug_lite.pairs import mine_pairs
from onesug_lite.rankers import DCN, DIN, Attention, CrossLayer, batch_of, fit, log_loss
from onesug_lite.recall import Recall

SMALL = CascadeConfig(prerank_requests=3_000, rank_negatives=8, batch_size=64, warmup=0.25)


# ---------------------------------------------------------------- by hand
class Letters:
    """Stands for a tokeniser: the number of each letter, blanks left out."""

    def __len__(self):
        return 27

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) - ord("a") for letter in text if letter != " "] for text in texts]}


POOL = ["apple", "apple juice", "grape", "green apple", "pear"]
PREFIXES = ["ap", "appl", "gr", "pea"]
CLICKED = pl.DataFrame(
    [("ap", "apple", 3), ("ap", "green apple", 1), ("appl", "apple juice", 2), ("gr", "grape", 4), ("pea", "pear", 1)],
    schema={"prefix": pl.String, "query": pl.String, "clicks": pl.Int64},
    orient="row",
)
RELATED = pl.DataFrame({"query_a": ["apple", "grape"], "query_b": ["apple juice", "pear"], "score": [0.5, 0.25]})
# One axis a query; a prefix points at a query, "ap" between two.
VECTORS = np.eye(5, dtype=np.float32)
PREFIX_VECTORS = np.array([[0.8, 0.6, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=np.float32)


def requests(*rows, day=1):
    """Requests of (prefix, history, profile), as :meth:`Cascade.encode` makes them, over the pool above."""
    others = list(dict.fromkeys(text for prefix, *lists in rows for text in [prefix, *sum(lists, [])]))
    others = [text for text in others if text not in POOL]
    number = {text: at for at, text in enumerate([*POOL, *others])}

    def table(lists, width):
        return np.array([[number[text] for text in some] + [-1] * (width - len(some)) for some in lists])

    code = np.array([PREFIXES.index(prefix) if prefix in PREFIXES else -1 for prefix, *_ in rows])
    return Requests(
        [prefix for prefix, *_ in rows],
        code,
        np.where(code[:, None] >= 0, PREFIX_VECTORS[code], VECTORS[4]),
        np.full(len(rows), day),
        torch.from_numpy(tokenise(Letters(), [*POOL, *others, ""], 12)),
        np.array([number[prefix] for prefix, *_ in rows]),
        table([history for _, history, _ in rows], 3),
        table([profile for *_, profile in rows], 2),
    )


def recall(**changes):
    return Recall(POOL, VECTORS, PREFIXES, PREFIX_VECTORS, CLICKED, RELATED, replace(CascadeConfig(), **changes))


def recalled(channel, row):
    return [POOL[number] for number in recall().channel(channel, requests(row))[0]]


def test_embedding_channel_pools_clicked_queries():
    # "ap": (0.8, 0.6) + 2/3 apple + 1/3 green apple, for log2(1 + 3) = 2 and log2(1 + 1) = 1
    pooled = np.array([0.8 + 2 / 3, 0.6, 0, 1 / 3, 0])
    assert np.allclose(recall()._pooled[0], pooled / np.linalg.norm(pooled), atol=1e-6)
    assert recalled("embedding", ("ap", [], []))[:3] == ["apple", "apple juice", "green apple"]
    assert recalled("embedding", ("new", [], []))[0] == "pear"  # its own embedding, no clicks to pool


def test_completion_channel():
    assert recalled("completion", ("gr", [], []))[:2] == ["grape", "green apple"]


def test_cooccurrence_channel_adds_partners():
    # clicked: apple 3, green apple 1; partner of apple: apple juice 3 * 0.5
    assert recalled("cooccurrence", ("ap", [], [])) == ["apple", "apple juice", "green apple"]
    assert recalled("cooccurrence", ("zz", [], [])) == []


def test_history_channel_follows_what_is_typed():
    assert recalled("history", ("ap", ["apple", "grape"], [])) == ["apple", "apple juice"]
    assert recalled("history", ("pe", ["apple", "grape"], [])) == ["pear"]  # a partner of grape
    assert recalled("history", ("ap", ["apricot"], [])) == []  # not in the pool


@pytest.mark.parametrize("typed", ["apl", "apppl", "appk", "aplp"])
def test_spelling_channel_is_one_edit_away(typed):
    assert recalled("spelling", (typed, [], [])) == ["apple juice"]


# itself; two edits, though a deletion on both sides makes them alike; too short; near to one too short
@pytest.mark.parametrize("typed", ["appl", "alpp", "plap", "ap", "grx"])
def test_spelling_channel_goes_no_further(typed):
    assert recalled("spelling", (typed, [], [])) == []


def test_channels_take_turns():
    config = {"channels": ("embedding", "completion", "spelling"), "recalled": 4, "preranked": 4, "results": 4}
    found = recall(**config)(requests(("gr", [], []), ("qqq", [], [])))
    # embedding: grape, then in order of the pool; completion: grape, green apple, ...; spelling: nothing
    assert [POOL[number] for number in found[0]] == ["grape", "apple", "green apple", "apple juice"]
    assert (found >= 0).all() and all(len(set(row)) == 4 for row in found.tolist())
    few = recall(channels=("cooccurrence",))(requests(("pea", [], []), ("qqq", [], [])))
    assert few[0, :3].tolist() == [4, 2, -1] and (few[1] == -1).all()


@pytest.mark.parametrize("last", [None, 1, 3])
def test_tally_equals_a_loop(last):
    rng = np.random.default_rng(0)
    keys, days, clicks = rng.integers(0, 6, 300), rng.integers(0, 8, 300), rng.integers(0, 2, 300)
    tally = Tally.count(keys, days, clicks, span=9)
    asked, day = rng.integers(-1, 8, (40, 3)), rng.integers(0, 9, (40, 1))
    shown, hits = tally.before(asked, day, last)
    for place in np.ndindex(asked.shape):
        until = day[place[0], 0]
        since = 0 if last is None else until - last
        rows = (keys == asked[place]) & (days < until) & (days >= since)
        assert (shown[place], hits[place]) == (rows.sum(), clicks[rows].sum())


def features():
    #           apple apple apple grape apple
    keys = np.array([0, 0, 0, 2, 0])
    days, clicks = np.array([0, 0, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    codes = np.array([0, 0, 1, 2, 0])  # under ap, ap, appl, gr, ap
    tallies = [Tally.count(k, days, clicks, span=3) for k in (keys, codes * len(POOL) + keys)]
    return Features(POOL, VECTORS, tokenise(Letters(), POOL, 12), 28, *tallies, CascadeConfig(prior=2.0, recent=1))


def columns(group, row, query, day=1):
    values = features()(requests(row, day=day), np.array([[POOL.index(query)]]), [group])[0, 0]
    return dict(zip(COLUMNS[group], values.tolist(), strict=True))


def test_text_features_by_hand():
    found = columns("text", ("ap", [], []), "green apple")
    # " ap" has the grams " a", "ap", " ap", and " green apple" holds all of them
    assert found["starts"] == 0 and found["word starts"] == 1 and found["shared n-grams"] == 1
    assert found["cosine"] == 0 and found["query length"] == pytest.approx(np.log(12))
    found = columns("text", ("ap", [], []), "pear")
    assert found["starts"] == found["word starts"] == found["shared n-grams"] == 0
    assert columns("text", ("ap", [], []), "apple")["cosine"] == pytest.approx(0.8)


def test_statistics_by_hand():
    row = ("ap", [], [])
    assert columns("counts", row, "apple") == pytest.approx(
        {"query clicks": np.log(2), "pair clicks": np.log(2)}, abs=1e-6
    )
    assert columns("counts", row, "apple", day=0) == {"query clicks": 0, "pair clicks": 0}
    assert columns("recency", row, "apple", day=2)["recent query clicks"] == pytest.approx(np.log(2))
    assert columns("counts", row, "apple", day=2)["query clicks"] == pytest.approx(np.log(3))
    overall = (2 + 1) / (4 + 20)
    of_query = (1 + 2 * overall) / (3 + 2)
    of_pair = (1 + 2 * of_query) / (2 + 2)
    found = columns("ctr", row, "apple")
    assert found["query click rate"] == pytest.approx(np.log(of_query / overall), abs=1e-6)
    assert found["pair click rate"] == pytest.approx(np.log(of_pair / of_query), abs=1e-6)
    assert found["pair impressions"] == pytest.approx(np.log(3))
    # what was never shown under the prefix has the rate of the query: no evidence, no opinion
    assert columns("ctr", ("zz", [], []), "apple")["pair click rate"] == 0
    assert columns("ctr", row, "pear")["query click rate"] == 0


def test_features_of_the_shopper_by_hand():
    row = ("ap", ["grape", "apple"], ["ae"])
    assert columns("history", row, "apple") == {"searched before": 1, "nearest search": 1, "latest search": 0}
    assert columns("history", row, "grape") == {"searched before": 1, "nearest search": 1, "latest search": 1}
    assert columns("history", ("ap", [], []), "grape") == dict.fromkeys(COLUMNS["history"], 0)
    assert columns("profile", row, "pear")["named by profile"] == 0.5  # e and a of p, e, a, r
    assert columns("profile", ("ap", [], []), "pear")["named by profile"] == 0


def test_missing_candidates_have_no_features_and_columns_are_complete():
    table = features()(requests(("ap", ["apple"], ["ae"])), np.array([[0, -1]]), FEATURES)
    assert table.shape[2] == Features.width(FEATURES) == sum(map(len, COLUMNS.values()))
    assert table[0, 0].any() and not table[0, 1].any()


# ---------------------------------------------------------------- rankers
def test_cross_layer_by_hand():
    layer = CrossLayer(2)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        layer.linear.bias.copy_(torch.tensor([1.0, -1.0]))
    # W x + b = (3 + 8 + 1, 4 - 1) = (12, 3); times (1, 2); plus (3, 4)
    assert layer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).tolist() == [15.0, 10.0]


def test_log_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0, -50.0], [-1.0, 50.0, 50.0]])
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    real = torch.tensor([[True, True, False], [True, False, False]])
    expected = (np.log(2) + np.log1p(np.exp(2)) + np.log1p(np.exp(-1))) / 3
    assert log_loss(logits, labels, real).item() == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(dim=4, hidden=6)


def test_attention_equals_the_perceptron_of_din(attention):
    candidate, history = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    present = torch.tensor([[True] * 5, [True, True, False, False, True]])
    found = attention(candidate, history, present)
    for row in range(2):
        for place in range(3):
            expected = torch.zeros(4)
            for h, real in zip(history[row], present[row], strict=True):
                c = candidate[row, place]
                # over (h, c, h - c, h * c), with weights of the difference that cancel out
                weights = torch.cat(
                    [
                        attention.search.weight - 0.3,
                        attention.candidate.weight + 0.3,
                        torch.full((6, 4), 0.3),
                        attention.product.weight,
                    ],
                    dim=1,
                )
                hidden = weights @ torch.cat([h, c, h - c, h * c]) + attention.candidate.bias
                expected += real * attention.weight(hidden) * h
            assert torch.allclose(found[row, place], expected, atol=1e-5)


def test_attention_ignores_padding_and_order_and_sums(attention):
    candidate, history = torch.randn(1, 2, 4), torch.randn(1, 5, 4)
    present = torch.tensor([[True, True, True, False, False]])
    found = attention(candidate, history, present)
    other = history.clone()
    other[:, 3:] = 1e3
    assert torch.equal(attention(candidate, other, present), found)
    order = torch.tensor([2, 0, 4, 1, 3])
    assert torch.allclose(attention(candidate, history[:, order], present[:, order]), found, atol=1e-6)
    assert not torch.allclose(found[0, 0], found[0, 1])  # each candidate sees an interest of its own
    twice = attention(candidate, history[:, [0, 1, 2, 0, 1, 2]], torch.ones(1, 6, dtype=torch.bool))
    assert torch.allclose(twice, 2 * found, atol=1e-5)  # not normalised: more of the same is more
    nothing = attention(candidate, history, torch.zeros(1, 5, dtype=torch.bool))
    assert not nothing.any()


def models(config=None):
    config = config or CascadeConfig(**ONLINE)
    torch.manual_seed(0)
    cheap = [group for group in ("text", "counts", "ctr", "recency") if group in config.features]
    return DCN(Features.width(cheap), 28, len(POOL), config), DIN(Features.width(config.features), 28, 5, config), cheap


def example(groups, position=None):
    rows = requests(("ap", ["grape", "apple"], ["ae", "pr"]), ("gr", [], []), ("zz", ["apricot"], []))
    candidates = np.array([[0, 1, 2], [2, 3, -1], [4, 0, -1]])
    return batch_of(rows, candidates, features()(rows, candidates, groups), position)


def test_every_parameter_gets_a_gradient():
    dcn, din, cheap = models()
    with torch.no_grad():
        din.crosses.weight.normal_()  # zero weights would be no hindrance, but say so by a number
    position = np.arange(1, 10).reshape(3, 3)
    for model, batch in ((dcn, example(cheap)), (din, example(FEATURES, position))):
        real = batch.candidates >= 0
        labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
        log_loss(model(batch), labels, real).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_padding_does_not_reach_a_score():
    for model, groups in zip(models()[:2], (models()[2], FEATURES), strict=True):
        batch = example(groups)
        found = model(batch)
        narrow = batch._replace(
            candidates=batch.candidates[:, :2], numeric=batch.numeric[:, :2], position=batch.position[:, :2]
        )
        assert torch.allclose(model(narrow), found[:, :2], atol=1e-6)
        if isinstance(model, DIN):
            longer = batch._replace(
                history=torch.nn.functional.pad(batch.history, (0, 2), value=-1),
                profile=torch.nn.functional.pad(batch.profile, (0, 3), value=-1),
            )
            assert torch.allclose(model(longer), found, atol=1e-6)


def test_a_better_place_adds_the_same_to_every_query():
    _, din, _ = models()
    with torch.no_grad():
        din.position.weight.copy_(torch.linspace(1, -1, 16)[:, None])
    top = din(example(FEATURES))
    third = din(example(FEATURES, np.full((3, 3), 3)))
    assert torch.allclose(top - third, (din.position.weight[0] - din.position.weight[2]).expand(3, 3), atol=1e-6)
    assert models(CascadeConfig())[1].position is None


def test_crosses_tell_profiles_apart():
    _, din, _ = models()
    with torch.no_grad():
        din.crosses.weight.normal_()
    weights = din._crosses(example(FEATURES))
    assert weights[0].unique().numel() == 3  # another sum for each query
    assert not weights[1:].any()  # no profile, no crosses


def test_fit_learns_which_of_two_is_clicked():
    dcn, _, cheap = models()
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    config = CascadeConfig(learning_rate=0.02)
    history = fit(dcn, example(cheap), labels, 60, config, np.random.default_rng(0))
    assert history["loss"][-1] < 0.1 < history["loss"][0]
    assert not dcn.training and (dcn(example(cheap)).argmax(dim=1) == 0).all()


# ---------------------------------------------------------------- the whole, at smoke size
@pytest.fixture(scope="module")
def encoder(road):
    return load_encoder(road.align_folder / "encoder")


@pytest.fixture(scope="module", params=["mca", "online"])
def cascade(request, road, encoder):
    config = replace(SMALL, **ONLINE) if request.param == "online" else SMALL
    return train_cascade(road.split.train, road.pairs, encoder, config, np.random.default_rng(0))


@pytest.fixture(scope="module")
def stages(cascade, road):
    return cascade.stages(road.held_out())


def test_every_parameter_moved(cascade):
    by_query, by_pair = cascade.features.by_query, cascade.features.by_pair
    seed = int(np.random.default_rng(0).integers(2**31))
    start = Cascade(cascade.recall, by_query, by_pair, cascade.tokenizer, cascade.config, cascade.encoder, seed)
    for name in ("dcn", "din"):
        before, after = (getattr(some, name).state_dict() for some in (start, cascade))
        assert [key for key, value in after.items() if torch.equal(value, before[key])] == []


def test_losses_fall(cascade):
    for stage in ("dcn", "din"):
        losses = cascade.losses.filter(pl.col("stage") == stage)["loss"].to_list()
        assert losses[-1] < 0.7 * losses[0]


def test_each_stage_takes_from_the_one_before(cascade, stages, road):
    config = cascade.config
    for later, earlier, kept in (
        (stages.ranked, stages.preranked, config.results),
        (stages.preranked, stages.recalled, config.preranked),
        (stages.recalled, [cascade.queries] * len(stages.recalled), config.recalled),
    ):
        for row, before in zip(later, earlier, strict=True):
            assert len(row) == min(kept, len(before)) == len(set(row)) and set(row) <= set(before)
    for scores in stages.scores:
        assert scores == sorted(scores, reverse=True) and min(scores) > 0 and max(scores) < 1
    table = survival(stages, road.held_out()["query"].to_list())
    assert table["reached"].to_list() == sorted(table["reached"], reverse=True)
    assert table["lost"].sum() + table["reached"][-1] == pytest.approx(1)


def test_survival_by_hand():
    stages = Stages([["a", "b", "c"], ["a", "b"]], [["b", "c"], ["a"]], [["c"], ["a"]], [[0.1], [0.1]])
    found = survival(stages, ["b", "x"])
    assert found.rows() == [("recall", 3, 0.5, 0.5), ("pre-rank", 2, 0.5, 0.0), ("rank", 1, 0.0, 0.5)]


def test_beats_a_random_order_of_the_recalled(cascade, road):
    rows = road.training_clicks.tail(300)
    stages, targets = cascade.stages(rows), rows["query"].to_list()
    rng = np.random.default_rng(0)
    shuffled = [[row[at] for at in rng.permutation(len(row))[:16]] for row in stages.recalled]
    by_chance, ranked = (reciprocal_rank(ranks(lists, targets)).mean() for lists in (shuffled, stages.ranked))
    assert ranked > by_chance + 0.2


@pytest.mark.parametrize(
    "prefix", ["zzq x", "", "   ", "a" * 10_000, "</s><pad>[SEP]", "苹果", "🦄", "a\x00b", "APPLE  "]
)
def test_odd_requests_get_a_list(cascade, prefix):
    bare = pl.DataFrame({"prefix": [prefix, prefix]})
    null = bare.with_columns(**{name: pl.lit(None, dtype=pl.List(pl.String)) for name in ("history", "profile")})
    answers = cascade(bare)
    assert answers == cascade(null) and len(answers[0]) == len(set(answers[0])) == 16
    assert set(answers[0]) <= set(cascade.queries)
    strange = cascade.suggest(prefix, history=["[SEP]", "🦄" * 500, ""] * 9, profile=["", "</s>"] * 9)
    assert len({query for query, _ in strange}) == 16


def test_no_request_no_answer(cascade):
    assert cascade(pl.DataFrame({"prefix": []}, schema={"prefix": pl.String})) == []


def test_texts_are_cleaned(cascade):
    typed, meant = (("ＡＰＰ ", "  GREEN Tea"), ("app", "green tea"))
    assert cascade.suggest(typed[0], [typed[1]], [typed[1]]) == cascade.suggest(meant[0], [meant[1]], [meant[1]])


def test_a_request_is_answered_alike_alone_and_among_others(cascade, road):
    rows = road.held_out().head(40)
    together = cascade(rows)
    assert [cascade(rows[at : at + 1])[0] for at in range(len(rows))] == together


def test_history_matters_to_both(cascade, road):
    rows = road.held_out().head(40)
    assert cascade(rows) != cascade(rows.drop("history"))


def test_saved_cascade_answers_alike(cascade, stages, road, tmp_path):
    cascade.save(tmp_path / "kept")
    again = Cascade.load(tmp_path / "kept")
    assert again.config == cascade.config and again.losses.equals(cascade.losses)
    known = road.held_out().filter(pl.col("prefix").is_in(cascade.recall.prefixes))
    assert again(known) == cascade(known)
    assert "encoder" not in vars(again)  # nothing new, so nothing to embed
    assert again.stages(road.held_out()) == stages
    again.save(tmp_path / "kept")  # over itself
    assert Cascade.load(tmp_path / "kept").suggest("zzq x") == cascade.suggest("zzq x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert not [path.name for path in (tmp_path / "kept").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
    with pytest.raises(FileNotFoundError, match="holds no cascade"):
        Cascade.load(tmp_path / "nothing")


@pytest.mark.parametrize("cascade", ["online"], indirect=True)
def test_one_seed_one_cascade(cascade, stages, road, encoder):
    state = torch.get_rng_state()
    again = train_cascade(road.split.train, road.pairs, encoder, cascade.config, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert again.stages(road.held_out()) == stages and again.losses.equals(cascade.losses)


# ---------------------------------------------------------------- no look ahead
def test_pairs_of_later_days_are_caught(road, encoder):
    train, test = road.split.train, road.split.test
    whole = train._replace(
        requests=pl.concat([train.requests, test.requests]), candidates=pl.concat([train.candidates, test.candidates])
    )
    with pytest.raises(ValueError, match="clicks that the training days do not.*hold the answers"):
        train_cascade(train, mine_pairs(whole, road.sizes.pairs), encoder, SMALL, np.random.default_rng(0))


def test_a_query_planted_in_the_test_days_is_unknown(cascade, road):
    new = clicked(road.split.test)["query"].unique()
    new = new.filter(~new.is_in(road.split.train.candidates["query"].implode()))
    assert len(new), "the market launches queries on the test days"
    assert not set(new) & set(cascade.queries)
    assert not set(road.split.test.requests["request_id"]) & set(road.split.train.requests["request_id"])


def learnt(log, road, encoder):
    """What the two rankers would be trained on: batch and labels, by model."""
    seen = {}

    def fit(model, batch, labels, *_):
        seen[type(model).__name__] = (batch, labels)
        return pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})

    # negatives are drawn from recall, which knows all days, so that none may be drawn here
    config = replace(SMALL, **ONLINE, prerank_requests=10**6, hard_negatives=0, rank_negatives=0)
    none = pl.DataFrame(schema=road.pairs.prefix_query.schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade_training, "fit", fit)
        train_cascade(log, road.pairs._replace(prefix_query=none), encoder, config, np.random.default_rng(0))
    return seen


@pytest.fixture(scope="module")
def plain(road, encoder):
    return learnt(road.split.train, road, encoder)


def test_no_row_is_described_by_clicks_of_its_own_day(plain, road, encoder):
    train = road.split.train
    last = train.requests["time"].dt.date().max()
    late = train.requests.filter(pl.col("time").dt.date() == last)["request_id"]
    earlier = train.requests.filter(pl.col("time").dt.date() == last - timedelta(days=1))["request_id"]
    requests = len(train.requests)

    def clicked_on(ids):
        """The log as it would be if every query shown in some requests had been clicked."""
        click = pl.col("request_id").is_in(ids.implode()) & (pl.col("behaviour") == "show")
        behaviour = pl.when(click).then(pl.lit("query_click")).otherwise(pl.col("behaviour"))
        return train._replace(candidates=train.candidates.with_columns(behaviour=behaviour))

    today = learnt(clicked_on(late), road, encoder)
    assert torch.equal(today["DCN"][0].candidates, plain["DCN"][0].candidates)
    assert torch.equal(today["DCN"][0].numeric, plain["DCN"][0].numeric)  # not one number of any row has changed
    assert today["DIN"][1].sum() > plain["DIN"][1].sum()  # though the labels have
    yesterday = learnt(clicked_on(earlier), road, encoder)
    changed = (yesterday["DCN"][0].numeric != plain["DCN"][0].numeric).any(dim=2).any(dim=1)
    assert changed[-len(late) :].all() and not changed[: -len(late)].any()  # the day after knows, no other does
    assert requests > len(changed) > 0.7 * requests  # the first days only feed the statistics


def test_din_learns_from_lists_with_a_click(plain, road):
    batch, labels = plain["DIN"]
    real = batch.candidates >= 0
    assert (labels[real.logical_not()] == 0).all() and (labels.sum(dim=1) >= 1).all()
    assert (batch.position[real] >= 1).all() and batch.position.max() == 16
    shown = road.split.train.candidates.filter(pl.col("behaviour").is_in(CLICKS).any().over("request_id"))
    places = batch.position[labels == 1].numpy()
    top = shown.filter(pl.col("behaviour").is_in(CLICKS))["position"].to_numpy()
    assert abs((places == 1).mean() - (top == 1).mean()) < 0.05  # the places are those of the log


def test_a_log_without_clicks_after_the_warm_up_is_refused(road, encoder):
    train = road.split.train
    days = train.requests["time"].dt.date()
    late = train.requests.filter(days >= days.min() + timedelta(days=3))["request_id"].implode()
    behaviour = pl.when(pl.col("request_id").is_in(late) & pl.col("position").is_not_null()).then(pl.lit("show"))
    silent = train._replace(
        candidates=train.candidates.with_columns(behaviour=behaviour.otherwise(pl.col("behaviour")))
    )
    pairs = mine_pairs(silent, road.sizes.pairs)
    with pytest.raises(ValueError, match="no list after the warm-up days holds a click"):
        train_cascade(silent, pairs, encoder, SMALL, np.random.default_rng(0))


# ---------------------------------------------------------------- settings
def test_online_has_all_channels_and_features():
    online = replace(CascadeConfig(), **ONLINE)
    assert online.channels == CHANNELS and online.features == FEATURES
    changed = {field.name for field in fields(online) if getattr(online, field.name) != field.default}
    assert changed == {"channels", "features"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "channels is \\(\\); expected one or more of embedding"),
        ({"channels": ("telepathy",)}, "channels is .*telepathy"),
        ({"features": ("text", "text")}, "features is"),
        ({"features": ("history",)}, "DCN needs one of text"),
        ({"preranked": 300}, "keeps 200, then 300"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"dim": 0}, "dim is 0; expected more than 0"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        CascadeConfig(**changes)
