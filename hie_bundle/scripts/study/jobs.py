"""Parallel jobs: processes of this machine, or cluster jobs through submitit."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..io.files import release_lock, take_lock
from ..runtime.errors import UserError, choose
from ..runtime.interruption import interruption, stop_if_asked

logger = logging.getLogger(__name__)
LOG_LINES = 12  # last log lines in the message of a failed job
POLL_S = 0.2
GRACE_S = 8.0  # for a training to stop at its next step and record the interruption


@dataclass
class Job:
    """Commands that run in sequence; the word ``{device}`` is replaced by the job's device."""

    name: str  # for messages
    group: str  # if one of its jobs fails, no further one starts
    log: Path  # the output is appended
    commands: Sequence[tuple[str, Sequence[str]]]  # title and arguments of each
    finished: Callable[[], None]  # called after the last command succeeded


@contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Lock a folder until this study and all its processes, which inherit the yielded file descriptor, have ended.

    Raises:
        UserError: when another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remedy = "Wait until it ends, or choose another --output_dir."
    busy = f"Another study, or a training that it started, is running in {folder}. {remedy}"
    try:
        yield take_lock(folder / ".lock", busy)
    finally:
        release_lock(folder / ".lock")


def run_jobs(jobs: Sequence[Job], executor: Processes | Cluster) -> dict[str, str]:
    """Run jobs in order and wait for all; return, for each group with a failed job, a message with the end of its log.

    Raises:
        SystemExit: on SIGINT or SIGTERM, after stopping the running jobs.
    """
    waiting, failures = deque(jobs), dict[str, str]()
    running: list[tuple[Job, Generator[None, None, None]]] = []
    with interruption(lambda: "The same command, started again, resumes here.", lambda: None, children_s=GRACE_S):
        try:
            while waiting or running:
                while waiting and len(running) < executor.at_once:
                    job = waiting.popleft()
                    if job.group in failures:
                        logger.warning("%s: not started, since another run of %s failed", job.name, job.group)
                    else:
                        running.append((job, executor.run(job)))
                for one in list(running):
                    job, steps = one
                    try:
                        next(steps)
                        continue
                    except StopIteration:
                        job.finished()
                        logger.info("%s: done, %d left", job.name, len(running) - 1 + len(waiting))
                    except ChildProcessError as error:
                        failures.setdefault(job.group, _failure(job, error))
                    running.remove(one)
                time.sleep(POLL_S)
                stop_if_asked()
        finally:
            for _, steps in running:
                steps.close()
    return failures


@dataclass
class Processes:
    """Jobs as processes of this machine."""

    at_once: int
    devices: Sequence[str]  # assigned to the parallel jobs in turn
    environment: Mapping[str, str]
    inherited: int  # file descriptor that the processes keep open

    def __post_init__(self) -> None:
        self._free = list(islice(cycle(self.devices), self.at_once))

    def run(self, job: Job) -> Generator[None, None, None]:
        """Start a job and yield while it runs; closing the iterator ends the job.

        Raises:
            ChildProcessError: when a command fails.
        """
        job.log.parent.mkdir(parents=True, exist_ok=True)
        kept_open = (self.inherited,) if os.name == "posix" else ()
        device = self._free.pop(0)
        try:
            for title, words in job.commands:
                command = [device if word == "{device}" else word for word in words]
                logger.info("%s: %s (log: %s)", job.name, title, job.log)
                with job.log.open("ab") as log:
                    log.write(f"\n--- {title}: {' '.join(command)}\n".encode())
                    log.flush()
                    process = subprocess.Popen(
                        command, env=self.environment, pass_fds=kept_open, stdin=subprocess.DEVNULL, stdout=log,
                        stderr=subprocess.STDOUT,
                    )  # fmt: skip
                try:
                    while process.poll() is None:
                        yield
                finally:
                    process.kill()  # no effect on an ended process
                    process.wait()
                if (status := process.returncode) < 0:
                    raise ChildProcessError(f"was ended by signal {-status}")
                if status:
                    raise ChildProcessError(f"failed with exit status {status}")
        finally:
            self._free.append(device)


class Cluster:
    """Cluster jobs through submitit; the cluster shares this machine's files.

    Args:
        name: ``slurm``, or ``local`` for this machine.
        options: of each job, with submitit's names: ``timeout_min``, ``gpus_per_node``, ``slurm_partition`` …
        at_once: number of submitted jobs.
        folder: of submitit's files, on the shared storage.
        environment: of the commands.

    Raises:
        UserError: when submitit is not installed, or the executor or an option is unknown.
    """

    def __init__(
        self, name: str, options: Mapping[str, Any], at_once: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise UserError("--executor needs submitit: pip install submitit") from error
        choose({"slurm": "", "local": ""}, name, "executor")
        self.at_once = at_once
        self._environment = dict(environment)
        try:
            self._engine = submitit.AutoExecutor(folder=folder, cluster=name)
            self._engine.update_parameters(name="hie_study", **options)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"--executor {name}: {error}") from error

    def run(self, job: Job) -> Generator[None, None, None]:
        """See :meth:`Processes.run`."""
        from submitit.helpers import CommandFunction

        command = ["sh", "-c", _script(job)]
        handle = self._engine.submit(CommandFunction(command, verbose=False, env=self._environment))
        logger.info("%s: submitted as job %s (log: %s)", job.name, handle.job_id, job.log)
        try:
            while not handle.done():
                yield
        except GeneratorExit:
            handle.cancel()
            raise
        if handle.exception():  # its message repeats the whole log
            raise ChildProcessError("failed")


def _script(job: Job) -> str:
    """A shell script with the job's commands, each with a title in the log; the first failure ends it."""
    log = shlex.quote(str(job.log))
    lines = [f"mkdir -p {shlex.quote(str(job.log.parent))}", f"exec >>{log} 2>&1", "set -e"]
    for title, words in job.commands:
        command = shlex.join(words)
        lines += [f"printf '\\n--- %s: %s\\n' {shlex.quote(title)} {shlex.quote(command)}", command]
    return "\n".join(lines)


def _failure(job: Job, error: ChildProcessError) -> str:
    logger.error("%s %s", job.name, error)
    log = job.log.read_text(encoding="utf-8", errors="replace") if job.log.is_file() else ""
    return "\n  ".join([f"{job.name} {error}. {job.log} ends:", *log.rstrip().splitlines()[-LOG_LINES:]])
