"""One small market and one chain of stages for all tests, kept in the store that the chapters use too."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "build" / "store"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def market() -> Path:
    """Folder of the smoke market: ``log`` and ``truth``."""
    import data_synth

    return data_synth.open_market(data_synth.PROFILES["smoke"], STORE)


@pytest.fixture(scope="session")
def road(market):
    """The whole road at smoke size; stages are built on first use and shared with the chapters."""
    from onesug_lite.pipeline import Pipeline

    return Pipeline(market / "log", "smoke", 0, STORE)


@pytest.fixture(scope="session")
def chinese():
    """The road on a Chinese smoke market: its log, and what nothing is trained for."""
    import data_synth
    from onesug_lite.pipeline import Pipeline

    market = data_synth.open_market(data_synth.market_config("smoke", locale="zh"), STORE)
    return Pipeline(market / "log", "smoke", 0, STORE)
