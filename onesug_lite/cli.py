"""Command line: ``onesug train``, ``onesug suggest``, ``onesug evaluate``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Generative query suggestion after OneSug.")

DEFAULT_MODEL = Path("build/onesug")
DEFAULT_STORE = Path("build/store")


def _stop(error: Exception) -> None:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(2)


def _words(text: str) -> list[str]:
    return [part.strip() for part in re.split("[,，、]", text) if part.strip()]  # Chinese commas too


@app.command()
def train(
    log: Annotated[
        Path,
        typer.Argument(help="folder with the tables requests and candidates, each a .parquet file or a folder of them"),
    ],
    out: Annotated[Path, typer.Option(help="folder of the trained suggester")] = DEFAULT_MODEL,
    variant: Annotated[str, typer.Option(help="row of the results table to train")] = "onesug",
    size: Annotated[str, typer.Option(help="smoke, lite or full")] = "lite",
    seed: Annotated[int, typer.Option(help="seed of everything trained or drawn")] = 0,
    store: Annotated[Path, typer.Option(help="folder of the artefacts")] = DEFAULT_STORE,
) -> None:
    """Train a suggester on a search log; interrupted, it goes on from its last checkpoint when called again."""
    from onesug_lite.pipeline import Pipeline

    try:
        policy = Pipeline(log, size, seed, store).policy(variant)
        if not hasattr(policy, "save"):
            raise ValueError(f"variant '{variant}' has nothing to train; choose a generator")
        typer.echo(f"trained suggester: {policy.save(out)}")
    except ValueError as error:
        _stop(error)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


@app.command()
def suggest(
    prefix: Annotated[str, typer.Argument(help="what the shopper has typed")],
    history: Annotated[str, typer.Option(help="earlier searched queries, oldest first, comma between them")] = "",
    profile: Annotated[str, typer.Option(help="attributes of the shopper, comma between them")] = "",
    model: Annotated[Path, typer.Option(help="folder written by onesug train")] = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(min=1, max=16, help="suggestions to print")] = 16,
) -> None:
    """Print the most likely queries, best first, with their log-probability."""
    from onesug_lite.policy import OneSugPolicy

    try:
        rows = OneSugPolicy.load(model).suggest(prefix, _words(history), _words(profile))
    except ValueError as error:
        _stop(error)
    for place, (query, score) in enumerate(rows[:count], 1):
        typer.echo(f"{place:2d}  {score:7.2f}  {query}")


@app.command()
def evaluate(
    log: Annotated[
        Path,
        typer.Argument(help="folder with the tables requests and candidates, each a .parquet file or a folder of them"),
    ],
    variant: Annotated[list[str] | None, typer.Option(help="rows of the table; repeat for several")] = None,
    size: Annotated[str, typer.Option(help="smoke, lite or full")] = "lite",
    seed: Annotated[int, typer.Option(help="seed of everything trained or drawn")] = 0,
    store: Annotated[Path, typer.Option(help="folder of the artefacts")] = DEFAULT_STORE,
) -> None:
    """Print HR@16 and MRR@16 with 95 % intervals on the held-out days, training what is missing."""
    import polars as pl

    from onesug_lite.pipeline import Pipeline
    from onesug_lite.variants import VARIANTS

    try:
        road = Pipeline(log, size, seed, store)
        typer.echo(f"{'system':40s} {'click HR@16 (%)':>22s} {'click MRR@16 (%)':>22s} {'clicks':>7s}")
        for name in variant or list(VARIANTS):
            table = road.summary(road.evaluate(name))
            rows = table.filter(pl.col("rows") == "click", pl.col("band") == "all").to_dicts()
            cells = [f"{100 * r['mean']:6.2f} [{100 * r['low']:5.2f}, {100 * r['high']:5.2f}]" for r in rows]
            typer.echo(f"{VARIANTS[name].label:40s} {cells[0]:>22s} {cells[1]:>22s} {rows[0]['requests']:7d}")
    except ValueError as error:
        _stop(error)


if __name__ == "__main__":
    app()
