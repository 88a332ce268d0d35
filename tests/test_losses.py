"""Preference losses on hand-made tensors, against known values, printed forms and each other."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from onesug_lite.losses import PreferenceConfig, listwise_loss, pairwise_loss, sequence_log_probs

PLAIN = PreferenceConfig(hinge="none", reward_weights=False)
LOSSES = {"pairwise": pairwise_loss, "listwise": listwise_loss}

# Three samples and four rejected queries. The losses expected below are facts taken from elsewhere: two public
# implementations, which agree on them, were given these numbers.
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


def test_plain_dpo_is_a_row_of_settings():
    """Golden values, gradient included: that of DPO is beta times the probability of the wrong order."""
    row = PreferenceConfig(loss="pairwise", hinge="none", reward_weights=False, alpha=0.0)
    chosen = CHOSEN.clone().requires_grad_()
    loss = pairwise_loss(chosen, REJECTED[:, :1], ONES[:, :1], row).loss
    torch.testing.assert_close(loss, torch.tensor([0.620957, 1.136871, 0.693147]), atol=1e-6, rtol=0)
    loss.sum().backward()
    torch.testing.assert_close(chosen.grad, -0.5 * torch.sigmoid(0.5 * (REJECTED[:, 0] - CHOSEN)))
    # with several rejected queries, the mean of their pairs
    pairs = torch.stack([pairwise_loss(CHOSEN, REJECTED[:, k : k + 1], ONES[:, :1], row).loss for k in range(4)])
    torch.testing.assert_close(pairwise_loss(CHOSEN, REJECTED, ONES, row).loss, pairs.mean(dim=0))


def test_listwise_without_a_reference_is_cross_entropy_over_the_list():
    row = PreferenceConfig(reference=False, hinge="none", beta=1.0, reward_weights=False, alpha=0.0)
    scores = torch.cat([CHOSEN[:, None], REJECTED], dim=1) * 3  # (3, 5), chosen first
    found = listwise_loss(scores[:, 0], scores[:, 1:], ONES, row).loss
    torch.testing.assert_close(found, F.cross_entropy(scores, torch.zeros(3, dtype=torch.long), reduction="none"))


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


@pytest.mark.parametrize("hinge", ["violated", "printed", "none"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weight", [0.0, 1e-3, 10.0])  # equal and inverted rewards weigh 10, see test_reward
@pytest.mark.parametrize("lead", [-200.0, 0.0, 200.0])
def test_nothing_overflows(loss, hinge, weight, lead):
    chosen = torch.tensor([lead], requires_grad=True)
    rejected = torch.tensor([[0.0, -200.0, 200.0]], requires_grad=True)
    result = LOSSES[loss](chosen, rejected, torch.full((1, 3), weight), PreferenceConfig(hinge=hinge))
    result.loss.sum().backward()
    for tensor in (result.loss, result.margin, chosen.grad, rejected.grad):
        assert torch.isfinite(tensor).all()
    assert weight > 0 or not rejected.grad.any()


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
    wrongs = {"loss": "dpo", "hinge": "soft", "beta": 0.0, "alpha": -1.0, "example_weight": "click", "clip": 0.5}
    for wrong in ({name: value} for name, value in wrongs.items()):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PreferenceConfig(**wrong)
    with pytest.raises(ValueError, match="nothing to learn"):
        PreferenceConfig(loss="supervised", alpha=0)


def test_log_probabilities_among_some_tokens():
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 7, generator=draw), torch.tensor([[1, 2, 6], [4, -100, -100]])
    allowed = torch.zeros(2, 3, 7, dtype=torch.bool)
    allowed[..., [1, 2, 4, 6]] = True
    few = logits[..., [1, 2, 4, 6]].log_softmax(-1)
    expected = [few[0, 0, 0] + few[0, 1, 1] + few[0, 2, 3], few[1, 0, 2]]
    assert torch.allclose(sequence_log_probs(logits, labels, allowed), torch.stack(expected), atol=1e-6)
