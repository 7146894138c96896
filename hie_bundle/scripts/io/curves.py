"""TensorBoard curves without gaps or duplicates after a training was killed and resumed."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import TensorBoardStatsHandler as StockTensorBoardStatsHandler

from .files import atomic_path

EVENTS = "events.out.tfevents.*"
EPOCHS = ".epochs"  # suffix of files whose steps are epochs; other files count iterations


class CurvesHandler(StockTensorBoardStatsHandler):
    """``monai.handlers.TensorBoardStatsHandler`` that writes after each epoch instead of every two minutes.

    This avoids gaps in resumed runs. Without ``iteration_log`` the file contains only epochs.
    """

    def __init__(self, log_dir: str, iteration_log: Any = True, **options: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(log_dir, filename_suffix="" if iteration_log else EPOCHS)
        super().__init__(summary_writer=writer, iteration_log=iteration_log, **options)
        self.internal_writer = True  # the handler closes it at the end of the run

    def epoch_completed(self, engine: Engine) -> None:
        """Write the epoch's values and flush the file."""
        super().epoch_completed(engine)
        self._writer.flush()


def keep_curves_until(folder: Path, epoch: int, iteration: int) -> None:
    """Remove events after a saved state (-1: all), since a resumed training writes them again.

    Events are cut by order in the file, since clocks may be set back. TensorBoard's ``purge_step`` cannot distinguish
    epochs from iterations.
    """
    for file, events in curves_in(folder).items():
        from tensorboard.summary.writer.record_writer import RecordWriter

        # files of version 0.9 have no mark: with so few steps the file counts epochs, or nothing is cut
        epochs_only = file.name.endswith(EPOCHS) or max(event.step for event in events) <= epoch + 1
        last = epoch if epochs_only else iteration
        kept = list(takewhile(lambda event, last=last: event.step <= last, events))  # type: ignore[misc]
        if all(event.HasField("file_version") for event in kept):
            file.unlink()
        elif len(kept) < len(events):
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                writer = RecordWriter(stream)
                for event in kept:
                    writer.write(event.SerializeToString())


def curves_in(folder: Path) -> dict[Path, list[Any]]:
    """Events by file, without files that contain only a header."""
    files = sorted(folder.glob(EVENTS))
    if not files:
        return {}
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = {file: list(LegacyEventFileLoader(str(file)).Load()) for file in files}
    return {file: of for file, of in events.items() if not all(event.HasField("file_version") for event in of)}
