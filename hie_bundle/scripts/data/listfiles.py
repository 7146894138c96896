"""Data lists as files: their entries with absolute paths, and the files that prepared cases were made from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import DatasetError, one_line
from .check_cache import case_of
from .checks import item_files
from .layout import SPLITS

__all__ = ["KEYS", "as_native", "entries_of", "portable", "with_natives"]

logger = logging.getLogger(__name__)

KEYS = dict(zip(SPLITS, ("training", "validation", "test"), strict=True))  # of the decathlon form


def entries_of(file: Path, key: str) -> list[dict[str, Any]]:
    """One list of a file in the decathlon form, its paths absolute; empty if the file has no such list.

    Raises:
        DatasetError: the file cannot be read.
    """
    from monai.data import load_decathlon_datalist

    try:
        if not json.loads(file.read_text()).get(key):
            return []
        entries = load_decathlon_datalist(file, True, key, file.absolute().parent)
        return [{**entry, **_native_files(entry, file), "case": case_of(entry)} for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"The data list {file} cannot be read ({one_line(error)}).") from error


def _native_files(entry: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """MONAI makes the paths of ``image`` and ``label`` absolute, and no others."""

    def absolute(paths: str | Sequence[str]) -> str | list[str]:
        if isinstance(paths, str):
            return os.path.normpath(file.absolute().parent / paths)
        return [os.path.normpath(file.absolute().parent / path) for path in paths]

    return {key: absolute(entry[key]) for key in ("native_image", "native_label") if entry.get(key)}


def portable(paths: str | Sequence[str], folder: Path) -> str | list[str]:
    """Paths for a file in a folder: relative to it where they lie in it or beside it, absolute otherwise."""
    if not isinstance(paths, str):
        return [str(portable(path, folder)) for path in paths]
    near = Path(paths).is_relative_to(folder.parent)
    return Path(os.path.relpath(paths, folder)).as_posix() if near else paths


def with_natives(items: Sequence[Mapping[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Items with the keys ``native_image`` and ``native_label`` that a data list has for their cases.

    If none of these files can be found the items stay as they are, and a warning says so. (One that is missing among
    others is for ``require_usable`` to name.)
    """
    known = {entry["case"]: entry for key in KEYS.values() for entry in entries_of(file, key)}
    natives = {
        case: {key: entry[key] for key in ("native_image", "native_label") if key in entry}
        for case, entry in known.items()
    }
    found = [{**item, **natives.get(str(item["case"]), {})} for item in items]
    prepared = [as_native(item) for item in found if "native_image" in item]
    if prepared and not any(Path(path).is_file() for item in prepared for path in item_files(item).values()):
        first = next(iter(item_files(prepared[0]).values()))
        logger.warning("The files that the cases of %s were made from are not there (%s …).", file, first)
        return [dict(item) for item in items]
    return found


def as_native(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item of the files that preprocessing made this one's from; the item itself where there are none."""
    if "native_image" not in item:
        return dict(item)
    return {key.removeprefix("native_"): value for key, value in item.items() if key not in ("image", "label")}
