"""Case ids and folders replaced in messages that are kept, where ``--anonymise_ids`` gives the cases pseudonyms."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_replaced: dict[str, str] = {}  # by this process so far
_folders: set[str] = set()


def replace_in_kept_messages(names: Mapping[str, str], files: Iterable[str | Path] = ()) -> None:
    """Let :func:`redacted` replace ids by pseudonyms, and remove the folders of files, which may name a patient."""
    _replaced.update(names)
    folders = {folder for file in files for folder in (Path(file).parent, Path(file).absolute().parent)}
    _folders.update(str(folder) for folder in folders if str(folder) != ".")


def redacted(text: str) -> str:
    """A text with pseudonyms instead of ids, and without folders of cases: for messages that are kept."""
    for folder in sorted(_folders, key=len, reverse=True):
        text = text.replace(folder + os.sep, "")
    for case in sorted(_replaced, key=len, reverse=True):
        # what has no letter is a number as any other, but in a file's name
        before, after = (
            (r"(?<![^\W_])", r"(?![^\W_])") if re.search(r"[^\W\d_]", case) else (r"(?<=[/_-])", r"(?=[-_.])")
        )
        text = re.sub(before + re.escape(case) + after, _replaced[case], text)
    return text
