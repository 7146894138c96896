"""Signals to real processes: gone within ten seconds, nothing left running, nothing lost, one line that says so."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import BUNDLE, TINY
from test_provenance import _points

CONFIGS = BUNDLE / "configs"
WITHIN_S = 10

PROGRAM = """
import hashlib, logging, subprocess, sys, time; sys.path.insert(0, sys.argv[1])
from scripts.runtime.interruption import interruption, stop_if_asked
one = interruption(lambda: "Go on so.", lambda: print("last", flush=True))
one.__enter__()
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
try:
    print(child.pid, flush=True)
    {work}
finally:
    child.kill()
    print("unwound", flush=True)
"""
# steps; no step; C without the GIL for a minute or more, as in a backward pass
WORK = {
    "steps": "while True: stop_if_asked()",
    "python": "while True: pass",
    "wait": "time.sleep(60)",
    "library": "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)",
    # the same with a lock that the end would wait for
    "lock": "logging._lock.acquire(); hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)",
    # where an exception of a handler was printed and lost: a callback of the garbage collector
    "callback": "import weakref\n"
                "    class A: pass\n"
                "    while True: a = A(); r = weakref.ref(a, lambda _: time.sleep(0.01)); del a; stop_if_asked()",
}  # fmt: skip


@pytest.mark.parametrize(
    ("work", "number"),
    [("steps", 15), ("steps", 2), ("python", 15), ("wait", 2), ("library", 15), ("lock", 15), ("callback", 2)],
)
def test_a_process_and_its_children_end_in_time(work: str, number: int) -> None:
    program = [sys.executable, "-c", PROGRAM.replace("{work}", WORK[work]), str(BUNDLE)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.5)
    begun = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < WITHIN_S
    assert process.returncode == 128 + number
    assert errors.strip() == f"Stopped by {signal.Signals(number).name}. Go on so."
    assert output.strip() == ("unwound" if work in ("steps", "callback") else "last")
    assert not psutil.pid_exists(child) or _ended(psutil.Process(child))


def test_a_second_signal_ends_at_once() -> None:
    program = [sys.executable, "-c", PROGRAM.replace("{work}", WORK["wait"]), str(BUNDLE)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 3
    assert (process.returncode, output.strip(), errors.count("Stopped")) == (130, "last", 1)


def _ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Ctrl-C ends the loading processes, too: its signal and theirs come while Python is busy, and have to wait
TOGETHER = """
import os, signal, sys; sys.path.insert(0, sys.argv[1])
from scripts.runtime.interruption import interruption, stop_if_asked
one = interruption(lambda: "Go on so.", lambda: None)
one.__enter__()
signal.signal(signal.SIGCHLD, lambda *_: None)  # PyTorch's
both = {signal.SIGINT, signal.SIGCHLD}
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    os.kill(os.getpid(), number)
signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
while True: stop_if_asked()
"""


def test_one_that_comes_with_a_childs_end_prints_nothing_else() -> None:
    command = [sys.executable, "-c", TOGETHER, str(BUNDLE)]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert process.returncode == 130
    assert process.stderr.strip() == "Stopped by SIGINT. Go on so."


def test_signals_are_as_they_were_afterwards() -> None:
    from scripts.runtime.interruption import _wait, interruption

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruption(lambda: "", lambda: None):
        assert signal.getsignal(signal.SIGTERM) is _wait
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- trainings ----------------------------------------------------------------------------------------------------


def _start(cohort: Path, folder: Path, **options: object) -> subprocess.Popen[str]:
    words = ["run", "training", "--config_file", str(CONFIGS / "train.yaml"), "--dataset_dir", str(cohort)]
    settings = {
        **TINY, "num_workers": 2, "epochs": 40, "patience": 40, "resume": True, "loss_name": "dice",
        "augmentation_probability": 0.0, "output_dir": folder / "eval", "ckpt_dir": folder / "models", **options,
    }  # fmt: skip
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        # a shell without a terminal has what it starts in the background ignore it, and so this would
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_is_stopped_as_by_ctrl_c(tiny_cohort: Path, tmp_path: Path) -> None:
    process = _start(tiny_cohort, tmp_path)
    _until((tmp_path / "models" / "resume_state.pt").is_file, process)
    family = psutil.Process(process.pid).children(recursive=True)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # the loading processes get it, too
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < WITHIN_S
    assert process.returncode == 130
    assert "Stopped by SIGINT. The files in " in errors
    assert "the same command with --resume True continues after the last epoch" in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) < 12, errors
    assert all(map(_ended, family))
    assert json.loads((tmp_path / "models" / "run.json").read_text())["training"]["status"] == "interrupted"
    assert {path.name for path in (tmp_path / "models").iterdir()} <= {"model.pt", "resume_state.pt", "run.json"}


@pytest.mark.slow
def test_thirty_kills_and_none_lost(tiny_cohort: Path, tmp_path: Path) -> None:
    """Of three kinds, at any moment; the same weights and curves in the end as without them."""
    whole = _start(tiny_cohort, tmp_path / "whole")
    assert whole.wait(600) == 0, whole.communicate()[1]
    draw, kills = random.Random(0), 0
    while True:
        process = _start(tiny_cohort, tmp_path / "parts")
        try:
            process.wait(draw.uniform(1, 14) if kills < 30 else 600)
            assert process.returncode == 0, process.communicate()[1]
            if kills >= 30:
                break
            # done before its time: the end is repeated from the last state
            continue
        except subprocess.TimeoutExpired:
            number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            process.send_signal(number)
            process.communicate(timeout=WITHIN_S + 5)
            assert process.returncode in (-number, 128 + number)
            kills += 1
    states = [torch.load(tmp_path / name / "models" / "model.pt", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(states[1]["model"][name], value) for name, value in states[0]["model"].items())
    ours, theirs = (_points(tmp_path / name / "eval" / "tensorboard") for name in ("whole", "parts"))
    for tag, points in ours.items():
        np.testing.assert_allclose(sorted(theirs[tag]), sorted(points), rtol=1e-6, err_msg=tag)
    left = {path.name for path in (tmp_path / "parts" / "models").iterdir()}
    assert left == {"model.pt", "resume_state.pt", "run.json"}
