"""The benchmarks run at a tiny size, check that results agree, and write what they print. No times are judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(folder: Path, dataset_dir: Path, sections: str) -> dict[str, Any]:
    output = folder / "bench.json"
    command = [sys.executable, str(BENCHMARKS), "--size", "tiny", "--repeats", "1", "--only", sections]
    command += ["--dataset_dir", str(dataset_dir), "--output", str(output)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(output.read_text())
    assert sum(name in process.stdout for name in report["results"]) >= 2
    for result in report["results"].values():
        assert all(value > 0 for values in result["all_s"].values() for value in values)
        if "ratio" in result:
            assert result["ratio"] == pytest.approx(result["stock_s"] / result["ours_s"])
    return report


@pytest.mark.slow  # 40 s
def test_parts_and_segmentation(tmp_path: Path, tiny_cohort: Path) -> None:
    report = run(tmp_path, tiny_cohort, "parts,growth,forward,segmentation")
    assert report["machine"]["cores"] >= 1
    compared = {name for name, result in report["results"].items() if "ratio" in result}
    assert {"Hausdorff loss and gradient, cpu", "elastic deformation", "blur", "anisotropy"} <= compared
    assert {"surface metrics of a case", "network forward, cpu: OpenVINO bfloat16"} <= compared
    for name in ("PyTorch", "OpenVINO"):
        assert report["results"][f"one case, .mha to saved mask: {name}"]["ours_peak_memory_mb"] > 100
    again = run(tmp_path, tiny_cohort, "growth")  # what was measured before stays in the file
    assert again["results"].keys() == report["results"].keys()


@pytest.mark.slow
def test_training(tmp_path: Path, tiny_cohort: Path) -> None:
    results = run(tmp_path, tiny_cohort, "epoch,step")["results"]
    assert len(results) == 2
    for result in results.values():
        assert {"data", "forward", "loss", "backward", "update", "validation"} == set(result["ours_phases_s"])
        assert result["ours_peak_memory_mb"] > 100


@pytest.mark.slow
def test_trainings_whose_data_are_on_the_device(tmp_path: Path, tiny_cohort: Path) -> None:
    results = run(tmp_path, tiny_cohort, "pace")["results"]
    assert len(results) == 2
    for result in results.values():
        assert result["data_on_device"]
        assert result["steps_per_s"] < 1.5 * result["floor_steps_per_s"]  # a step has the floor's work and more
        assert result["start_s"] > 0


def test_unknown_section_is_named() -> None:
    process = subprocess.run(
        [sys.executable, str(BENCHMARKS), "--only", "parts,colour"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "colour" in process.stderr


def test_steps_of_nnunet_fit_into_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    # three steps and a validation: 5 s each, once the processes that load have started
    log = "2026-01-01: Epoch time: 64.0 s\n2026-01-01: Epoch time: 20.0 s"
    steps = peers.steps_for(30, log)
    assert 29.5 * 60 <= peers.EPOCHS * (steps + 1) * 5 <= 30.5 * 60
    assert peers.steps_for(0.1, log) == 1
    with pytest.raises(ValueError, match="no time of an epoch"):
        peers.steps_for(30, "Traceback")


@pytest.mark.slow
def test_nnunet_trains_and_is_scored(tmp_path: Path, tiny_cohort: Path) -> None:
    """By the Python that NNUNET_PYTHON names (one with nnunetv2 installed)."""
    python = os.environ.get("NNUNET_PYTHON")
    if not python:
        pytest.skip("NNUNET_PYTHON does not name a Python with nnunetv2")
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--nnunet", python, "--dataset_dir", str(tiny_cohort)]
    process = subprocess.run(
        [*command, "--minutes", "0.1", "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 3
    assert "ZADC < threshold" in process.stdout
