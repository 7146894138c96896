"""The cases as MONAI data lists: by official split, by fold, or from a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import DatasetError, one_line
from .folds import fold_of_case
from .gate import case_of
from .layout import SPLITS, find_cases, patient_of

__all__ = ["datalist"]

_KEYS = {"train": "training", "val": "validation", "test": "test"}


def datalist(
    dataset_dir: str | Path,
    split: str | None,
    labels: bool = True,
    fold: int | None = None,
    num_folds: int | None = None,
    seed: int = 0,
    file: str | Path | None = None,
) -> list[dict[str, Any]]:
    """List the cases of one split.

    Args:
        dataset_dir: folder with the cases; a missing or empty one gives an empty list.
        split: ``train``, ``val``, ``test``, or None for every case.
        labels: with the key ``label``; cases without any map are left out otherwise.
        fold: with ``num_folds``: the fold that is ``val``, 0 to ``num_folds`` - 1; the others are ``train``.
        num_folds: cross-validate over the cases of train, val and no split with this many folds.
        seed: of the folds.
        file: a data list in the decathlon form instead of a search in ``dataset_dir``, its paths relative to itself.
            Lists ``training`` (with ``fold`` keys, if ``fold`` is given), ``validation`` and ``test``.

    Returns:
        ``{"image": [adc, zadc] or stacked, "label": path, "case": id}`` with absolute paths, sorted by case. Files
        that are missing are listed too, for ``require_usable`` to name them.

    Raises:
        DatasetError: an unknown split, a fold that does not exist, a data list that cannot be read, or one with a
            patient in two of its lists.
    """
    if split is not None and split not in SPLITS:
        raise DatasetError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if num_folds is not None or (fold is not None and file is None):
        if num_folds is None or fold is None:
            raise DatasetError("A fold needs both --fold and --num_folds.")
        if not 0 <= fold < num_folds:
            raise DatasetError(f"There is no fold {fold} of {num_folds}; folds count from 0.")
    if file is not None:
        return _from_file(Path(file), split, labels, fold)
    cases = find_cases(dataset_dir)
    if num_folds is not None and split != "test":
        pool = [case for case in cases if case.split != "test"]
        folds = fold_of_case(pool, num_folds, seed)
        if split is not None:
            pool = [case for case in pool if (folds[case.case] == fold) == (split == "val")]
        cases = pool if split is not None else cases
    elif split is not None:
        cases = [case for case in cases if case.split == split]
    if not labels:
        cases = [case for case in cases if case.adc or case.zadc or case.stacked]
    return sorted((case.item(labels) for case in cases), key=lambda item: str(item["case"]))


def _from_file(file: Path, split: str | None, labels: bool, fold: int | None) -> list[dict[str, Any]]:
    sides = {name: _entries(file, key) for name, key in _KEYS.items()}
    if fold is not None:
        folds = {entry.get("fold") for entry in sides["train"]}
        if fold not in folds:
            there = ", ".join(sorted(str(number) for number in folds if number is not None)) or "none"
            raise DatasetError(f"The data list {file} has no fold {fold}; it has {there}.")
        sides["val"] = [entry for entry in sides["train"] if entry.get("fold") == fold]
        sides["train"] = [entry for entry in sides["train"] if entry.get("fold") != fold]
    elif any("fold" in entry for entry in sides["train"]) and not sides["val"] and split in ("train", "val"):
        raise DatasetError(f"The data list {file} has folds and no validation list; choose the fold with --fold.")
    seen: dict[str, str] = {}
    for name, entries in sides.items():
        for entry in entries:
            entry.setdefault("case", case_of(entry))
            patient = patient_of(entry["case"])
            if seen.setdefault(patient, name) != name:
                raise DatasetError(f"Patient {patient} is in both {seen[patient]} and {name} of the data list {file}.")
    items = [entry for name, entries in sides.items() if split in (None, name) for entry in entries]
    keys = ("image", "label", "case") if labels else ("image", "case")
    return sorted(({key: item[key] for key in keys if key in item} for item in items), key=lambda item: item["case"])


def _entries(file: Path, key: str) -> list[dict[str, Any]]:
    from monai.data import load_decathlon_datalist

    try:
        if not json.loads(file.read_text()).get(key):
            return []
        return [dict(entry) for entry in load_decathlon_datalist(file, True, key, file.absolute().parent)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"The data list {file} cannot be read ({one_line(error)}).") from error
