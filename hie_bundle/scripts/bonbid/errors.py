"""The error that stops a run on unusable data, and how it is shown."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

__all__ = ["DatasetError", "show_plainly"]


class DatasetError(Exception):
    """The dataset cannot be used as asked. The message is for the user: what is wrong where, and what to do."""


def show_plainly() -> None:
    """Let a ``DatasetError`` that nobody catches end the program with its message instead of a traceback.

    MONAI wraps every exception of a config in two or three others, whose tracebacks bury the message. A program that
    runs a config and catches exceptions (a server, a notebook, a test) sees them unchanged.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for cause in _causes(error):
            if isinstance(cause, DatasetError):
                print(f"\nerror: {cause}", file=sys.stderr)
                return
        previous(kind, error, trace)

    if getattr(previous, "__module__", None) != __name__:
        sys.excepthook = hook


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    text = "".join(traceback.format_exception_only(type(error), error))
    return " ".join(text.split())
