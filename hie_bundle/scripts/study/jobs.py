"""The runs of a study as jobs, a few at a time: processes of this machine, or jobs of a cluster through submitit."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ..io.files import release_lock, take_lock
from ..runtime.errors import UserError, choose

__all__ = ["EXECUTORS", "Cluster", "Job", "Processes", "exclusive", "run_jobs"]

logger = logging.getLogger(__name__)
LOG_LINES = 12  # of a failed job's log that its message shows
GRACE_S = 10  # between asking a process to end and killing it
POLL_S = 0.2
EXECUTORS = {"slurm": "slurm", "local": "local"}  # submitit's; `local` tries on this machine what `slurm` would do


@dataclass
class Job:
    """Commands that run one after the other.

    Attributes:
        name: for messages.
        group: jobs of a group are worth nothing without each other: after a failure the others are not started.
        log: file that their output is appended to.
        commands: title and words of each; the word ``{device}`` stands for the device that the job gets.
        finished: called after the last one succeeded.
    """

    name: str
    group: str
    log: Path
    commands: Sequence[tuple[str, Sequence[str]]]
    finished: Callable[[], None]


class Handle(Protocol):
    """A submitted job, as submitit has it."""

    def done(self) -> bool: ...

    def exception(self) -> BaseException | None: ...

    def cancel(self) -> Any: ...


class Executor(Protocol):
    """Starts jobs; :class:`Processes` and :class:`Cluster` are two."""

    at_once: int

    def submit(self, jobs: Sequence[Job]) -> Sequence[Handle]: ...


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Keep a second study out of a folder while this one, or a process that it started, lives.

    Yields:
        The lock's file descriptor, which the processes inherit: they outlive a killed study for a while.

    Raises:
        UserError: when another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = (
        f"Another study works in {folder}, or a training that it started still does. Wait for its end, or choose "
        "another --output_dir."
    )
    try:
        yield take_lock(folder / ".lock", busy)
    finally:
        release_lock(folder / ".lock")


def run_jobs(jobs: Sequence[Job], executor: Executor) -> dict[str, str]:
    """Run jobs, the first ones first, and wait for their ends.

    Returns:
        Of each group with a failed job a message: which job, where its log is, and how the log ends.

    Raises:
        SystemExit: on SIGINT or SIGTERM, after ending what runs.
    """
    waiting, running, failures = deque(jobs), dict[Any, Job](), dict[str, str]()
    with signals_stop():
        try:
            while waiting or running:
                batch: list[Job] = []
                while waiting and len(running) + len(batch) < executor.at_once:
                    job = waiting.popleft()
                    if job.group in failures:
                        logger.warning("%s: not started, since another run of %s failed", job.name, job.group)
                    else:
                        batch.append(job)
                running |= dict(zip(executor.submit(batch) if batch else (), batch, strict=True))
                for handle in [one for one in running if one.done()]:
                    job = running.pop(handle)
                    if error := handle.exception():
                        failures.setdefault(job.group, _failure(job, error))
                    else:
                        job.finished()
                        logger.info("%s: done, %d to end", job.name, len(running) + len(waiting))
                time.sleep(POLL_S)
        finally:
            for handle in running:
                handle.cancel()
            for handle in running:
                if isinstance(handle, _Process):
                    handle.end()
    return failures


class Processes:
    """Jobs as processes of this machine.

    Args:
        at_once: how many at a time.
        devices: given to these places in turn.
        environment: of the commands.
        inherited: a file descriptor for them to keep open.
    """

    def __init__(self, at_once: int, devices: Sequence[str], environment: Mapping[str, str], inherited: int) -> None:
        self.at_once = at_once
        self.free = deque(devices[place % len(devices)] for place in range(at_once))
        self.options = {
            "env": environment, "pass_fds": (inherited,) if os.name == "posix" else (),
            "stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT,
        }  # fmt: skip

    def submit(self, jobs: Sequence[Job]) -> Sequence[Handle]:
        """Start them."""
        return [_Process(job, self.free, self.options) for job in jobs]


class _Process(threading.Thread):
    """A job that runs its commands in turn."""

    def __init__(self, job: Job, free: deque[str], options: Mapping[str, Any]) -> None:
        super().__init__(daemon=True)
        self.job, self.free, self.options = job, free, options
        self.device = free.popleft()
        self.process: subprocess.Popen[bytes] | None = None
        self.error: Exception | None = None
        self.stopped = False
        self.start()

    def run(self) -> None:
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        for title, words in self.job.commands:
            command = [self.device if word == "{device}" else word for word in words]
            logger.info("%s: %s (log: %s)", self.job.name, title, self.job.log)
            with self.job.log.open("ab") as log:
                log.write(f"\n--- {title}: {' '.join(command)}\n".encode())
                log.flush()
                self.process = subprocess.Popen(command, stdout=log, **self.options)
                if self.stopped:
                    self.process.terminate()
                status = self.process.wait()
            if status or self.stopped:
                what = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
                self.error = ChildProcessError(what)
                break
        self.free.append(self.device)

    def done(self) -> bool:
        return not self.is_alive()

    def exception(self) -> Exception | None:
        return self.error

    def cancel(self) -> None:
        self.stopped = True
        if self.process is not None:
            self.process.terminate()

    def end(self) -> None:
        self.join(GRACE_S)
        if self.is_alive() and self.process is not None:
            self.process.kill()
            self.join()


class Cluster:
    """Jobs of a cluster that shares this machine's files, through submitit.

    Args:
        name: one of :data:`EXECUTORS`.
        options: what each job needs, by submitit's names: ``timeout_min``, ``gpus_per_node``, ``cpus_per_task``,
            ``mem_gb``, ``slurm_partition`` …
        parallel: how many at a time; for ``slurm`` the limit of its array.
        folder: for submitit's files; on the shared storage.
        environment: of the commands.

    Raises:
        UserError: when submitit is not installed, or knows no such executor or option.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any], parallel: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise UserError("--executor needs submitit: pip install submitit") from error
        cluster = choose(EXECUTORS, name, "executor")
        slurm = cluster == "slurm"
        self.at_once = 1_000_000 if slurm else parallel  # an array's own limit holds
        self.environment = dict(environment)
        try:
            self.engine = submitit.AutoExecutor(folder=folder, cluster=cluster)
            limit = {"slurm_array_parallelism": parallel} if slurm else {}
            self.engine.update_parameters(name="hie_study", **limit, **options)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--executor {name}: {error}") from error

    def submit(self, jobs: Sequence[Job]) -> Sequence[Handle]:
        """Submit them as one array."""
        from submitit.helpers import CommandFunction

        functions = [CommandFunction(["sh", "-c", _script(job)], verbose=False, env=self.environment) for job in jobs]
        handles: Sequence[Any] = self.engine.submit_array(functions)
        for job, handle in zip(jobs, handles, strict=True):
            logger.info("%s: submitted as job %s (log: %s)", job.name, handle.job_id, job.log)
        return handles


def _script(job: Job) -> str:
    """The job's commands for a shell, each with a title in the log; the first failure ends it."""
    log = shlex.quote(str(job.log))
    lines = [f"mkdir -p {shlex.quote(str(job.log.parent))}", f"exec >>{log} 2>&1", "set -e"]
    for title, words in job.commands:
        command = shlex.join(words)
        lines += [f"printf '\\n--- %s: %s\\n' {shlex.quote(title)} {shlex.quote(command)}", command]
    return "\n".join(lines)


def _failure(job: Job, error: BaseException) -> str:
    """Message about a failed job: its name, the reason, and the end of its log."""
    why = str(error) if isinstance(error, ChildProcessError) else "failed"  # submitit's error repeats the whole log
    lines = job.log.read_text(errors="replace").rstrip().splitlines()[-LOG_LINES:] if job.log.is_file() else []
    shown = "\n".join(f"  {line}" for line in lines)
    logger.error("%s %s", job.name, why)
    return f"{job.name} {why}. {job.log} ends:\n{shown}"


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
