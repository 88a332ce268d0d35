r"""The pair-wise and list-wise losses of reward-weighted ranking.

The implicit reward of a query is how much more likely the policy makes it than the frozen seed model did,
:math:`\hat r(q) = \beta \log(\pi_\theta(q|x) / \pi_{ref}(q|x))`. With a chosen query :math:`w`, rejected
queries :math:`l`, and the weight of each pair :math:`rw_\Delta` (see :mod:`onesug_lite.reward`):

.. math::

    L_{pair} &= -\log \sigma\big(-rw_\Delta\, h(\hat r_l - \hat r_w)\big) \\
    L_{list} &= -\log \sigma\Big(-\log \sum_l \exp\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)\Big)

to which :math:`-\alpha \log \pi_\theta(w|x)` is added, the supervised anchor that keeps the policy a language
model. :math:`h(x)` is the hinge, with :math:`x = \hat r_l - \hat r_w` above 0 where the rejected query is
preferred:

- ``violated``: :math:`\max(0, x - \delta)`; only rejected queries that lead by more than :math:`\delta` are
  pushed.
- ``printed``: list-wise the same, for so it is printed; pair-wise :math:`-\max(0, -x - \delta)`, as printed
  too, with a gradient of zero wherever the pair is ranked wrongly and a push for pairs that are right
  already.
- ``none``: :math:`x`; with equal weights, pair-wise is DPO and list-wise is softmax-DPO.

At the start policy and reference agree, so every :math:`x` is 0 and with :math:`\delta > 0` both hinges are
flat: training begins as supervised training on the chosen queries and the preference term wakes up where that
leads the policy astray. A negative ``delta`` asks the chosen query to lead by that much instead. A list-wise
loss over one rejected query is the pair-wise one (``violated``, ``none``).

Without a ``reference``, the implicit reward is :math:`\beta \log \pi_\theta(q|x)` itself: the policy is free to leave
the seed model, and what it says of a query is what the loss ranks by. List-wise with :math:`\beta = 1` and neither
hinge nor weights, that is cross-entropy over the list of the chosen and the rejected queries.

``known`` divides, at each token, by the probability of all that continues a known query, so that the loss cannot be
lowered by writing nonsense.

Source: paper, section RWR; both losses as third-party notes print them; hyper-parameters: authors' public
code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("listwise", "pairwise", "supervised")
HINGES = ("violated", "printed", "none")
EXAMPLE_WEIGHTS = ("none", "level", "propensity")


@dataclass(frozen=True)
class PreferenceConfig:
    """The preference stage. The paper states none of the fields below ``reward_weights``.

    Raises:
        ValueError: a field holds what it cannot.
    """

    loss: str = "listwise"  # paper: list-wise; "pairwise": its ablation; "supervised": ours, the anchor alone
    hinge: str = "violated"  # paper: "printed", the same for list-wise; the other two are ours, see above
    beta: float = 0.5  # authors' public code
    alpha: float = 0.4  # authors' public code: weight of the supervised anchor, log-probability of the whole query
    delta: float = 0.5  # authors' public code: margin of the hinge
    reward_weights: bool = True  # paper: weight 1 / (r_w - r_l); False: every pair weighs 1
    reference: bool = True  # paper: log-ratios to the frozen seed model; False: ours, log-probabilities alone
    length_normalised: bool = False  # ours: True divides these by the number of tokens, the anchor not
    example_weight: str = "none"  # ours: what a whole row counts: "level" of its click, or inverse "propensity"
    level_scale: float = 2.0  # ours: "level" weighs exp(level_scale (level - 1)), an order e^2 of a query click
    clip: float = 30.0  # ours: the most that an inverse propensity weighs
    known: bool = False  # ours: probabilities among what continues a known query
    steps: int = 300  # ours
    batch_size: int = 64  # ours: requests a step; each brings one chosen and four rejected queries
    learning_rate: float = 2e-4  # ours: a fifth of the supervised rate; 5e-6 suits a pretrained checkpoint
    warmup: int = 30  # ours: steps of rising rate, then it falls linearly to zero
    weight_decay: float = 0.01  # ours
    max_grad_norm: float = 1.0  # ours
    bf16: bool | None = None  # ours: None uses it where the processor multiplies bf16 natively
    group_batches: int = 32  # ours: batches sorted by prompt length together
    log_every: int = 10  # ours: steps one point of the curves averages over
    save_every: int = 100  # ours: steps that an interruption costs at most

    def __post_init__(self):
        for name, allowed in (("loss", LOSSES), ("hinge", HINGES), ("example_weight", EXAMPLE_WEIGHTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is '{value}'; expected one of {', '.join(allowed)}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a number above 0")
        if not self.clip >= 1:
            raise ValueError(f"clip is {self.clip}; expected 1 or more, what an inverse propensity is cut to")
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha}; expected 0 or more")
        if self.loss == "supervised" and self.alpha == 0:
            raise ValueError("loss is 'supervised' and alpha is 0, so there is nothing to learn; give alpha above 0")


class PreferenceLoss(NamedTuple):
    """A preference loss, without the supervised anchor.

    Attributes:
        loss: (B,) one number a request.
        margin: (B, K) how far the chosen query leads each rejected one in implicit reward, without gradient.
    """

    loss: Tensor
    margin: Tensor


def sequence_log_probs(logits: Tensor, labels: Tensor, allowed: Tensor | None = None) -> Tensor:
    r"""Log-probability of whole sequences, :math:`\sum_t \log \pi(q_t \mid q_{<t}, x)`.

    Args:
        logits: (B, T, V), position t scores ``labels[:, t]``.
        labels: (B, T) token ids, -100 where a position does not count.
        allowed: (B, T, V) bool, tokens among which the probability is, every label one of them; all when not given.

    Returns:
        (B,) nats in float32, 0 for a row without labels.
    """
    logits = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -1e9)
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")  # (B * T,)
    return -each.view(labels.shape).sum(dim=1)


def pairwise_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, weight: Tensor, config: PreferenceConfig
) -> PreferenceLoss:
    r"""Pair-wise loss: each rejected query makes a pair with the chosen one, and a request counts their mean.

    .. math:: L = \frac{1}{K} \sum_l \mathrm{softplus}\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)

    ``softplus`` is :math:`-\log \sigma(-x)` in a form that does not overflow.

    Args:
        chosen_log_ratio: (B,) log of policy over reference probability of the chosen queries.
        rejected_log_ratio: (B, K) the same of the rejected ones.
        weight: (B, K) pair weights, above 0; not read unless ``config.reward_weights``.
        config: ``hinge``, ``beta``, ``delta`` and ``reward_weights`` are read.

    Returns:
        Loss and margin.

    Source:
        Paper, section RWR, eq. pair-wise loss (third-party notes). Without hinge and weights: DPO.
    """
    lead = config.beta * (rejected_log_ratio - chosen_log_ratio[:, None])  # (B, K)
    scored = -torch.relu(-lead - config.delta) if config.hinge == "printed" else _hinge(lead, config)
    return PreferenceLoss(F.softplus(_weighted(scored, weight, config)).mean(dim=1), -lead.detach())


def listwise_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, weight: Tensor, config: PreferenceConfig
) -> PreferenceLoss:
    r"""List-wise loss: the chosen query against all rejected ones at once (Plackett-Luce, first place only).

    .. math:: L = \mathrm{softplus}\Big(\log \sum_l \exp\big(rw_\Delta\, h(\hat r_l - \hat r_w)\big)\Big)

    The rejected query that leads most gets most of the gradient.

    Args:
        chosen_log_ratio: (B,) log of policy over reference probability of the chosen queries.
        rejected_log_ratio: (B, K) the same of the rejected ones.
        weight: (B, K) pair weights, above 0; not read unless ``config.reward_weights``.
        config: ``hinge``, ``beta``, ``delta`` and ``reward_weights`` are read.

    Returns:
        Loss and margin.

    Source:
        Paper, section RWR, eq. list-wise loss (third-party notes). Without hinge and weights: softmax-DPO.
    """
    lead = config.beta * (rejected_log_ratio - chosen_log_ratio[:, None])  # (B, K)
    scored = _weighted(_hinge(lead, config), weight, config)
    return PreferenceLoss(F.softplus(scored.logsumexp(dim=1)), -lead.detach())


def _hinge(lead: Tensor, config: PreferenceConfig) -> Tensor:
    return lead if config.hinge == "none" else torch.relu(lead - config.delta)


def _weighted(scored: Tensor, weight: Tensor, config: PreferenceConfig) -> Tensor:
    return scored * weight if config.reward_weights else scored
