"""Training on preferences: every recipe, resumption, what a row counts, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from onesug_lite.batches import collate
from onesug_lite.generator import GeneratorConfig, build_generator
from onesug_lite.preference import PreferenceConfig, candidate_log_probs, example_weights, train_preference
from onesug_lite.prompt import PromptConfig, build_prompts, encode_queries
from onesug_lite.reward import PreferenceSets
from onesug_lite.tokenizer import train_tokenizer
from onesug_lite.training import Examples, TrainConfig, train_supervised
from onesug_lite.trie import Trie

QUERIES = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("shoe", "shirt", "scarf", "hat")]
PROMPT = PromptConfig(vocab_size=300, pooled=False)
CONFIG = PreferenceConfig(steps=30, batch_size=8, learning_rate=2e-3, warmup=2, log_every=10, save_every=10, bf16=False)


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread does not help models this small, and hurts when tests run beside each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(QUERIES, PROMPT)


@pytest.fixture
def model(tokenizer):
    shape = GeneratorConfig(d_model=32, encoder_layers=1, decoder_layers=1, heads=2, ffn=64, dropout=0.3)
    return build_generator(shape, tokenizer, seed=0)


@pytest.fixture(scope="module")
def data(tokenizer):
    """40 rows: a query with up to two characters missing, that query chosen, four others rejected."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        order = rng.permutation(len(QUERIES))
        rows.append((QUERIES[order[0]], [QUERIES[other] for other in order[1:5]], [2.0, 1.25, 1.0, 2.0]))
    frame = pl.DataFrame(rows, schema=["chosen", "rejected", "weight"], orient="row")
    prefixes = [chosen[: len(chosen) - number % 3] for number, chosen in enumerate(frame["chosen"])]
    prompts = build_prompts(tokenizer, prefixes, None, None, None, PROMPT)
    return PreferenceSets(frame, 0.1), prompts


@pytest.fixture(scope="module")
def trie(tokenizer):
    return Trie(encode_queries(tokenizer, QUERIES, PROMPT), len(tokenizer))


@pytest.fixture(scope="module")
def logged(data):
    """The rows with what a log adds to them."""
    behaviour = pl.Series(["order", "item_click", "query_click", "query_click"] * 10)
    rows = data[0].rows.with_columns(chosen_behaviour=behaviour, propensity=pl.Series([0.5, 0.9, 0.01, 0.9] * 10))
    return PreferenceSets(rows, 0.1), data[1]


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_candidates_are_scored_as_one_by_one(model, tokenizer, data):
    """The prompt is encoded once for all queries; padding of neighbours changes nothing."""
    sets, prompts = data
    rows = [[chosen, *rejected] for chosen, rejected in sets.rows.select("chosen", "rejected").head(3).iter_rows()]
    flat = encode_queries(tokenizer, [query for row in rows for query in row], PROMPT)
    batch = collate(prompts[:3], flat, tokenizer.pad_token_id)
    with torch.no_grad():
        together = candidate_log_probs(model, **batch)
        assert together.shape == (3, 5)
        for number, row in enumerate(rows):
            for place, ids in enumerate(encode_queries(tokenizer, row, PROMPT)):
                labels = torch.tensor([ids])
                logits = model(input_ids=torch.tensor([prompts[number]]), labels=labels).logits
                alone = F.log_softmax(logits, -1).gather(2, labels[..., None]).sum()
                assert together[number, place].item() == pytest.approx(alone.item(), abs=1e-4)


def test_training_moves_every_parameter_and_ranks_the_chosen_first(model, tokenizer, data, tmp_path):
    before = weights(model)
    config = replace(CONFIG, hinge="none", alpha=0.1, steps=60, learning_rate=5e-3)
    result = train_preference(model, *data, tokenizer, config, 0, tmp_path / "work")
    unmoved = [name for name, value in result.model.named_parameters() if torch.equal(value, before[name])]
    assert not unmoved
    history = result.history
    assert {"step", "loss", "chosen_log_ratio", "margin", "sft_nll", "accuracy"} <= set(history.columns)
    assert history["step"].to_list() == list(range(10, 61, 10))
    assert history["margin"][-1] > 0 and history["margin"][-1] > history["margin"][0] + 0.3
    assert history["preference"][-1] < history["preference"][0] - 0.1
    assert history["accuracy"][-1] > 0.7
    assert not result.model.training and not (tmp_path / "work").exists()
    expected = history["preference"] + 0.1 * history["sft_nll"]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-3)


def test_training_starts_where_policy_and_reference_agree(model, tokenizer, data, tmp_path):
    """Dropout of 0.3 would show here: before the first update every log-ratio is 0."""
    config = replace(CONFIG, steps=1, log_every=1, hinge="none")
    history = train_preference(model, *data, tokenizer, config, 0, tmp_path).history
    assert abs(history["chosen_log_ratio"][0]) < 1e-4 and abs(history["rejected_log_ratio"][0]) < 1e-4
    # every lead is 0, which leaves softplus(log 4); a row compared with another's reference would raise it
    assert history["preference"][0] == pytest.approx(math.log(1 + 4), abs=1e-4)


def test_with_the_anchor_alone_it_is_supervised_training(model, tokenizer, data, tmp_path):
    """The first steps of loss="supervised" follow train_supervised up to its loss per token."""
    sets, prompts = data
    config = replace(CONFIG, loss="supervised", alpha=1.0, max_grad_norm=1e-3)
    history = train_preference(model, *data, tokenizer, config, 0, tmp_path / "a").history
    assert history["sft_nll"][-1] < history["sft_nll"][0] - 1
    np.testing.assert_allclose(history["loss"], history["sft_nll"], rtol=1e-4)
    examples = Examples(prompts, encode_queries(tokenizer, sets.rows["chosen"].to_list(), PROMPT))
    shape = GeneratorConfig(d_model=32, encoder_layers=1, decoder_layers=1, heads=2, ffn=64, dropout=0.0)
    other = build_generator(shape, tokenizer, seed=0)
    names = {"steps", "batch_size", "learning_rate", "warmup", "bf16", "log_every", "max_grad_norm"}
    control = TrainConfig(**{name: getattr(config, name) for name in sorted(names)})
    theirs = train_supervised(other, examples, control, 0, tmp_path / "b").history
    # nats a query over nats a token: their quotient is the mean number of tokens, the same all along
    tokens = history["sft_nll"] / theirs["loss"]
    assert tokens.to_list() == pytest.approx([tokens[0]] * len(tokens), rel=0.02)


@pytest.mark.parametrize("loss, hinge", [("listwise", "violated"), ("pairwise", "printed")])
def test_every_form_trains(model, tokenizer, data, tmp_path, loss, hinge):
    history = train_preference(
        model, *data, tokenizer, replace(CONFIG, loss=loss, hinge=hinge), 0, tmp_path / "work"
    ).history
    assert np.isfinite(history.to_numpy()).all()
    assert history["sft_nll"][-1] < history["sft_nll"][0]


@pytest.mark.parametrize("changes", [{}, {"reference": False, "known": True, "example_weight": "level"}])
def test_an_interrupted_run_goes_on_to_the_same_bytes(model, tokenizer, logged, trie, tmp_path, monkeypatch, changes):
    import onesug_lite.preference as preference

    config = replace(CONFIG, **changes)

    def train(work):
        return train_preference(model, *logged, tokenizer, config, 0, tmp_path / work, PROMPT, trie)

    start = weights(model)
    whole = train("whole")
    wanted, history = weights(whole.model), whole.history
    model.load_state_dict(start)

    scored, calls = preference.candidate_log_probs, []

    def interrupt(model, *tensors, **named):
        calls.append(torch.is_grad_enabled())
        if sum(calls) == 18:  # the eighteenth training step; reference batches have no gradient
            raise KeyboardInterrupt
        return scored(model, *tensors, **named)

    monkeypatch.setattr(preference, "candidate_log_probs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("work")
    monkeypatch.undo()
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())
    assert (tmp_path / "work" / "checkpoint-10").is_dir()

    resumed = train("work")
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed.model).items())
    assert resumed.history.equals(history)
    assert not (tmp_path / "work").exists()


def test_bad_input_is_named(model, tokenizer, data, tmp_path):
    sets, prompts = data
    with pytest.raises(ValueError, match="39 prompts and 40 preference rows"):
        train_preference(model, sets, prompts[1:], tokenizer, CONFIG, 0, tmp_path)
    with pytest.raises(ValueError, match="no preference rows"):
        train_preference(model, PreferenceSets(sets.rows[:0], 0.1), [], tokenizer, CONFIG, 0, tmp_path)
    uneven = sets.rows.with_columns(
        rejected=pl.when(pl.int_range(pl.len()) == 0).then(pl.col("rejected").list.head(2)).otherwise("rejected")
    )
    with pytest.raises(ValueError, match=r"\[2, 4\] rejected"):
        train_preference(model, PreferenceSets(uneven, 0.1), prompts, tokenizer, CONFIG, 0, tmp_path)
    with pytest.raises(ValueError, match="positions"):
        train_preference(model, sets, [[5] * 500] * len(prompts), tokenizer, CONFIG, 0, tmp_path)


# ---------------------------------------------------------------- what else a row of settings can ask for
def test_example_weights_by_hand():
    rows = pl.DataFrame({"chosen_behaviour": ["order", "item_click", "query_click"], "propensity": [0.001, 0.5, 1.0]})
    level = example_weights(rows, PreferenceConfig(example_weight="level"))
    assert level / level[2] == pytest.approx([math.exp(2), math.e, 1]) and level.mean() == pytest.approx(1)
    inverse = example_weights(rows, PreferenceConfig(example_weight="propensity", clip=30.0))
    assert inverse / inverse[2] == pytest.approx([30, 2, 1]) and inverse.mean() == pytest.approx(1)
    assert example_weights(rows, PreferenceConfig()).tolist() == [1, 1, 1]
    for lacking in (rows.drop("propensity"), rows.with_columns(propensity=pl.lit(None, dtype=pl.Float64))):
        with pytest.raises(ValueError, match="3 of 3 clicks have none"):
            example_weights(lacking, PreferenceConfig(example_weight="propensity"))


def test_inverse_propensity_finds_what_is_liked_wherever_it_was_shown():
    """Expected weight of each query's clicks under a policy that hides what is liked most, worked out exactly."""
    liking, reading = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.6, 0.3, 0.1])
    place = 0.8 * np.eye(4) + 0.2 / 4  # (query, place): mostly the worst first, one list in five in random order
    clicks = liking[:, None] * reading * place  # expected clicks of a request
    rows = pl.DataFrame({"propensity": place.ravel()})
    config = PreferenceConfig(example_weight="propensity")
    found = (clicks * example_weights(rows, config).reshape(4, 4)).sum(axis=1)
    assert found / found.sum() == pytest.approx(liking, rel=1e-5)
    assert clicks.sum(axis=1).argmax() != liking.argmax()  # as logged, the order is another
    clipped = example_weights(rows, replace(config, clip=2.0)).reshape(4, 4)
    assert clipped.max() / clipped.min() == pytest.approx(2 * place.max(), rel=1e-5)


LISTED = {"reference": False, "hinge": "none", "beta": 1.0, "reward_weights": False, "alpha": 0.0}
RECIPES = {
    "plain DPO": {"loss": "pairwise", "hinge": "none", "reward_weights": False, "alpha": 0.0},
    "pair-wise, printed": {"loss": "pairwise", "hinge": "printed"},
    "pair-wise, violated": {"loss": "pairwise"},
    "pair-wise, violated, unweighted": {"loss": "pairwise", "reward_weights": False},
    "list-wise": {"delta": -0.5},
    "list-wise, unweighted": {"delta": -0.5, "reward_weights": False},
    "without reference": {"reference": False, "beta": 1.0, "delta": 0.0},
    "without reference, known": {"reference": False, "known": True, "beta": 1.0, "delta": 0.0},
    "list-wise, known": {"known": True, "delta": -0.5},
    "length-normalised": {"length_normalised": True, "delta": -0.5},
    "cross-entropy by level": LISTED | {"example_weight": "level"},
    "likelihood by level": {"loss": "supervised", "example_weight": "level"},
    "likelihood by propensity": {"loss": "supervised", "example_weight": "propensity"},
}
WATCHED = {"accuracy", "chosen_log_ratio", "margin", "preference", "rejected_log_ratio", "sft_nll"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(model, tokenizer, logged, trie, tmp_path, recipe):
    before = weights(model)
    config = replace(CONFIG, steps=6, log_every=2, **RECIPES[recipe])
    result = train_preference(model, *logged, tokenizer, config, 0, tmp_path / "work", PROMPT, trie)
    assert result.history.height == 3 and np.isfinite(result.history.to_numpy()).all()
    watched = {"sft_nll"} if config.loss == "supervised" else WATCHED
    assert set(result.history.columns) == {"step", "loss"} | watched
    assert any(not torch.equal(value, before[name]) for name, value in result.model.named_parameters())


def test_without_a_reference_no_model_is_run_for_one(model, tokenizer, logged, tmp_path, monkeypatch):
    import onesug_lite.preference as preference

    monkeypatch.setattr(preference, "_reference", lambda *arguments: pytest.fail("a reference was computed"))
    config = replace(CONFIG, steps=2, log_every=1, **LISTED)
    history = train_preference(model, *logged, tokenizer, config, 0, tmp_path).history
    # the scores are log-probabilities: the chosen queries' own, and those of others
    assert history["chosen_log_ratio"].to_list() == pytest.approx((-history["sft_nll"]).to_list(), abs=1e-4)
    assert history["rejected_log_ratio"].max() < -1


def test_a_row_counts_by_its_weight(model, tokenizer, logged, tmp_path):
    """The loss of the first step, before anything has moved, from each row's own terms."""
    sets, prompts = logged
    few, prompts = PreferenceSets(sets.rows.head(8), 0.1), prompts[:8]
    ids = encode_queries(tokenizer, [query for row in few.rows.iter_rows() for query in (row[0], *row[1])], PROMPT)
    with torch.no_grad():
        scores = candidate_log_probs(model, **collate(prompts, ids, tokenizer.pad_token_id))  # (8, 5)
    count = example_weights(few.rows, PreferenceConfig(example_weight="level"))
    for fields, each in (
        (LISTED, F.cross_entropy(scores, torch.zeros(8, dtype=torch.long), reduction="none")),
        (
            LISTED | {"alpha": 0.4},
            F.cross_entropy(scores, torch.zeros(8, dtype=torch.long), reduction="none") - 0.4 * scores[:, 0],
        ),
        ({"loss": "supervised", "alpha": 1.0}, -scores[:, 0]),
    ):
        config = replace(CONFIG, steps=1, log_every=1, example_weight="level", learning_rate=1e-9, **fields)
        loss = train_preference(model, few, prompts, tokenizer, config, 0, tmp_path, PROMPT).history["loss"][0]
        assert loss == pytest.approx(float((each.numpy() * count).mean()), abs=2e-3)
        assert abs(loss - float(each.mean())) > 0.01


def test_among_known_queries_a_query_is_as_likely_as_its_choices(model, tokenizer, data, trie):
    """Probabilities of all known queries add up to 1, and without the trie to less."""
    ids = encode_queries(tokenizer, QUERIES, PROMPT)
    batch = collate(data[1][:1], ids, tokenizer.pad_token_id)
    allowed = trie.allowed(batch["labels"], model.config.vocab_size)
    with torch.no_grad():
        free, among = (candidate_log_probs(model, **batch, allowed=given).exp().sum() for given in (None, allowed))
    assert among.item() == pytest.approx(1, abs=1e-5) and free < 0.5


def test_known_needs_a_trie_that_holds_the_queries(model, tokenizer, data, tmp_path):
    config = replace(CONFIG, known=True)
    with pytest.raises(ValueError, match="no trie of known queries"):
        train_preference(model, *data, tokenizer, config, 0, tmp_path / "work")
    short = Trie(encode_queries(tokenizer, QUERIES[:3], PROMPT), len(tokenizer))
    with pytest.raises(ValueError, match="no known query"):
        train_preference(model, *data, tokenizer, config, 0, tmp_path / "work", PROMPT, short)
