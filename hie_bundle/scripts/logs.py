"""What a run says of itself: one line an epoch, and a file of it beside the results."""

from __future__ import annotations

import logging
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import Evaluator, SupervisedTrainer

from .bonbid import redacted

__all__ = ["EpochLine", "to_file"]

logger = logging.getLogger(__name__)


def to_file(output_dir: str | Path, workflow: ConfigWorkflow | None) -> None:
    """Write what is logged to a file as well: ``output_dir/<run id>.log``, such as ``training.log``.

    The file is made, and its folder, when the first line is logged; a run that goes on adds to it.

    Args:
        output_dir: of the run.
        workflow: that runs the config; None for tools that have none, which get no file.
    """
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


class EpochLine:
    """Log each epoch of a training in one line: mean loss without the L1 term, metrics, learning rate, seconds.

    Stand it after the ``ValidationHandler`` in the trainer's handlers.

    Args:
        validator: whose metrics belong to an epoch in which it ran.
    """

    def __init__(self, validator: Evaluator) -> None:
        self.validator = validator
        self._loss, self._steps, self._started = 0.0, 0, 0.0

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act at the start of an epoch, after each step, and at the epoch's end."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def started(self, _: Engine) -> None:
        """Begin to count."""
        self._loss, self._steps, self._started = 0.0, 0, time.monotonic()

    def step(self, engine: Engine) -> None:
        """Add a step's loss."""
        output = engine.state.output[0]  # type: ignore[index]
        self._loss += float(output["loss"]) - float(output.get("l1_penalty", 0.0))
        self._steps += 1

    def __call__(self, engine: SupervisedTrainer) -> None:
        state, validated = engine.state, self.validator.state
        parts = [f"loss {self._loss / max(1, self._steps):.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in state.metrics.items()]
        if validated.epoch == state.epoch:
            parts += [f"{name} {value:.4f}" for name, value in validated.metrics.items()]
            best = validated.best_metric_epoch
            parts.append("the best so far" if best == state.epoch else f"best {validated.best_metric:.4f} in {best}")
        parts += [f"lr {engine.optimizer.param_groups[0]['lr']:.3g}", f"{time.monotonic() - self._started:.1f} s"]
        logger.info("epoch %d/%d: %s", state.epoch, state.max_epochs, ", ".join(parts))
