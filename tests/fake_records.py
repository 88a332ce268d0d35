"""Records of a grid drawn at random, with effects planted in them, in the shape that a run of the grid leaves."""

import numpy as np

EFFECTS = {  # how much better a system is, on the scale of the request's own difficulty
    "popularity": -0.8,
    "mca": -0.5,
    "online_mca": 0.0,
    "sft": -0.5,
    "sft_pre": 0.2,
    "dpo": -0.2,
    "continued": 0.5,
    "pairwise": 0.5,
    "onesug": 0.9,
    "without_pre": 0.4,
    "without_anchor": 0.7,
}
UNTRAINED = ("popularity", "ceiling", "imitation", "preference")


def fake_records(effects=EFFECTS, seeds=3, rows=600, wobble=0.02, tail=None, seed=0, ceilings=True) -> list[dict]:
    """One record a (variant, seed).

    Args:
        effects: variant -> its planted effect.
        seeds: model seeds; a system without parameters has one record.
        rows: clicked rows, and as many replayed requests; every tenth request has two rows.
        wobble: deviation of a seed's own effect.
        tail: variant -> what its effect grows by on tail prefixes.
        seed: of the drawing.
        ceilings: whether the best ranking and the two rankings made from the truth are among them.
    """
    rng = np.random.default_rng(seed)
    request = np.arange(rows) - np.arange(rows) % 10 // 9  # the tenth row is a second click of the ninth's request
    clicks = {
        "request_id": request.tolist(),
        "behaviour": rng.choice(["order", "item_click", "query_click"], rows).tolist(),
        "training_clicks": rng.choice([0, 5, 50, 500], rows).tolist(),
        "prefix_clicks": rng.choice([3, 30, 300], rows).tolist(),
        "random": (rng.random(rows) < 0.1).tolist(),
    }
    clicks["seen"] = [count > 0 for count in clicks["training_clicks"]]
    hard = rng.standard_normal(rows)
    on_tail = np.array(clicks["prefix_clicks"]) < 10
    taste = 0.3 * rng.random(rows)

    def ranks(effect):
        place = 1 + np.floor(np.exp(2 + hard - effect + 0.3 * rng.standard_normal(rows)))
        return np.where(place > 16, 0, place).astype(int)

    def record(variant, label, number):
        return {
            "variant": variant,
            "label": label,
            "seed": number,
            "profile": "lite",
            "log": "log0",
            "code": "code0",
            "config": {},
            "libraries": {"torch": "2"},
            "seconds": {"supervised": 60.0, "decode": 5.0},
            "peak_memory_mb": 900.0,
            "parameters": None if variant in UNTRAINED else 1_000_000,
            "curves": {},
            "unknown_share": 0.125,
            "duplicate_share": 0.0,
            "short_share": 0.01,
        }

    def replay(effect):
        click = np.clip(0.3 + 0.1 * effect + taste, 0, 1)
        return {"request_id": list(range(rows)), "click": click.tolist(), "order": (click / 5).tolist(),
                "revenue": (click * 3).tolist()}  # fmt: skip

    records = []
    for variant, effect in effects.items():
        for number in range(1 if variant in UNTRAINED else seeds):
            own = effect + wobble * rng.standard_normal()
            found = record(variant, f"the {variant} system", number)
            found["clicks"] = clicks | {"rank": ranks(own + (tail or {}).get(variant, 0) * on_tail).tolist()}
            found["replay"] = replay(own)
            if variant not in UNTRAINED:
                steps = list(range(0, 300, 10))
                found["curves"]["preference"] = {
                    "step": steps,
                    "loss": [1.0] * 30,
                    "chosen_log_ratio": [-step / 300 for step in steps],
                    "unknown_share": [None, *[0.02 + step / 3000 for step in steps[1:]]],
                }
            records.append(found)
    if ceilings:
        best = record("ceiling", "the best possible ranking", 0)
        reciprocal = np.clip(0.9 - 0.1 * hard, 0.05, 1)
        best["clicks"] = clicks
        best["expected"] = {"hit": np.minimum(1, reciprocal + 0.2).tolist(), "reciprocal": reciprocal.tolist()}
        records.append(best)
        for variant, effect in (("imitation", -1.0), ("preference", 2.0)):
            records.append(record(variant, f"perfect {variant}", 0) | {"replay": replay(effect)})
    return records
