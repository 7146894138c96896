"""Curves for TensorBoard that a run which is killed and goes on leaves without gaps and without doubles."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import TensorBoardStatsHandler as StockTensorBoardStatsHandler

from ..moved import renamed
from .files import atomic_path

__all__ = ["CurvesHandler", "curves_in", "keep_curves_until"]
__getattr__ = partial(renamed, "io.curves")

EVENTS = "events.out.tfevents.*"


class CurvesHandler(StockTensorBoardStatsHandler):
    """``monai.handlers.TensorBoardStatsHandler`` whose curves are on disk after each epoch, as the state of
    :class:`.Resume` is: MONAI's are written every two minutes, and a run that is killed and goes on has
    a gap."""

    def epoch_completed(self, engine: Engine) -> None:
        """Write the epoch's figures, and all that waits."""
        super().epoch_completed(engine)
        self._writer.flush()


def keep_curves_until(folder: Path, moment: float) -> None:
    """Take out of event files what was written later: a training that goes on writes it again.

    TensorBoard's own ``purge_step`` knows one kind of step; these files count steps and epochs.

    Args:
        folder: with the files; need not exist.
        moment: seconds since 1970.
    """
    for file, events in curves_in(folder).items():
        from tensorboard.summary.writer.record_writer import RecordWriter

        first = [event for event in events if event.HasField("file_version")]
        kept = [event for event in events if event.wall_time <= moment and event not in first]
        if not kept:
            file.unlink()
            continue
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            writer = RecordWriter(stream)
            for event in first + kept:
                writer.write(event.SerializeToString())


def curves_in(folder: Path) -> dict[Path, list[Any]]:
    """The events of each event file that has any but its header, which is all that a writer has written at first."""
    files = sorted(folder.glob(EVENTS))
    if not files:
        return {}
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = {file: list(LegacyEventFileLoader(str(file)).Load()) for file in files}
    return {file: of for file, of in events.items() if not all(event.HasField("file_version") for event in of)}
