"""The data card: the market's own statistics beside published ones, and what keeps the two apart.

Every statistic of ``published.yaml`` is worked out here from the log, and from the truth only where a log cannot tell,
which its row says. Where the market lies outside the published span, the reason stands beside the computation.
``python -m data_synth.card`` writes the card as a page of the book.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
import yaml

from .config import MarketError, knob_rows, market_config
from .describe import Digest, digest_market
from .market import open_market

SCHEMA = {
    "statistic": pl.String, "reads": pl.String, "ours": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "verdict": pl.String, "why": pl.String, "measured": pl.String, "truth": pl.String, "sources": pl.List(pl.String),
}  # fmt: skip
TOO_SMALL = "The log is too small to hold any."
UNEXPLAINED = "No reason is on record; a knob that differs from its default may be one."


@dataclass(frozen=True)
class Statistic:
    """How a published statistic is measured here, and why ours may lie elsewhere."""

    name: str
    ours: Callable[[Digest], float] | None  # None: the market holds nothing to measure
    measured: str = ""
    truth: str = ""  # the column of truth/requests that it needs and a log lacks
    below: str = ""  # why, where ours lies below the published span
    above: str = ""
    apart: str = ""  # why the two are not comparable
    apart_zh: str = ""  # the same, of Chinese markets alone


def _length(text: pl.Series) -> pl.Series:
    return text.str.len_chars().cast(pl.Int64)


def _words(text: pl.Series) -> pl.Series:
    return text.str.count_matches(" ") + 1


def _saved(log: Digest) -> float:
    saved = _length(log.clicks["clicked"]) - _length(log.clicks["prefix"])
    return saved.clip(0).sum() / _length(log.queries).sum()


def _repeated(log: Digest) -> float:
    ended = log.searches.drop_nulls("searched").sort("time")
    return ended.select((pl.col("searched").cum_count().over("user_id", "searched") > 1).mean()).item()


def _never_seen(log: Digest) -> float:
    ended = log.searches.select("searched", day=pl.col("time").dt.date()).drop_nulls()
    first_test = ended["day"].min() + timedelta(days=log.days)
    new = pl.col("day").min().over("searched") == pl.col("day")
    return ended.with_columns(new=new).filter(pl.col("day") >= first_test)["new"].mean()


def _searches_a_visit(log: Digest) -> float:
    gap = pl.col("time") - pl.col("time").shift(1).over("user_id")
    begins = gap.is_null() | (gap > timedelta(minutes=5))
    return log.searches.height / log.searches.sort("user_id", "time").select(begins.sum()).item()


def _searches_a_shopper(log: Digest) -> pl.Series:
    return log.searches["user_id"].value_counts()["count"]


def _share_of_clicks(*levels: str) -> Callable[[Digest], float]:
    return lambda log: log.clicks["behaviour"].is_in(levels).mean()


def _head(log: Digest, queries: float) -> float:
    return log.counts[: int(np.ceil(queries))].sum() / log.counts.sum()


def _half(log: Digest) -> float:
    return (np.searchsorted(log.counts.cumsum(), log.counts.sum() / 2) + 1) / log.counts.size


def rank_slope(counts: np.ndarray, first: int = 10, last: int = 1000) -> float:
    """Zipf's exponent: minus the slope of a line through log frequency (most searched first) against log rank."""
    rank = np.arange(first if counts.size > 2 * first else 1, min(last, counts.size) + 1)
    return float(-np.polyfit(np.log(rank), np.log(counts[rank - 1]), 1)[0])


_EARLY = (
    "The default world asks its policy hard questions: shoppers look after a burst of two letters or so, lists are "
    "full from the first letter on, and nobody sends a request after the twelfth."
)
_POOL = (
    "Every search ends in a query of a closed pool, rightly spelt; what fills the tail of a real log is missing: slips "
    "that are sent off, model numbers, addresses, whole sentences."
)
_BENT = (
    "A query's popularity is a product over its words, so the head bends: among the first hundred it falls more slowly "
    "than further on, and none stands out as the name of a site does in web search."
)
_NO_RESULTS = "The market has no page of results; click_position is the same share for lists of suggestions."
_PINYIN = "Half of the searches are typed in pinyin, whose letters are not the query's characters."

#: Every statistic of published.yaml. Queries typed to the end are known from the truth's column "searched" alone.
STATISTICS = (
    Statistic("query_words", lambda log: _words(log.queries).mean(), "over searches", "searched"),
    Statistic("short_query_share", lambda log: (_words(log.queries) < 4).mean(), "over searches", "searched",
        below="Every query names a product type, often in two words, and often a favourite brand or attribute; a bare "
        "brand or department, frequent in shops, is no query of this market."),
    Statistic("query_characters", lambda log: _length(log.queries).mean(), "over searches", "searched",
        above="The smallest markets have few brands and attributes, among which a favourite weighs more, so that "
        "queries name one more often and grow longer."),
    Statistic("prefix_length", lambda log: log.prefix_characters / log.requests, "over all requests", below=_EARLY),
    Statistic("prefix_share", lambda log: (_length(log.clicks["prefix"]) / _length(log.clicks["clicked"])).mean(),
        "characters typed at a click over those of the clicked query, mean", apart_zh=_PINYIN,
        below=_EARLY + " Some also settle for a near match, which stands there sooner."),
    Statistic("keystrokes_saved", _saved, "characters left untyped over characters of all searched queries", "searched",
        apart_zh=_PINYIN),
    Statistic("click_position", lambda log: (log.clicks["position"] == 1).mean(), "over clicks on suggestions"),
    Statistic("result_click_position", None, apart=_NO_RESULTS),
    Statistic("top3_result_clicks", None, apart=_NO_RESULTS),
    Statistic("product_click_rank1", None, apart=_NO_RESULTS),
    Statistic("keystrokes_skipped", lambda log: log.clicks["passed_over"].mean(),
        "searches with a click whose clicked query had stood on an earlier list of theirs",
        below="Chinese queries are short, so a search has few lists before its click on which to pass anything over."),
    Statistic("suggestion_use", lambda log: log.searches["clicked"].is_not_null().mean(), "over all searches",
        above="A market whose shoppers ignore lists would spend its requests on lists nobody reads: each is looked at "
        "with probability glance, every place of it is in sight, and a search has several of them."),
    Statistic("repeat_rate", _repeated, "searches equal to an earlier one of the shopper in the log", "searched",
        below="A repeat draws on the shopper's last searches, many of which lie before the log's first day, where this "
        "count cannot see them."),
    Statistic("distinct_share", lambda log: log.counts.size / log.counts.sum(), "whole log", "searched", below=_POOL),
    Statistic("singleton_share", lambda log: (log.counts == 1).mean(), "whole log", "searched", below=_POOL),
    Statistic("tail_share", lambda log: (log.counts == 1).sum() / log.counts.sum(), "whole log", "searched",
        below=_POOL),
    Statistic("rare_keyword_share", lambda log: (log.counts < 50 * (log.days + log.test_days) / 30).mean(),
        "fewer than 50 searches in 30 days", "searched",
        apart="Fifty searches a month are few in the whole web and many in a log of this size."),
    Statistic("zipf_exponent", lambda log: rank_slope(log.counts), "line through both logarithms, ranks 10 to 1000",
        "searched", below=_BENT),
    Statistic("head_half", _half, "whole log", "searched",
        above=_BENT + " A short log also has fewer distinct queries to take the share of."),
    Statistic("head_share", lambda log: _head(log, log.counts.size / 10), "whole log", "searched",
        below=_BENT + " The share also grows with a log, and the published one is far larger."),
    Statistic("head_share_count", lambda log: _head(log, 100), "the 100 most searched queries", "searched",
        apart="The published logs hold many million queries, of which a hundred are a far smaller part."),
    Statistic("misspelling_rate", lambda log: (log.searches["form"] == "misspelt").mean(),
        "searches begun with a slip in the first word; some are mended while typing", "form"),
    Statistic("starts_with", lambda log: log.clicks["clicked"].str.starts_with(log.clicks["prefix"]).mean(),
        "over clicks on suggestions, letter by letter"),
    Statistic("search_click_rate", _share_of_clicks("item_click", "order"),
        "over clicks on suggestions: what follows a query typed to the end is not played",
        below="Near matches and click-bait draw many of the clicks and then disappoint, on purpose, so that clicks and "
        "orders teach different things."),
    Statistic("search_to_order", lambda log: (log.clicks["behaviour"] == "order").sum() / log.searches.height,
        "orders over searches, each taken for a visit"),
    Statistic("search_to_cart", None, apart="The market has no carts: a click leads to an order or to none."),
    Statistic("click_to_order", _share_of_clicks("order"), "over clicks on suggestions"),
    Statistic("shopper_activity", lambda log: _searches_a_shopper(log).mean() * 30 / (log.days + log.test_days),
        "over shoppers with a search in the log"),
    Statistic("shopper_skew", lambda log: _searches_a_shopper(log).mean() / _searches_a_shopper(log).median(),
        "searches a shopper, over shoppers with one in the log",
        below="Activity itself is drawn about as skewed as published, but in a month the least active do not turn up; "
        "the published figure is of log lines in three months."),
    Statistic("searches_per_session", _searches_a_visit, "searches of a shopper, cut after five idle minutes",
        below="No search is asked again in other words, and a shopper's searches come at times that know nothing of "
        "one another."),
    Statistic("zh_query_characters", lambda log: _length(log.queries).mean(), "over searches", "searched",
        below="A few short words make every query; titles pasted whole, which lift the published mean, do not occur."),
    Statistic("zh_query_5_to_8", lambda log: _length(log.queries).is_between(5, 8).mean(), "over searches", "searched",
        above="Lengths lie closer together than in a real log: fewer queries of one short word, hardly any long ones."),
    Statistic("pinyin_share", lambda log: log.latin / log.requests, "requests whose prefix holds Latin letters alone"),
    Statistic("position_bias", lambda log: log.went_on / (log.went_on + log.stopped),
        "places read on from, over all places read without a click", "read"),
    Statistic("query_churn", _never_seen, "searches of the test days against all earlier days of the log", "searched",
        above="The log is short and begins with nothing: whatever was searched before its first day counts as new."),
    Statistic("seasonality", None, apart="No products stand behind a query, so none can turn with the season; what "
        "moves is demand (trend, season, event)."),
)  # fmt: skip

#: What a reader may look for in a market and will not find in this one.
NOT_MODELLED = (
    "One click ends a search: no second click on a list, no way back to it.",
    "No page of results: a click leads to nothing, to an item or to an order by one draw. No ranks, carts or returns.",
    "No catalogue of items: quality and typical price belong to the query and stay. No stock, titles or discounts.",
    "No chains of reformulation: a search that fails is not asked again in other words. Beyond taste, a shopper's "
    "searches know of one another only by chance repeats.",
    "Taste never changes within the log: departments, favourites, audience and price tier of a shopper are fixed.",
    "Nobody learns from disappointment: click-bait lures the same shopper again.",
    "Shoppers neither arrive nor leave; every day belongs to all of them, by activity, without a daily limit.",
    "No influence among the log's shoppers: policies count earlier searches of others, never those of the log.",
    "A list changes what a shopper wants only by being clicked, since a repeat may bring the clicked query back.",
    "No season longer than a week, but for one peak of each event's words and a slow drift: no year, no holidays. What "
    "is searched does not depend on the hour.",
    "No adversaries: no bots, no sellers who push their queries, no scraping.",
    "Typing goes forward: nothing is deleted, pasted or spoken, but for a slip that is noticed and mended.",
    "A word has one slip, the same for everybody, and only the first word of a query slips. What is sent off by Enter "
    "is rightly spelt, and nobody learns to spell.",
    "Nothing outside the pool is searched: no bare brand, model number, question, or second language.",
    "No devices and no delays: every place of a list is in sight, and the list is there at each look.",
    "Chinese is typed in characters or in whole pinyin, one of them throughout a search: no initials, no dialects.",
)


def published() -> list[dict]:
    """The published statistics, as ``published.yaml`` holds them."""
    return yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))


def place(value: float, low: float, high: float) -> str:
    """``below``, ``inside`` or ``above`` a span, once rounded to the decimals that its ends are published with."""
    value = round(value, max(len(str(float(end)).partition(".")[2].rstrip("0")) for end in (low, high)))
    return "below" if value < low else "above" if value > high else "inside"


def card_rows(market: Path | Digest) -> pl.DataFrame:
    """The card of a market: its own value of every published statistic that concerns its language.

    Args:
        market: its folder, or what :func:`data_synth.describe.digest_market` read from it.

    Returns:
        Columns of :data:`SCHEMA`. ``verdict`` is inside, below, above, no published figure or not comparable; ``why``
        gives the reason for the last, for below and for above; ``truth`` names what was read of it, if anything, beside
        the log; ``ours`` is null where the market holds nothing to measure.

    Raises:
        MarketError: the folder holds no market.
    """
    log = market if isinstance(market, Digest) else digest_market(market)
    told, chinese, rows = {entry["statistic"]: entry for entry in published()}, log.locale == "zh", []
    for each in STATISTICS:
        reads, low, high = (told[each.name][key] for key in ("reads", "low", "high"))
        if ("(English)" if chinese else "Chinese") in reads:
            continue
        ours = each.ours(log) if each.ours else None
        why = each.apart or (each.apart_zh if chinese else "") or (TOO_SMALL if ours is None else "")
        verdict = "not comparable" if why else "no published figure" if low is None else place(ours, low, high)
        if verdict in ("below", "above"):
            why = getattr(each, verdict) or UNEXPLAINED
        sources = list(dict.fromkeys(figure["source"] for figure in told[each.name]["figures"]))
        rows.append([each.name, reads, ours, low, high, verdict, why, each.measured, each.truth, sources])
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def card_page(markets: list[Digest]) -> str:
    """The card as a page of the book: statistics of each market, knobs, and what is not modelled."""
    parts = [
        "# Data card of the market",
        "This page is written by `python -m data_synth.card` whenever the book is rendered: every value of ours is "
        "counted in the market's own files, and every published span comes from the sources named beside it. A value "
        "is inside a span if it is so once rounded to the decimals that the span is published with; `truth` marks what "
        "a log alone could not tell, by its column there.",
    ]
    for log in markets:
        parts += [
            f"## Statistics of the {dict(en='English', zh='Chinese')[log.locale]} market",
            f"{log.searches.height:,} searches by {log.searches['user_id'].n_unique():,} shoppers in {log.days} + "
            f"{log.test_days} days: {log.requests:,} requests, {log.candidates:,} candidates and "
            f"{log.clicks.height:,} clicks.",
            _table(["statistic", "ours", "published", "verdict", "why, and how ours is measured"],
                   [_line(row) for row in card_rows(log).iter_rows(named=True)]),
        ]  # fmt: skip
    knobs = [[f"`{row['knob']}`", row["default"], row["reads"], row["plausible"], _cited(row["source"])]
             for row in knob_rows()]  # fmt: skip
    parts += ["## Knobs", "Defaults are those of the `lite` profile; `ours` marks a choice of this project.",
              _table(["knob", "default", "what it means", "plausible", "source"], knobs)]  # fmt: skip
    parts += ["## What the market does not model", "\n".join(f"- {line}" for line in NOT_MODELLED)]
    return "\n\n".join(parts) + "\n"


def _line(row: dict) -> list[str]:
    """The cells of one statistic."""
    low, high = (f"{row[end]:g}" if row[end] is not None else "" for end in ("low", "high"))
    span = low if low == high else f"{low} to {high}"
    measured = f"*{row['measured']}*" if row["measured"] else ""
    measured += f" (truth: `{row['truth']}`)" if row["truth"] else ""
    verdict = f"**{row['verdict']}**" if row["verdict"] in ("below", "above") else row["verdict"]
    ours = "" if row["ours"] is None else f"{row['ours']:.3g}"
    what = f"**{row['statistic'].replace('_', ' ')}**: {row['reads']} {_cited(', '.join(row['sources']))}"
    return [what, ours, span, verdict, "<br>".join(filter(None, (row["why"], measured)))]


def _cited(source: str) -> str:
    """A source as a citation; what this project or the paper itself settles needs no key of its own."""
    if source.startswith("paper"):
        return "{cite}`guo2026onesug`" + source.removeprefix("paper")
    return "{cite}`" + source + "`" if source not in ("", "ours") else source


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Markdown page to write.")],
    log: Annotated[list[Path] | None, typer.Option(help="Folder of a market; repeatable, one a language.")] = None,
    profile: Annotated[str, typer.Option(help="Without --log: size of the English market.")] = "lite",
    store: Annotated[Path, typer.Option(help="Without --log: folder of all markets.")] = Path("build/store"),
) -> None:
    """Write the data card of markets: those given, or the English one of a profile and the small Chinese one."""
    try:
        configs = [] if log else [market_config(profile), market_config("smoke", locale="zh")]
        text = card_page([digest_market(folder) for folder in log or [open_market(each, store) for each in configs]])
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = out.with_name(f".{out.name}-{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, out)
    except (MarketError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{out}: {text.count('| inside |')} statistics inside their span, the others with a reason")


if __name__ == "__main__":
    app()
