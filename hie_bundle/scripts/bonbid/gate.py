"""The gate in front of training, evaluation and inference: every file is checked once, then remembered."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cores import available_cores
from ..files import write_json
from .checks import CaseReport, Limits, Problem, check_case, item_files
from .errors import DatasetError
from .layout import Case, find_cases, output_name, part_of

__all__ = ["check_items", "require_usable"]

CHECKS_VERSION = 2  # raised whenever the checks change, so that remembered results are not taken
_PROGRESS_FROM = 8  # files; fewer are read before a bar could be seen


def require_usable(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path,
    purpose: str,
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
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

    Raises:
        DatasetError: there is no case, or some are unusable; names each with its files, and says what to do.
    """
    if not items:
        raise DatasetError(nothing_found(Path(dataset_dir), purpose))
    reports = check_items(items, limits, cache_file, num_workers)
    _note_repeated(reports)
    _note_ambiguous(reports, dataset_dir)
    bad = [report for report in reports if not report.usable]
    if bad:
        raise DatasetError(
            f"{len(bad)} of {len(items)} cases in {dataset_dir} cannot be used for {purpose}; nothing was started.\n"
            f"{list_problems(bad)}\n"
            "Restore these files from where they came, or move every file of these cases out of the folder; then "
            f"start again. All figures:\n  {command('check', dataset_dir=dataset_dir)}"
        )


def check_items(
    items: Sequence[Mapping[str, Any]],
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
) -> list[CaseReport]:
    """Check every item, reading only those whose files changed since they were last checked.

    Args:
        items: as for ``require_usable``.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are remembered; the user's cache folder if None. If it cannot be written, nothing is
            remembered.
        num_workers: threads that read; one a core if None.

    Returns:
        One report per item, in their order.
    """
    limits = limits or Limits()
    path = Path(cache_file) if cache_file else default_cache_file()
    known = _load(path)
    setting = json.dumps([CHECKS_VERSION, asdict(limits)])
    jobs = []
    reports: dict[str, CaseReport] = {}
    for item in items:
        files = item_files(item)
        key, stamp = "|".join(files.values()), _stamp(files.values())
        remembered = _recall(known.get(key), stamp, setting)
        if remembered:
            remembered.case = case_of(item)
            reports[key] = remembered
        else:
            jobs.append((key, stamp, case_of(item), files))
    if jobs:
        with (
            ThreadPoolExecutor(thread_count(num_workers)) as pool,
            tqdm(total=len(jobs), desc="checking", unit="case", disable=len(jobs) < _PROGRESS_FROM or None) as bar,
        ):
            fresh = {}
            for job, report in zip(jobs, pool.map(lambda job: check_case(job[2], job[3], limits), jobs), strict=True):
                key, stamp = job[:2]
                reports[key] = report
                if stamp:
                    fresh[key] = {"stamp": stamp, "setting": setting, "report": report.to_json()}
                bar.update()
        _remember(path, fresh)
    return [reports["|".join(item_files(item).values())] for item in items]


def thread_count(num_workers: int | None) -> int:
    """That many threads, at least one; as many as there are cores for this process if None."""
    if num_workers is None:
        num_workers = available_cores()
    return max(1, num_workers)


def case_of(item: Mapping[str, Any]) -> str:
    """The item's case id; from its image's file name if it does not say."""
    if "case" in item:
        return str(item["case"])
    return output_name({"filename_or_obj": next(iter(item_files(item).values()))})["subject"]


def default_cache_file() -> Path:
    """``hie_bundle/checks.json`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hie_bundle" / "checks.json"
    except RuntimeError:  # no home folder
        return Path(tempfile.gettempdir()) / "hie_bundle" / "checks.json"


def _stamp(files: Iterable[str]) -> list[list[int]]:
    """Size and time of change of each file; empty if one of them is not there."""
    try:
        return [[(status := Path(file).stat()).st_size, status.st_mtime_ns] for file in files]
    except OSError:
        return []


def _load(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _recall(entry: Any, stamp: list[list[int]], setting: str) -> CaseReport | None:
    """What is remembered of these files as they are now, if anything that can be understood."""
    try:
        if stamp and entry["stamp"] == stamp and entry["setting"] == setting:
            return CaseReport.from_json(entry["report"])
    except (KeyError, TypeError):
        pass
    return None


def _remember(path: Path, fresh: Mapping[str, Any]) -> None:
    """Add to the file what another process has not added meanwhile. A lost race costs a second check, no more."""
    known = {**_load(path), **fresh}
    known = {key: entry for key, entry in known.items() if key in fresh or Path(key.split("|")[0]).exists()}
    with suppress(OSError):
        write_json(path, known)


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


def list_problems(reports: Iterable[CaseReport]) -> str:
    """The problems as indented lines: the case, then each file with what is wrong."""
    lines = []
    for report in reports:
        lines.append(f"  {report.case}")
        lines += [f"    {problem.file} {problem.message}" for problem in report.problems]
    return "\n".join(lines)


def nothing_found(dataset_dir: Path, purpose: str) -> str:
    """What to tell someone whose folder holds nothing for this purpose: which commands fill it."""
    cases = find_cases(dataset_dir)
    if cases:
        counts: dict[str, int] = {}
        for case in cases:
            counts[case.split or "no split"] = counts.get(case.split or "no split", 0) + 1
        there = ", ".join(f"{count} of {split}" for split, count in counts.items())
        return (
            f"{dataset_dir} holds no case for {purpose}, only others ({there}). Splits are folders named "
            "BONBID2023_Train, BONBID2023_Val and BONBID2023_Test, or train, val and test; without them, use "
            "--num_folds K --fold I, or a data list written by\n  "
            f"{command('folds', dataset_dir=dataset_dir)}"
        )
    state = "holds no case" if dataset_dir.is_dir() else "is not a folder"
    return (
        f"The dataset folder {dataset_dir} {state}. Make a simulated cohort there:\n"
        f"  {command('phantom', output_dir=dataset_dir)}\n"
        "or fetch the real one, BONBID-HIE:\n"
        f"  {command('download', dataset_dir=dataset_dir)}\n"
        "Own cases need three files each, in any folder below it: X-ADC_ss.mha, "
        "Zmap_X-ADC_smooth2mm_clipped10.mha and, with a label, X_lesion.mha (or .nii.gz), where X is the case's name."
    )


def command(run_id: str, **options: Any) -> str:
    """A command of ``data.yaml`` as it can be typed in the current folder."""
    config = Path(__file__).resolve().parents[2] / "configs" / "data.yaml"
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    words = [f"--{name} {value}" for name, value in options.items()]
    program = Path(sys.executable).name if sys.executable else "python"
    return " ".join([program, "-m monai.bundle run", run_id, f"--config_file {config}", *words])
