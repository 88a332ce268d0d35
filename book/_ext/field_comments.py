"""Sphinx extension: show the fields of dataclasses and named tuples with the comments that stand beside them.

The packages note a field's meaning, and the value in the paper with its source, in a trailing comment. Those
comments belong in the reference, so they become the list of fields; the long signature is left out.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize


def _has_fields(obj: object) -> bool:
    return inspect.isclass(obj) and (dataclasses.is_dataclass(obj) or hasattr(obj, "_field_defaults"))


def field_lines(cls: type) -> list[tuple[str, str, str, str]]:
    """Name, annotation, default (both as written) and comment of each field, in the order of the source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return []
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("#: ").strip()
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    fields = []
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
            continue
        default = "" if node.value is None else " ".join((ast.get_source_segment(source, node.value) or "").split())
        beside = [line for line in range(node.lineno, node.end_lineno + 1) if line in comments and line not in alone]
        comment = " ".join(comments[line] for line in beside)
        line = node.end_lineno + 1
        while comment and line in alone:  # a comment that runs over into the next line
            comment, line = f"{comment} {comments[line]}", line + 1
        fields.append((node.target.id, ast.unparse(node.annotation), default, comment))
    return fields


def _plain(text: str) -> str:
    return re.sub(r"([\\*`|_<>])", r"\\\1", text)


def add_fields(app, what, name, obj, options, lines) -> None:
    if what != "class" or not _has_fields(obj):
        return
    if lines and lines[0].startswith(f"{obj.__name__}("):  # the docstring that dataclass makes up
        lines[:] = []
    told = set(re.findall(r":(?:ivar|param) (?:[^:]*\s)?\\?(\w+):", "\n".join(lines)))
    rows = [row for row in field_lines(obj) if row[0] not in told]
    if not rows:
        return
    lines += ["", ".. container:: fields", ""]
    for field, annotation, default, comment in rows:
        if len(default) > 60:
            default = "…"
        value = f" = ``{default}``" if default else f": ``{annotation}``"
        lines.append(f"   - **{_plain(field)}**{value}" + (f" · {_plain(comment)}" if comment else ""))
    lines.append("")


def keep_colon(app, what, name, obj, options, lines) -> None:
    if what == "data" and lines:  # napoleon would read the words before a colon as the constant's type
        lines[0] = lines[0].replace(": ", " – ", 1)


def shorten_signature(app, what, name, obj, options, signature, return_annotation):
    if what == "class" and _has_fields(obj):
        return "", None
    return None


def skip_tuple_fields(app, what, name, obj, skip, options):
    return True if type(obj).__name__ == "_tuplegetter" else None  # "Alias for field number 0" tells nobody anything


def setup(app):
    app.connect("autodoc-process-docstring", keep_colon, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", add_fields, priority=800)  # after napoleon
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
