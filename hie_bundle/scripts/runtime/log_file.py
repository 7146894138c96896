"""The log of a run as a file beside its results."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from pathlib import Path

from monai.bundle import ConfigWorkflow

from .redaction import redacted
from .workflow import running_workflow

__all__ = ["to_file"]


def to_file(output_dir: str | Path, workflow: ConfigWorkflow | None = None) -> None:
    """Write what is logged to a file as well: ``output_dir/<run id>.log``, such as ``training.log``.

    The file is made, and its folder, when the first line is logged; a resumed run appends to it.

    Args:
        output_dir: of the run.
        workflow: the running one by default. Tools without one get no file.
    """
    workflow = workflow or running_workflow()
    if workflow is None:
        return
    run_id = str(workflow.run_id)
    what = workflow.parser.get(run_id) if run_id in workflow.parser else run_id
    name = what.removeprefix("$@") if isinstance(what, str) and what.startswith("$@") else run_id
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _LogFile)]:  # of an earlier run in this process
        root.removeHandler(handler)
        handler.close()
    handler = _LogFile(
        Path(output_dir).absolute() / f"{name}.log", delay=True, encoding="utf-8", errors="backslashreplace"
    )
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Redacting("%(asctime)s - %(levelname)s - %(message)s"))
    root.addHandler(handler)


class _Redacting(logging.Formatter):
    """With --anonymise_ids a message may name a case's file on the screen, but not in what is kept."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _LogFile(logging.FileHandler):
    _told = False

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full: said once, not with a traceback for each line."""
        if not self._told:
            print(f"{self.baseFilename} cannot be written to ({sys.exc_info()[1]}).", file=sys.stderr)
        self._told = True
