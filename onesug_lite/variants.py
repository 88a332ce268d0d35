"""The rows of the results table, as data: adding a system to compare is adding a row here.

Rows and names follow the paper's offline table and ablations. ``continued`` is a control that the paper does not
report: the same seed model, trained on for as many steps over the same batches and at the same learning rate as RWR,
with the supervised term of the loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SYSTEMS = ("popularity", "generator")


@dataclass(frozen=True)
class Variant:
    """One system.

    Attributes:
        name: key in records and file names.
        label: how tables and figures call it.
        system: one of :data:`SYSTEMS`.
        pre: related queries in the prompt (prefix-to-query representation enhancement).
        preferred: a preference stage follows supervised fine-tuning.
        preference: changed fields of that stage's config.
        paper: the paper's row (click HR@16, click MRR@16, order HR@16, order MRR@16 in per cent) and its name there;
            empty where the paper has no such row.

    Raises:
        ValueError: unknown system.
    """

    name: str
    label: str
    system: str = "generator"
    pre: bool = False
    preferred: bool = False
    preference: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise ValueError(f"variant '{self.name}': system is '{self.system}', expected one of {', '.join(SYSTEMS)}")


def _paper(name: str, *figures: float) -> dict[str, Any]:
    keys = ("click_hr", "click_mrr", "order_hr", "order_mrr")
    return {"name": name} | dict(zip(keys, figures, strict=False))


VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        Variant("popularity", "popularity completion", system="popularity"),
        Variant("sft", "generator", paper=_paper("GRA_SFT", 73.16, 40.06, 79.25, 44.28)),
        # the paper's ablation prints differences to the full model, for clicks alone
        Variant("sft_pre", "generator + PRE", pre=True, paper=_paper("OneSug w/o RWR", 82.14 - 2.38, 50.55 - 5.75)),
        Variant(
            "continued",
            "generator + PRE, trained on (control)",
            pre=True,
            preferred=True,
            preference={"loss": "supervised"},
        ),
        Variant("onesug_printed", "generator + PRE + RWR as printed", pre=True, preferred=True),
        # ours: the hinge asks the chosen query to lead by 0.5 instead of letting it trail by 0.5; see chapter 5
        Variant(
            "onesug",
            "generator + PRE + RWR",
            pre=True,
            preferred=True,
            preference={"delta": -0.5},
            paper=_paper("OneSug, BART-base", 82.14, 50.55, 87.40, 56.34),
        ),
    )
}


def variant(name: str) -> Variant:
    """Look up a row by its name.

    Raises:
        ValueError: no such row; the message lists the names.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant '{name}'; expected one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
