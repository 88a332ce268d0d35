"""Command line: ``python -m data_synth --sessions 100000 --out DIR``, or ``--queries FILE.csv`` for your own words."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from .config import MarketConfig, MarketError, market_config
from .describe import describe_market
from .market import check_target, write_market
from .query_list import read_query_list
from .query_tastes import build_pool

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    profile: Annotated[str, typer.Option(help="Size to start from: smoke, lite or full.")] = "lite",
    world: Annotated[str, typer.Option(help="World: selective, production or few_candidates.")] = "selective",
    locale: Annotated[str | None, typer.Option(help="Language of the words: en or zh.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="CSV of real queries, one a line, with or without counts.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a list with a bad row instead of skipping it.")
    ] = False,
    sessions: Annotated[int | None, typer.Option(help="Searches over all days; each is several requests.")] = None,
    shoppers: Annotated[int | None, typer.Option(help="Distinct shoppers.")] = None,
    days: Annotated[int | None, typer.Option(help="Training days.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other knob, as name=value; repeatable.")] = None,
    shard: Annotated[list[int] | None, typer.Option(help="Write this shard alone; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time; the bytes do not depend on it.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier market in that folder.")] = False,
) -> None:
    """Write the log of a synthetic market to OUT/log and its truth to OUT/truth."""
    try:
        given = {"sessions": sessions, "shoppers": shoppers, "days": days, "seed": seed, "locale": locale}
        changes = {name: value for name, value in given.items() if value is not None}
        config = market_config(profile, world, **(changes | dict(_knob(text) for text in set_ or [])))
        if jobs < 1:
            raise MarketError(f"--jobs is {jobs}; expected 1 or more")
        check_target(out, force)
        start = time.perf_counter()
        pool = None
        if queries is not None:
            listed = read_query_list(queries, strict=strict)
            typer.echo(str(listed.report))
            pool = build_pool(listed, config.seed)
        write_market(config, out, force, jobs, pool, shard)
    except (MarketError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    found = describe_market(out)
    typer.echo(f"{out}: {found['requests']:,} requests in {time.perf_counter() - start:.1f} s")
    for name in ("click_rate", "order_rate", "starts_with"):
        typer.echo(f"  {name:16} {found[name]:.3f}")
    for name in ("sessions", "users", "prefixes", "queries", "clicked_queries", "prefix_length"):
        typer.echo(f"  {name:16} {found[name]:,.0f}")


def _knob(text: str) -> tuple[str, int | float | str]:
    """``name=value`` with the value in the knob's own type."""
    name, equals, value = text.partition("=")
    kinds = {knob.name: type(knob.default) for knob in fields(MarketConfig)}
    if not equals or name not in kinds:
        raise MarketError(f"--set got {text!r}; expected name=value with a knob of the market, such as patience=0.8")
    try:
        return name, kinds[name](value)
    except ValueError:
        raise MarketError(f"--set {name} is {value!r}; expected {kinds[name].__name__}") from None


if __name__ == "__main__":
    app()
