"""Replace case ids and folders in stored messages if ``--anonymise_ids`` is set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_replaced: dict[str, str] = {}  # pseudonym by case id
_folders: set[str] = set()


def replace_in_kept_messages(names: Mapping[str, str], files: Iterable[str | Path] = ()) -> None:
    """Let :func:`redacted` replace ids with pseudonyms, and remove folders of files, which may name a patient."""
    _replaced.update(names)
    folders = {folder for file in files for folder in (Path(file).parent, Path(file).absolute().parent)}
    _folders.update(str(folder) for folder in folders if str(folder) != ".")


def redacted(text: str) -> str:
    """A message for storage: pseudonyms instead of ids, no folders of cases."""
    for folder in sorted(_folders, key=len, reverse=True):
        text = text.replace(folder + os.sep, "")
    for case in sorted(_replaced, key=len, reverse=True):
        # an id without letters is replaced in file names only: it may be any number
        before, after = (
            (r"(?<![^\W_])", r"(?![^\W_])") if re.search(r"[^\W\d_]", case) else (r"(?<=[/_-])", r"(?=[-_.])")
        )
        text = re.sub(before + re.escape(case) + after, _replaced[case], text)
    return text
