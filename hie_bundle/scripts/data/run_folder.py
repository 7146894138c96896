"""Folder of a run: locked during the run, with the record ``run.json``."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from ..io.curves import curves_in, keep_curves_until
from ..io.files import (
    clean,
    expect_unchanged,
    read_json,
    release_lock,
    sha256_of,
    stamp_of,
    take_lock,
    try_writing,
    write_json,
)  # fmt: skip
from ..io.weights import as_paths, read_state, require_checkpoint
from ..runtime import environment
from ..runtime.conditions import differences, listed
from ..runtime.cores import available_cores
from ..runtime.distributed import gather_interleaved, is_first
from ..runtime.errors import UserError, causes, first_cause, user_error
from ..runtime.interruption import interruption
from ..runtime.literals import plain
from ..runtime.options import OPTIONS
from ..runtime.recipe import references
from ..runtime.redaction import redacted
from ..runtime.workflow import running_workflow
from .layout import as_native, case_of, file_name, item_files
from .loaders import end_processes, loading_error
from .privacy import refuse_key_in

logger = logging.getLogger(__name__)

TRAINING = "training"
RECORD, STATE, LOCK = "run.json", "resume_state.pt", ".lock"
FIT = "baselines.json"  # reused by evaluations of the same cases
# keys that may change when a training resumes: paths, speed, length
MAY_DIFFER = re.compile(
    r"^(\w+_(dir|path|root)|anonymise_ids|device|progress|verbose|resume|overwrite|cache_rate|num_workers|cudnn_benchmark|epochs|steps"
    r"|patience|timeout_minutes|loading_timeout_s|rank|world_size|workflow|imports|initialize|finalize|run)(#.*)?$"
)


class RunFolder:
    """Output folder of a workflow: checked before the start, locked, and described in ``run.json``.

    ``run.json`` holds the last run of each purpose: ``status`` (``running``, ``finished``, or ``failed`` and
    ``interrupted`` with ``error``; a killed run stays ``running``), ``started``, ``ended``, ``command``,
    ``working_dir``, ``bundle``, ``versions``, ``hardware``, ``config`` (merged, with the values of the options),
    ``weights`` (path and SHA-256), and ``data``: the cases of each list with their files (relative to the dataset, with
    SHA-256) and the written mask. A resumed training lists its previous runs in ``earlier``. Other runs list the files
    that they wrote (``files``) and those of earlier runs (``left_over``).

    Args:
        folder: created if needed.
        purpose: training, evaluation (also scoring) or inference. Only training refuses a folder with a training.
        overwrite: accept a folder with another training. Implied if the training cases are given as a list, as by
            MONAI Label, which trains repeatedly in one folder.
        resume: continue the training in the folder; ``force``: also with other settings or cases.
        curves: folder of the training's TensorBoard files, if any.
        dataset_dir: folder of the cases.
        workflow: None for the running workflow; without one the record has no config.
    """

    def __init__(
        self,
        folder: str | Path,
        purpose: str,
        overwrite: bool = False,
        resume: bool | str = False,
        curves: str | Path | None = None,
        dataset_dir: str | Path = ".",
        workflow: ConfigWorkflow | None = None,
    ) -> None:
        self.workflow = workflow = workflow or running_workflow()
        self.folder = Path(folder).absolute()
        self.purpose = purpose
        handed_in = workflow is not None and isinstance(workflow.parser.get("train#dataset#data", None), list)
        self.overwrite = overwrite or handed_in
        self.resume = resume
        self.curves = None if curves is None else Path(curves).absolute()
        self.dataset_dir = Path(dataset_dir).absolute()
        self.before: dict[str, Any] = {}  # the last run of this purpose here
        self._goes_on = False
        self._record: dict[str, Any] = {}
        self._earlier_files: dict[str, list[int]] = {}

    def claim(self) -> None:
        """Lock the folder for this run (rank 0 only).

        Raises:
            UserError: the folder is not writable, is in use, or holds another training; or a training would resume
                with other settings or from an unreadable state.
        """
        if not is_first():
            return
        key = self.workflow.parser.get("anonymise_ids", None) if self.workflow else None
        for folder in (self.folder, *([self.curves.parent] if self.curves else [])):
            refuse_key_in(folder, key)
            try_writing(folder)
        busy = f"Another run uses {self.folder}. Wait for its end, or choose another folder."
        take_lock(self.folder / LOCK, busy, again=True)
        atexit.register(self._release)
        for folder in self._folders():
            clean(folder)
        self.before = self._records().get(self.purpose, {})
        if self.purpose != TRAINING:
            return
        state = self.folder / STATE
        self._goes_on = bool(self.resume) and state.is_file()
        if self._goes_on:
            read_state(state)
            if self.resume != "force":
                _refuse_other_settings(self.folder, self.before.get("config", {}), _config_of(self.workflow))
        elif not self.overwrite:
            self._refuse_earlier_training(state)

    def _refuse_earlier_training(self, state: Path) -> None:
        """Raise a UserError if a training or its curves would be lost."""
        if self.before.get("status") == "finished":
            what = f"holds a finished training (ended {self.before.get('ended')})"
        elif state.is_file():
            what = "holds an unfinished training; --resume True continues it"
        elif self.curves and not self.before and curves_in(self.curves):
            what = f"would overwrite the curves of another training in {self.curves}"
        else:
            return
        raise UserError(
            f"{self.folder} {what}. Choose another --ckpt_dir (and --output_dir), or give --overwrite True; "
            "nothing was started."
        )

    def recorded(
        self,
        run: Callable[[], Any],
        weights: str | Path | Sequence[str | Path] = (),
        masks: str | Path | None = None,
        **data: Sequence[Mapping[str, Any]],
    ) -> None:
        """Call ``run``, and record start and end; SIGINT and SIGTERM stop it cleanly.

        Args:
            run: function to call.
            weights: checkpoints used for prediction.
            masks: folder of the cases' masks.
            data: lists of MONAI data items by name, on this rank.

        Raises:
            UserError: a training would resume with other cases, or the folder was removed or emptied during the run.
        """
        cases = {name: gather_interleaved(list(items)) for name, items in data.items()}
        with interruption(self._advice, self._leave):
            try:
                if is_first():
                    self._begin(as_paths(weights) if weights else [], {name: of or [] for name, of in cases.items()})
                run()
                self._note_end("finished", None, masks)
            except BaseException as error:
                lost = loading_error(error)
                if lost:
                    end_processes()
                cause = lost or user_error(error) or first_cause(error)
                status = "failed" if isinstance(error, Exception) else "interrupted"
                self._note_end(status, f"{type(cause).__name__}: {cause}", masks)
                if lost and lost not in causes(error):
                    raise lost from error
                raise
            finally:
                expect_unchanged(None)
                self._release()

    def _begin(self, weights: Sequence[Path], cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        for path in weights:
            require_checkpoint(path)
        self._earlier_files = self._files()
        record = _description(_config_of(self.workflow), weights)
        record["data"] = {name: _hashed(items, self.dataset_dir) for name, items in cases.items()}
        if self._goes_on and self.before:
            if self.resume != "force":
                _refuse_other_cases(self.folder, self.before.get("data", {}), record["data"])
            part = {k: v for k, v in self.before.items() if k not in ("earlier", "data", "config")}
            record["earlier"] = [*self.before.get("earlier", []), part]
        if self.curves:
            state = read_state(self.folder / STATE) if self._goes_on else {"epoch": -1, "iteration": -1}
            keep_curves_until(self.curves, state["epoch"], state["iteration"])  # later steps are logged again
        if self.purpose == TRAINING and not self._goes_on:
            (self.folder / STATE).unlink(missing_ok=True)
        self._record = record
        self._write()

    def _records(self) -> dict[str, Any]:
        """The records of ``run.json`` by purpose."""
        return {name: of for name, of in read_json(self.folder / RECORD).items() if isinstance(of, dict)}

    def _write(self) -> None:
        write_json(self.folder / RECORD, self._records() | {self.purpose: self._record}, indent=1)

    def _note_end(self, status: str, why: str | None = None, masks: str | Path | None = None) -> None:
        if self._record.get("status") != "running":  # not rank 0, or not started
            return
        if not (self.folder / RECORD).is_file():
            if status != "finished":
                return
            raise UserError(f"{self.folder} was removed or emptied during the run: the results are lost. Run it again.")
        if self.purpose != TRAINING:
            self._note_files(say=status == "finished")
        if masks is not None:
            for entries in self._record["data"].values():
                _note_masks(entries, self._record["files"], Path(masks).absolute(), self.folder)
        self._record |= {"status": status, "ended": _now(), **({"error": redacted(why)} if why else {})}
        self._write()

    def _folders(self) -> list[Path]:
        return [self.folder, self.folder / "masks", self.folder / "overlays"]

    def _files(self) -> dict[str, list[int]]:
        """Stamp of each file in the folder by relative path."""
        paths = [path for folder in self._folders() if folder.is_dir() for path in folder.iterdir() if path.is_file()]
        own = [path for path in paths if path.name not in (RECORD, LOCK, FIT) and path.suffix != ".log"]
        return {os.path.relpath(path, self.folder): stamp_of(path) for path in own}

    def _note_files(self, say: bool) -> None:
        files = self._files()
        written = sorted(name for name, status in files.items() if status != self._earlier_files.get(name))
        before = {*self.before.get("files", []), *self.before.get("left_over", [])}
        left = sorted(before & files.keys() - set(written))
        self._record |= {"files": written, "left_over": left}
        if left and say:
            logger.warning(
                "%d files in %s are from an earlier run, not from this %s: %s%s",
                len(left), self.folder, self.purpose, ", ".join(left[:3]), " …" if len(left) > 3 else "",
            )  # fmt: skip

    def _leave(self) -> None:
        self._note_end("interrupted")
        self._release()

    def _release(self) -> None:
        """Unlock the folder; remove it if empty."""
        release_lock(self.folder / LOCK, remove=True)

    def _advice(self) -> str:
        if not is_first():
            return ""
        if self.purpose != TRAINING:
            return "Written files are complete; the same command starts again."
        if (self.folder / STATE).is_file():
            return (
                f"The files in {self.folder} are complete: "
                "the same command with --resume True continues after the last epoch."
            )
        return "No epoch was complete; the same command starts again."


def _config_of(workflow: ConfigWorkflow | None) -> dict[str, Any]:
    """The merged config as plain data, with computed options as values."""
    if workflow is None:
        return {}
    parser = workflow.parser
    config = {name: value for name, value in parser.get().items() if name != "_meta_"}
    for name in config:
        if (name in OPTIONS or name.endswith(("_dir", "_path", "_root"))) and _has_all_of(parser, name):
            config[name] = parser.get_parsed_content(name)
    return json.loads(json.dumps(plain(config), default=str))


def _has_all_of(parser: ConfigParser, name: str) -> bool:
    """Whether a config has all keys that a value refers to; mixins may have options for training only."""
    return name in parser and all(_has_all_of(parser, other) for other in references(parser[name]))


def _description(config: Mapping[str, Any], weights: Sequence[Path]) -> dict[str, Any]:
    """The record at the start of a run."""
    return {
        "status": "running",
        "started": _now(),
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


def _now() -> str:
    """Date and time with time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _hashed(items: Sequence[Mapping[str, Any]], dataset_dir: Path) -> list[dict[str, Any]]:
    """SHA-256 of each case's files."""
    files = {case: _named_files(item, dataset_dir) for case, item in {case_of(item): item for item in items}.items()}
    paths = [path for of in files.values() for path in of.values()]
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = dict(zip(paths, pool.map(sha256_of, paths), strict=True))
    return [{"case": case, "files": {name: digests[path] for name, path in of.items()}} for case, of in files.items()]


def _named_files(item: Mapping[str, Any], dataset_dir: Path) -> dict[str, str]:
    """An item's files by name in the dataset, or by part if the case has a pseudonym."""
    parts = item_files(item)
    if "native_image" in item:
        parts |= {f"native_{part}": path for part, path in item_files(as_native(item)).items()}
    if "original_id" in item:
        return parts
    prefix = f"{dataset_dir}{os.sep}"
    return {str(Path(path).absolute()).removeprefix(prefix): path for path in parts.values()}


def _note_masks(entries: Sequence[dict[str, Any]], written: Sequence[str], masks: Path, folder: Path) -> None:
    """Add the run's masks to the cases of a record."""
    for entry in entries:
        for path in map(folder.joinpath, written):
            if path.parent == masks and path.name.startswith(f"{file_name(entry['case'])}_lesion."):
                entry["mask"] = {"file": os.path.relpath(path, folder), "sha256": sha256_of(path)}


def _refuse_other_settings(folder: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise a UserError if a training would resume with other settings."""
    found = differences(before, settings, MAY_DIFFER) if before else {}
    _refuse(folder, "settings", [f"  {name}: {old} in the run, {new} here" for name, (old, new) in found.items()])


def _refuse_other_cases(folder: Path, before: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise a UserError if a training would resume with other or changed cases."""
    old, new = (
        {f"{name}: {one['case']}": sorted(one["files"].values()) for name in data for one in lists.get(name, [])}
        for lists in (before or data, data)
    )
    changed = [case for case in sorted({*old, *new}) if old.get(case) != new.get(case)]
    how = {case: "new" if case not in old else "missing" if case not in new else "changed" for case in changed}
    _refuse(folder, "cases", [f"  {case} is {how[case]}" for case in changed])


def _refuse(folder: Path, what: str, changed: Sequence[str]) -> None:
    if changed:
        raise UserError(
            f"The training in {folder} was started with other {what}:\n{listed(changed)}\nResume with the original "
            f"{what}, or choose another --ckpt_dir; --resume force resumes anyway."
        )
