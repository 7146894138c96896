"""What the Model Zoo asks of a bundle, in the manner of its own unit tests: every workflow through its whole life."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow

from scripts.networks import HIEUNet

CONFIGS = BUNDLE / "configs"
FEATURES = [2, 3, 4, 5]
OVERRIDES: dict[str, Any] = {
    "spatial_size": [24, 24, 16],
    "features": FEATURES,
    "num_workers": 0,
    "device": "cpu",
}
WORKFLOWS = {
    "train": ("train", ["train.yaml"], {"epochs": 1, "batch_size": 2}),
    "evaluate": ("train", ["train.yaml", "evaluate.yaml"], {"split": "test"}),
    "infer": ("infer", ["inference.yaml"], {"split": "test"}),
    "infer with OpenVINO": ("infer", ["inference.yaml", "inference_openvino.yaml"], {"split": "test"}),
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save({"model": HIEUNet(features=FEATURES).state_dict()}, path)
    return path


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_through_its_life(name: str, weights: Path, tmp_path: Path, tiny_cohort: Path) -> None:
    kind, files, options = WORKFLOWS[name]
    options = {**OVERRIDES, **options, "dataset_dir": str(tiny_cohort), "output_dir": str(tmp_path / "out")}
    options |= {"ckpt_dir": str(weights.parent)} if kind == "train" else {"ckpt_path": str(weights)}
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / file) for file in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        **options,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    if name == "train":
        assert torch.load(weights, weights_only=True)["model"].keys() == HIEUNet(features=FEATURES).state_dict().keys()
    else:
        folder = tmp_path / "out" / ("masks" if name == "evaluate" else "")
        assert len(list(folder.glob("*_lesion.nii.gz"))) == 3


def test_network_takes_and_gives_what_the_metadata_say(monai_bundle: Callable[..., Any]) -> None:
    process: subprocess.CompletedProcess[str] = monai_bundle(
        "verify_net_in_out",
        "network_def",
        cwd=BUNDLE,
        meta_file="configs/metadata.json",
        config_file="configs/inference.yaml",
        features=FEATURES,
        device="cpu",
    )
    assert "data shape of network is verified" in process.stdout + process.stderr


def test_files_that_the_zoo_expects() -> None:
    for name in ("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"):
        assert (BUNDLE / name).is_file(), name
    for config in CONFIGS.glob("*.json"):
        json.loads(config.read_text())
    readme = (BUNDLE / "docs" / "README.md").read_text()
    for heading in ("Data", "Training configuration", "Performance", "Commands", "References", "Limitations"):
        assert re.search(rf"^#+ .*{heading}", readme, re.MULTILINE | re.IGNORECASE), heading


def test_metadata_say_what_the_zoo_asks() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    required = """schema version changelog monai_version pytorch_version numpy_version required_packages_version name
        task description authors copyright data_source data_type image_classes label_classes pred_classes eval_metrics
        intended_use references network_data_format"""
    assert set(required.split()) <= metadata.keys()
    assert next(iter(metadata["changelog"])) == metadata["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    for form in (
        *metadata["network_data_format"]["inputs"].values(),
        *metadata["network_data_format"]["outputs"].values(),
    ):
        assert {
            "type",
            "format",
            "num_channels",
            "spatial_shape",
            "dtype",
            "value_range",
            "is_patch_data",
        } <= form.keys()
        assert "channel_def" in form
