"""The folder of a run: one run's alone, with ``run.json``, which says what was run, on what, and how it ended."""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from ..io.curves import curves_in, keep_curves_until
from ..io.files import clean, expect_unchanged, release_lock, take_lock, try_writing, write_json
from ..io.weights import as_paths, read_state, require_there
from ..runtime.distributed import gather_interleaved, is_first
from ..runtime.errors import UserError, causes, first_cause, user_error
from ..runtime.interruption import interruption
from ..runtime.redaction import redacted
from ..runtime.workflow import running_workflow
from .loaders import end_processes, in_words
from .privacy import refuse_key_in
from .run_record import config_of, description, hashed, note_masks, now, refuse_other_cases, refuse_other_settings

__all__ = ["RunFolder"]

logger = logging.getLogger(__name__)

TRAINING = "training"
RECORD, STATE, LOCK = "run.json", "resume_state.pt", ".lock"
FIT = "baselines.json"  # evaluations use each other's, as long as it is of the same cases


class RunFolder:
    """What a workflow writes to: tried before it starts, kept for it while it lives, and described in ``run.json``.

    ``run.json`` holds, for each purpose that the folder has served (training, evaluation, inference), its last run:
    ``status`` (``running``, or ended without a word if nothing holds the folder; ``finished``, ``failed`` or
    ``interrupted``, with ``error``), ``started``, ``ended``, ``command``, ``working_dir``, ``bundle``, ``versions``,
    ``hardware``, ``config`` (merged, with the values of the options), ``weights`` (path and SHA-256), and ``data``: the
    cases of each list, their files relative to the dataset with SHA-256, and the mask that was written. Of a training
    ``earlier`` has its parts so far; of others ``files`` are what the run wrote, ``left_over`` what it did not replace.

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

    def claim(self) -> None:
        """Take the folder for this run, before anything else happens. Of several processes the first one does.

        Raises:
            UserError: when it cannot be written to; another run lives in it; or a training has ended there that would
                be overwritten, or mixed with this one; when a training would go on with other settings, naming them,
                or its state cannot be read.
        """
        if not is_first():
            return
        key = self.workflow.parser.get("anonymise_ids", None) if self.workflow else None
        for folder in (self.folder, *([self.curves.parent] if self.curves else [])):
            refuse_key_in(folder, key)
            try_writing(folder)
        busy = f"Another run works in {self.folder}. Wait for its end, or choose another folder."
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
                refuse_other_settings(self.folder, self.before.get("config", {}), config_of(self.workflow))
        elif not self.overwrite:
            self._refuse_earlier_training(state)

    def _refuse_earlier_training(self, state: Path) -> None:
        """Stop where there is something to lose."""
        if self.before.get("status") == "finished":
            what = f"holds a finished training, of {self.before.get('ended')}"
        elif state.is_file():
            what = "holds a training that has not finished; --resume True continues it"
        elif self.curves and not self.before and curves_in(self.curves):
            what = f"would take what is in {self.curves}: the curves of another training"
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
        """Run, with ``run.json`` in the folder from the beginning, completed at the end however it ends.

        Meanwhile SIGINT and SIGTERM end the run in good order (:mod:`scripts.runtime.interruption`).

        Args:
            run: does the work.
            weights: file or files that predict.
            masks: folder that the cases' masks are written to.
            data: lists of MONAI data items by name, this process's share of them.

        Raises:
            UserError: when a training would go on with other cases, naming them; when the folder, or what the run had
                written to it, was removed during the run.
        """
        cases = {name: gather_interleaved(list(items)) for name, items in data.items()}
        with interruption(self._advice, self._leave):
            try:
                if is_first():
                    self._begin(as_paths(weights) if weights else [], {name: of or [] for name, of in cases.items()})
                run()
                self._note_end("finished", None, masks)
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
            finally:
                expect_unchanged(None)
                self._release()

    def _begin(self, weights: Sequence[Path], cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        for path in weights:
            require_there(path)
        self._there = self._files()
        record = description(config_of(self.workflow), weights)
        record["data"] = {name: hashed(items, self.dataset_dir) for name, items in cases.items()}
        if self._goes_on and self.before:
            if self.resume != "force":
                refuse_other_cases(self.folder, self.before.get("data", {}), record["data"])
            part = {k: v for k, v in self.before.items() if k not in ("earlier", "data", "config")}
            record["earlier"] = [*self.before.get("earlier", []), part]
        if self.curves:
            state = read_state(self.folder / STATE) if self._goes_on else {"epoch": -1, "iteration": -1}
            keep_curves_until(self.curves, state["epoch"], state["iteration"])  # what follows is written again
        if self.purpose == TRAINING and not self._goes_on:
            (self.folder / STATE).unlink(missing_ok=True)
        self._record = record
        self._write()

    def _records(self) -> dict[str, Any]:
        """The records of ``run.json`` by purpose; empty where the file is another one."""
        try:
            records = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return {name: of for name, of in records.items() if isinstance(of, dict)} if isinstance(records, dict) else {}

    def _write(self) -> None:
        write_json(self.folder / RECORD, self._records() | {self.purpose: self._record}, indent=1)

    def _note_end(self, status: str, why: str | None = None, masks: str | Path | None = None) -> None:
        if self._record.get("status") != "running":  # another process's, or nothing has begun
            return
        if not (self.folder / RECORD).is_file():
            if status != "finished":
                return
            raise UserError(f"{self.folder} was removed or emptied during the run: its results are gone. Run it again.")
        if self.purpose != TRAINING:
            self._note_files(say=status == "finished")
        if masks is not None:
            for entries in self._record["data"].values():
                note_masks(entries, self._record["files"], Path(masks), self.folder)
        self._record |= {"status": status, "ended": now(), **({"error": redacted(why)} if why else {})}
        self._write()

    def _folders(self) -> list[Path]:
        return [self.folder, self.folder / "masks", self.folder / "overlays"]

    def _files(self) -> dict[str, tuple[int, int]]:
        """The files there, and what tells whether they were written since."""
        paths = [path for folder in self._folders() if folder.is_dir() for path in folder.iterdir() if path.is_file()]
        own = [path for path in paths if path.name not in (RECORD, LOCK, FIT) and path.suffix != ".log"]
        return {os.path.relpath(path, self.folder): (path.stat().st_mtime_ns, path.stat().st_ino) for path in own}

    def _note_files(self, say: bool) -> None:
        files = self._files()
        written = sorted(name for name, status in files.items() if status != self._there.get(name))
        before = {*self.before.get("files", []), *self.before.get("left_over", [])}
        left = sorted(before & files.keys() - set(written))
        self._record |= {"files": written, "left_over": left}
        if left and say:
            logger.warning(
                "%d files in %s are of an earlier run, not of this %s: %s%s",
                len(left), self.folder, self.purpose, ", ".join(left[:3]), " …" if len(left) > 3 else "",
            )  # fmt: skip

    def _leave(self) -> None:
        self._note_end("interrupted")
        self._release()

    def _release(self) -> None:
        """Give the folder free; one that is empty was made for nothing."""
        release_lock(self.folder / LOCK, remove=True)

    def _advice(self) -> str:
        if not is_first():
            return ""
        if self.purpose != TRAINING:
            return "Files that were written are whole; the same command starts again."
        if (self.folder / STATE).is_file():
            return (
                f"The files in {self.folder} are complete: "
                "the same command with --resume True continues after the last epoch."
            )
        return "No epoch was complete; the same command starts again."
