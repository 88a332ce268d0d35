"""Preference losses on hand-made tensors, against known values and forms, and the training that uses them."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from onesug_lite.generator import (
    Examples,
    GeneratorConfig,
    TrainConfig,
    build_generator,
    collate,
    train_supervised,
)
from onesug_lite.preference import (
    PreferenceConfig,
    candidate_log_probs,
    listwise_loss,
    pairwise_loss,
    sequence_log_probs,
    train_preference,
)
from onesug_lite.prompt import PromptConfig, build_prompts, encode_queries, train_tokenizer
from onesug_lite.reward import PreferenceSets

PLAIN = PreferenceConfig(hinge="none", reward_weights=False)
LOSSES = {"pairwise": pairwise_loss, "listwise": listwise_loss}

# Three samples and four rejected queries, with losses that two public implementations agree on.
CHOSEN = torch.tensor([-3.0, -5.0, -2.5]) - torch.tensor([-3.5, -4.0, -2.5])
REJECTED = (
    torch.tensor([[-4.0, -4.5, -6.0], [-6.0, -7.0, -2.0], [-3.2, -9.0, -8.0], [-5.0, -5.5, -4.0]])
    - torch.tensor([[-4.2, -5.0, -6.0], [-5.0, -6.5, -2.2], [-3.0, -8.0, -7.5], [-5.5, -5.0, -4.4]])
).T
ONES = torch.ones(3, 4)


def test_pairwise_golden_values():
    loss = pairwise_loss(CHOSEN, REJECTED[:, :1], ONES[:, :1], PLAIN).loss
    torch.testing.assert_close(loss, torch.tensor([0.620957, 1.136871, 0.693147]), atol=1e-6, rtol=0)


def test_listwise_golden_values():
    loss = listwise_loss(CHOSEN, REJECTED, ONES, PLAIN).loss
    torch.testing.assert_close(loss, torch.tensor([1.395691, 1.899874, 1.630294]), atol=1e-6, rtol=0)


def test_equal_to_the_form_as_printed():
    """Sigmoids and sums written out as in the paper, in float64."""
    config = PreferenceConfig(hinge="violated", delta=0.1)
    chosen, rejected = CHOSEN.double(), REJECTED.double()
    weight = torch.linspace(0.5, 3, 12, dtype=torch.float64).view(3, 4)
    lead = torch.clamp(0.5 * rejected - 0.5 * chosen[:, None] - 0.1, min=0)
    listed = -torch.log(torch.sigmoid(-torch.log(torch.exp(weight * lead).sum(1))))
    torch.testing.assert_close(listwise_loss(chosen, rejected, weight, config).loss, listed)
    torch.testing.assert_close(listwise_loss(chosen, rejected, weight, replace(config, hinge="printed")).loss, listed)
    paired = -torch.log(torch.sigmoid(-weight * lead)).mean(1)
    torch.testing.assert_close(pairwise_loss(chosen, rejected, weight, config).loss, paired)
    right = torch.clamp(0.5 * chosen[:, None] - 0.5 * rejected - 0.1, min=0)
    printed = -torch.log(torch.sigmoid(weight * right)).mean(1)
    found = pairwise_loss(chosen, rejected, weight, replace(config, hinge="printed")).loss
    torch.testing.assert_close(found, printed)


def test_margin_is_the_lead_in_implicit_reward():
    for function in LOSSES.values():
        margin = function(CHOSEN, REJECTED, ONES, PLAIN).margin
        torch.testing.assert_close(margin, 0.5 * (CHOSEN[:, None] - REJECTED))


ratio = st.floats(-50, 50, width=32)


@settings(deadline=None)
@given(ratio, ratio, st.floats(0.125, 10, width=32), st.sampled_from(["violated", "none"]), st.floats(-1, 1))
def test_listwise_with_one_rejected_query_is_pairwise(chosen, rejected, weight, hinge, delta):
    config = PreferenceConfig(hinge=hinge, delta=delta)
    inputs = torch.tensor([chosen]), torch.tensor([[rejected]]), torch.tensor([[weight]])
    pair, listed = (function(*inputs, config).loss for function in LOSSES.values())
    torch.testing.assert_close(pair, listed, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("hinge", ["violated", "none"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ratio", [-200.0, -3.0, 200.0])
def test_gradient_is_finite_and_points_the_right_way(loss, hinge, ratio):
    """At a log-ratio of -200 with the largest weight, nothing overflows and the chosen query is pushed up."""
    chosen = torch.tensor([ratio], requires_grad=True)
    rejected = torch.tensor([[0.0, 0.0, -1.0, -2.0]], requires_grad=True)
    weight = torch.full((1, 4), 10.0)
    result = LOSSES[loss](chosen, rejected, weight, PreferenceConfig(hinge=hinge)).loss
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()
    if ratio < 0:  # ranked wrongly
        assert chosen.grad.item() < 0 and (rejected.grad >= 0).all() and rejected.grad.sum() > 0
    else:
        assert chosen.grad.item() <= 0 and (rejected.grad >= 0).all()


def test_the_printed_pairwise_hinge_is_blind_where_the_pair_is_wrong():
    for lead, moves in ((-4.0, False), (0.5, False), (4.0, True)):
        chosen = torch.tensor([lead], requires_grad=True)
        pairwise_loss(
            chosen, torch.zeros(1, 1), torch.ones(1, 1), PreferenceConfig(hinge="printed")
        ).loss.sum().backward()
        assert (chosen.grad.item() != 0) == moves
        chosen.grad = None
        pairwise_loss(chosen, torch.zeros(1, 1), torch.ones(1, 1), PreferenceConfig()).loss.sum().backward()
        assert (chosen.grad.item() != 0) == (lead == -4.0)


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_weights_scale_the_lead_and_can_be_switched_off(lead, weight):
    inputs = torch.zeros(1), torch.tensor([[lead]]), torch.tensor([[weight]])
    off = pairwise_loss(*inputs, PLAIN).loss.item()
    on = pairwise_loss(*inputs, replace(PLAIN, reward_weights=True)).loss.item()
    assert off == pytest.approx(math.log1p(math.exp(0.5 * lead)), abs=1e-5)
    assert on == pytest.approx(math.log1p(math.exp(weight * 0.5 * lead)), abs=1e-4)


def test_sequence_log_probs_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0]], [[1.0, 1.0], [0.0, math.log(3.0)]]])
    labels = torch.tensor([[1, -100], [0, 0]])
    expected = torch.tensor([math.log(0.75), math.log(0.5) + math.log(0.25)])
    torch.testing.assert_close(sequence_log_probs(logits, labels), expected)
    assert sequence_log_probs(logits, torch.full((2, 2), -100)).tolist() == [0, 0]


def test_config_refuses_what_it_does_not_know():
    for wrong in ({"loss": "dpo"}, {"hinge": "soft"}, {"beta": 0.0}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PreferenceConfig(**wrong)
    with pytest.raises(ValueError, match="nothing to learn"):
        PreferenceConfig(loss="supervised", alpha=0)


# ---------------------------------------------------------------- training

QUERIES = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("shoe", "shirt", "scarf", "hat")]
PROMPT = PromptConfig(vocab_size=300)
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


def test_an_interrupted_run_goes_on_to_the_same_bytes(model, tokenizer, data, tmp_path, monkeypatch):
    import onesug_lite.preference as preference

    start = weights(model)
    whole = train_preference(model, *data, tokenizer, CONFIG, 0, tmp_path / "whole")
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
        train_preference(model, *data, tokenizer, CONFIG, 0, tmp_path / "work")
    monkeypatch.undo()
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())
    assert (tmp_path / "work" / "checkpoint-10").is_dir()

    resumed = train_preference(model, *data, tokenizer, CONFIG, 0, tmp_path / "work")
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
