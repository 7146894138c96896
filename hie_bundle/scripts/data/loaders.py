"""Data loaders with a time limit and with case ids in error messages."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

import torch
from monai.data import DataLoader as StockDataLoader
from torch.utils.data import Dataset, get_worker_info

from ..runtime.errors import UserError, causes, user_error
from ..runtime.interruption import stop_if_asked
from .layout import case_of

IDLE = -1
POLL_S = 0.2  # between two checks for a signal
SOON_S = 1.0  # for a killed process to exit
_END = object()
DIED = "The system may have run out of memory; --num_workers 0 reads in the main process."
_SHM = "has no shared memory left: enlarge /dev/shm (docker run --shm-size)"
_FILES = "has too many open files: raise the limit (ulimit -n)"
SHORTAGES = {  # advice by PyTorch's message
    "shared memory(shm)": _SHM, "unable to write to file </torch_": _SHM, "out of shared memory": _SHM,
    "Too many open files": _FILES, "ancdata": _FILES,
}  # fmt: skip
_loaders: weakref.WeakSet[CaseLoader] = weakref.WeakSet()
# PyTorch's message for a UserError in a worker
_REPEATED = re.compile(
    r"Caught \w+ in DataLoader worker process \d+\.\n.*?^[\w.]*UserError: (.*)", re.DOTALL | re.MULTILINE
)


class LoadingError(UserError):
    """A loading process died or hangs."""


class CaseLoader(StockDataLoader):
    """``monai.data.DataLoader`` with a time limit ``timeout_s`` for each batch (0: none).

    A thread loads one batch per request, so random numbers keep their order. The main thread waits up to the limit,
    also for ``num_workers=0``, and reacts to signals. :func:`loading_error` adds the case to an error.
    """

    def __init__(self, dataset: Any, num_workers: int = 0, timeout_s: float = 0.0, **options: Any) -> None:
        # process id and item index of each reader
        self.reading = torch.full((max(num_workers, 1), 2), IDLE).share_memory_()
        self.timeout_s = timeout_s
        super().__init__(_Noted(dataset, self.reading), num_workers, **options)
        _loaders.add(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._in_time(super().__iter__())

    def _in_time(self, batches: Iterator[Any]) -> Iterator[Any]:
        requests: SimpleQueue[bool] = SimpleQueue()
        answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def serve() -> None:
            while requests.get():
                try:
                    answers.put((next(batches, _END), None))
                except BaseException as error:
                    answers.put((None, error))

        threading.Thread(target=serve, daemon=True).start()
        try:
            while True:
                requests.put(True)
                batch, error = self._wait(answers)
                own = not self.num_workers or str(error).startswith("Caught ")  # an error of the dataset
                if isinstance(error, ConnectionError | EOFError) and not own:
                    time.sleep(SOON_S)  # until the dying process has ended
                    raise _lost(f"died ({type(error).__name__})", DIED) from error
                if error is not None:
                    raise error
                if batch is _END:
                    return
                yield batch
        finally:
            requests.put(False)

    def _wait(self, answers: SimpleQueue[tuple[Any, BaseException | None]]) -> tuple[Any, BaseException | None]:
        deadline = time.monotonic() + (self.timeout_s or float("inf"))
        while True:
            stop_if_asked()
            try:
                return answers.get(timeout=max(0.001, min(POLL_S, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    late = f"did not return a batch within {self.timeout_s:g} s"
                    raise _lost(late, "--loading_timeout_s sets this limit.") from None


class _Noted(Dataset[Any]):
    """A dataset that records each process's current item in shared memory, and raises UserErrors unwrapped."""

    def __init__(self, dataset: Any, reading: torch.Tensor) -> None:
        self.dataset = dataset
        self.reading = reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        noted = self.reading[worker.id if worker else 0]
        noted[:] = torch.tensor([os.getpid(), index])
        try:
            item = self.dataset[index]
        except Exception as error:  # PyTorch keeps an exception's type and text, not its causes
            if worker and (mistake := user_error(error)):
                raise mistake from error
            raise
        noted[1] = IDLE
        return item


def loading_error(error: BaseException) -> UserError | None:
    """Convert the error of a loading process to a UserError that names the cases; None for other errors."""
    chain = causes(error)
    if lost := next((cause for cause in chain if isinstance(cause, LoadingError)), None):
        return lost
    texts = [str(cause) for cause in chain if isinstance(cause, RuntimeError | UserError)]
    if told := next(filter(None, map(_REPEATED.search, texts)), None):
        return UserError(told[1].strip())
    if short := next((advice for sign, advice in SHORTAGES.items() if any(sign in text for text in texts)), None):
        return LoadingError(f"A process that loads cases {short}, or --num_workers 0 reads in the main process.")
    text = next((text.strip() for text in texts if text.startswith("DataLoader ")), None)
    return None if text is None else _lost(f"died ({text})", DIED)


def _lost(what: str, advice: str) -> LoadingError:
    cases = ", ".join(sorted({case for loader in _loaders for case in _being_read(loader)})) or "no known case"
    return LoadingError(
        f"A process that loads cases {what}. It was reading: {cases}. Check these files and the disk. {advice}"
    )


def end_processes() -> None:
    """Kill loading processes, since Python would wait for hanging ones."""
    is_main = threading.current_thread() is threading.main_thread()
    # PyTorch's handler raises when they end; it is restored for later runs
    before = signal.signal(signal.SIGCHLD, lambda *_: None) if is_main else None
    loading = [process for process in multiprocessing.active_children() if process.daemon]  # also idle ones
    for process in loading:
        process.kill()
    for process in loading:
        process.join(SOON_S)  # a process that waits for a lost disk ends later
    if before is not None and not any(process.is_alive() for process in loading):
        signal.signal(signal.SIGCHLD, before)
    for loader in _loaders:
        loader.reading[:] = IDLE


def _being_read(loader: CaseLoader) -> list[str]:
    """The cases of dead processes, or of all processes if all are alive."""
    noted: Any = loader.dataset
    items = getattr(getattr(noted, "dataset", None), "data", [])
    reading = [(process, index) for process, index in loader.reading.tolist() if index != IDLE]
    alive = {process.pid for process in multiprocessing.active_children()}
    dead = [(process, index) for process, index in reading if process not in alive]
    read = [items[index] for _, index in dead or reading]
    return [case_of(item) if isinstance(item, Mapping) else str(item) for item in read]
