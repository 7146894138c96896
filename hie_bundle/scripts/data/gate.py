"""The gate in front of training, evaluation and inference: cases are checked, each once, and unusable ones named."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import platformdirs
from tqdm import tqdm

from ..io.files import atomic_path, expect_unchanged, stamp_of
from ..runtime.cores import available_cores
from ..runtime.errors import DatasetError
from .checks import CaseReport, Limits, Problem, check_case
from .layout import Case, as_native, case_of, filesystem_key, find_cases, first_file, item_files, part_of

__all__ = [
    "check_items", "command", "duplicate_problems", "list_problems", "nothing_found", "require_usable",
    "require_usable_on_all_ranks", "thread_count",
]  # fmt: skip

logger = logging.getLogger(__name__)

_NATIVES = (
    "Prepare the cases again with `run preprocessing`, whose datalist.json says where they came from, or name the "
    "folder of the acquired maps with --dataset_dir (preprocessing.json beside the prepared cases says which it was)."
)
CHECKS_VERSION = 5  # raised whenever the checks change, so that cached results are not used
_PROGRESS_FROM = 8  # files; fewer are read before a bar could be seen


def check_items(
    items: Sequence[Mapping[str, Any]],
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
    expect: bool = False,
) -> list[CaseReport]:
    """Check every item, reading only those whose files changed since they were last checked; one report each, in order.

    Args:
        items: as for :func:`require_usable`.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are cached, if it can be written; the user's cache folder if None.
        num_workers: threads that read; one a core if None.
        expect: files that change from now on are refused when they are loaded (:func:`.refuse_changed`).
    """
    limits = limits or Limits()
    path = Path(cache_file or f"{platformdirs.user_cache_dir('hie_bundle', appauthor=False)}/checks.json")
    known, fresh = _load(path), {}
    setting = json.dumps([CHECKS_VERSION, asdict(limits)])
    reports: dict[str, CaseReport] = {}
    jobs = {}
    for item in items:
        files = item_files(item)
        key, stamp = "|".join(files.values()), _stamps(files.values())
        if expect:
            expect_unchanged(dict(zip(files.values(), stamp, strict=False)))
        if remembered := _recall(known.get(key), stamp, setting):
            remembered.case = case_of(item)
            reports[key] = remembered
        else:
            jobs[key] = (case_of(item), files, stamp)
    with (
        ThreadPoolExecutor(thread_count(num_workers)) as pool,
        tqdm(total=len(jobs), desc="checking", unit="case", disable=len(jobs) < _PROGRESS_FROM or None) as bar,
    ):
        found = pool.map(lambda job: check_case(job[0], job[1], limits), jobs.values())
        for (key, (_, _, stamp)), report in zip(jobs.items(), found, strict=True):
            reports[key] = report
            if stamp:
                fresh[key] = {"stamp": stamp, "setting": setting, "report": report.to_json()}
            bar.update()
    if fresh:  # a race with another process costs a second check
        known = {key: entry for key, entry in _load(path).items() if Path(key.split("|")[0]).exists()} | fresh
        with suppress(OSError), atomic_path(path) as temporary:
            temporary.touch(0o600)  # it names files and says how large lesions are: its owner's alone
            temporary.write_text(
                json.dumps(known, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape"
            )
    return [reports["|".join(item_files(item).values())] for item in items]


def thread_count(num_workers: int | None) -> int:
    """That many threads, at least one; as many as there are cores for this process if None."""
    return max(1, available_cores() if num_workers is None else num_workers)


def _stamps(files: Iterable[str]) -> list[list[int]]:
    """The stamps of files; empty if one of them is not there."""
    try:
        return [stamp_of(file) for file in files]
    except OSError:
        return []


def _load(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _recall(entry: Any, stamp: list[list[int]], setting: str) -> CaseReport | None:
    """The cached report of these files as they are now, if it can be read."""
    with suppress(KeyError, TypeError):
        if stamp and entry["stamp"] == stamp and entry["setting"] == setting:
            return CaseReport.from_json(entry["report"])
    return None


def require_usable(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path,
    purpose: str,
    limits: Limits | None = None,
    cache_file: str | Path | None = None,
    num_workers: int | None = None,
    native: Literal["", "wanted", "needed"] = "",
    validation: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Stop before anything starts if any case is unusable.

    Args:
        items: MONAI data items, ``{"image": [adc, zadc], [adc] or stacked, "label": path, "case": id}``; label and
            case id may be absent.
        dataset_dir: where they come from, for the message.
        purpose: e.g. ``training``, for the message.
        limits: what a case may look like; the defaults if None.
        cache_file: where results are cached; the user's cache folder if None.
        num_workers: threads that read; one a core if None.
        native: the maps as they were acquired are ``needed``, or ``wanted``, since they are measured and not only shown
            to a network: of prepared cases those that the items name in ``native_image`` and ``native_label``. Where
            they are wanted and none can be had, a warning says which figures there will not be.
        validation: of training: those of the items by which the best epoch is chosen.

    Raises:
        DatasetError: no cases, only empty training labels, or unusable cases; the message names each case with its
            files and says what to do.
    """
    if not items:
        raise DatasetError(nothing_found(Path(dataset_dir), purpose))
    reports = check_items(items, limits, cache_file, num_workers, expect=True)
    _note_repeated(reports)
    _note_ambiguous(reports, dataset_dir)
    if native:
        reports += _check_natives(items, reports, limits, cache_file, num_workers, needed=native == "needed")
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
            f"{list_problems(bad)}\n"
            "Restore these files from where they came, or move every file of these cases out of the folder; then "
            f"start again. All figures:\n  {command('check', dataset_dir=dataset_dir)}"
        )


def _require_lesions(reports: Sequence[CaseReport], validation: Sequence[Mapping[str, Any]]) -> None:
    """A network cannot learn from empty labels, and with empty labels alone the first epoch has a Dice of 1."""
    chosen_by = {case_of(item) for item in validation}
    for chooses in (False, True):
        sizes = [report.lesion_voxels for report in reports if (report.case in chosen_by) == chooses]
        if not sizes or any(size != 0 for size in sizes):
            continue
        if not chooses:
            raise DatasetError(f"All {len(sizes)} training labels are empty; training needs at least one lesion.")
        logger.warning(
            "All %d labels of the validation cases are empty: an empty mask has a Dice of 1, so the first epoch may "
            "be kept as the best. Move a case with a lesion into the validation split.",
            len(sizes),
        )


def _note_repeated(reports: Sequence[CaseReport]) -> None:
    """The same case in two items, from two splits perhaps; or two whose masks would be one file on some disk."""
    first: dict[str, tuple[str, str]] = {}
    for report in reports:
        name, part = filesystem_key(report.case), next(iter(report.files))
        if name not in first:
            first[name] = report.case, report.files[part]
            continue
        case, other = first[name]
        message = f"is a second file of this case; the first is {other}"
        if case != report.case:
            message = (
                f"and {other} have the same name on file systems that ignore case or Unicode form, and so would "
                "their masks; rename one of the two cases"
            )
        report.add(part, message)


def _note_ambiguous(reports: Sequence[CaseReport], dataset_dir: str | Path) -> None:
    """Files that claim to be one of a case's, beside the one that was taken."""
    by_file = {next(iter(report.files.values())): report for report in reports}
    for case in find_cases(dataset_dir):
        if report := by_file.get(first_file(case)):
            report.problems += duplicate_problems(case, labels="label" in report.files)


def duplicate_problems(case: Case, labels: bool) -> list[Problem]:
    """A problem for each further file of a case; labels are excluded unless requested."""
    files = [path for path in case.duplicates if labels or part_of(path)[0] != "label"]
    return [Problem(str(path), "is a second file of the same case") for path in files]


def _check_natives(
    items: Sequence[Mapping[str, Any]],
    reports: Sequence[CaseReport],
    limits: Limits | None,
    cache_file: str | Path | None,
    num_workers: int | None,
    needed: bool,
) -> list[CaseReport]:
    """Reports of the files that prepared cases were made from; a problem for each case that has no native maps."""
    prepared = [as_native(item) for item in items if "native_image" in item]
    natives = check_items(prepared, limits, cache_file, num_workers, expect=True)
    pairs = zip(items, reports, strict=True)
    without = [report for item, report in pairs if report.normalised and "native_image" not in item]
    without += [report for report in natives if report.normalised]
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
        message = "has been resampled or normalised already: volumes, size classes, the baseline and all figures on "
        report.add(
            next(iter(report.files)), f"{message}the native grid need the maps as they were acquired. {_NATIVES}"
        )
    return natives


def require_usable_on_all_ranks(items: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> None:
    """:func:`.require_usable`; of several processes the first checks the cases of all, the others wait.

    Args:
        items: of this process; duplicates across ranks are counted once.
        args: of :func:`.require_usable`, as ``kwargs`` are.
        kwargs: see there.
    """
    from torch import distributed

    from ..runtime.distributed import gather_interleaved

    everything = gather_interleaved(list(items))
    kwargs["validation"] = gather_interleaved(list(kwargs.get("validation", ()))) or ()
    if everything is not None:
        once = {json.dumps(item, sort_keys=True, default=str): item for item in everything}
        require_usable(list(once.values()), *args, **kwargs)
    if distributed.is_initialized():
        distributed.barrier()


def list_problems(reports: Iterable[CaseReport]) -> str:
    """The problems as indented lines: the case, then each file with what is wrong."""
    lines = []
    for report in reports:
        lines.append(f"  {report.case}")
        lines += [f"    {problem.file} {problem.message}" for problem in report.problems]
    return "\n".join(lines)


def nothing_found(dataset_dir: Path, purpose: str) -> str:
    """The message for a folder without cases for a purpose, with the commands that fill it."""
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
