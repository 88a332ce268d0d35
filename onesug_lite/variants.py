"""The rows of the results table, as data: adding a system to compare is adding a row here.

Rows and names follow the paper's offline table and its ablations; the controls are what the paper does not report. A
row says which system it is and which settings differ from the profile's (``stage.field``, see
:meth:`onesug_lite.profiles.Sizes.changed`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onesug_lite.features import CHANNELS, FEATURES

SYSTEMS = ("ceiling", "popularity", "cascade", "generator")


@dataclass(frozen=True)
class Variant:
    """One system.

    Attributes:
        name: key in records and file names.
        label: how tables and figures call it.
        system: one of :data:`SYSTEMS`; a ceiling is what the market's truth allows, no model.
        pre: related queries in the prompt (prefix-to-query representation enhancement).
        preferred: a preference stage follows supervised fine-tuning.
        changes: settings that differ from the profile's, ``stage.field`` -> value.

    Raises:
        ValueError: unknown system.
    """

    name: str
    label: str
    system: str = "generator"
    pre: bool = False
    preferred: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether anything of it is learned, so that seeds differ."""
        return self.system in ("cascade", "generator")

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise ValueError(f"variant '{self.name}': system is '{self.system}', expected one of {', '.join(SYSTEMS)}")


def _rwr(name: str, label: str, changes: dict[str, Any], pre: bool = True, **options: Any) -> Variant:
    """A generator with a preference stage whose settings ``changes`` names without their stage."""
    settings = {key if "." in key else f"preference.{key}": value for key, value in changes.items()}
    return Variant(name, label, pre=pre, preferred=True, changes=settings, **options)


# ours: the hinge asks the chosen query to lead by 0.5 instead of letting it trail by 0.5; see chapter 5
LEAD = {"delta": -0.5}
# a list-wise loss that compares what the policy itself says of the queries of one list
FREE = {"reference": False, "hinge": "none", "beta": 1.0, "reward_weights": False, "alpha": 0.0}
# ours, the recommended recipe: every request has a target that no policy chose; see chapter 9
OUTCOMES = {"targets": "outcomes", "decode.known": True}
SHOWN = {"reward.negatives": 7, "reward.mix": ("show",)}

VARIANTS: dict[str, Variant] = {
    row.name: row
    for row in (
        Variant("ceiling", "ceiling of the log", system="ceiling"),
        Variant("imitation", "perfect imitation of the log", system="ceiling"),
        Variant("preference", "perfect preference", system="ceiling"),
        Variant("popularity", "popularity completion", system="popularity"),
        Variant("mca", "cascade", system="cascade"),
        Variant(
            "online_mca",
            "cascade, all channels and features",
            system="cascade",
            changes={"cascade.channels": CHANNELS, "cascade.features": FEATURES},
        ),
        Variant("sft", "generator"),
        _rwr(
            "dpo",
            "generator + DPO",
            {"loss": "pairwise", "hinge": "none", "reward_weights": False, "alpha": 0.0},
            pre=False,
        ),
        Variant("sft_pre", "generator + PRE", pre=True),
        _rwr("onesug", "generator + PRE + RWR", LEAD),
        _rwr("onesug_printed", "generator + PRE + RWR as printed", {}),
        _rwr("pairwise", "... pair-wise", LEAD | {"loss": "pairwise"}),
        _rwr("without_pre", "... without PRE", LEAD, pre=False),
        _rwr("without_weights", "... without reward weights", LEAD | {"reward_weights": False}),
        _rwr("without_anchor", "... without the supervised term", LEAD | {"alpha": 0.0}),
        Variant("without_history", "generator + PRE, without history", pre=True, changes={"prompt.history": 0}),
        Variant("without_profile", "generator + PRE, without profile", pre=True, changes={"prompt.profile_tokens": 0}),
        Variant("without_marks", "generator + PRE, without marks", pre=True, changes={"prompt.marks": False}),
        Variant("ids", "generator + PRE + raw ids", pre=True, changes={"prompt.ids": True}),
        Variant("nearest", "generator + PRE by nearest neighbours", pre=True, changes={"search.method": "nearest"}),
        Variant(
            "decoder_only",
            "decoder-only generator + PRE",
            pre=True,
            changes={"generator.architecture": "decoder-only"},
        ),
        Variant("known", "generator + PRE, known queries only", pre=True, changes={"decode.known": True}),
        _rwr("continued", "generator + PRE, trained on (control)", {"loss": "supervised"}),
        _rwr(
            "level_likelihood",
            "likelihood weighted by level (control)",
            {"loss": "supervised", "example_weight": "level"},
        ),
        _rwr(
            "propensity_likelihood",
            "likelihood weighted by inverse propensity (control)",
            {"loss": "supervised", "example_weight": "propensity"},
        ),
        _rwr(
            "reference_free",
            "list-wise without a reference, known queries (control)",
            FREE | SHOWN | {"known": True, "decode.known": True, "decode.among_known": True},
        ),
        _rwr(
            "shown_list",
            "list-wise over the shown list, weighted by level (control)",
            FREE | SHOWN | {"example_weight": "level", "decode.known": True},
        ),
        Variant("recommended", "recommended: learns what searches came to", changes=OUTCOMES),
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
