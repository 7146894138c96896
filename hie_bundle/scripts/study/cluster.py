"""The runs of a study as jobs of a cluster: submitted through submitit, waited for, taken in as they end."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import UserError, choose
from .processes import Job, failure_text, signals_stop

__all__ = ["EXECUTORS", "submit_jobs"]

logger = logging.getLogger(__name__)
POLL_S = 1.0
# submitit's; `local` are processes of this machine, to try what `slurm` would do
EXECUTORS = {"slurm": "slurm", "local": "local"}


def submit_jobs(
    jobs: Sequence[Job],
    executor: str,
    options: Mapping[str, Any],
    parallel: int,
    folder: Path,
    environment: Mapping[str, str],
) -> None:
    """Submit jobs to a cluster that shares this machine's files, and wait for their ends.

    Each job runs its commands in turn and writes to its log, as :func:`scripts.study.processes.run_jobs` has it.

    Args:
        jobs: what to do.
        executor: one of :data:`EXECUTORS`.
        options: what each job needs, by submitit's names: ``timeout_min``, ``gpus_per_node``, ``cpus_per_task``,
            ``mem_gb``, ``slurm_partition`` …
        parallel: how many at a time; of ``slurm`` the array's limit.
        folder: where submitit keeps its files; on the shared storage.
        environment: of the commands.

    Raises:
        UserError: when submitit is not installed, knows no such executor or option, or jobs failed: which, and how
            their logs end. The others are brought to their end before.
        SystemExit: on SIGINT or SIGTERM, after cancelling what was submitted.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ModuleNotFoundError as error:
        raise UserError("--executor needs submitit: pip install submitit") from error
    cluster = choose(EXECUTORS, executor, "executor")
    try:
        engine = submitit.AutoExecutor(folder=folder, cluster=cluster)
        limit = {"slurm_array_parallelism": parallel} if cluster == "slurm" else {}
        engine.update_parameters(name="hie_study", **limit, **options)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"--executor {executor}: {error}") from error
    waiting, running, failures = list(jobs), dict[Any, Job](), list[str]()
    with signals_stop():
        try:
            while waiting or running:
                batch = waiting if cluster == "slurm" else waiting[: max(0, parallel - len(running))]
                waiting = waiting[len(batch) :]
                functions = [CommandFunction(["sh", "-c", _script(job)], verbose=False, env=dict(environment))
                             for job in batch]  # fmt: skip
                if functions:
                    submitted = engine.submit_array(functions) if cluster == "slurm" else map(engine.submit, functions)
                    for job, handle in zip(batch, submitted, strict=True):
                        logger.info("%s: submitted as job %s (log: %s)", job.name, handle.job_id, job.log)
                        running[handle] = job
                for handle in [one for one in running if one.done()]:
                    job = running.pop(handle)
                    if handle.exception() is None:
                        job.finished()
                        logger.info("%s: done, %d to end", job.name, len(running) + len(waiting))
                    else:
                        failures.append(failure_text(job, f"failed as job {handle.job_id} ({handle.state})"))
                time.sleep(POLL_S)
        finally:
            for handle in running:
                handle.cancel()
    if failures:
        raise UserError("\n".join(failures) + "\nThe same command, started again, goes on where this one stopped.")


def _script(job: Job) -> str:
    """The job's commands for a shell, each told in the log, the first failure the end."""
    log = shlex.quote(str(job.log))
    lines = [f"mkdir -p {shlex.quote(str(job.log.parent))}", f"exec >>{log} 2>&1", "set -e"]
    for what, words in job.commands:
        command = shlex.join(words)
        lines += [f"printf '\\n--- %s: %s\\n' {shlex.quote(what)} {shlex.quote(command)}", command]
    return "\n".join(lines)
