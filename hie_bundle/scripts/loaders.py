"""Data loaders whose processes may die or hang: the run then ends in bounded time, and says with which case."""

from __future__ import annotations

import os
import re
import signal
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil
import torch
from monai.data import DataLoader as StockDataLoader
from torch.utils.data import Dataset, get_worker_info

from .bonbid.remembered import case_of
from .errors import UserError, causes, user_error

__all__ = ["DataLoader", "end_processes", "in_words"]

IDLE = -1
_loaders: weakref.WeakSet[DataLoader] = weakref.WeakSet()
# as PyTorch repeats in the main process what a loading one has raised
_REPEATED = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\n.*?^[\w.]*UserError: (.*)", re.DOTALL | re.MULTILINE
)


class DataLoader(StockDataLoader):
    """``monai.data.DataLoader`` that knows which case each of its processes is reading (:func:`in_words`).

    Args:
        dataset: with a length; of MONAI data items.
        num_workers: processes; with 0 the main one reads, which no time limit stops.
        timeout_s: seconds without the next batch after which its process counts as stuck.
        options: see the parent class.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, timeout_s: float = 0.0, **options: Any) -> None:
        self.reading = torch.full((num_workers, 2), IDLE).share_memory_()  # of each process its number and the item's
        if num_workers:
            dataset = _Noted(dataset, self.reading)
            options["timeout"] = timeout_s
        super().__init__(dataset, num_workers, **options)
        _loaders.add(self)


class _Noted(Dataset[Any]):
    """A dataset that notes in shared memory which item a process is at, and passes on what a user can mend."""

    def __init__(self, dataset: Any, reading: torch.Tensor) -> None:
        self.dataset = dataset
        self.reading = reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[index]
        self.reading[worker.id] = torch.tensor([os.getpid(), index])
        try:
            item = self.dataset[index]
        except Exception as error:  # of an exception PyTorch keeps the kind and the text, and loses its causes
            if mistake := user_error(error):
                raise mistake from error
            raise
        self.reading[worker.id, 1] = IDLE
        return item


def in_words(error: BaseException) -> UserError | None:
    """What happened to a loading process, and the cases that were being read; None of any other error.

    Args:
        error: that ended a run. PyTorch raises it in the main process, wherever that is at the time.
    """
    texts = [str(cause) for cause in causes(error) if isinstance(cause, RuntimeError | UserError)]
    if told := next(filter(None, map(_REPEATED.search, texts)), None):
        return UserError(told[1].strip())
    text = next((text for text in texts if text.startswith("DataLoader ")), None)
    if text is None:
        return None
    why = "did not give a batch in time" if "timed out" in text else "died; the system may have run out of memory"
    cases = sorted({case for loader in _loaders for case in _being_read(loader)})
    advice = (
        "Look at these files and the disk; --loading_timeout_s is the time that they have, --num_workers 0 reads in "
        "the main process."
    )
    return UserError(f"A process that loads cases {why} ({text.strip()}). It was reading: {_list(cases)}. {advice}")


def end_processes() -> None:
    """Kill what still loads; Python would wait at its end for a process that hangs."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with which PyTorch raises, whatever is done, when they end
    for process in (process for loader in _loaders for process, _ in loader.reading.tolist() if process != IDLE):
        with suppress(psutil.Error):
            child = psutil.Process(process)
            if child.ppid() == os.getpid():
                child.kill()


def _being_read(loader: DataLoader) -> list[str]:
    noted: Any = loader.dataset
    items = getattr(getattr(noted, "dataset", None), "data", [])
    return [_name(items[index]) for _, index in loader.reading.tolist() if index != IDLE]


def _name(item: Any) -> str:
    return case_of(item) if isinstance(item, Mapping) else str(item)


def _list(cases: list[str]) -> str:
    return ", ".join(cases) or "no case that is known"
