"""The gate in front of training, evaluation and inference: nothing starts on cases that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .advice import command, list_problems, nothing_found
from .checks import CaseReport, Limits, Problem, item_files
from .errors import DatasetError
from .layout import Case, find_cases, part_of
from .remembered import check_items

__all__ = ["duplicate_problems", "require_usable"]


def require_usable(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path,
    purpose: str,
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
    native: bool = False,
) -> None:
    """Stop before anything starts if any case is unusable.

    Args:
        items: MONAI data items, ``{"image": [adc, zadc] or stacked, "label": path, "case": id}``; label and case id
            may be absent.
        dataset_dir: where they come from, for the message.
        purpose: what they are wanted for, e.g. ``training``, for the message.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are remembered; the user's cache folder if None.
        num_workers: threads that read; one a core if None.
        native: the maps must be as they were acquired, since they are measured and not only shown to a network.

    Raises:
        DatasetError: there is no case, or some are unusable; names each with its files, and says what to do.
    """
    if not items:
        raise DatasetError(nothing_found(Path(dataset_dir), purpose))
    reports = check_items(items, limits, cache_file, num_workers)
    _note_repeated(reports)
    _note_ambiguous(reports, dataset_dir)
    if native:
        _note_normalised(reports)
    bad = [report for report in reports if not report.usable]
    if bad:
        raise DatasetError(
            f"{len(bad)} of {len(items)} cases in {dataset_dir} cannot be used for {purpose}; nothing was started.\n"
            f"{list_problems(bad)}\n"
            "Restore these files from where they came, or move every file of these cases out of the folder; then "
            f"start again. All figures:\n  {command('check', dataset_dir=dataset_dir)}"
        )


def _note_repeated(reports: Sequence[CaseReport]) -> None:
    """The same case in two items, from two splits perhaps."""
    first: dict[str, str] = {}
    for report in reports:
        file = next(iter(report.files.values()))
        if report.case in first:
            report.problems.append(Problem(file, f"is a second file of this case, beside {first[report.case]}"))
        first.setdefault(report.case, file)


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


def _note_normalised(reports: Sequence[CaseReport]) -> None:
    """Maps from which neither the brain's volume nor a threshold's mask could be taken."""
    for report in reports:
        if report.normalised:
            file = next(iter(report.files.values()))
            message = (
                "has been resampled or normalised already: volumes, size classes, the baseline and all figures on the "
                "native grid need the maps as they were acquired. Name their folder with --dataset_dir "
                "(preprocessing.json beside the prepared cases says which it was)"
            )
            report.problems.append(Problem(file, message))
