"""The three profiles: how large each stage is in the tests, on a laptop and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from onesug_lite.align import AlignConfig
from onesug_lite.decode import DecodeConfig
from onesug_lite.features import CascadeConfig
from onesug_lite.generator import GeneratorConfig
from onesug_lite.losses import PreferenceConfig
from onesug_lite.pairs import PairConfig
from onesug_lite.prefix_search import SearchConfig
from onesug_lite.prompt import PromptConfig
from onesug_lite.reward import RewardConfig
from onesug_lite.rqvae import RQVAEConfig
from onesug_lite.training import TrainConfig


@dataclass(frozen=True)
class Sizes:
    """How large each stage is; profiles differ in these alone, never in code path."""

    pairs: PairConfig = PairConfig()
    align: AlignConfig = AlignConfig()
    rqvae: RQVAEConfig = RQVAEConfig()
    search: SearchConfig = SearchConfig()
    prompt: PromptConfig = PromptConfig()
    generator: GeneratorConfig = GeneratorConfig()
    train: TrainConfig = TrainConfig()
    reward: RewardConfig = RewardConfig()
    preference: PreferenceConfig = PreferenceConfig()
    decode: DecodeConfig = DecodeConfig()
    cascade: CascadeConfig = CascadeConfig()
    targets: str = "clicks"  # paper; "outcomes": ours, what each search came to, see onesug_lite.outcomes
    evaluated: int = 3_000  # clicked test rows that each system answers
    test_days: int = 2  # paper: 30 training days + 2 test days [third-party notes]
    validation_days: int = 1  # ours: the last training day, for choosing recipes

    def changed(self, changes: Mapping[str, Any]) -> Sizes:
        """Sizes with some fields replaced.

        Args:
            changes: ``stage.field`` (or ``field``) -> value, for example ``{"prompt.history": 0}``.

        Raises:
            ValueError: no such stage or field; the message lists what there is.
        """
        sizes = self
        for path, value in changes.items():
            stage, _, field = path.partition(".")
            names = [each.name for each in fields(sizes)]
            if stage not in names:
                raise ValueError(f"unknown setting '{path}'; expected STAGE.FIELD with one of {', '.join(names)}")
            held = getattr(sizes, stage)
            if is_dataclass(held):
                inner = [each.name for each in fields(held)]
                if field not in inner:
                    raise ValueError(f"unknown setting '{path}'; {stage} has {', '.join(inner)}")
                value = replace(held, **{field: value})
            elif field:
                raise ValueError(f"unknown setting '{path}'; {stage} is a single value")
            sizes = replace(sizes, **{stage: value})
        return sizes


PROFILES: dict[str, Sizes] = {
    "smoke": Sizes(
        align=AlignConfig(dim=48, steps=150, batch_size=128),
        rqvae=RQVAEConfig(codes=32, latent=16, hidden=64, steps=150, warmup_steps=50, batch_size=256),
        generator=GeneratorConfig(d_model=64, ffn=128),
        train=TrainConfig(steps=160, batch_size=128, warmup=20, learning_rate=2e-3, save_every=40),
        preference=PreferenceConfig(steps=20, batch_size=32, warmup=4, save_every=10),
        cascade=CascadeConfig(prerank_requests=5_000, batch_size=64),
        evaluated=200,
    ),
    "lite": Sizes(
        align=AlignConfig(steps=800),
        rqvae=RQVAEConfig(codes=128),
        train=TrainConfig(steps=1200, batch_size=128),
        preference=PreferenceConfig(steps=240),
    ),
    "full": Sizes(
        align=AlignConfig(dim=384, layers=6, heads=6, steps=20_000),
        rqvae=RQVAEConfig(steps=10_000, batch_size=4096),
        generator=GeneratorConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, heads=12, ffn=3072
        ),  # BART-base's shape
        train=TrainConfig(steps=30_000, learning_rate=3e-4, warmup=1000),
        preference=PreferenceConfig(steps=3000, learning_rate=5e-5, warmup=300),
        evaluated=20_000,
    ),
}


def sizes(profile: str | Sizes) -> Sizes:
    """Sizes of a named profile.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(profile, Sizes):
        return profile
    if profile not in PROFILES:
        raise ValueError(f"unknown profile '{profile}'; expected one of {', '.join(PROFILES)}")
    return PROFILES[profile]
