"""The three profiles: how large each stage is in the tests, on a laptop and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from onesug_lite.align import AlignConfig
from onesug_lite.decode import DecodeConfig
from onesug_lite.generator import GeneratorConfig, TrainConfig
from onesug_lite.pairs import PairConfig
from onesug_lite.preference import PreferenceConfig
from onesug_lite.prompt import PromptConfig
from onesug_lite.reward import RewardConfig
from onesug_lite.rqvae import RQVAEConfig
from onesug_lite.sid_search import SearchConfig


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
    evaluated: int = 3_000  # clicked test rows that each system answers
    test_days: int = 2  # paper: 30 training days + 2 test days [third-party notes]
    validation_days: int = 1  # ours: the last training day, for choosing recipes


PROFILES: dict[str, Sizes] = {
    "smoke": Sizes(
        align=AlignConfig(dim=48, steps=150, batch_size=128),
        rqvae=RQVAEConfig(codes=32, latent=16, hidden=64, steps=150, warmup_steps=50, batch_size=256),
        generator=GeneratorConfig(d_model=64, ffn=128),
        train=TrainConfig(steps=160, batch_size=128, warmup=20, learning_rate=2e-3, save_every=40),
        preference=PreferenceConfig(steps=20, batch_size=32, warmup=4, save_every=10),
        evaluated=200,
    ),
    "lite": Sizes(
        align=AlignConfig(steps=800),
        rqvae=RQVAEConfig(codes=128),
        train=TrainConfig(steps=800),
        preference=PreferenceConfig(steps=300),
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
