"""Claims that are calculations: true or not under each reading of the paper, whatever any record says.

A claim of ``claims.yaml`` names one of :data:`IDENTITIES`; :mod:`onesug_lite.claims` concludes from what it returns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def one_rejected_query() -> dict[str, bool]:
    """For each reading of the hinge, whether both losses agree on one rejected query, to 1e-6, wherever it stands."""
    import torch

    from onesug_lite.losses import PreferenceConfig, listwise_loss, pairwise_loss

    rejected = torch.linspace(-6, 6, 49)[:, None]
    inputs = torch.zeros(49), rejected, torch.full_like(rejected, 2.0)
    names = {"violated": "the hinge on the violated side", "none": "no hinge", "printed": "the hinge as printed"}
    return {
        name: torch.allclose(
            pairwise_loss(*inputs, config).loss, listwise_loss(*inputs, config).loss, rtol=0, atol=1e-6
        )
        for hinge, name in names.items()
        for config in [PreferenceConfig(hinge=hinge)]
    }


def released_scores() -> dict[str, bool]:
    """For each reading of the click rate, whether some rate between 0 and 1 gives the released scores 0.97 and 0.47.

    They belong to a query click and a shown query, whose levels weigh 1.0 and 0.5.
    """
    from onesug_lite.reward import RewardConfig, reward

    rates = np.linspace(0, 1, 1001)
    names = {"plain": "the plain click rate", "centred": "a click rate less its mean"}
    return {
        name: all(
            np.abs(reward(np.array(level), rates, 0.2, RewardConfig(ctr_factor=factor)) - score).min() < 5e-3
            for level, score in ((1.0, 0.97), (0.5, 0.47))
        )
        for factor, name in names.items()
    }


IDENTITIES: dict[str, Callable[[], dict[str, bool]]] = {
    function.__name__: function for function in (one_rejected_query, released_scores)
}
"""By name: reading -> whether it holds."""
