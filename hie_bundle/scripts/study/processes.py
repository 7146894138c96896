"""Running commands a few at a time, each with its log, so that an interruption leaves nothing running."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from ..io.files import take_lock
from ..runtime.errors import UserError

__all__ = ["Job", "exclusive", "failure_text", "run_jobs", "signals_stop"]

logger = logging.getLogger(__name__)
LOG_LINES = 12  # of a failed command's log that are shown
GRACE_S = 10  # between asking a process to end and ending it
POLL_S = 0.1


@dataclass
class Job:
    """Commands that run one after the other.

    Attributes:
        name: for messages.
        log: file that their output is appended to.
        commands: what each does, and its words; ``{device}`` in a word stands for the device that the job gets.
        finished: called after the last one succeeded.
    """

    name: str
    log: Path
    commands: Sequence[tuple[str, Sequence[str]]]
    finished: Callable[[], None]


@dataclass
class _Slot:
    """A place in which one job at a time runs."""

    device: str
    job: Job | None = None
    left: deque[tuple[str, Sequence[str]]] = field(default_factory=deque)
    process: subprocess.Popen[bytes] | None = None
    stream: IO[bytes] | None = None
    started: float = 0.0


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Keep a second study out of a folder for as long as this one, or a process it started, lives.

    Yields:
        The lock's file descriptor, for the processes to inherit: should this process be killed, they go on for a while.

    Raises:
        UserError: when another holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        if not take_lock(file):
            raise UserError(
                f"Another study works in {folder}, or a training that it started still does. Wait for its end, "
                "or choose another --output_dir."
            )
        yield file.fileno()


def run_jobs(
    jobs: Sequence[Job], parallel: int, devices: Sequence[str], environment: dict[str, str], inherited: int
) -> None:
    """Run jobs, the first ones first.

    Args:
        jobs: what to do.
        parallel: how many at a time.
        devices: given to the places in turn.
        environment: of the commands.
        inherited: a file descriptor for them to keep open.

    Raises:
        UserError: when a command failed: which, where its log is, and how that ends. Jobs that had not begun are not
            started then; those that had are brought to their end.
        SystemExit: on SIGINT or SIGTERM, after ending the commands.
    """
    pending = deque(jobs)
    slots = [_Slot(devices[i % len(devices)]) for i in range(min(parallel, len(jobs)))]
    failures: list[str] = []
    with signals_stop():
        try:
            while pending or any(slot.job for slot in slots):
                for slot in slots:
                    if slot.job is None and pending:
                        slot.job = pending.popleft()
                        slot.left = deque(slot.job.commands)
                        slot.started = time.monotonic()
                        _next(slot, environment, inherited)
                    elif slot.job is not None and slot.process is not None and slot.process.poll() is not None:
                        failure = _ended(slot, environment, inherited, len(pending))
                        if failure:
                            failures.append(failure)
                            pending.clear()
                time.sleep(POLL_S)
        finally:
            _end(slots)
    if failures:
        raise UserError("\n".join(failures) + "\nThe same command, started again, goes on where this one stopped.")


def _next(slot: _Slot, environment: dict[str, str], inherited: int) -> None:
    """Start the next command of a slot's job."""
    assert slot.job is not None
    what, words = slot.left.popleft()
    command = [word.format(device=slot.device) if word == "{device}" else word for word in words]
    logger.info("%s: %s (log: %s)", slot.job.name, what, slot.job.log)
    slot.job.log.parent.mkdir(parents=True, exist_ok=True)
    slot.stream = slot.job.log.open("ab")
    slot.stream.write(f"\n--- {what}: {' '.join(command)}\n".encode())
    slot.stream.flush()
    slot.process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=slot.stream, stderr=subprocess.STDOUT, env=environment,
        pass_fds=(inherited,) if os.name == "posix" else (),
    )  # fmt: skip


def _ended(slot: _Slot, environment: dict[str, str], inherited: int, not_started: int) -> str:
    """What follows when a command has ended; a message when it failed."""
    assert slot.job is not None
    assert slot.process is not None
    assert slot.stream is not None
    slot.stream.close()
    status, slot.process = slot.process.returncode, None
    job = slot.job
    if status == 0 and slot.left:
        _next(slot, environment, inherited)
        return ""
    slot.job = None
    if status == 0:
        job.finished()
        logger.info("%s: done in %.1f min, %d to start", job.name, (time.monotonic() - slot.started) / 60, not_started)
        return ""
    why = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
    return failure_text(job, f"{why}; {not_started} not yet started were left out")


def failure_text(job: Job, why: str) -> str:
    """What is said of a job that failed: its name, why, and how its log ends."""
    lines = job.log.read_text(errors="replace").rstrip().splitlines()[-LOG_LINES:] if job.log.is_file() else []
    shown = "\n".join(f"  {line}" for line in lines)
    logger.error("%s %s", job.name, why)
    return f"{job.name} {why}. {job.log} ends:\n{shown}"


def _end(slots: Sequence[_Slot]) -> None:
    """End every command that still runs."""
    running = [slot.process for slot in slots if slot.process is not None and slot.process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def signals_stop() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into an orderly exit; a second one does not disturb it."""

    def stop(number: int, _: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        logger.error("Stopped. The same command, started again, goes on from here.")
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
