"""Command line: ``python -m data_synth --sessions 240000 --seed 0 --out DIR``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .config import PROFILES, MarketError
from .describe import describe_market
from .market import check_target, write_market

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    profile: Annotated[str, typer.Option(help="Size to start from: smoke, lite or full.")] = "lite",
    sessions: Annotated[int | None, typer.Option(help="Sessions over all days.")] = None,
    shoppers: Annotated[int | None, typer.Option(help="Distinct shoppers.")] = None,
    queries: Annotated[int | None, typer.Option(help="Queries that exist on every day.")] = None,
    days: Annotated[int | None, typer.Option(help="Training days.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier market in that folder.")] = False,
) -> None:
    """Write the log of a synthetic market to OUT/log and its truth to OUT/truth."""
    try:
        if profile not in PROFILES:
            raise MarketError(f"--profile is {profile!r}; expected one of {', '.join(PROFILES)}")
        given = {"sessions": sessions, "shoppers": shoppers, "queries": queries, "days": days, "seed": seed}
        config = replace(PROFILES[profile], **{name: value for name, value in given.items() if value is not None})
        check_target(out, force)
        start = time.perf_counter()
        write_market(config, out, force=force)
    except (MarketError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    found = describe_market(out)
    typer.echo(f"{out}: {found['requests']:,} requests in {time.perf_counter() - start:.1f} s")
    for name in ("click_rate", "order_rate", "starts_with"):
        typer.echo(f"  {name:12} {found[name]:.3f}")
    for name in ("users", "prefixes", "queries", "clicked_queries", "prefix_length"):
        typer.echo(f"  {name:16} {found[name]:,.0f}")


if __name__ == "__main__":
    app()
