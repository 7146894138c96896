"""Commands in processes of their own, forked from one that has imported MONAI: its import takes longer than most of
them, and the same for each.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

OF_THE_TESTS = {str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "tests", "hie_bundle")}
NO_NETWORK = Path(__file__).with_name("no_network")  # on PYTHONPATH: reach nothing beyond this machine
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["monai.bundle", "monai.engines", "monai.handlers"])


def refuse_network() -> None:
    """From here on this process reaches nothing beyond this machine."""
    spec = importlib.util.spec_from_file_location("no_network", NO_NETWORK / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def run_module(module: str, arguments: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """What ``python -m MODULE ARGUMENTS`` does in a folder: two threads, no network, not the tests' import path.

    Args:
        module: name of a module that is installed or lies in ``cwd``.
        arguments: the words after it.
        cwd: working folder.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _FORKSERVER.Process(
            target=_become, args=(module, arguments, str(cwd), *map(str, paths), dict(os.environ))
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(module, timeout, *(path.read_text() for path in paths))
        stdout, stderr = (path.read_text(errors="replace") for path in paths)
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, stdout, stderr)


def _become(module: str, arguments: list[str], cwd: str, out: str, err: str, environment: dict[str, str]) -> None:
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(number, stream.fileno())
        os.close(number)
    become(module, arguments, cwd, environment)


def become(module: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    """In a forked process: do what ``python -m MODULE ARGUMENTS`` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.environ["PYTHONPATH"] = str(NO_NETWORK)
    refuse_network()
    os.environ["OMP_NUM_THREADS"] = "2"
    import torch

    torch.set_num_threads(2)
    os.chdir(cwd)
    sys.path[:] = [cwd, *(entry for entry in sys.path if entry not in {*OF_THE_TESTS, ""})]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # a forked process leaves without them
