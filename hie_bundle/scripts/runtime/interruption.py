"""End a process after a signal: at its next step, after ten seconds at the latest, with advice on how to continue."""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

STEPPING = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 5.0  # to reach the next step; a CPU's backward pass may take 30 s, but schedulers kill earlier
LAST_S = 2.0  # for the clean-up before a forced exit, which may block on a lock

_received: int | None = None  # the signal to end this process
_children_s = 0.0  # time for children to end


def stop_if_asked() -> None:
    """End the run between two steps if a signal has arrived.

    Raises:
        SystemExit: 130 after SIGINT, 143 after SIGTERM.
    """
    if _received is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _wait)  # PyTorch raises here when a loading process ends
        _end_children(_children_s)
        atexit.register(_leave, 128 + _received)  # the teardown of PyTorch would take seconds
        raise SystemExit(128 + _received)


def end_process(status: int) -> None:
    """End this process and its children at once, without waiting for threads."""
    try:
        _end_children()
    finally:  # whatever the system says of a child, the process ends
        os._exit(status)


@contextmanager
def interruption(
    message: Callable[[], str],
    last: Callable[[], None],
    signals: Sequence[int] = STEPPING,
    grace_s: float = GRACE_S,
    children_s: float = 0.0,
) -> Iterator[None]:
    """Make signals within the block print a message and end the process with exit status 128 + signal number.

    The process ends at its next step (:func:`stop_if_asked`). A second signal, or no step in time, ends it and its
    children at once. A thread receives the signals: Python's own handlers wait for C code in the main thread, and
    could raise at any line. The block does nothing without signals, outside the main thread, and on Windows.

    Args:
        message: text after the signal's name; nothing is printed if it is empty.
        last: called before a forced exit.
        signals: signals to handle.
        grace_s: seconds for the next step.
        children_s: seconds between SIGTERM and SIGKILL for the children.
    """
    global _children_s
    if not signals or threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _wait) for number in signals}
    _children_s = children_s
    watched = (reading, message, last, tuple(signals), grace_s + children_s)
    threading.Thread(target=_watch, args=watched, daemon=True).start()
    try:
        yield
    finally:
        if _received is None:  # else the process is about to end
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(writing)  # the thread reads end of file, closes its end and returns


def _watch(
    pipe: int, message: Callable[[], str], last: Callable[[], None], signals: Sequence[int], grace_s: float
) -> None:
    global _received
    while number := _read(pipe):
        if number not in signals:
            continue
        _received = number
        if text := message():
            print(f"\nStopped by {signal.Signals(number).name}. {text}", file=sys.stderr, flush=True)
        while select.select([pipe], [], [], grace_s)[0] and _read(pipe) not in signals:
            continue
        threading.Timer(LAST_S, end_process, (128 + number,)).start()
        try:
            last()
            _leave(128 + number)
        finally:
            end_process(128 + number)
    os.close(pipe)


def _read(pipe: int) -> int:
    """The next signal's number; 0 at end of file."""
    return next(iter(os.read(pipe, 1)), 0)


def _leave(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    end_process(status)


def _end_children(grace_s: float = 0.0) -> None:
    children = psutil.Process().children(recursive=True)
    if grace_s:
        for child in psutil.Process().children():
            child.terminate()
        children = psutil.wait_procs(children, grace_s)[1]
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=1)


def _in_child() -> None:
    """Reset signals in a forked loading process; the main process ends it."""
    global _received
    _received = None
    if signal.getsignal(signal.SIGTERM) is _wait:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _wait(*_: Any) -> None:
    """Do nothing: Python notes the signal in a pipe."""
