"""The error that stops a run on unusable data."""

from __future__ import annotations

import traceback

from ..errors import UserError

__all__ = ["DatasetError", "one_line"]


class DatasetError(UserError):
    """The dataset cannot be used as asked. The message is for the user: what is wrong where, and what to do."""


def one_line(error: BaseException) -> str:
    """An exception as one line of text."""
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())
