"""How every figure and table of the book looks, and how it is kept: style, fonts, headlines, and files.

:func:`save` writes the picture and, beside it, the numbers it was drawn from.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import polars as pl
import polars.selectors as selectors
import seaborn as sns
from IPython.display import HTML
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
GREY = "#6b6b6b"
FONT = "DejaVu Sans"  # ships with matplotlib, so every machine draws the same letters
CHINESE_FONTS = (  # tried in this order before any other installed font
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Droid Sans Fallback",
)


def use_style() -> None:
    """Set the look of all figures: white ground, colour-blind palette, sizes that stay readable on a phone."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 4.0),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlesize": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.family": FONT,
            "svg.hashsalt": "onesug",
        }
    )


def save(figure: Figure, data: pl.DataFrame, name: str, folder: str | Path) -> Figure:
    """Write ``<name>.png`` and ``<name>.csv`` into ``folder`` under temporary names, then rename."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lists = [name for name, kind in data.schema.items() if isinstance(kind, pl.List)]
    flat = data.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" | ") for name in lists)
    flat.write_csv(folder / f".{name}.csv", float_precision=6)
    os.replace(folder / f".{name}.csv", folder / f"{name}.csv")
    figure.savefig(folder / f".{name}.png", metadata={"Software": None})
    os.replace(folder / f".{name}.png", folder / f"{name}.png")
    return figure


def table(data: pl.DataFrame, wrap: bool = False) -> HTML:
    """A frame as a plain HTML table: no index, no types, three significant decimals, lists joined by a dot.

    Args:
        data: the frame.
        wrap: break long texts into lines, where the table would else be wider than the page.
    """
    lists = [name for name, kind in data.schema.items() if isinstance(kind, pl.List)]
    joined = data.with_columns(pl.col(name).list.eval(pl.element().cast(pl.String)).list.join(" · ") for name in lists)
    joined = joined.with_columns(selectors.integer().cast(pl.String).fill_null(""))  # pandas makes floats of them
    shape = {"index": False, "float_format": "{:.3f}".format, "na_rep": "", "border": 0}
    return HTML(joined.to_pandas().to_html(classes="wrap" if wrap else None, **shape))


class Labels(NamedTuple):
    """Texts that a figure can draw, and the font families to draw them with."""

    texts: list[str]
    family: list[str]


def legible(texts: Sequence[str]) -> Labels:
    """Labels in any script, without empty boxes where the figures' own font has no such letter.

    An installed font that has all missing letters stands in for them; DejaVu Sans goes on drawing the rest. Without
    one, Chinese is written in pinyin and one line on stderr says so. Texts that DejaVu Sans can draw stay as they are.

    Args:
        texts: the labels.
    """
    letters = {letter for text in texts for letter in text if not letter.isspace()}
    lacking = letters - _letters(font_manager.findfont(FONT))
    if not lacking:
        return Labels(list(texts), [FONT])
    for family, file in _installed().items():
        if lacking <= _letters(file):
            return Labels(list(texts), [FONT, family])
    _say_once("no installed font has the Chinese letters of a figure, so they are drawn as pinyin")
    return Labels([transliterated(text) for text in texts], [FONT])


def transliterated(text: str) -> str:
    """Chinese read aloud: pinyin with tones, a blank between syllables; letters that cannot be drawn become "?"."""
    from pypinyin import Style, lazy_pinyin

    drawn = _letters(font_manager.findfont(FONT))

    def kept(other: str) -> str:
        return "".join(letter if letter.isspace() or letter in drawn else "?" for letter in other)

    return " ".join(" ".join(lazy_pinyin(text, style=Style.TONE, errors=kept)).split())


def _installed() -> dict[str, str]:
    """Families of the installed fonts with a file of each: those known to hold Chinese first, then by name."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):  # installed after matplotlib listed the fonts
        with suppress(OSError, RuntimeError, ValueError):
            font_manager.fontManager.addfont(file)
    upright = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: (e.style != "normal", str(e.weight), e.fname)):
        if not entry.name.startswith("Last Resort"):  # it has a box for every letter
            upright.setdefault(entry.name, entry.fname)
    rank = {name: place for place, name in enumerate(CHINESE_FONTS)}
    order = sorted(upright, key=lambda name: (rank.get(name, len(rank)), name))
    return {name: upright[name] for name in order}


@cache
def _letters(file: str) -> frozenset[str]:
    """The letters that a font file has; none if it cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def percent_axis(axis: Axis) -> None:
    """Write the ticks of an axis of shares in whole per cent."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def headline(axes: Axes, text: str) -> Text:
    """A finding as the title, on as many lines as it needs."""
    return axes.set_title("\n".join(textwrap.wrap(text, int(axes.figure.get_figwidth() * 8.6))))


def heading(figure: Figure, text: str) -> None:
    """The same for a figure of several panels."""
    lines = "\n".join(textwrap.wrap(text, int(figure.get_figwidth() * 8.6)))
    figure.suptitle(lines, x=0.01, ha="left", weight="bold", fontsize=12)


def legend_below(figure: Figure, panels: Iterable[Axes], columns: int = 4) -> None:
    """One legend for all panels, below them, each name once."""
    names: dict = {}
    for axes in panels:
        names |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    place = {"loc": "outside lower center", "ncols": columns, "fontsize": 9, "frameon": False}
    figure.legend(names.values(), names.keys(), **place)


def reach(row: Mapping[str, float], middle: str = "mean") -> list[list[float]]:
    """How far the interval of one row, ``low`` to ``high``, reaches to both sides, as matplotlib wants it."""
    return [[row[middle] - row["low"]], [row["high"] - row[middle]]]


def filled_where_clear(row: Mapping[str, float], color: str | tuple) -> dict[str, str | tuple]:
    """Colours of a marker: filled where the interval of the row, ``low`` to ``high``, excludes zero, else hollow."""
    clear = row["low"] > 0 or row["high"] < 0
    return {"color": color, "markerfacecolor": color if clear else "white"}


def groups(data: pl.DataFrame, column: str) -> list[tuple[str, pl.DataFrame]]:
    """The rows of each value of a column, in the order in which the values first occur."""
    parts: Mapping = data.partition_by(column, maintain_order=True, as_dict=True)
    return [(key[0], rows) for key, rows in parts.items()]
