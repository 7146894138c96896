"""SIGINT, SIGTERM and time limits: a run ends in good order, says how to go on, and is gone within ten seconds."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

__all__ = ["Interruption", "ignore", "time_limit"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 5.0  # for the main thread to come back from PyTorch: a backward pass on a CPU may take half a minute
LAST_S = 2.0  # for what is done before the end, should a lock be held that nobody releases any more


_forking = threading.Event()
if hasattr(os, "register_at_fork"):  # what is raised in a hook of a fork is printed and lost
    os.register_at_fork(before=_forking.set, after_in_parent=_forking.clear, after_in_child=_forking.clear)


def ignore(number: int) -> Any:
    """Do nothing at a signal from now on; in the main thread.

    By a handler: of one that waits for its turn Python prints a traceback if there is none any more.

    Returns:
        the handler before.
    """
    return signal.signal(number, lambda *_: None)


class Interruption:
    """From :meth:`install` on, SIGINT and SIGTERM print a message, end the children and leave with 130 or 143.

    The main thread raises ``SystemExit``, so that temporary files are removed. Python runs its handlers between two of
    its own steps only; where PyTorch does not return in time, a thread ends the process.

    Args:
        message: what to say after the signal's name; nothing is said if it is empty.
        last: called before the process ends.
    """

    def __init__(self, message: Callable[[], str], last: Callable[[], None]) -> None:
        self.message = message
        self.last = last
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}
        self._descriptors: tuple[int, int] | None = None
        self._wakeup = -1
        self._said = threading.Lock()

    def install(self) -> None:
        """Begin; nothing happens outside of the main thread, whose signals are somebody else's."""
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            return
        self._descriptors = os.pipe()
        os.set_blocking(self._descriptors[1], False)
        self._wakeup = signal.set_wakeup_fd(self._descriptors[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        threading.Thread(target=self._watch, args=(self._descriptors[0],), daemon=True).start()

    def remove(self) -> None:
        """Leave signals as they were."""
        if self._descriptors is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._descriptors[1])  # the thread reads the end and closes the other
        self._descriptors = None

    def _stop(self, number: int, _: FrameType | None) -> None:
        """In the main thread, as soon as it runs Python."""
        if os.getpid() != self._owner:  # a loading process, forked: the main one ends it
            return
        if _forking.is_set():
            threading.Timer(0.05, os.kill, (self._owner, number)).start()
            return
        for one in SIGNALS:  # a second one does not disturb
            ignore(one)
        self._say(number)
        _end_children()
        atexit.register(self._leave, number)  # Python would take some seconds to tear down what PyTorch has loaded
        raise SystemExit(128 + number)

    def _watch(self, descriptor: int) -> None:
        """In a thread: woken by the signal itself, whatever the main thread does."""
        while received := os.read(descriptor, 1):
            if os.getpid() == self._owner and received[0] in SIGNALS:
                time.sleep(GRACE_S)
                # the main thread may have been stopped where it held logging's lock, with its exit ignored
                threading.Timer(LAST_S, os._exit, (128 + received[0],)).start()
                self._say(received[0])
                self._leave(received[0])
        os.close(descriptor)

    def _leave(self, number: int) -> None:
        try:
            self.last()
            _end_children()
            logging.shutdown()
            sys.stdout.flush()
        finally:
            os._exit(128 + number)

    def _say(self, number: int) -> None:
        if self._said.acquire(blocking=False) and (message := self.message()):
            print(f"\nStopped by {signal.Signals(number).name}. {message}", file=sys.stderr, flush=True)


@contextmanager
def time_limit(seconds: float, late: Callable[[], Exception]) -> Iterator[None]:
    """Raise within the block where it takes too long, also while it waits in a call to the system.

    A library that does not come back for some seconds more (from a disk that has gone) is ended with the process: the
    message is shown, then it goes as by SIGTERM.

    Args:
        seconds: that the block has; 0: no limit. Outside of the main thread, and on Windows, there is none either.
        late: makes the exception.
    """
    if not seconds or os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        give_up.cancel()
        raise late()

    def end() -> None:
        error = late()
        sys.excepthook(type(error), error, None)
        os.kill(os.getpid(), signal.SIGTERM)

    give_up = threading.Timer(seconds + GRACE_S, end)
    give_up.daemon = True
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    give_up.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        give_up.cancel()
        signal.signal(signal.SIGALRM, before)


def _end_children() -> None:
    # PyTorch raises in the main thread when a loading process ends without having been told to
    if threading.current_thread() is threading.main_thread():
        ignore(signal.SIGCHLD)
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    # a signal takes effect later than it is sent; those who started them may still want to collect them
    deadline = time.monotonic() + 1
    while not all(map(_has_ended, children)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
