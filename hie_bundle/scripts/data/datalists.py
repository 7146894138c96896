"""The cases as MONAI data lists: by official split, by fold, or from a JSON file."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..io.files import seen_from, try_writing, write_json
from ..runtime.errors import DatasetError, one_line
from ..runtime.text import is_printable
from .checks import Limits
from .folds import count_of_patients, patients_in_list, patients_of, size_class
from .gate import check_items, copies, require_usable
from .layout import MANIFEST, SPLITS, as_native, case_of, find_cases, first_file, item_files
from .privacy import pseudonymised

logger = logging.getLogger(__name__)

KEYS = dict(zip(SPLITS, ("training", "validation", "test"), strict=True))  # of the decathlon format
FILES, NATIVE_FILES = ("image", "label"), ("native_image", "native_label")
Items = list[dict[str, Any]]


def datalist(
    dataset_dir: str | Path,
    split: str | None,
    labels: bool = True,
    fold: int | None = None,
    num_folds: int | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    limits: Limits | None = None,
    patient_pattern: str | None = None,
    native: bool = False,
    inner_folds: int | None = None,
    anonymise_ids: str | Path | None = None,
    test_site: str | None = None,
) -> Items:
    """List the cases of one split as MONAI data items.

    Args:
        dataset_dir: folder with the cases; the list is empty if the folder is missing or empty.
        split: ``train``, ``val``, ``test``, or None for every case.
        labels: add the key ``label``; otherwise omit cases without any map.
        fold: index of the fold used as ``val``, from 0; the others are ``train``.
        num_folds: number of folds over the cases of train, val and no split.
        seed: seed of the folds.
        file: data list in the decathlon format instead of a search in ``dataset_dir``: lists ``training`` (with
            ``fold`` keys for a ``fold``), ``validation`` and ``test``. Paths are relative to the file; entries may have
            a ``patient``.
        limits: limits of a usable case, see :func:`.check_items`.
        patient_pattern: regular expression for the patient in a case id, see :func:`.patients_of`.
        native: add ``native_image`` and ``native_label``, the files before preprocessing; if none of them exists, log
            a warning.
        inner_folds: split the training cases into this number of parts with similar lesion sizes, and use one as
            ``val``. The fold, or the official ``val``, then has no part in training.
        anonymise_ids: key file for pseudonyms, see :func:`.pseudonymised`.
        test_site: hospital (``MGH``, ``BCH``) whose cases are ``test``; others are ``val`` by the official split, else
            ``train``.

    Returns:
        ``{"image": [adc, zadc], [adc] or stacked, "label": path, "case": id}``, and ``site`` if known, with absolute
        paths, sorted by case. Missing files are included, except for a ZADC map that ``limits`` do not require.

    Raises:
        DatasetError: an unknown split or fold, an unreadable data list, or a patient in two splits (unless ``split`` is
            None).
    """
    if split is not None and split not in SPLITS:
        raise DatasetError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    if num_folds is not None or (fold is not None and file is None):
        if num_folds is None or fold is None:
            raise DatasetError("A fold needs both --fold and --num_folds.")
        if not 0 <= fold < num_folds:
            raise DatasetError(f"There is no fold {fold} of {num_folds}; folds count from 0.")
    if inner_folds is not None and (not isinstance(inner_folds, int) or inner_folds < 2):
        raise DatasetError(f"--inner_folds must be an integer of at least 2, not {inner_folds!r}.")
    inner = inner_folds is not None and split in ("train", "val")
    outer = "train" if inner else split
    if file is not None:
        if test_site is not None:
            raise DatasetError(
                "--test_site and --datalist cannot be combined; give --test_site to `run folds`, which writes the list."
            )
        sides = {name: _entries_of(Path(file), key) for name, key in KEYS.items()}
        patients = patients_in_list([entry for entries in sides.values() for entry in entries], patient_pattern)
    else:
        sides, patients = _sides_of_folder(
            dataset_dir, outer, labels, num_folds, seed, limits, patient_pattern, test_site
        )
    folds = [entry["fold"] for entry in sides["train"] if "fold" in entry]
    if fold is not None:
        if file is not None and fold not in folds:
            there = ", ".join(sorted(set(map(str, folds)))) or "none"
            raise DatasetError(f"The data list {file} has no fold {fold}; it has {there}.")
        sides["val"] = [entry for entry in sides["train"] if entry.get("fold") == fold]
        sides["train"] = [entry for entry in sides["train"] if entry.get("fold") != fold]
    elif folds and not sides["val"] and outer in ("train", "val"):
        raise DatasetError(f"The data list {file} has folds and no validation list; choose the fold with --fold.")
    if file is not None or split is not None:
        _refuse_leaks(sides, patients, f"The data list {file}" if file is not None else f"The dataset {dataset_dir}")
    chosen = [item for name, side in sides.items() if outer in (None, name) for item in side]
    keys = ("image", "label", "case", "site") if labels else ("image", "case", "site")
    items = [{key: item[key] for key in keys if key in item} for item in chosen]
    items.sort(key=lambda item: str(item["case"]))
    if fold is not None and outer != "test":
        _tell_patients(items, patients, f"{outer or 'all'}, fold {fold} of {num_folds or Path(str(file)).name}")
    if inner:
        assert inner_folds is not None
        parts = fold_of_case(items, patients, inner_folds, seed, limits)
        items = [item for item in items if (parts[item["case"]] == 0) == (split == "val")]
        _tell_patients(items, patients, f"{split}, 1/{inner_folds} of the training cases being val")
    list_of_all = Path(file) if file is not None else Path(dataset_dir) / "datalist.json"
    if native and (file is not None or ((Path(dataset_dir) / MANIFEST).is_file() and list_of_all.is_file())):
        items = _with_natives(items, list_of_all)
    return items if anonymise_ids is None else pseudonymised(items, anonymise_ids)


def _sides_of_folder(
    dataset_dir: str | Path, split: str | None, labels: bool, num_folds: int | None, seed: int,
    limits: Limits | None, patient_pattern: str | None, test_site: str | None,
) -> tuple[dict[str, Items], dict[str, str]]:  # fmt: skip
    """Items by split (with ``fold`` in ``train`` if there are folds), and patient by case id."""
    cases = find_cases(dataset_dir)
    if test_site is not None and cases:
        sites = sorted({str(case.site) for case in cases})
        if test_site not in sites or len(sites) < 2:
            raise DatasetError(f"--test_site {test_site}: the cases in {dataset_dir} are from {', '.join(sites)}.")
        other = {case: "val" if case.split == "val" else "train" for case in cases}
        cases = [replace(case, split="test" if case.site == test_site else other[case]) for case in cases]
    if num_folds is not None:
        cases = [case if case.split == "test" else replace(case, split="train") for case in cases]
    zadc = (limits or Limits()).zadc == "required"
    patients = patients_of([case.case for case in cases], patient_pattern)
    folds: dict[str, int] = {}
    if num_folds is not None and split != "test":  # reads labels
        items = [case.item(zadc=zadc) for case in cases if case.split == "train"]
        folds = fold_of_case(items, patients, num_folds, seed, limits)
    sides: dict[str, Items] = {name: [] for name in SPLITS}
    for case in cases:
        if labels or case.has_maps:
            fold = {"fold": folds[case.case]} if case.split == "train" and folds else {}
            sides.setdefault(str(case.split), []).append(case.item(labels, zadc) | fold)
    return sides, patients


def _tell_patients(items: Sequence[Mapping[str, Any]], patients: Mapping[str, str], which: str) -> None:
    """Log the number of patients, which reveals misinterpreted names."""
    if items:
        logger.info("%s: %s", which, count_of_patients(len(items), len({patients[item["case"]] for item in items})))


def _refuse_leaks(sides: Mapping[str, Items], patients: Mapping[str, str], where: str) -> None:
    """Raise a DatasetError for a patient in two splits, or for duplicate maps."""
    first: dict[str, str] = {}
    shared = {
        f"  {patient} is in both {first[patient]} and {name}"
        for name, items in sides.items()
        for patient in (patients[item["case"]] for item in items)
        if first.setdefault(patient, name) != name
    }
    if shared:
        raise DatasetError(
            f"{where} has these patients in several splits; move all cases of a patient into one split, or give "
            "--patient_pattern, a regular expression for the patient in a case id:\n" + "\n".join(sorted(shared))
        )
    side_of = {id(item): name for name, items in sides.items() for item in items}
    lines = []
    for item, other in copies([item for items in sides.values() for item in items]):
        names, files = (side_of[id(other)], side_of[id(item)]), (first_file(other), first_file(item))
        if names[0] != names[1] or files[0] == files[1]:
            lines.append(f"  {files[0]} ({names[0]}) and {files[1]} ({names[1]})")
    if lines:
        raise DatasetError(f"{where} has the same maps twice; remove one of each pair:\n" + "\n".join(lines))


def fold_of_case(
    items: Sequence[Mapping[str, Any]],
    patients: Mapping[str, str],
    num_folds: int,
    seed: int = 0,
    limits: Limits | None = None,
) -> dict[str, int]:
    """Fold by case id, from 0, with similar lesion sizes in all folds; reads the labels.

    A patient's size class is that of the largest lesion. Patients are shuffled within each class and assigned to the
    folds in turn: two folds differ by at most one patient in total and in each class. (scikit-learn's
    ``StratifiedGroupKFold`` guarantees neither.)
    """
    largest: dict[str, float] = {}  # -1: no label
    for report in check_items(items, limits):
        fraction = -1.0 if report.lesion_fraction is None else report.lesion_fraction
        patient = patients[report.case]
        largest[patient] = max(fraction, largest.get(patient, -1.0))
    classes: dict[str, list[str]] = {}
    for patient, fraction in sorted(largest.items()):
        classes.setdefault(size_class(None if fraction < 0 else fraction), []).append(patient)
    for members in classes.values():
        random.Random(seed).shuffle(members)
    order = [patient for _, members in sorted(classes.items()) for patient in members]
    fold = {patient: place % num_folds for place, patient in enumerate(order)}
    return {case: fold[patients[case]] for case in map(case_of, items)}


def held_out(
    training: Mapping[str, Any] | None,
    split: str | None,
    fold: int | None,
    num_folds: int | None,
    test_site: str | None = None,
) -> str | None:
    """Describe whether evaluated cases had no part in training; None if unknown.

    Args:
        training: record of the weights, with ``fold``, ``num_folds``, ``inner_folds`` and ``test_site``.
        split: evaluated split, see :func:`datalist`.
        fold: evaluated fold.
        num_folds: number of folds in the evaluation.
        test_site: evaluated hospital.
    """
    if training is None or "inner_folds" not in training or training.get("test_site") != test_site:
        return None
    if (training.get("fold"), training.get("num_folds")) != (fold, num_folds) and split != "test":
        return None
    if split == "test":
        return "yes"
    if split != "val":
        return "no: the network was trained on them"
    if training["inner_folds"] is None:
        return "no: they chose the weights (best epoch and early stopping)"
    return f"yes: the weights were chosen on 1/{training['inner_folds']} of the training cases"


def write_datalist(
    dataset_dir: str | Path,
    output_file: str | Path,
    num_folds: int | None = None,
    seed: int = 0,
    labels: bool = True,
    limits: Limits | None = None,
    patient_pattern: str | None = None,
    natives: Mapping[str, Mapping[str, Any]] | None = None,
    anonymise_ids: str | Path | None = None,
    test_site: str | None = None,
) -> None:
    """Write the cases as a data list in the decathlon format, for ``--datalist``, MONAI and Auto3DSeg.

    Paths are relative if the file is in a folder above the data (``dataroot`` for Auto3DSeg), else absolute. Options
    that are not listed are those of :func:`datalist`.

    Args:
        dataset_dir: folder with the cases.
        output_file: the JSON file.
        num_folds: ``training`` has the cases of train, val and no split, each with its ``fold``; None writes the
            official split as ``training``, ``validation`` and ``test``.
        labels: include the labels, which every case must have.
        natives: data items before preprocessing by case id, if preprocessing changed the grid.
        anonymise_ids: must be None.

    Raises:
        DatasetError: no case was found, or some are unusable.
    """
    if anonymise_ids is not None:
        raise DatasetError(
            "--anonymise_ids does not work for a data list, which names files; nothing was written. Make the list from "
            "the output of `run preprocessing --anonymise_ids`."
        )
    output_file = Path(output_file).absolute()
    everything = datalist(dataset_dir, None, labels, limits=limits)
    if everything:  # an empty list does not create the folder
        try_writing(output_file.parent)
    require_usable(everything, dataset_dir, "a data list", limits)
    sides, patients = _sides_of_folder(dataset_dir, None, labels, num_folds, seed, limits, patient_pattern, test_site)
    folds: dict[str, Items] = {}  # copies in two folds are as bad as copies in two splits
    for item in sides["train"]:
        folds.setdefault(f"fold {item['fold']}" if "fold" in item else "train", []).append(item)
    _refuse_leaks({**sides, "train": [], **folds}, patients, f"The dataset {dataset_dir}")
    lists = {key: sorted(sides[name], key=lambda i: (i.get("fold", 0), i["case"])) for name, key in KEYS.items()}
    if num_folds is not None:
        del lists["validation"]
    for item in (item for items in lists.values() for item in items):
        item |= {f"native_{key}": path for key, path in (natives or {}).get(item["case"], {}).items() if key in FILES}
        item |= {key: _portable(item[key], output_file.parent) for key in (*FILES, *NATIVE_FILES) if key in item}
        item["patient"] = patients[item["case"]]
    classes = {report.case: size_class(report.lesion_fraction) for report in check_items(everything, limits)}
    data = {
        "name": "HIE lesions",
        "description": f"{num_folds} folds, seed {seed}" if num_folds else "official split",
        "modality": {"0": "ADC", "1": "ZADC"},
        "labels": {"0": "background", "1": "lesion"},
        "numTraining": len(lists["training"]),
        "numTest": len(lists["test"]),
        **lists,
    }
    write_json(output_file, data, indent=1)
    groups: dict[str, Items] = {}
    for key, items in lists.items():
        for item in items:
            groups.setdefault(f"{key}, fold {item['fold']}" if "fold" in item else key, []).append(item)
    for where, members in groups.items():
        sizes = Counter(classes[item["case"]] for item in members)
        count = count_of_patients(len(members), len({item["patient"] for item in members}))
        print(f"{where}: {count} ({', '.join(f'{name}: {n}' for name, n in sorted(sizes.items()))})")
    print(f"data list: {output_file}")


def _entries_of(file: Path, key: str) -> Items:
    """One list of a file in the decathlon format with absolute paths; empty if missing."""
    from monai.data import load_decathlon_datalist

    def absolute(paths: Any) -> Any:
        one = isinstance(paths, str)
        return os.path.normpath(file.absolute().parent / paths) if one else [absolute(path) for path in paths]

    try:
        if not json.loads(file.read_text(encoding="utf-8")).get(key):
            return []
        entries = load_decathlon_datalist(file, True, key, file.absolute().parent)  # image and label only
        natives = [{key: absolute(entry[key]) for key in NATIVE_FILES if entry.get(key)} for entry in entries]
        found = [{**entry, **more, "case": case_of(entry)} for entry, more in zip(entries, natives, strict=True)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(f"The data list {file} cannot be read ({one_line(error)}).") from error
    for entry in found:
        if not is_printable(entry["case"] + str(entry.get("patient", ""))):
            raise DatasetError(
                f"The data list {file} has the case id {entry['case']!a}; write it without control characters."
            )
    return found


def _portable(paths: str | Sequence[str], folder: Path) -> str | list[str]:
    """Paths relative to ``folder`` if they are below it or its parent, else absolute."""
    if not isinstance(paths, str):
        return [str(_portable(path, folder)) for path in paths]
    return seen_from(paths, folder) if Path(paths).is_relative_to(folder.parent) else paths


def _with_natives(items: Sequence[Mapping[str, Any]], file: Path) -> Items:
    """Add a data list's ``native_image`` and ``native_label`` to the items, unless none of these files exists."""
    known = {entry["case"]: entry for key in KEYS.values() for entry in _entries_of(file, key)}
    natives = [{key: path for key, path in known.get(str(i["case"]), {}).items() if key in NATIVE_FILES} for i in items]
    found = [{**item, **more} for item, more in zip(items, natives, strict=True)]
    files = [path for item in found if "native_image" in item for path in item_files(as_native(item)).values()]
    if files and not any(Path(path).is_file() for path in files):
        logger.warning("The original files of the cases in %s do not exist (%s …).", file, files[0])
        return [dict(item) for item in items]
    return found
