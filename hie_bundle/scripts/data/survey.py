"""The report on a dataset: a table and a JSON file of its cases, and everything wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.files import try_writing, write_json
from ..runtime.errors import DatasetError
from ..runtime.redaction import redacted
from .checks import CaseReport, Limits, Problem
from .datalists import copies
from .folds import count_of_patients, patients_of, size_class
from .gate import check_items, duplicate_problems, list_problems, nothing_found
from .layout import Case, find_cases, first_file, item_files
from .privacy import pseudonyms

__all__ = ["check"]

_COLUMNS = (
    "case", "split", "site", "voxels", "spacing mm", "axes", "ADC", "mean ± SD", "ZADC", "brain ml", "lesion ml", "%",
    "",
)  # fmt: skip


def check(
    dataset_dir: str | Path,
    report_file: str | Path | None = None,
    labels: bool = True,
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
    patient_pattern: str | None = None,
    anonymise_ids: str | Path | None = None,
) -> None:
    """Check every case below a folder; print a table and write a JSON report.

    Args:
        dataset_dir: folder with the cases.
        report_file: where the JSON report goes; ``check.json`` in ``dataset_dir`` if None.
        labels: every case must have a label.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are remembered; the user's cache folder if None.
        num_workers: threads that read; one a core if None.
        patient_pattern: finds the patient's id in a case's id, see :func:`scripts.data.folds.patients_of`.
        anonymise_ids: file with a key; table and report have other ids then (:func:`scripts.data.privacy`), and
            name parts instead of files. Messages about unusable cases still name the files.

    Raises:
        DatasetError: no case was found, or some are unusable (after the report was written).
        UserError: the report cannot be written; where its folder cannot be written to, before anything is read.
    """
    cases = [case for case in find_cases(dataset_dir) if labels or case.has_maps]
    if not cases:
        raise DatasetError(nothing_found(Path(dataset_dir), "checking"))
    report_file = Path(report_file) if report_file else Path(dataset_dir) / "check.json"
    try_writing(report_file.parent, "the report would go there; choose another --report_file")
    patients = patients_of([case.case for case in cases], patient_pattern)
    zadc = (limits or Limits()).zadc == "required"
    items = [case.item(labels or case.label is not None, zadc) for case in cases]
    reports = check_items(items, limits, cache_file, num_workers)
    for case, report in zip(cases, reports, strict=True):
        report.problems += duplicate_problems(case, labels) + _shared_patient(case, cases, patients)
    for case, other in copies(cases):
        if case.split != other.split:
            message = f"is a copy of {first_file(other)} in {other.split}"
            reports[cases.index(case)].problems.append(Problem(first_file(case), message))
    sites = dict(Counter(case.site for case in cases if case.site))
    summary = {"patients": len(set(patients.values())), "sites": sites, **_summary(reports)}
    rows = [_row(case, report) for case, report in zip(cases, reports, strict=True)]
    pairs = zip(cases, reports, strict=True)
    entries = [{"split": case.split, "site": case.site, **report.to_json()} for case, report in pairs]
    root = str(dataset_dir)
    if anonymise_ids is not None:
        files = [file for item in items for file in item_files(item).values()]
        names = pseudonyms([*patients, *patients.values()], anonymise_ids, files)
        rows = sorted((names[row[0]], *row[1:]) for row in rows)
        entries = sorted((_anonymous(entry, names) for entry in entries), key=lambda entry: str(entry["case"]))
        root = Path(dataset_dir).name
    table = [_COLUMNS, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    lesions = ", ".join(f"{name}: {count}" for name, count in summary["lesion_size_classes"].items())
    print(
        f"{count_of_patients(summary['cases'], summary['patients'])}, {summary['unusable']} unusable; "
        f"lesion as a share of the brain: {lesions or '-'}; "
        f"mean size {summary['mean_shape']} voxels, median spacing {summary['median_spacing_mm']} mm"
    )
    try:
        write_json(report_file, {"dataset_dir": root, "summary": summary, "cases": entries}, indent=1)
    except OSError as error:
        message = f"The report cannot be written to {report_file} ({error.strerror}); choose another --report_file."
        raise DatasetError(message) from error
    print(f"report: {report_file}")
    if bad := [report for report in reports if not report.usable]:
        raise DatasetError(f"{len(bad)} of {len(reports)} cases cannot be used:\n" + list_problems(bad))


def _anonymous(entry: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What the report has of a case, without its id and the names of its files."""
    parts = {file: part for part, file in entry["files"].items()}
    problems = [
        {"file": parts.get(problem["file"], "another file"), "message": redacted(problem["message"])}
        for problem in entry["problems"]
    ]
    return {**entry, "case": names[entry["case"]], "files": sorted(entry["files"]), "problems": problems}


def _shared_patient(case: Case, cases: Sequence[Case], patients: Mapping[str, str]) -> list[Problem]:
    """The same patient in several splits."""
    patient = patients[case.case]
    others = {other.split for other in cases if patients[other.case] == patient} - {case.split}
    where = ", ".join(str(split) for split in sorted(others, key=str))
    return [Problem(first_file(case), f"is of patient {patient}, who is also in {where}")] if others else []


def _row(case: Case, report: CaseReport) -> tuple[str, ...]:
    def span(values: list[float] | None) -> str:
        return f"{values[0]:.4g} … {values[1]:.4g}" if values else "-"

    def number(value: float | None, digits: int = 1) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    status = "; ".join(report.notes) if report.usable else "UNUSABLE"
    return (
        case.case,
        case.split or "-",
        case.site or "-",
        "×".join(map(str, report.shape)) if report.shape else "-",
        "×".join(f"{value:.3g}" for value in report.spacing_mm) if report.spacing_mm else "-",
        report.orientation or "-",
        span(report.adc_range),
        f"{report.adc_mean:.0f} ± {report.adc_std:.0f}" if report.adc_mean is not None else "-",
        span(report.zadc_range),
        number(report.brain_ml, 0),
        number(report.lesion_ml, 2),
        number(None if report.lesion_fraction is None else 100 * report.lesion_fraction, 2),
        status,
    )


def _summary(reports: Sequence[CaseReport]) -> dict[str, Any]:
    measured: list[Any] = [report for report in reports if report.shape]
    labelled = [report.lesion_fraction for report in reports if report.lesion_fraction is not None]
    shape = np.mean([report.shape for report in measured], axis=0).round(1).tolist() if measured else None
    spacing = np.median([report.spacing_mm for report in measured], axis=0).round(3).tolist() if measured else None
    return {
        "cases": len(reports),
        "unusable": sum(not report.usable for report in reports),
        "lesion_size_classes": dict(Counter(size_class(fraction) for fraction in sorted(labelled))),
        "mean_shape": shape,
        "median_spacing_mm": spacing,
    }
