"""Safe output of case ids and file names in terminals and spreadsheets."""

from __future__ import annotations

import csv
import io
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # the apostrophe, so that reading inverts writing
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, separators of lines and paragraphs
_DIRECTION = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # reorder the following text


def is_printable(text: str) -> bool:
    """Whether a text has no control character and no character that changes the writing direction."""
    return not any(unicodedata.category(one) in _CONTROL or one in _DIRECTION for one in text)


def printable(text: object) -> str:
    """Escape control characters, except line breaks and tabs, for a terminal (``\\x1b`` etc.)."""
    return "".join(
        one if one in "\n\t" or is_printable(one) else one.encode("unicode_escape", "surrogatepass").decode()
        for one in str(text)
    )


def show_any_text() -> None:
    """Let stdout and stderr escape characters that their encoding lacks (``\\xe9`` etc.)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def csv_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """Rows as CSV; text that a spreadsheet would interpret as a formula gets a leading apostrophe.

    The columns are ``names``, or those of the first row.
    """
    table = io.StringIO()
    if columns := list(names or (rows[0] if rows else [])):
        writer = csv.DictWriter(table, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return table.getvalue()


def csv_value(cell: str) -> str:
    """Inverse of :func:`csv_table` for one cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _csv_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
