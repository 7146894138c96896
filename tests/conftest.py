"""Fixtures that several tests share."""

from __future__ import annotations

import importlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest

from scripts.io.files import expect_unchanged, stamp_of

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "hie_bundle"

# a network and volumes small enough that a training takes seconds
TINY = {
    "spatial_size": "[24,24,16]",
    "features": "[2,4,6,8]",
    "num_workers": "0",
    "batch_size": "2",
}


def as_checked(*paths: str | Path) -> None:
    """Let transforms load files outside a cohort, as if a workflow had checked them."""
    expect_unchanged({str(path): stamp_of(path) for path in paths})


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what the checks remember out of the user's own cache, in this process and in those it starts."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every process of every test reaches this machine alone; what was refused is noted in a file."""
    file = tmp_path_factory.mktemp("network") / "refused.txt"
    file.touch()
    os.environ["REFUSED_CONNECTIONS"] = str(file)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(processes.NO_NETWORK), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    processes.refuse_network()
    return file


@pytest.fixture(autouse=True)
def _without_a_network(refused: Path) -> Iterator[None]:
    yield
    attempts = refused.read_text()
    refused.write_text("")
    assert attempts == ""


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort in BONBID-HIE's layout: 5 training, 2 validation, 3 test cases of about 40×40×12 voxels."""
    from scripts import phantom

    folder = tmp_path_factory.mktemp("cohort")
    phantom.write_cohort(
        folder,
        num_train=5,
        num_val=2,
        num_test=3,
        seed=3,
        num_workers=1,
        matrix_sizes=[36, 44],
        slice_range=[10, 14],
        fine_mm=4.0,
        atlas_step_mm=4.0,
        num_healthy=4,
        progress=False,
    )
    return folder


@pytest.fixture
def monai_bundle() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m monai.bundle`` as a user does, in a process of its own without the tests' import path."""

    def run(
        *arguments: str, cwd: Path = ROOT, check: bool = True, timeout: float = 240, **options: object
    ) -> subprocess.CompletedProcess[str]:
        words = [*map(str, arguments)]
        for name, value in options.items():
            words += [f"--{name.replace('__', '#')}", str(value)]
        result = processes.run_module("monai.bundle", words, cwd, timeout)
        if check and result.returncode != 0:
            pytest.fail(f"{' '.join(words)}\nexit status {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    return run


@pytest.fixture(autouse=True)
def _no_ids_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has replaced ids by it replaces in all of its messages; a test is a process of its own in that."""
    module = importlib.import_module("scripts.runtime.redaction")  # a function has its name, too
    monkeypatch.setattr(module, "_replaced", {})
