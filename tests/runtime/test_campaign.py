"""A part of the campaign of attempts (``tests/benchmarks/campaign.py``); SECURITY.md has the figures of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("inputs", 60), ("options", 40), ("kills", 4), ("disks", 4), ("gate", 2)])
def test_attempts_to_break_it(part: str, count: int, tmp_path: Path) -> None:
    if part == "disks" and (sys.platform != "linux" or os.geteuid() != 0):
        pytest.skip("mounts need Linux and root")
    script = ROOT / "tests" / "benchmarks" / "campaign.py"
    words = ["--part", part, "--count", str(count), "--seed", "11", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.get("wrong", []) == []
    assert result["count"] >= count
    if part == "gate":
        assert max(max(times) for times in result["cpu_s"].values()) < 0.4  # twice the goal: other work slows it down
