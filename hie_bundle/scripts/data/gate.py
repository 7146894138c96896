"""Checks of all cases before training, evaluation and inference; :func:`check` reports on a whole dataset."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
from tqdm import tqdm

from ..io.files import atomic_path, expect_unchanged, read_json, sha256_of, stamp_of, try_writing, write_json
from ..runtime.cores import available_cores
from ..runtime.errors import DatasetError
from ..runtime.redaction import redacted
from .checks import CaseReport, Limits, Problem, read_case
from .folds import count_of_patients, patients_of, size_class
from .layout import Case, as_native, case_of, filesystem_key, find_cases, first_file, item_files, part_of
from .privacy import pseudonyms

logger = logging.getLogger(__name__)

_NATIVES = (
    "Prepare the cases again with `run preprocessing`, whose datalist.json states the native files, or give the folder "
    "of the acquired maps as --dataset_dir (see preprocessing.json in the folder of the prepared cases)."
)
CHECKS_VERSION = 7  # increase it when the checks change, so that cached results are not used


def check_items(
    items: Sequence[Mapping[str, Any]],
    limits: Limits | None = None,
    num_workers: int | None = None,
    expect: bool = False,
) -> list[CaseReport]:
    """Check every item, and return one report per item, in order. The user's cache has reports of unchanged files.

    Args:
        items: as for :func:`require_usable`.
        limits: limits of a usable case; None for the defaults.
        num_workers: number of threads; None for one per core.
        expect: refuse to load files that change after the check (:func:`.refuse_changed`).
    """
    limits = limits or Limits()
    path = Path(platformdirs.user_cache_dir("hie_bundle", appauthor=False)) / "checks.json"
    known, fresh = read_json(path), dict[str, Any]()

    def report_of(item: Mapping[str, Any]) -> CaseReport:
        case, files = case_of(item), item_files(item)
        try:
            stamps = {file: stamp_of(file) for file in files.values()}
        except OSError:  # a missing file may appear
            return read_case(case, files, limits)[0]
        if expect:
            expect_unchanged(stamps)
        key, state = "|".join(files.values()), json.dumps([CHECKS_VERSION, list(stamps.values()), asdict(limits)])
        with suppress(KeyError, TypeError):
            if known[key]["state"] == state:
                return CaseReport.from_json({**known[key]["report"], "case": case})
        report = read_case(case, files, limits)[0]
        known[key] = fresh[key] = {"state": state, "report": asdict(report)}
        return report

    with ThreadPoolExecutor(thread_count(num_workers)) as pool:
        reports = list(tqdm(pool.map(report_of, items), "checking", len(items), unit="case", disable=None, delay=1))
    if fresh:  # a race with another process costs a second check
        known = {key: entry for key, entry in read_json(path).items() if Path(key.split("|")[0]).exists()} | fresh
        with suppress(OSError), atomic_path(path) as temporary:
            temporary.touch(0o600)  # private: it has file names and lesion sizes
            temporary.write_text(json.dumps(known) + "\n", encoding="utf-8")
    return reports


def thread_count(num_workers: int | None) -> int:
    """Number of threads, at least one; None for one per available core."""
    return max(1, available_cores() if num_workers is None else num_workers)


def require_usable(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path,
    purpose: str,
    limits: Limits | None = None,
    num_workers: int | None = None,
    native: Literal["", "wanted", "needed"] = "",
    validation: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Stop a run before it starts if any case is unusable.

    Args:
        items: MONAI data items, ``{"image": [adc, zadc], [adc] or stacked, "label": path, "case": id}``; label and
            case id are optional.
        dataset_dir: their folder, for the message.
        purpose: e.g. ``training``, for the message.
        limits: limits of a usable case; None for the defaults.
        num_workers: number of threads; None for one per core.
        native: the maps as acquired (``native_image`` of prepared cases) are ``needed`` for measurements, or
            ``wanted``: if no case has them, a warning lists the missing figures.
        validation: the items that select the best epoch of a training.

    Raises:
        DatasetError: the list is empty, a case is unusable, or all training labels are empty.
    """
    if not items:
        raise DatasetError(_nothing_found(Path(dataset_dir), purpose))
    reports = check_items(items, limits, num_workers, expect=True)
    _note_repeated(reports)
    _note_ambiguous(reports, dataset_dir)
    if native:
        reports += _check_natives(items, reports, limits, num_workers, needed=native == "needed")
    if purpose == "training":
        _require_lesions(reports, validation)
    if lone := [report.case for report in reports if "zadc" not in report.files and "stacked" not in report.files]:
        logger.warning("Cases without a ZADC map, used with ADC alone: %s", ", ".join(lone))
    bad = [report for report in reports if not report.usable]
    if bad:
        unusable = {report.case for report in bad}
        raise DatasetError(
            f"{len(unusable)} of {len(items)} cases in {dataset_dir} cannot be used for {purpose}; "
            "nothing was started.\n"
            f"{_list_problems(bad)}\n"
            "Restore these files from their source, or move every file of these cases out of the folder; then "
            f"start again. For details of all cases:\n  {_command('check', dataset_dir=dataset_dir)}"
        )


def _require_lesions(reports: Sequence[CaseReport], validation: Sequence[Mapping[str, Any]]) -> None:
    """Raise a DatasetError if all training labels are empty; warn if all validation labels are."""
    chosen_by = {case_of(item) for item in validation}
    training = [report.lesion_voxels for report in reports if report.case not in chosen_by]
    choosing = [report.lesion_voxels for report in reports if report.case in chosen_by]
    if set(training) == {0}:
        raise DatasetError(f"All {len(training)} training labels are empty; training needs at least one lesion.")
    if set(choosing) == {0}:
        logger.warning(
            "All %d labels of the validation cases are empty: an empty mask has a Dice of 1, so the first epoch may "
            "be kept as the best. Move a case with a lesion into the validation split.",
            len(choosing),
        )


def _note_repeated(reports: Sequence[CaseReport]) -> None:
    """Add a problem for a case in two items, and for two cases with equal :func:`.filesystem_key`."""
    first: dict[str, CaseReport] = {}
    for report in reports:
        other = first.setdefault(filesystem_key(report.case), report)
        if other.case != report.case:
            report.add(
                "maps",
                f"and {other.file('maps')} have the same name on file systems that ignore case or Unicode form, as "
                "would their masks; rename one of the two cases",
            )
        elif other is not report:
            report.add("maps", f"is a second file of this case; the first is {other.file('maps')}")


def _note_ambiguous(reports: Sequence[CaseReport], dataset_dir: str | Path) -> None:
    """Add a problem for each further file of a case in the folder."""
    by_file = {report.file("maps"): report for report in reports}
    for case in find_cases(dataset_dir):
        if report := by_file.get(first_file(case)):
            report.problems += _duplicate_problems(case, labels="label" in report.files)


def _duplicate_problems(case: Case, labels: bool) -> list[Problem]:
    """A problem for each further file of a case, labels only on request."""
    files = [path for path in case.duplicates if labels or part_of(path)[0] != "label"]
    return [Problem(str(path), "is a second file of the same case") for path in files]


def _check_natives(
    items: Sequence[Mapping[str, Any]],
    reports: Sequence[CaseReport],
    limits: Limits | None,
    num_workers: int | None,
    needed: bool,
) -> list[CaseReport]:
    """Check the native files of prepared cases; add a problem to each case without native maps."""
    prepared = [as_native(item) for item in items if "native_image" in item]
    natives = check_items(prepared, limits, num_workers, expect=True)
    pairs = zip(items, reports, strict=True)
    without = [report for item, report in pairs if report.normalised and "native_image" not in item]
    without += [report for report in natives if report.normalised]
    if len(without) == len(items) and not needed:
        logger.warning(
            "The maps of all %d cases are normalised, and their native files are unknown: there will be no results "
            "on the native grid, no relative lesion sizes, no brain volume and no baseline. %s",
            len(items),
            _NATIVES,
        )
        return natives
    for report in without:
        message = "has been resampled or normalised: volumes, size classes, the baseline and all results on the native "
        report.add("maps", f"{message}grid need the maps as acquired. {_NATIVES}")
    return natives


def require_usable_on_all_ranks(items: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> None:
    """:func:`require_usable` on rank 0 for the cases of all ranks, each counted once; the other ranks wait."""
    from torch import distributed

    from ..runtime.distributed import gather_interleaved

    everything = gather_interleaved(list(items))
    kwargs["validation"] = gather_interleaved(list(kwargs.get("validation", ()))) or ()
    if everything is not None:
        once = {json.dumps(item, sort_keys=True, default=str): item for item in everything}
        require_usable(list(once.values()), *args, **kwargs)
    if distributed.is_initialized():
        distributed.barrier()


def _list_problems(reports: Iterable[CaseReport]) -> str:
    """Indented lines: each case, then its problems by file."""
    lines = []
    for report in reports:
        lines.append(f"  {report.case}")
        lines += [f"    {problem.file} {problem.message}" for problem in report.problems]
    return "\n".join(lines)


def _nothing_found(dataset_dir: Path, purpose: str) -> str:
    """Message for a folder without cases for a purpose, with commands to create or fetch cases."""
    if cases := find_cases(dataset_dir):
        counts = Counter(case.split or "no split" for case in cases)
        there = ", ".join(f"{count} of {split}" for split, count in counts.items())
        return (
            f"{dataset_dir} holds no case for {purpose}; it has {there}. Splits are folders named "
            "BONBID2023_Train, BONBID2023_Val and BONBID2023_Test, or train, val and test; without them, use "
            "--num_folds K --fold I, or a data list written by\n  "
            f"{_command('folds', dataset_dir=dataset_dir)}"
        )
    state = "holds no case" if dataset_dir.is_dir() else "is not a folder"
    return (
        f"The dataset folder {dataset_dir} {state}. Make a simulated cohort there:\n"
        f"  {_command('phantom', output_dir=dataset_dir)}\n"
        "or fetch the real one, BONBID-HIE:\n"
        f"  {_command('download', dataset_dir=dataset_dir)}\n"
        "Your own cases need three files each, in any folder below it: X-ADC_ss.mha, "
        "Zmap_X-ADC_smooth2mm_clipped10.mha and, with a label, X_lesion.mha (or .nii.gz), where X is the case id."
    )


def copies(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs of cases (data items or :class:`Case`) whose first map is the same file or a byte copy of it."""
    sizes: dict[int, list[Any]] = {}
    for item in items:
        with suppress(OSError):  # require_usable names missing files
            sizes.setdefault(Path(first_file(item)).stat().st_size, []).append(item)
    hashes = [(sha256_of(first_file(item)), item) for group in sizes.values() if len(group) > 1 for item in group]
    first: dict[str, Any] = {}
    return [(item, first[digest]) for digest, item in hashes if first.setdefault(digest, item) is not item]


def _command(run_id: str, **options: Any) -> str:
    """Command line for a workflow of ``data.yaml``, relative to the current folder."""
    config = Path(__file__).resolve().parents[2] / "configs" / "data.yaml"
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    words = [f"--{name} {value}" for name, value in options.items()]
    program = Path(sys.executable).name if sys.executable else "python"
    return " ".join([program, "-m monai.bundle run", run_id, f"--config_file {config}", *words])


_COLUMNS = {  # of the table of cases: format and fields of the report
    "case": ("{}", "case"),
    "split": ("{}", "split"),
    "site": ("{}", "site"),
    "voxels": ("{}×{}×{}", "shape"),
    "spacing mm": ("{:.3g}×{:.3g}×{:.3g}", "spacing_mm"),
    "axes": ("{}", "orientation"),
    "ADC": ("{:.4g} … {:.4g}", "adc_range"),
    "mean ± SD": ("{:.0f} ± {:.0f}", "adc_mean", "adc_std"),
    "ZADC": ("{:.4g} … {:.4g}", "zadc_range"),
    "brain ml": ("{:.0f}", "brain_ml"),
    "lesion ml": ("{:.2f}", "lesion_ml"),
    "lesion": ("{:.2%}", "lesion_fraction"),
}


def check(
    dataset_dir: str | Path,
    report_file: str | Path | None = None,
    labels: bool = True,
    limits: Limits | None = None,
    num_workers: int | None = None,
    patient_pattern: str | None = None,
    anonymise_ids: str | Path | None = None,
) -> None:
    """Check every case below a folder; print a table and write a JSON report.

    ``configs/data.yaml`` describes the options. With pseudonyms (``anonymise_ids``) table and report contain no file
    names; error messages still do.

    Raises:
        DatasetError: no case was found, or some are unusable (after the report was written).
        UserError: the report cannot be written.
    """
    cases = [case for case in find_cases(dataset_dir) if labels or case.has_maps]
    if not cases:
        raise DatasetError(_nothing_found(Path(dataset_dir), "checking"))
    report_file = Path(report_file) if report_file else Path(dataset_dir) / "check.json"
    try_writing(report_file.parent, "the report would go there; choose another --report_file")
    patients = patients_of([case.case for case in cases], patient_pattern)
    zadc = (limits or Limits()).zadc == "required"
    items = [case.item(labels or case.label is not None, zadc) for case in cases]
    reports = check_items(items, limits, num_workers)
    for case, report in zip(cases, reports, strict=True):
        report.problems += _duplicate_problems(case, labels)
        patient = patients[case.case]
        if elsewhere := {str(c.split) for c in cases if patients[c.case] == patient and c.split != case.split}:
            report.add("maps", f"is of patient {patient}, who is also in {', '.join(sorted(elsewhere))}")
    for case, other in copies(cases):
        if case.split != other.split:
            reports[cases.index(case)].add("maps", f"is a copy of {first_file(other)} in {other.split}")
    sites = dict(Counter(case.site for case in cases if case.site))
    summary = {"patients": len(set(patients.values())), "sites": sites, **_summary(reports)}
    pairs = zip(cases, reports, strict=True)
    entries = [{"split": case.split, "site": case.site, **asdict(report)} for case, report in pairs]
    root = str(dataset_dir)
    if anonymise_ids is not None:
        files = [file for item in items for file in item_files(item).values()]
        names = pseudonyms([*patients, *patients.values()], anonymise_ids, files)
        entries = sorted((_anonymous(entry, names) for entry in entries), key=lambda entry: str(entry["case"]))
        root = Path(dataset_dir).name
    table = [[*_COLUMNS, ""], *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    lesions = ", ".join(f"{name}: {count}" for name, count in summary["lesion_size_classes"].items())
    print(
        f"{count_of_patients(summary['cases'], summary['patients'])}, {summary['unusable']} unusable; "
        f"lesion as a share of the brain: {lesions or '-'}; "
        f"mean size {summary['mean_shape']} voxels, median spacing {summary['median_spacing_mm']} mm"
    )
    write_json(report_file, {"dataset_dir": root, "summary": summary, "cases": entries}, indent=1)
    print(f"report: {report_file}")
    if bad := [report for report in reports if not report.usable]:
        raise DatasetError(f"{len(bad)} of {len(reports)} cases cannot be used:\n" + _list_problems(bad))


def _anonymous(entry: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Entry of a case in the report, with its pseudonym and without file names."""
    parts = {file: part for part, file in entry["files"].items()}
    problems = [
        {"file": parts.get(problem["file"], "another file"), "message": redacted(problem["message"])}
        for problem in entry["problems"]
    ]
    return {**entry, "case": names[entry["case"]], "files": sorted(entry["files"]), "problems": problems}


def _row(entry: Mapping[str, Any]) -> list[str]:
    """Table row of a case, from its entry in the report."""
    row = []
    for form, *names in _COLUMNS.values():
        values = list(np.hstack([entry[name] for name in names]))
        row.append("-" if None in values else form.format(*values))
    return [*row, "UNUSABLE" if entry["problems"] else "; ".join(entry["notes"])]


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
