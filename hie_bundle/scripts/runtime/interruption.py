"""SIGINT and SIGTERM: a run ends at its next step, says how to resume, and is gone within ten seconds."""

from __future__ import annotations

import atexit
import logging
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Interruption", "end_process", "removed_at_signals", "stop_if_asked"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 5.0  # for the next step: a backward pass on a CPU may take half a minute, a scheduler waits for less
LAST_S = 2.0  # for what is done before the end, should it need a lock that nobody releases any more

_received: int | None = None  # the signal that asks this process to end


def stop_if_asked() -> None:
    """End the run between two steps, where a signal has asked for it.

    Raises:
        SystemExit: 130 after SIGINT, 143 after SIGTERM.
    """
    if _received is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _wait)  # PyTorch raises here when a loading process ends
        _kill_children()
        atexit.register(_leave, 128 + _received)  # the teardown of PyTorch would take seconds
        raise SystemExit(128 + _received)


def end_process(status: int) -> None:
    """End this process and its children at once, whatever its threads do."""
    _kill_children()
    os._exit(status)


@contextmanager
def removed_at_signals(folder: Path) -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP remove a folder before they end the process and its children.

    A handler that raises would land in whatever Python is doing, and SIGINT does what it did before. A signal that is
    ignored, as SIGHUP by ``nohup``, stays so; nothing is done in other threads than the main one.
    """

    def end(number: int, _: Any) -> None:
        _kill_children()
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\nStopped by {signal.Signals(number).name}; nothing was written.", file=sys.stderr, flush=True)
        end_process(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    end_process(status)


def _kill_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=1)


def _in_child() -> None:
    """Reset signals in a forked loading process, which the main one ends."""
    global _received
    _received = None
    if signal.getsignal(signal.SIGTERM) is _wait:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _wait(*_: Any) -> None:
    """Do nothing: Python notes the signal in a pipe. An exception would land in whatever Python is doing."""


class Interruption:
    """From :meth:`install` on, SIGINT and SIGTERM print a message and end the run, with exit status 130 or 143.

    The run ends at its next step (:func:`stop_if_asked`). A second signal, or no step within five seconds, ends the
    process and its children at once. A thread watches, because Python's handlers wait for the main thread's C code.

    Args:
        message: text after the signal's name; nothing is printed if it is empty.
        last: called before the process is ended at once.
    """

    def __init__(self, message: Callable[[], str], last: Callable[[], None]) -> None:
        self.message = message
        self.last = last
        self._restore: Callable[[], None] | None = None

    def install(self) -> None:
        """Begin; in the main thread of a POSIX system only."""
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        before = {number: signal.signal(number, _wait) for number in SIGNALS}
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(writing)  # the thread reads the end and closes the other

        self._restore = restore

    def remove(self) -> None:
        """Restore the signals' handlers, unless the process is about to end."""
        if self._restore and _received is None:
            self._restore()
            self._restore = None

    def _watch(self, pipe: int) -> None:
        global _received
        while number := _read(pipe):
            if number not in SIGNALS:
                continue
            _received = number
            if message := self.message():
                print(f"\nStopped by {signal.Signals(number).name}. {message}", file=sys.stderr, flush=True)
            while select.select([pipe], [], [], GRACE_S)[0] and _read(pipe) not in SIGNALS:
                continue
            threading.Timer(LAST_S, end_process, (128 + number,)).start()
            try:
                self.last()
                _leave(128 + number)
            finally:
                end_process(128 + number)
        os.close(pipe)


def _read(pipe: int) -> int:
    """The next signal's number; 0 at the end."""
    return next(iter(os.read(pipe, 1)), 0)
