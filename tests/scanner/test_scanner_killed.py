"""A command that is killed leaves nothing of the patient: at once, or at the next run on the same output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from scanner_cases import Study
from test_scanner_adc import affine_of, head
from test_scanner_adc import signal as weighted

from scripts.io.files import hidden_folder, whole_folder

# As `run scan`, but dcm2niix never ends; what it has written is the patient's.
SCRIPT = """
import signal
import sys
from pathlib import Path
import dcm2niix
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from scripts.io.files import whole_folder
from scripts.scanner.dicom import read_folder
dcm2niix.bin = str(Path("slow").resolve())
with whole_folder("out", left=".png") as work:
    (work / "adc.nii.gz").write_text("a map")
    read_folder("in", work=work)
"""
NOT_IGNORED = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # as after `nohup`
SLOW = """#!/bin/sh
for last; do true; done
echo values > "$last/../out/volume.nii"
exec sleep 600
"""


@contextmanager
def working(folder: Path, before: str = NOT_IGNORED) -> Iterator[subprocess.Popen[str]]:
    """A process that has written a map and runs dcm2niix, in a session of its own."""
    Study(folder / "in").series(3, weighted(*head()[:2], 0), affine_of("oblique"), b_value=0)
    (folder / "slow").write_text(SLOW)
    (folder / "slow").chmod(0o700)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hie_bundle"), "TMPDIR": str(folder)}
    words = [sys.executable, "-c", before + SCRIPT]
    process = subprocess.Popen(words, cwd=folder, env=environment, text=True, start_new_session=True, stderr=-1)
    try:
        end = time.monotonic() + 60
        while not list(folder.rglob("volume.nii")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(1)  # until subprocess.Popen has returned: a signal before would leave its child
        yield process
    finally:
        process.kill()
        process.wait()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("in", "slow"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_removes_what_was_written(number: signal.Signals, tmp_path: Path) -> None:
    with working(tmp_path) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert left(tmp_path) == []
    if number != signal.SIGINT:
        assert process.returncode == 128 + number
        assert f"Stopped by {number.name}. Nothing was written." in said
    with pytest.raises(ProcessLookupError):  # dcm2niix has ended, too
        os.killpg(process.pid, 0)


def test_after_sigkill_the_next_run_removes_it(tmp_path: Path) -> None:
    with working(tmp_path) as process:
        (hidden,) = tmp_path.glob(".*.out")
        assert hidden.stat().st_mode & 0o077 == 0  # of nobody else's business
        assert left(tmp_path) == [hidden.name]  # dcm2niix's files are below it
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert left(tmp_path) == [hidden.name]
        with hidden_folder(tmp_path / "other"):
            assert hidden.is_dir()  # of another output
        with whole_folder(tmp_path / "out", left=".png") as work:
            (work / "a").write_text("b")
            assert not hidden.exists()
    assert left(tmp_path) == ["out"]
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "in").stat().st_mode


def test_a_run_beside_it_keeps_its_files(tmp_path: Path) -> None:
    with working(tmp_path):
        before = left(tmp_path)
        with whole_folder(tmp_path / "out", left=".png") as work:
            assert left(tmp_path) == sorted([*before, work.name])


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As after `nohup`."""
    with working(tmp_path, "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
