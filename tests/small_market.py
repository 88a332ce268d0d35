"""One small market, its policies, a trial between two of them and one policy's log, made once for all tests."""

from functools import cache

import numpy as np
import polars as pl

from data_synth import World, build_world, market_config
from data_synth.ab_tests import Arm
from data_synth.experiment import Experiment, draw_searches, experiment, logging_policy, meet
from data_synth.policies import Batch, Page, Policy, builtin_policy

SMALL = {"sessions": 3_000, "shoppers": 400, "pilot_sessions": 1_500, "days": 8, "test_days": 2, "random_share": 0.0}


@cache
def world() -> World:
    return build_world(market_config("smoke", **SMALL))


@cache
def own() -> Policy:
    return logging_policy(world())


@cache
def better() -> Policy:
    return builtin_policy(world().config, world().catalogue, world().indexes[-1], "production")


@cache
def trial() -> Experiment:
    return experiment(world(), own(), better(), 2, 0, 1_500)


@cache
def again() -> Arm:
    """The trial's treatment, with luck of its own."""
    return meet(world(), trial().searches, better(), 77)


@cache
def one_log() -> Arm:
    return meet(world(), draw_searches(world(), 10, 1, 4_000, 0), own(), 1)


def nothing(batch: Batch, rng) -> Page:
    page = np.full((batch.length.size, 16), -1)
    return Page(page, page[:, :0], np.ones(page.shape, dtype=np.float32))


def small_arm(click: list[float], shoppers: list[int]) -> Arm:
    columns = {"session": range(len(click)), "shopper": shoppers, "day": 0, "sessions": 1.0, "click": click}
    rest = dict.fromkeys(("requests", "order", "revenue", "position", "abandoned", "bait", "typed"), 0.0)
    return Arm(pl.DataFrame(columns | rest), pl.DataFrame())
