"""Content of ``run.json``: what ran, on which data, and its files."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from ..io.files import sha256_of
from ..runtime import environment
from ..runtime.conditions import differences, listed
from ..runtime.cores import available_cores
from ..runtime.errors import UserError
from ..runtime.literals import plain
from ..runtime.options import OPTIONS
from ..runtime.recipe import references
from .layout import as_native, case_of, file_name, item_files

__all__ = ["config_of", "description", "hashed", "note_masks", "now", "refuse_other_cases", "refuse_other_settings"]

# what a run may go on with otherwise: where things are, how fast they go, how long it trains
MAY_DIFFER = re.compile(
    r"^(\w+_(dir|path|root)|anonymise_ids|device|progress|verbose|resume|overwrite|cache_rate|num_workers|cudnn_benchmark|epochs|steps"
    r"|patience|timeout_minutes|loading_timeout_s|rank|world_size|workflow|imports|initialize|finalize|run)(#.*)?$"
)


def config_of(workflow: ConfigWorkflow | None) -> dict[str, Any]:
    """The merged config as plain data, options that it computes as values."""
    if workflow is None:
        return {}
    parser = workflow.parser
    config = {name: value for name, value in parser.get().items() if name != "_meta_"}
    for name in config:
        if (name in OPTIONS or name.endswith(("_dir", "_path", "_root"))) and _has_all_of(parser, name):
            config[name] = parser.get_parsed_content(name)
    return json.loads(json.dumps(plain(config), default=str))


def _has_all_of(parser: ConfigParser, name: str) -> bool:
    """Whether a config has all that one of its values refers to; a mixin brings options that are for training alone."""
    return name in parser and all(_has_all_of(parser, other) for other in references(parser[name]))


def description(config: Mapping[str, Any], weights: Sequence[Path]) -> dict[str, Any]:
    """The record of a run that begins."""
    return {
        "status": "running",
        "started": now(),
        "command": sys.orig_argv,
        "working_dir": str(Path.cwd()),
        "process": os.getpid(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "bundle": environment.bundle(),
        "versions": environment.versions(),
        "hardware": environment.hardware(str(config.get("device", "cpu"))),
        "weights": [{"path": str(path.absolute()), "sha256": sha256_of(path)} for path in weights if path.is_file()],
        "config": config,
    }


def now() -> str:
    """Date and time with the zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def hashed(items: Sequence[Mapping[str, Any]], dataset_dir: Path) -> list[dict[str, Any]]:
    """Each case of the items, with the SHA-256 of its files."""
    files = {case: _named_files(item, dataset_dir) for case, item in {case_of(item): item for item in items}.items()}
    paths = [path for of in files.values() for path in of.values()]
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = dict(zip(paths, pool.map(sha256_of, paths), strict=True))
    return [{"case": case, "files": {name: digests[path] for name, path in of.items()}} for case, of in files.items()]


def _named_files(item: Mapping[str, Any], dataset_dir: Path) -> dict[str, str]:
    """An item's files by their names in the dataset, which hold its id; where that is not said, by their parts."""
    parts = item_files(item)
    if "native_image" in item:
        parts |= {f"native_{part}": path for part, path in item_files(as_native(item)).items()}
    if "original_id" in item:
        return parts
    places = {path: Path(path).absolute() for path in parts.values()}
    inside = {path: place.is_relative_to(dataset_dir) for path, place in places.items()}
    return {str(place.relative_to(dataset_dir)) if inside[path] else path: path for path, place in places.items()}


def note_masks(entries: Sequence[dict[str, Any]], written: Sequence[str], masks: Path, folder: Path) -> None:
    """Add to the cases of a record the masks that the run wrote."""
    by_name = {os.path.relpath(path, folder): path for path in masks.iterdir()} if masks.is_dir() else {}
    for entry in entries:
        stem = f"{file_name(entry['case'])}_lesion."
        for name in written:
            if name in by_name and by_name[name].name.startswith(stem):
                entry["mask"] = {"file": name, "sha256": sha256_of(by_name[name])}


def refuse_other_settings(folder: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Stop a training that would go on with other settings."""
    found = differences(before, settings, MAY_DIFFER) if before else {}
    _refuse(folder, "other settings", [f"  {name}: {old} in the run, {new} here" for name, (old, new) in found.items()])


def refuse_other_cases(folder: Path, before: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Stop a training that would go on with other cases, or changed ones."""
    changed = []
    for name, entries in data.items() if before else ():
        old, new = ({e["case"]: sorted(e["files"].values()) for e in of} for of in (before.get(name, []), entries))
        what = {"missing": old.keys() - new.keys(), "new": new.keys() - old.keys()}
        what["changed"] = {case for case in old.keys() & new.keys() if old[case] != new[case]}
        changed += [f"  {name}: {case} is {how}" for how, which in what.items() for case in sorted(which)]
    _refuse(folder, "other cases", changed)


def _refuse(folder: Path, what: str, changed: Sequence[str]) -> None:
    if changed:
        raise UserError(
            f"The training in {folder} was started with {what}:\n{listed(changed)}\nResume with what it was started "
            "with, or choose another --ckpt_dir; --resume force resumes anyway."
        )
