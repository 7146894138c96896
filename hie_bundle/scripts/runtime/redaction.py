"""Case ids replaced in messages that are kept, where ``--anonymise_ids`` gave the cases other ids."""

from __future__ import annotations

import re

__all__ = ["redacted"]

_replaced: dict[str, str] = {}  # by this process so far


def redacted(text: str) -> str:
    """A text with other ids where this process has given cases others: for messages that name files and are kept."""
    for case in sorted(_replaced, key=len, reverse=True):
        # what has no letter is a number as any other, but in a file's name
        before, after = (
            (r"(?<![^\W_])", r"(?![^\W_])") if re.search(r"[^\W\d_]", case) else (r"(?<=[/_-])", r"(?=[-_.])")
        )
        text = re.sub(before + re.escape(case) + after, _replaced[case], text)
    return text
