"""What a workflow imports before its first step: nothing that only another one needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE

# of the third-party packages and of the bundle itself
HEAVY = ["torchio", "jinja2", "surface_distance", "cc3d", "pandas", "onnx", "onnxscript", "openvino"]
OWN = [
    "scripts.report",
    "scripts.study",
    "scripts.phantom",
    "scripts.report.case_evaluation",
    "scripts.evaluation.metrics",
    "scripts.report.scoring",
]

PROGRAM = """
import sys
import monai.bundle
kind, entry, config, folder = sys.argv[1:]
workflow = monai.bundle.ConfigWorkflow(
    config, workflow_type=kind, dataset_dir=folder, output_dir=folder, num_workers=0,
    **({"ckpt_dir": folder} if kind == "train" else {}),
)
workflow.initialize()
workflow.parser.get_parsed_content(entry)
print("\\n".join(sys.modules))
"""


@pytest.mark.parametrize(
    ("kind", "entry", "config", "needed"),
    [("train", "train#trainer", "train", {"torchio"}), ("infer", "evaluator", "inference", set())],
)
def test_a_workflow_imports_only_what_it_needs(
    kind: str, entry: str, config: str, needed: set[str], tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, entry, str(BUNDLE / "configs" / f"{config}.yaml"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert {f"scripts.{'training.handlers' if kind == 'train' else 'inference.inferers'}", "torch", *needed} <= imported
    assert (imported & {*HEAVY, *OWN}) - needed == set()
