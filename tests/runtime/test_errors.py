"""What a user sees of an exception that nobody caught."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE

PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
{before}
from scripts.runtime.errors import UserError, show_plainly
show_plainly()
try:
    raise {error}
except Exception as error:
    raise RuntimeError("Failed to evaluate: $@training") from error  # as MONAI wraps it
"""
SHORTAGE = """torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.\\nSee …")"""

# as MONAI instantiates a component of a config
ARGUMENT = """__import__("monai.bundle").bundle.ConfigComponent(
        {"_target_": "torch.optim.AdamW", "params": [], "lrr": 1}).instantiate()"""


# a network of the user's that has a fault
OWN = """sys.modules.update(mine=type(sys)("mine"))
sys.modules["mine"].Net = lambda: [] + 1"""
OWN_FAULT = """__import__("monai.bundle").bundle.ConfigComponent({"_target_": "mine.Net"}).instantiate()"""

# Ctrl-C while MONAI imports what a config names
INTERRUPTED = """class Finder:
    def find_spec(self, name, *_):
        if name == "interrupted":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())"""
INTERRUPTED_IMPORT = (
    """__import__("monai.bundle").bundle.ConfigComponent({"_target_": "interrupted.X"}).instantiate()"""
)


@pytest.mark.parametrize(
    ("before", "error", "shown", "traceback"),
    [
        ("", 'UserError("There is no such file.")', ["error: There is no such file."], False),
        ("import torch", SHORTAGE, ["error: CUDA out of memory. Tried", "lower --batch_size", "--flips []"], False),
        ("", ARGUMENT, ["error: torch.optim.AdamW has no such option: AdamW", "argument 'lrr'."], False),
        (OWN, OWN_FAULT, ["Traceback", "caused by TypeError: can only concatenate list"], True),
        (INTERRUPTED, INTERRUPTED_IMPORT, ["Stopped."], False),
        ("", 'KeyError("unexpected")', ["Traceback", "caused by KeyError: 'unexpected'"], True),
    ],
    ids=[
        "a user's mistake",
        "no memory on the device",
        "an argument that there is not",
        "a user's fault",
        "Ctrl-C",
        "a fault",
    ],
)
def test_an_error_ends_a_program(before: str, error: str, shown: list[str], traceback: bool, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{before}", before).replace("{error}", error))
    result = subprocess.run([sys.executable, str(program), str(BUNDLE)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    for text in shown:
        assert text in result.stderr
    assert ("Traceback" in result.stderr) == traceback
    assert "See …" not in result.stderr


LOST = """
import os, signal, sys, time, weakref; sys.path.insert(0, sys.argv[1])
from scripts.runtime.errors import show_plainly
show_plainly()
signal.signal(signal.SIGINT, signal.default_int_handler)
class Thing: pass
{dropped}
del thing  # Ctrl-C lands here, where Python ignores exceptions
time.sleep(20)
print("went on")
"""


@pytest.mark.parametrize(
    "dropped",
    [
        "thing = Thing(); kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))",
        "Thing.__del__ = lambda _: os.kill(os.getpid(), signal.SIGINT); thing = Thing()",
    ],
    ids=["callback of a weak reference", "finaliser"],
)
def test_ctrl_c_is_not_lost(dropped: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(LOST.replace("{dropped}", dropped))
    done = subprocess.run([sys.executable, str(file), str(BUNDLE)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert "went on" not in done.stdout
    assert done.stderr.split() == ["Stopped."]
