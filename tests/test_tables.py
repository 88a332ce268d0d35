"""Tables of the results chapter: pairing, intervals and verdicts, on records made by hand."""

import numpy as np
import polars as pl
import pytest

from onesug_lite.metrics import Comparison, summary_table
from onesug_lite.tables import bars, compare, differences, results_table, verdict, verdicts


def record(variant: str, seed: int, ranks: list[int]) -> dict:
    lists = [[f"w{i}" for i in range(rank - 1)] + ["hit"] if rank else ["miss"] for rank in ranks]
    size = len(ranks)
    summary = summary_table(lists, ["hit"] * size, ["query_click"] * size, {"hit": 5}, np.random.default_rng(0))
    return {
        "variant": variant,
        "seed": seed,
        "summary": summary.to_dicts(),
        "unknown_share": 0.125,
        "request_id": list(range(size)),
        "rank": ranks,
    }


GOOD, POOR = [1, 2, 1, 0, 1, 3, 1, 1] * 20, [4, 0, 3, 0, 0, 9, 2, 0] * 20


def grid(seeds: int, first=GOOD, second=POOR) -> list[dict]:
    rows = [(("onesug", first), ("sft_pre", second))] * seeds
    return [record(name, seed, ranks) for seed, pair in enumerate(rows) for name, ranks in pair]


def test_difference_is_the_difference_of_the_means():
    gap, seeds = compare(grid(1), "onesug", "sft_pre")["MRR@16"]
    mean = [np.mean([1 / rank if rank else 0 for rank in ranks]) for ranks in (GOOD, POOR)]
    assert gap.mean == pytest.approx(100 * (mean[0] - mean[1])) and seeds == [pytest.approx(gap.mean)]
    assert gap.low < gap.mean < gap.high


def test_verdict_needs_three_seeds_and_an_interval():
    assert verdict(compare(grid(3), "onesug", "sft_pre")) == "held"
    assert verdict(compare(grid(3), "sft_pre", "onesug")) == "reversed"
    assert verdict(compare(grid(2), "onesug", "sft_pre")) == "held, 2 seed(s): not yet a finding"
    assert verdict(compare(grid(3, GOOD, GOOD), "onesug", "sft_pre")) == "no difference found"


def test_verdict_names_a_split():
    up, down, flat = Comparison(1, 0.5, 1.5, 0), Comparison(-1, -2, -0.5, 0), Comparison(0.1, -1, 1, 1)
    three, mixed = [1.0, 1.0, 1.0], [1.0, -1.0, 3.0]
    assert verdict({"HR@16": (up, three), "MRR@16": (down, three)}) == "mixed: HR@16 up, MRR@16 down"
    assert verdict({"HR@16": (up, three), "MRR@16": (flat, three)}) == "held on HR@16 only"
    assert verdict({"HR@16": (up, mixed), "MRR@16": (up, three)}) == "held, the seeds disagree"


def test_flipping_a_record_flips_its_verdict():
    claim = [("RWR improves", "onesug", "sft_pre")]
    assert verdicts(grid(3), claim)["verdict"].to_list() == ["held"]
    assert verdicts(grid(3, POOR, GOOD), claim)["verdict"].to_list() == ["reversed"]


def test_missing_or_other_requests_are_named():
    with pytest.raises(ValueError, match="no record of variant 'sft' with seed 0"):
        compare(grid(1), "onesug", "sft")
    records = grid(1)
    records[1]["request_id"] = records[1]["request_id"][::-1]
    with pytest.raises(ValueError, match="different requests"):
        compare(records, "onesug", "sft_pre")


def test_tables_and_bars():
    table = results_table(grid(1))
    assert table["system"].to_list() == ["generator + PRE + RWR", "generator + PRE"]
    assert table["click HR@16"][0].startswith("87.5 [") and table["order HR@16"][0] == "-"
    assert table["paper: click HR / MRR"].to_list() == ["82.14 / 50.55", "79.76 / 44.80"]
    frame = bars(grid(1), "click", ["HR@16"], ["head", "tail"])
    assert frame["band"].to_list() == ["tail", "tail"] and frame["mean"][0] == pytest.approx(87.5)
    both = differences({"fresh": grid(1), "reference": grid(3)}, [("onesug", "sft_pre")])
    assert both["records"].to_list() == ["fresh, 1 seed(s)"] * 2 + ["reference, 3 seed(s)"] * 2
    assert isinstance(both, pl.DataFrame)
