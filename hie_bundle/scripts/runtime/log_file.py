"""Log file of a run, next to its results."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from monai.bundle import ConfigWorkflow

from .redaction import redacted
from .workflow import running_workflow


def to_file(output_dir: str | Path, workflow: ConfigWorkflow | None = None) -> None:
    """Also write the log of the running workflow to ``output_dir/<run id>.log``, e.g. ``training.log``.

    The first message creates the file and its folder; a resumed run appends to it.
    """
    workflow = workflow or running_workflow()  # configs of version 0.9 pass it
    if workflow is None:
        return
    run_id = str(workflow.run_id)
    what = workflow.parser.get(run_id)
    name = what.removeprefix("$@") if isinstance(what, str) and what.startswith("$@") else run_id
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _LogFile)]:  # from an earlier run in this process
        root.removeHandler(handler)
        handler.close()
    root.addHandler(_LogFile(Path(output_dir).absolute() / f"{name}.log"))


class _LogFile(logging.FileHandler):
    _warned = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True, encoding="utf-8", errors="backslashreplace")
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """Redact the message: with --anonymise_ids file names may appear on the screen, but not in the log file."""
        return redacted(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a full disk once, without a traceback per message."""
        if not self._warned:
            print(f"{self.baseFilename} cannot be written to ({sys.exc_info()[1]}).", file=sys.stderr)
        self._warned = True
