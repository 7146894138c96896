"""The folder of a run: one run's alone, with ``run.json``, which says what was run, on what, and how it ended."""

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
from typing import IO, Any

from monai.bundle import ConfigParser, ConfigWorkflow

from ..io.curves import curves_in, keep_curves_until
from ..io.files import clean, sha256_of, take_lock, try_writing, write_json
from ..io.weights import as_paths, read_state, require_there
from ..runtime import environment
from ..runtime.conditions import differences, listed
from ..runtime.cores import available_cores
from ..runtime.distributed import gather_interleaved, is_first
from ..runtime.errors import UserError, causes, first_cause, user_error
from ..runtime.interruption import Interruption
from ..runtime.literals import plain
from ..runtime.options import OPTIONS
from ..runtime.recipe import references
from ..runtime.redaction import redacted
from ..runtime.workflow import running_workflow
from .layout import as_native, case_of, file_name, item_files
from .loaders import end_processes, in_words

__all__ = ["RunFolder"]

logger = logging.getLogger(__name__)

TRAINING = "training"
RECORD, STATE, LOCK = "run.json", "resume_state.pt", ".lock"
FIT = "baselines.json"  # evaluations use each other's, as long as it is of the same cases
# what a run may go on with otherwise: where things are, how fast they go, how long it trains
MAY_DIFFER = re.compile(
    r"^(\w+_(dir|path|root)|anonymise_ids|device|progress|verbose|resume|overwrite|cache_rate|num_workers|cudnn_benchmark|epochs|steps"
    r"|patience|timeout_minutes|loading_timeout_s|rank|world_size|workflow|imports|initialize|finalize|run)(#.*)?$"
)
_held: dict[Path, IO[str]] = {}


class RunFolder:
    """What a workflow writes to: tried before it starts, kept for it while it lives, and described in ``run.json``.

    ``run.json`` holds, for each purpose that the folder has served (training, evaluation, inference),
    its last run: ``status``: ``running`` (or ended without a word, if nothing holds the folder),
    ``finished``, ``failed`` or ``interrupted``, with ``error``; ``started`` and ``ended``; ``command`` and
    ``working_dir``; ``bundle``: its version and, in a git clone, revision and whether files differ from it;
    ``versions`` of what it runs on; ``hardware``; ``config``: the merged config with the values of the options;
    ``weights``: path and SHA-256 of each file; ``data``: for each list of cases their ids, their files relative to the
    dataset with SHA-256, and the mask that was written of them; ``earlier``: parts so far of a training that went on;
    of the others ``files``: what it wrote, and ``left_over``: files of those before it that it did not replace.

    Args:
        folder: of the run; made if needed.
        purpose: training, evaluation (scoring, too) or inference. All but a training may be repeated in their folder.
        overwrite: take a folder with another training in it. A workflow that was handed its training cases as a list
            instead of the config's own (MONAI Label trains like that, over and over in one folder) does so anyway.
        resume: go on with the training in the folder; ``force``: with other settings or cases, too.
        curves: folder with the training's event files for TensorBoard; None: it has none.
        dataset_dir: where the cases lie.
        workflow: the running one by default; without one the record has no config.
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
        self._there: dict[str, tuple[int, int]] = {}
        self._interruption = Interruption(self._advice, self._leave)

    def claim(self) -> None:
        """Take the folder for this run, before anything else happens. Of several processes the first one does.

        Raises:
            UserError: when it cannot be written to; another run lives in it; or a training has ended there that would
                be overwritten, or mixed with this one; when a training would go on with other settings, naming them,
                or its state cannot be read.
        """
        if not is_first():
            return
        for folder in (self.folder, *([self.curves.parent] if self.curves else [])):
            try_writing(folder)
        _lock(self.folder)
        for folder in self._folders():
            clean(folder)
        self.before = _read(self.folder / RECORD).get(self.purpose, {})
        if self.purpose != TRAINING:
            return
        state = self.folder / STATE
        self._goes_on = bool(self.resume) and state.is_file()
        if self._goes_on:
            read_state(state)
            if self.resume != "force":
                _refuse_other_settings(self.folder, self.before.get("config", {}), self._config())
        elif not self.overwrite:
            self._refuse_earlier_training(state)

    def _refuse_earlier_training(self, state: Path) -> None:
        """Stop where there is something to lose."""
        if self.before.get("status") == "finished":
            what = f"holds a finished training, of {self.before.get('ended')}"
        elif state.is_file():
            what = "holds a training that has not finished; --resume True goes on with it"
        elif self.curves and not self.before and curves_in(self.curves):
            what = f"would take what is in {self.curves}: the curves of another training"
        else:
            return
        raise UserError(
            f"{self.folder} {what}. Choose another --ckpt_dir (and --output_dir), or say --overwrite True; "
            "nothing was started."
        )

    def recorded(
        self,
        run: Callable[[], Any],
        weights: str | Path | Sequence[str | Path] = (),
        masks: str | Path | None = None,
        **data: Sequence[Mapping[str, Any]],
    ) -> None:
        """Run, with ``run.json`` in the folder from the beginning, completed at the end however it ends.

        Meanwhile SIGINT and SIGTERM end the run in good order (:mod:`scripts.runtime.interruption`).

        Args:
            run: does the work.
            weights: file or files that predict.
            masks: folder that the cases' masks are written to.
            data: lists of MONAI data items by name, this process's share of them.

        Raises:
            UserError: when a training would go on with other cases, naming them.
        """
        cases = {name: gather_interleaved(list(items)) for name, items in data.items()}
        self._interruption.install()
        try:
            if is_first():
                self._begin(as_paths(weights) if weights else [], {name: of or [] for name, of in cases.items()})
            run()
        except BaseException as error:
            lost = in_words(error)
            if lost:
                end_processes()
            cause = lost or user_error(error) or first_cause(error)
            status = "failed" if isinstance(error, Exception) else "interrupted"
            self._note_end(status, f"{type(cause).__name__}: {cause}", masks)
            if lost and lost not in causes(error):
                raise lost from error
            raise
        else:
            self._note_end("finished", None, masks)
        finally:
            _release(self.folder)
            self._interruption.remove()

    def _begin(self, weights: Sequence[Path], cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        for path in weights:
            require_there(path)
        self._there = self._files()
        record = self._describe(weights)
        record["data"] = {name: self._hashed(items) for name, items in cases.items()}
        if self._goes_on and self.before:
            if self.resume != "force":
                _refuse_other_cases(self.folder, self.before.get("data", {}), record["data"])
            part = {k: v for k, v in self.before.items() if k not in ("earlier", "data", "config")}
            record["earlier"] = [*self.before.get("earlier", []), part]
        if self.curves:
            state = read_state(self.folder / STATE) if self._goes_on else {"epoch": -1, "iteration": -1}
            keep_curves_until(self.curves, state["epoch"], state["iteration"])  # what follows is written again
        if self.purpose == TRAINING and not self._goes_on:
            (self.folder / STATE).unlink(missing_ok=True)
        self._record = record
        self._write()

    def _write(self) -> None:
        write_json(self.folder / RECORD, _read(self.folder / RECORD) | {self.purpose: self._record}, indent=1)

    def _note_end(self, status: str, why: str | None = None, masks: str | Path | None = None) -> None:
        if self._record.get("status") != "running":  # another process's, or nothing has begun
            return
        if self.purpose != TRAINING:
            self._note_files(say=status == "finished")
        if masks is not None:
            self._note_masks(self._record["data"], Path(masks))
        self._record |= {"status": status, "ended": _now(), **({"error": redacted(why)} if why else {})}
        self._write()

    def _folders(self) -> list[Path]:
        return [self.folder, self.folder / "masks", self.folder / "overlays"]

    def _files(self) -> dict[str, tuple[int, int]]:
        """The files there, and what tells whether they were written since."""
        found = {}
        for folder in self._folders():
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_file() and path.name not in (RECORD, LOCK, FIT) and path.suffix != ".log":
                    status = path.stat()
                    found[os.path.relpath(path, self.folder)] = (status.st_mtime_ns, status.st_ino)
        return found

    def _note_files(self, say: bool) -> None:
        now = self._files()
        written = sorted(name for name, status in now.items() if status != self._there.get(name))
        before = {*self.before.get("files", []), *self.before.get("left_over", [])}
        left = sorted(before & now.keys() - set(written))
        self._record |= {"files": written, "left_over": left}
        if left and say:
            logger.warning(
                "%d files in %s are of an earlier run, not of this %s: %s%s",
                len(left), self.folder, self.purpose, ", ".join(left[:3]), " …" if len(left) > 3 else "",
            )  # fmt: skip

    def _leave(self) -> None:
        self._note_end("interrupted")
        _release_all()

    def _advice(self) -> str:
        if not is_first():
            return ""
        if self.purpose == TRAINING and (self.folder / STATE).is_file():
            return (
                f"What {self.folder} holds is whole: the same command with --resume True goes on after the last epoch."
            )
        if self.purpose == TRAINING:
            return "No epoch was complete; the same command starts again."
        return "Files that were written are whole; the same command starts again."

    def _config(self) -> dict[str, Any]:
        """The merged config as plain data, options that it computes as values."""
        if self.workflow is None:
            return {}
        parser = self.workflow.parser
        config = {name: value for name, value in parser.get().items() if name != "_meta_"}
        for name in config:
            if (name in OPTIONS or name.endswith(("_dir", "_path", "_root"))) and _has_all_of(parser, name):
                config[name] = parser.get_parsed_content(name)
        return json.loads(json.dumps(plain(config), default=str))

    def _describe(self, weights: Sequence[Path]) -> dict[str, Any]:
        config = self._config()
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
            "weights": [
                {"path": str(path.absolute()), "sha256": sha256_of(path)} for path in weights if path.is_file()
            ],
            "config": config,
        }

    def _hashed(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        once = {case_of(item): item for item in items}
        files = {case: self._named_files(item) for case, item in once.items()}
        paths = [path for of in files.values() for path in of.values()]
        with ThreadPoolExecutor(available_cores()) as pool:
            digests = dict(zip(paths, pool.map(sha256_of, paths), strict=True))
        return [
            {"case": case, "files": {name: digests[path] for name, path in of.items()}} for case, of in files.items()
        ]

    def _named_files(self, item: Mapping[str, Any]) -> dict[str, str]:
        """An item's files by their names in the dataset, which hold its id; where that is not said, by their parts."""
        parts = item_files(item)
        if "native_image" in item:
            parts |= {f"native_{part}": path for part, path in item_files(as_native(item)).items()}
        return parts if "original_id" in item else {self._name(path): path for path in parts.values()}

    def _name(self, path: str) -> str:
        absolute = Path(path).absolute()
        return str(absolute.relative_to(self.dataset_dir) if absolute.is_relative_to(self.dataset_dir) else path)

    def _note_masks(self, data: Mapping[str, Sequence[dict[str, Any]]], folder: Path) -> None:
        written = self._record["files"]
        for entry in (entry for entries in data.values() for entry in entries):
            for path in folder.glob(f"{_literal(file_name(entry['case']))}_lesion.*"):
                where = os.path.relpath(path, self.folder)
                if where in written:
                    entry["mask"] = {"file": where, "sha256": sha256_of(path)}


def _refuse_other_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"  {name}: {old} in the run, {new} here" for name, (old, new) in differences(before, now, MAY_DIFFER).items()
    ]
    if before and changed:
        _refuse_going_on(folder, "other settings", changed)


def _refuse_other_cases(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = []
    for name, entries in now.items():
        old, new = ({e["case"]: sorted(e["files"].values()) for e in of} for of in (before.get(name, []), entries))
        what = {"missing": old.keys() - new.keys(), "new": new.keys() - old.keys()}
        what["changed"] = {case for case in old.keys() & new.keys() if old[case] != new[case]}
        changed += [f"  {name}: {case} is {how}" for how, which in what.items() for case in sorted(which)]
    if before and changed:
        _refuse_going_on(folder, "other cases", changed)


def _refuse_going_on(folder: Path, what: str, changed: Sequence[str]) -> None:
    raise UserError(
        f"The training in {folder} was started with {what}:\n" + listed(changed) + "\n"
        "Resume with what it was started with, or choose another --ckpt_dir; if you mean it, --resume force."
    )


def _lock(folder: Path) -> None:
    if folder in _held:
        return
    while True:
        stream = (folder / LOCK).open("a")
        if not take_lock(stream):
            stream.close()
            raise UserError(f"Another run works in {folder}. Wait for its end, or choose another folder.")
        try:  # its last owner may have removed the file in between
            if os.path.samestat(os.fstat(stream.fileno()), (folder / LOCK).stat()):
                break
        except OSError:
            pass
        stream.close()
    _held[folder] = stream


def _forget() -> None:
    """In a process that was forked, to load data: the lock is its parent's and ends with it."""
    for stream in _held.values():
        stream.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _release(folder: Path) -> None:
    """Give the folder free; one that is empty was made for nothing."""
    stream = _held.pop(folder, None)
    if stream is None:
        return
    try:
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass
    stream.close()


@atexit.register
def _release_all() -> None:
    for folder in list(_held):
        _release(folder)


def _read(path: Path) -> dict[str, Any]:
    """The records of ``run.json`` by purpose; empty where the file is another one."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: of for name, of in records.items() if isinstance(of, dict)} if isinstance(records, dict) else {}


def _has_all_of(parser: ConfigParser, name: str) -> bool:
    """Whether a config has all that one of its values refers to; a mixin brings options that are for training alone."""
    return name in parser and all(_has_all_of(parser, other) for other in references(parser[name]))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _literal(name: str) -> str:
    """A name for ``glob`` that means itself."""
    return re.sub(r"([\[\]*?])", r"[\1]", name)
