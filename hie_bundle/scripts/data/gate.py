"""The gate in front of training, evaluation and inference: nothing starts on cases that cannot be used."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import distributed

from ..runtime.distributed import gather_interleaved
from ..runtime.errors import DatasetError
from .advice import command, list_problems, nothing_found
from .check_cache import check_items
from .checks import CaseReport, Limits, Problem, item_files
from .layout import Case, find_cases, on_any_disk, part_of
from .listfiles import as_native

__all__ = ["duplicate_problems", "require_usable", "require_usable_on_all_ranks"]

logger = logging.getLogger(__name__)

_NATIVES = (
    "Prepare the cases again with `run preprocessing`, whose datalist.json says where they came from, or name the "
    "folder of the acquired maps with --dataset_dir (preprocessing.json beside the prepared cases says which it was)."
)


def require_usable(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path,
    purpose: str,
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
    native: Literal["", "wanted", "needed"] = "",
) -> None:
    """Stop before anything starts if any case is unusable.

    Args:
        items: MONAI data items, ``{"image": [adc, zadc], [adc] or stacked, "label": path, "case": id}``; label and
            case id may be absent.
        dataset_dir: where they come from, for the message.
        purpose: what they are wanted for, e.g. ``training``, for the message.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are remembered; the user's cache folder if None.
        num_workers: threads that read; one a core if None.
        native: the maps as they were acquired are ``needed``, or ``wanted``, since they are measured and not only shown
            to a network: of prepared cases those that the items name in ``native_image`` and ``native_label``. Where
            they are wanted and none can be had, a warning says which figures there will not be.

    Raises:
        DatasetError: there is no case, or some are unusable; names each with its files, and says what to do.
    """
    if not items:
        raise DatasetError(nothing_found(Path(dataset_dir), purpose))
    reports = check_items(items, limits, cache_file, num_workers)
    _note_repeated(reports)
    _note_ambiguous(reports, dataset_dir)
    if native:
        reports += _check_natives(items, reports, limits, cache_file, num_workers, needed=native == "needed")
    if lone := [report.case for report in reports if "zadc" not in report.files and "stacked" not in report.files]:
        logger.warning("Without a ZADC map, taken by ADC alone: %s", ", ".join(lone))
    bad = [report for report in reports if not report.usable]
    if bad:
        unusable = {report.case for report in bad}
        raise DatasetError(
            f"{len(unusable)} of {len(items)} cases in {dataset_dir} cannot be used for {purpose}; "
            "nothing was started.\n"
            f"{list_problems(bad)}\n"
            "Restore these files from where they came, or move every file of these cases out of the folder; then "
            f"start again. All figures:\n  {command('check', dataset_dir=dataset_dir)}"
        )


def _note_repeated(reports: Sequence[CaseReport]) -> None:
    """The same case in two items, from two splits perhaps; or two whose masks would be one file on some disk."""
    first: dict[str, tuple[str, str]] = {}
    for report in reports:
        file = next(iter(report.files.values()))
        name = on_any_disk(report.case)
        if name not in first:
            first[name] = report.case, file
            continue
        case, other = first[name]
        message = f"is a second file of this case, beside {other}"
        if case != report.case:
            message = (
                f"has the same name as {other} on disks that do not tell capitals, or forms of a letter, apart, and so "
                "would their masks; rename one of the two cases"
            )
        report.problems.append(Problem(file, message))


def _note_ambiguous(reports: Sequence[CaseReport], dataset_dir: str | Path) -> None:
    """Files that claim to be one of a case's, beside the one that was taken."""
    by_file = {next(iter(report.files.values())): report for report in reports}
    for case in find_cases(dataset_dir):
        report = by_file.get(next(iter(item_files(case.item()).values())))
        if report:
            report.problems += duplicate_problems(case, labels="label" in report.files)


def duplicate_problems(case: Case, labels: bool) -> list[Problem]:
    """A problem for each further file of a case; its labels are left out unless asked for."""
    files = [path for path in case.duplicates if labels or part_of(path)[0] != "label"]
    return [Problem(str(path), "is there beside another file of the same case") for path in files]


def _check_natives(
    items: Sequence[Mapping[str, Any]],
    reports: Sequence[CaseReport],
    limits: Limits | None,
    cache_file: str | Path | None,
    num_workers: int | None,
    needed: bool,
) -> list[CaseReport]:
    """Reports of the files that prepared cases were made from; a problem for each case that has no native maps."""
    prepared = [item for item in items if "native_image" in item]
    natives = check_items([as_native(item) for item in prepared], limits, cache_file, num_workers)
    without = [
        report for item, report in zip(items, reports, strict=True) if report.normalised and "native_image" not in item
    ] + [report for report in natives if report.normalised]
    if len(without) == len(items) and not needed:
        logger.warning(
            "The maps of all %d cases have been normalised, and the files that they were made from are not known: "
            "there will be no figures on the native grid, no sizes by the brain's volume, no volume of the brain and "
            "no baseline. %s",
            len(items),
            _NATIVES,
        )
        return natives
    for report in without:
        file = next(iter(report.files.values()))
        message = (
            "has been resampled or normalised already: volumes, size classes, the baseline and all figures on the "
        )
        report.problems.append(Problem(file, f"{message}native grid need the maps as they were acquired. {_NATIVES}"))
    return natives


def require_usable_on_all_ranks(items: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> None:
    """:func:`.require_usable`; of several processes the first checks the cases of all, the others wait.

    Args:
        items: of this process; which other ones have, too, counts once.
        args: see there.
        kwargs: see there.

    Raises:
        DatasetError: on the first process.
    """
    everything = gather_interleaved(list(items))
    if everything is not None:
        once = {json.dumps(item, sort_keys=True, default=str): item for item in everything}
        require_usable(list(once.values()), *args, **kwargs)
    if distributed.is_initialized():
        distributed.barrier()
