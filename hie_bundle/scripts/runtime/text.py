"""Case ids and file names in a terminal and in a spreadsheet: shown, never executed."""

from __future__ import annotations

import csv
import io
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # an apostrophe too, so that reading inverts writing
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, separators of lines and paragraphs
_DIRECTION = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # reorder what follows


def is_printable(text: str) -> bool:
    """Whether a text has no control character and none that changes the direction of writing."""
    return not any(unicodedata.category(one) in _CONTROL or one in _DIRECTION for one in text)


def printable(text: object) -> str:
    """A message for a terminal: control characters but line breaks and tabs are written as ``\\x1b`` and the like."""
    return "".join(
        one if one in "\n\t" or is_printable(one) else one.encode("unicode_escape", "surrogatepass").decode()
        for one in str(text)
    )


def show_any_text() -> None:
    """Let standard output and errors write what their encoding (ASCII, a code page) lacks as ``\\xe9`` and the like."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def csv_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """Rows as CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front.

    The columns are ``names``, or those of the first row.
    """
    table = io.StringIO()
    if columns := list(names or (rows[0] if rows else [])):
        writer = csv.DictWriter(table, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return table.getvalue()


def csv_value(cell: str) -> str:
    """The text that :func:`csv_table` wrote as this cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _csv_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
