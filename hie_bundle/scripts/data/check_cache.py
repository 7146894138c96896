"""Checking cases, each once: results are remembered until a file or the limits change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
from tqdm import tqdm

from ..io.files import atomic_path
from ..runtime.cores import available_cores
from .checks import CaseReport, Limits, check_case, item_files
from .layout import output_name

__all__ = ["case_of", "check_items", "thread_count"]

CHECKS_VERSION = 3  # raised whenever the checks change, so that remembered results are not taken
_PROGRESS_FROM = 8  # files; fewer are read before a bar could be seen


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
    """``checks.json`` in the user's cache folder for ``hie_bundle``."""
    return Path(platformdirs.user_cache_dir("hie_bundle", appauthor=False)) / "checks.json"


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
    with suppress(OSError), atomic_path(path) as temporary:
        temporary.touch(0o600)  # it names files and says how large lesions are: its owner's alone
        temporary.write_text(json.dumps(known, ensure_ascii=False) + "\n")
