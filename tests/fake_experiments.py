"""Records of experiments drawn at random, with gains planted in them, in the shape that a run leaves."""

import numpy as np

from onesug_lite.experiments import METRICS, PAIRS
from onesug_lite.metrics import BANDS


def fake_experiments(gains, pairs=PAIRS, seeds=3, buckets=120, noise=0.02, judged=0.2, seed=0) -> list[dict]:
    """One record a (pair, seed), all before the same searches.

    Args:
        gains: pair -> metric (``BAND prefixes`` for clicks there) -> planted gain, a share of the second system's.
        pairs: of first and second system.
        seeds: model seeds.
        buckets: of shoppers.
        noise: deviation of a bucket's own gain.
        judged: share of good less share of bad.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    sessions = rng.integers(3, 9, buckets)
    scale = {"click": 0.5, "order": 0.1, "revenue": 2.5, "typed": 6.0, "position": 2.0, "abandoned": 0.2, "bait": 0.02}
    base = {column: share * sessions * rng.uniform(0.8, 1.2, buckets) for column, share in scale.items()}

    def moved(values, gain):
        return (values * (1 + gain + noise * rng.standard_normal(buckets))).round(3).tolist()

    def record(first, second, number):
        own = gains.get((first, second), {})
        a = {"sessions": sessions.tolist()} | {column: values.round(3).tolist() for column, values in base.items()}
        b = {"sessions": sessions.tolist()}
        for name, metric in METRICS.items():
            per = own.get("clicks", 0.0) if metric.per == "click" else 0.0
            b[metric.over] = moved(base[metric.over], (1 + own.get(name, 0.0)) * (1 + per) - 1)
        bands = {
            band: {"requests": (4 * sessions).tolist(), "a": sessions.tolist(),
                   "b": moved(sessions, own.get(f"{band} prefixes", 0.0))}
            for band in BANDS
        }  # fmt: skip
        verdicts = rng.choice([1, 0, -1], 300, p=[0.3 + judged / 2, 0.4, 0.3 - judged / 2]).tolist()
        return {
            "first": first,
            "second": second,
            "first_label": f"the {first} system",
            "second_label": f"the {second} system",
            "seed": number,
            "profile": "lite",
            "log": "log0",
            "sessions": int(sessions.sum()),
            "shoppers": {"a": a, "b": b},
            "bands": bands,
            "judgement": {"request_id": list(range(300)), "verdicts": verdicts},
        }

    return [record(*pair, number) for pair in pairs for number in range(seeds)]
