"""A market from a real list of queries: reading the list with care. :mod:`data_synth.query_tastes` makes a pool of it.

A list comes from anywhere, so any bytes have an answer: a :class:`QueryList` with a report of the rows that were
refused, or a :class:`MarketError` that says what to change.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .config import MarketError

QUERY_COLUMNS = ("query", "text", "keyword", "search_term")  # looked for in this order
COUNT_COLUMNS = ("count", "counts", "frequency", "volume")
MIN_QUERIES = 50  # distinct queries that a market needs; ours
MAX_COUNT = 10**10  # of one row: more than any query gets in a year, and safe to add up; ours

#: Why a row is refused, in the order of the checks, and what to do about it.
KINDS = {
    "not_utf8": "save the file as UTF-8 (a U+FFFD mark is left by an earlier wrong reading)",
    "nul": "take out NUL and the other control characters",
    "blank": "write a query there or delete the row",
    "too_long": "shorten the query or raise max_characters",
    "formula": "take off the leading = + - @ or delete the row",
    "control_token": "take out what spells a model's control token",
    "bad_count": f"write a whole number from 1 to {MAX_COUNT}",
}
_BROKEN = "\ufffd"  # decoding writes it for bytes that are not UTF-8
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line ends
_COUNT = re.compile(r"0*([0-9]{1,11})(?:\.0*)?")  # some programs write 12 as 12.0
_CELL = r"(?:\$?[a-z]{1,3}\$?\d{1,7}|\d+(?:\.\d+)?)"
_FORMULA = re.compile(
    r"=[\w\"'({\[$#@+-]"  # = glued to what it works out
    r"|[=+@-][\s\d.,%()$=+*/^&@-]*[^\W\d][\w.]*(?:\(|\||!\$?[a-z]+\$?\d)"  # a call, a DDE link, another sheet
    rf"|[=+@-] ?(?=.*[a-z]){_CELL}(?: ?[-+*/^&:] ?{_CELL})+$"  # nothing but sums of cells
)
_CONTROL_TOKEN = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?(?:s|pad|sep|item|unk|cls|mask|bos|eos|start_of_turn|end_of_turn)>|<[a-z_]+_\d+>"
    r"|\[/?(?:cls|sep|pad|mask|unk|bos|eos|inst|unused\d+)\]|<</?sys>>"
)


class ListReport(NamedTuple):
    """What became of the rows of a file: ``rows == kept + sum(refused.values())``."""

    rows: int  # data rows read, blank ones included
    kept: int  # rows that became (part of) a query, duplicates included
    merged: int  # kept rows that were merged into an earlier equal one
    refused: dict[str, int]  # kind -> rows; all of KINDS, in its order
    examples: dict[str, list[tuple[int, str]]]  # kind -> first five (line in the file, cell at fault in ASCII)

    def lines(self) -> list[str]:
        """The report as text: a line for the file, then one a kind with its count and its first line numbers."""
        head = f"{self.rows} rows: {self.kept} kept, {self.merged} of them duplicates; {self.rows - self.kept} refused"
        places = {kind: ", ".join(str(line) for line, _ in found) for kind, found in self.examples.items()}
        return [head, *(f"  {kind:13} {n:7}" + f"  line {places[kind]}" * (n > 0) for kind, n in self.refused.items())]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class QueryList(NamedTuple):
    """N distinct queries, most frequent first, ties by text."""

    text: list[str]  # N cleaned texts
    count: np.ndarray  # (N,) int64, at least 1; the counts of duplicates are added
    report: ListReport


def read_query_list(
    path: str | Path,
    column: str | None = None,
    count_column: str | None = None,
    strict: bool = False,
    max_characters: int = 200,
) -> QueryList:
    """Read queries in any language from a CSV file, or from a plain file of one query a line.

    The first row with anything in it is a header when it holds the columns named here or, where none is named, one of
    ``QUERY_COLUMNS``, or one of ``COUNT_COLUMNS`` beside another column (any case; blank and hyphen count as ``_``).
    With a header and no known query column, the query is the first column that is not mostly numbers. So it is without
    a header when nine of ten of the first records have the same two or more fields; otherwise, and under a header of
    one column, the whole line is the query, commas and all. No header, no counts: each row counts once. Fields part at
    commas, else semicolons, else tabs. A quoted field may run over lines, but a quote that is not closed properly
    within 50 lines counts for its own line only.

    Texts are brought to NFKC, lowered, freed of invisible format characters and their white space collapsed; equal
    ones are merged. A row is refused for the first of ``KINDS`` that fits it. A ``formula`` is ``=`` glued to a name,
    number, quote or bracket, or ``= + - @`` before a call (``@sum(``), a DDE link (``+cmd|``), another sheet
    (``+data!a1``) or a sum of cells (``-a1+b2``); ``-5 degree sleeping bag`` and ``@home`` are queries.

    Args:
        path: the file, in UTF-8 with or without a byte order mark, with any line ends.
        column: name of the query column.
        count_column: name of the column of counts; otherwise the first of ``COUNT_COLUMNS`` that is there.
        strict: raise at the first bad row instead of skipping and reporting it.
        max_characters: of the longest query, once cleaned.

    Raises:
        MarketError: no such file, an empty one, UTF-16, a named column that is absent, no usable row, fewer than
            ``MIN_QUERIES`` distinct queries or, when strict, a bad row.

    Source: ours; formulas after OWASP, "CSV Injection".
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: NUL in a path
        raise MarketError(f"{path} cannot be read ({error}); expected a CSV file of queries: check the path") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MarketError(f"{path} is UTF-16; expected UTF-8: save it again as 'CSV UTF-8'")
    lines = list(io.StringIO(data.decode("utf-8-sig", errors="replace"), newline=""))
    delimiter, header, place, count_place = _find_layout(path, lines, column, count_column)

    total: dict[str, int] = {}
    rows, refused, examples = 0, dict.fromkeys(KINDS, 0), {kind: [] for kind in KINDS}
    for line, fields in _records(lines, delimiter):
        if line == header:
            continue
        rows += 1
        cell = delimiter.join(fields) if place is None else _cell(fields, place)
        kind, query = _judge(cell, max_characters)
        count = 1
        if not kind and count_place is not None:
            cell = _cell(fields, count_place)
            match = _COUNT.fullmatch(cell)
            count = int(match[1]) if match else 0
            kind = "" if 1 <= count <= MAX_COUNT else "bad_count"
        if not kind:
            total[query] = total.get(query, 0) + count
            continue
        view = ascii(cell[:60])[:60] + "..." * (len(ascii(cell[:61])) > 60)
        if strict:
            raise MarketError(f"{path}, line {line}: {kind}, {view}; {KINDS[kind]}, or read without strict to skip it")
        refused[kind] += 1
        if len(examples[kind]) < 5:
            examples[kind].append((line, view))

    kept = rows - sum(refused.values())
    report = ListReport(rows, kept, kept - len(total), refused, examples)
    if len(total) < MIN_QUERIES:
        found = f"{len(total)} distinct usable queries, too few to make a market" if total else "no usable row"
        raise MarketError(f"{path} has {found}; expected at least {MIN_QUERIES} queries: add or mend some\n{report}")
    text = sorted(total, key=lambda query: (-total[query], query))
    return QueryList(text, np.array([total[query] for query in text], dtype=np.int64), report)


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each record starts, from 1, and its fields."""
    at = 0
    while at < len(lines):
        # strict makes a stray quote an error at once; otherwise it would swallow the rows after it
        for end, strict in ((at + 50, True), (at + 1, False)):
            reader = csv.reader(lines[at:end], delimiter=delimiter, strict=strict)
            try:
                fields = next(reader)
                break
            except csv.Error:  # when not strict: a field longer than csv takes
                fields = lines[at].split(delimiter)
        yield at + 1, fields
        at += reader.line_num


def _cell(fields: list[str], place: int) -> str:
    return fields[place].strip() if place < len(fields) else ""


def _find_layout(path, lines: list[str], column: str | None, count_column: str | None):
    """Delimiter, line of the header (0: none), query column (None: the whole record), count column (None: none)."""
    named = [_name(name) for name in (column, count_column) if name is not None]
    samples = {}
    for delimiter in ",;\t":
        filled = (record for record in _records(lines, delimiter) if any(map(str.strip, record[1])))
        samples[delimiter] = list(islice(filled, 101))
    if not samples[","]:
        raise MarketError(f"{path} is empty; expected a CSV file of queries, or one query a line")
    for delimiter, sample in samples.items():
        names = [_name(cell) for cell in sample[0][1]] if sample else []
        counts = [name for name in ([_name(count_column)] if count_column else COUNT_COLUMNS) if name in names]
        queries = [name for name in ([_name(column)] if column else QUERY_COLUMNS) if name in names]
        if set(named) <= set(names) if named else queries or (counts and len(names) > 1):
            count = names.index(counts[0]) if counts else None
            place = names.index(queries[0]) if queries else _text_column(sample[1:], len(names), count)
            return delimiter, sample[0][0], place if len(names) > 1 else None, count
    if named:
        found = ", ".join(ascii(name[:40]) for name in max((s[0][1] for s in samples.values() if s), key=len)[:20])
        raise MarketError(f"{path} lacks a column of {named}; expected it in the first row: name one of {found}")
    for delimiter, sample in samples.items():
        widths = [len(fields) for _, fields in sample]
        width = max(set(widths), key=widths.count, default=1)
        if width > 1 and widths.count(width) >= 0.9 * len(widths):
            return delimiter, 0, _text_column(sample, width, None), None
    return ",", 0, None, None


def _name(cell: str) -> str:
    return re.sub("[ -]", "_", cell.strip().lower())


def _text_column(records, width: int, count: int | None) -> int:
    """The first column, other than the counts, that does not hold mostly numbers."""
    places = [place for place in range(width) if place != count]
    for place in places:
        cells = [cell for _, fields in records if (cell := _cell(fields, place))]
        if 2 * sum(bool(re.fullmatch(r"[-+\d.,%\s]+", cell)) for cell in cells) < len(cells):
            return place
    return places[0] if places else 0


def _judge(cell: str, max_characters: int) -> tuple[str, str]:
    """Why a query is refused ("" when it is not), and its cleaned form."""
    if _BROKEN in cell or _CONTROL.search(cell):
        return "not_utf8" if _BROKEN in cell else "nul", ""
    query = " ".join(cell.split())
    if len(query) > 4 * max_characters:  # NFKC makes at most four characters one, and is slow on long runs of marks
        return "too_long", ""
    query = query.lower() if query.isascii() else _clean(query)
    if not any(unicodedata.category(char)[0] in "LNPS" and char not in "\u115f\u1160\u2800" for char in query):
        return "blank", ""  # marks without a letter and empty letters show nothing either
    kinds = {
        "too_long": len(query) > max_characters,
        "formula": _FORMULA.match(query),
        "control_token": _CONTROL_TOKEN.search(query),
    }
    return next((kind for kind, fits in kinds.items() if fits), ""), query


def _clean(text: str) -> str:
    """NFKC, lower case, no format characters, single blanks: the form in which a model will read the query."""
    for _ in range(4):  # lowering and dropping can allow another composition; nearly all texts rest after two rounds
        before = text
        lowered = unicodedata.normalize("NFKC", text).lower()
        text = " ".join("".join(char for char in lowered if unicodedata.category(char)[0] != "C").split())
        if text == before:
            break
    return text
