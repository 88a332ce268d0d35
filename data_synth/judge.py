r"""Good, same, bad: which of two lists serves a request better, by the market's truth or by a person.

The truth judges a list by the chance that a shopper with patience reads as far as what is in mind,

.. math:: s = \sum_q P(q \mid p, h, z)\; \gamma^{\operatorname{place}(q) - 1}

with the posterior of :mod:`data_synth.oracle`, the market's ``patience`` :math:`\gamma`, and nothing for a query that
the list lacks; near matches and click-bait earn nothing. A request is *good* where the second list is better by more
than a margin, *bad* where the first is, *same* otherwise. A person gets the same question on a sheet of paper or
screen, blinded: which list stands left is drawn, and the key is kept apart.
"""

from __future__ import annotations

import csv
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from .config import MarketError
from .oracle import Posterior
from .posteriors import posteriors_of
from .responses import reading
from .world import World

VERDICTS = ("good", "same", "bad")
_ANSWERS = ("left", "same", "right")


class Judgement(NamedTuple):
    """What a judge found.

    Attributes:
        verdicts: a row a request: ``verdict``, one of :data:`VERDICTS`, and, where the truth judged, both scores.
        counts: ``verdict``, ``requests``, ``share`` and its 95 % interval ``low``, ``high`` (Wilson).
        advantage: share of good less share of bad.
        low: lower end of its 95 % interval.
        high: upper end.
        p: of the two-sided sign test, good against bad; 1 where there is neither.
    """

    verdicts: pl.DataFrame
    counts: pl.DataFrame
    advantage: float
    low: float
    high: float
    p: float


class Agreement(NamedTuple):
    """How far two judges agree.

    Attributes:
        share: of requests with the same verdict.
        kappa: Cohen's (1960), unweighted: the same beyond what chance gives; nan where both always say the same one.
        low: lower end of its 95 % bootstrap interval over requests.
        high: upper end.
    """

    share: float
    kappa: float
    low: float
    high: float


def judge(
    world: World,
    frame: pl.DataFrame,
    lists_a: Sequence[Sequence[str]],
    lists_b: Sequence[Sequence[str]],
    margin: float = 0.01,
    intents: Sequence[str] | None = None,
    posteriors: Sequence[Posterior] | None = None,
) -> Judgement:
    """Let the market's truth judge pairs of lists.

    Args:
        world: the market that wrote the log.
        frame: N requests as for :func:`data_synth.ceilings.batches_from_log`.
        lists_a: N lists of the control, best first.
        lists_b: N lists of the treatment.
        margin: how much a score must be ahead, as a probability.
        intents: what was in mind, where that is told; the judge then asks no oracle, but sees this one shopper.
        posteriors: of the requests, where they are at hand, as from :func:`data_synth.posteriors.open_posteriors`.

    Raises:
        MarketError: numbers of requests and lists differ, or a request that is none of this market's.
    """
    parts = {"lists_a": lists_a, "lists_b": lists_b, "intents": intents, "posteriors": posteriors}
    for name, part in parts.items():
        if part is not None and len(part) != len(frame):
            raise MarketError(f"{name} holds {len(part)} for {len(frame)} requests; expected one each")
    places = max((len(row) for rows in (lists_a, lists_b) for row in rows), default=1)
    queries = [world.catalogue.find_lists(rows, places) for rows in (lists_a, lists_b)]
    worth = np.cumprod(reading(world.config, places)) if world.config.examination == "cascade" else reading(
        world.config, places)  # fmt: skip
    scores = np.zeros((2, len(frame)))
    if intents is not None:
        wanted = world.catalogue.find(list(intents))
        for own, numbers in zip(scores, queries, strict=True):
            own[:] = (((numbers == wanted[:, None]) & (wanted >= 0)[:, None]) * worth).max(axis=1)
    else:
        for row, posterior in enumerate(posteriors_of(world, frame) if posteriors is None else posteriors):
            for own, numbers in zip(scores, queries, strict=True):
                same = numbers[row][:, None] == posterior.query  # (K, Q)
                own[row] = (same * worth[:, None]).max(axis=0, initial=0.0) @ posterior.probability
    ahead = scores[1] - scores[0]
    verdict = np.where(ahead > margin, "good", np.where(ahead < -margin, "bad", "same"))
    return conclude(pl.DataFrame({"verdict": verdict, "score_a": scores[0], "score_b": scores[1]}))


def conclude(verdicts: pl.DataFrame) -> Judgement:
    """Count verdicts.

    Args:
        verdicts: with a column ``verdict``.

    Raises:
        MarketError: there is none, or one that is no verdict.
    """
    given = verdicts["verdict"].to_list()
    wrong = sorted(set(given) - set(VERDICTS))
    if wrong or not given:
        told = f"verdict {wrong[0]!r}" if wrong else "no verdict"
        raise MarketError(f"there is {told}; expected rows of {', '.join(VERDICTS)}")
    total, rows = len(given), []
    for name in VERDICTS:
        count = given.count(name)
        low, high = stats.binomtest(count, total).proportion_ci(0.95, "wilson")
        rows.append((name, count, count / total, float(low), float(high)))
    counts = pl.DataFrame(rows, schema=["verdict", "requests", "share", "low", "high"], orient="row")
    good, _, bad = counts["requests"].to_list()
    ahead = (good - bad) / total
    reach = stats.norm.ppf(0.975) * np.sqrt(max((good + bad) / total - ahead**2, 0.0) / total)
    p = stats.binomtest(good, good + bad).pvalue if good + bad else 1.0
    return Judgement(verdicts, counts, ahead, float(ahead - reach), float(ahead + reach), float(p))


def agreement(one: Sequence[str], other: Sequence[str], rng: np.random.Generator, draws: int = 1000) -> Agreement:
    """Agreement of two judges on the same requests.

    Args:
        one: N verdicts.
        other: N verdicts, in the same order.
        rng: resamples the requests.
        draws: how often.

    Raises:
        MarketError: the numbers differ, or there is none.
    """
    if len(one) != len(other) or not len(one):
        raise MarketError(f"{len(one)} verdicts and {len(other)}; expected as many of both, and at least one")
    names, codes = np.unique(np.concatenate([one, other]), return_inverse=True)
    table = np.zeros((names.size, names.size))
    np.add.at(table, (codes[: len(one)], codes[len(one) :]), 1)
    # whole requests drawn with replacement are a multinomial draw of the table's cells
    drawn = _kappa(rng.multinomial(len(one), table.ravel() / len(one), draws).reshape(draws, *table.shape))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn.size else (np.nan, np.nan)
    return Agreement(float(np.trace(table) / len(one)), float(_kappa(table[None])[0]), float(low), float(high))


def _kappa(tables: np.ndarray) -> np.ndarray:
    """(D,) Cohen's kappa of (D, V, V) counts; nan where chance alone agrees always."""
    share = tables / tables.sum(axis=(1, 2), keepdims=True)
    chance = (share.sum(axis=1) * share.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (np.trace(share, axis1=1, axis2=2) - chance) / (1 - chance)


# ---------------------------------------------------------------- on paper
def sheet(
    path: Path,
    key: Path,
    frame: pl.DataFrame,
    lists_a: Sequence[Sequence[str]],
    lists_b: Sequence[Sequence[str]],
    rng: np.random.Generator,
) -> Path:
    """Write a blinded sheet that a person can fill in, in any browser and without a network, and its key.

    Args:
        path: of the page; its button saves the answers as CSV (``sheet``, ``row``, ``answer``).
        key: of the key, JSON; do not hand it out.
        frame: N requests with ``prefix``, ``history`` and ``profile``.
        lists_a: N lists of the control.
        lists_b: N lists of the treatment.
        rng: draws which list stands left.

    Returns:
        ``path``. Both files appear whole or not at all.

    Raises:
        MarketError: numbers of requests and lists differ, or both paths are one.
    """
    path, key = Path(path), Path(key)
    if not len(frame) == len(lists_a) == len(lists_b):
        raise MarketError(f"{len(frame)} requests, {len(lists_a)} and {len(lists_b)} lists; expected one list each")
    if path.resolve() == key.resolve():
        raise MarketError(f"sheet and key are both {path}; keep the key in another file")
    name = f"{int(rng.integers(2**40)):010x}"
    left_is_b = rng.random(len(frame)) < 0.5
    questions = "".join(
        _question(number, *row, *((b, a) if swapped else (a, b)))
        for number, (row, a, b, swapped) in enumerate(
            zip(frame.select("prefix", "history", "profile").iter_rows(), lists_a, lists_b, left_is_b, strict=True)
        )
    )
    page = _PAGE.replace("{{name}}", name).replace("{{questions}}", questions)
    told = {"sheet": name, "left_is_b": left_is_b.tolist()}
    for target, text in ((key, json.dumps(told) + "\n"), (path, page)):
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}-{os.getpid()}")
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, target)
        finally:
            new.unlink(missing_ok=True)
    return path


def _question(number: int, prefix: str, history: list | None, profile: list | None, left, right) -> str:
    """One request with its two lists and three answers."""
    told = " · ".join(html.escape(text) for text in (*(profile or ()), *(f"“{past}”" for past in history or ())))
    lists = "".join(f"<ol>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ol>" for texts in (left, right))
    names = {"left": "left is better", "same": "about the same", "right": "right is better"}
    options = "".join(
        f'<label><input type="radio" name="q{number}" value="{answer}"> {names[answer]}</label>' for answer in _ANSWERS
    )
    return (
        f'<fieldset data-row="{number}"><legend>{number + 1}. typed: <b>{html.escape(prefix)}</b></legend>'
        f"<p>{told}</p><div>{lists}</div><p>{options}</p></fieldset>\n"
    )


def read_sheet(answers: Path, key: Path) -> Judgement:
    """Read what a person filled in.

    Args:
        answers: the CSV that the sheet saved, or one written by hand with the same columns.
        key: of the sheet.

    Raises:
        MarketError: another sheet's answers, a row twice, missing or unknown, or an answer that is none.
    """
    told = json.loads(Path(key).read_text(encoding="utf-8"))
    sides, verdicts = told["left_is_b"], {}
    with Path(answers).open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if not {"sheet", "row", "answer"} <= set(table.fieldnames or ()):
            raise MarketError(f"{answers} has columns {table.fieldnames}; expected sheet, row and answer")
        for line in table:
            number = int(line["row"]) if (line["row"] or "").isdecimal() else -1
            if line["sheet"] != told["sheet"]:
                raise MarketError(f"{answers} answers sheet {line['sheet']}; the key is of {told['sheet']}")
            if not 0 <= number < len(sides) or number in verdicts:
                raise MarketError(f"{answers} has row {line['row']!r}; expected 0 to {len(sides) - 1}, each once")
            if line["answer"] not in _ANSWERS:
                raise MarketError(f"row {number} is answered {line['answer']!r}; expected {', '.join(_ANSWERS)}")
            better = {"left": sides[number], "right": not sides[number]}.get(line["answer"])
            verdicts[number] = "same" if better is None else "good" if better else "bad"
    missing = [number for number in range(len(sides)) if number not in verdicts]
    if missing:
        raise MarketError(f"{answers} lacks {len(missing)} answers, first that of row {missing[0]}: fill in the rest")
    return conclude(pl.DataFrame({"verdict": [verdicts[number] for number in range(len(sides))]}))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Which list is better?</title>
<style>
body { font: 16px/1.45 sans-serif; max-width: 46rem; margin: 1rem auto; padding: 0 .8rem }
fieldset { margin: 0 0 1rem; border: 1px solid #999 } div { display: flex; gap: 1rem } ol { flex: 1; margin: 0 }
label { margin-right: 1rem; white-space: nowrap } button { font-size: 1rem; padding: .5rem 1rem }
</style></head><body>
<h1>Which list is better?</h1>
<p>Somebody has begun to type. Below stands what is known of them: who they are and “what they searched before”. Which
list would you rather see in their place? Think of what they most probably look for, and how far down it stands.</p>
<form data-sheet="{{name}}">
{{questions}}<button type="button">Save the answers</button> <output></output></form>
<script>
const form = document.querySelector("form");
form.querySelector("button").onclick = () => {
  const rows = [...form.querySelectorAll("fieldset")].map(f => [f.dataset.row, f.querySelector(":checked")?.value]);
  const open = rows.filter(row => !row[1]).length;
  form.querySelector("output").textContent = open ? `${open} still to answer` : "saved";
  if (open) return;
  const lines = rows.map(row => [form.dataset.sheet, ...row].join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["sheet,row,answer", ...lines, ""].join("\\n")], {type: "text/csv"}));
  link.download = `answers-${form.dataset.sheet}.csv`;
  link.click();
};
</script></body></html>
"""
