"""The network in other runtimes' forms, by MONAI's own commands: the same output."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from conftest import BUNDLE

from scripts.networks import HIEUNet

Run = Callable[..., subprocess.CompletedProcess[str]]
FEATURES = [2, 3, 4, 5]
SHAPE = (1, 2, 24, 16, 8)


@pytest.fixture
def network(tmp_path: Path) -> HIEUNet:
    torch.manual_seed(0)
    network = HIEUNet(in_channels=2, out_channels=1, features=FEATURES).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")
    return network


def _options(tmp_path: Path, output: str) -> dict[str, Any]:
    return {
        "filepath": tmp_path / output,
        "ckpt_file": tmp_path / "model.pt",
        "config_file": "configs/inference.yaml",
        "meta_file": "configs/metadata.json",
        "net_id": "network_def",
        "key_in_ckpt": "model",
        "features": FEATURES,
    }


@torch.no_grad()
@pytest.mark.parametrize("traced", [False, True])
def test_torchscript(traced: bool, network: HIEUNet, tmp_path: Path, monai_bundle: Run) -> None:
    options = {"use_trace": True, "input_shape": list(SHAPE)} if traced else {}
    monai_bundle("ckpt_export", cwd=BUNDLE, **_options(tmp_path, "model.ts"), **options)
    exported = torch.jit.load(tmp_path / "model.ts").eval()
    image = torch.randn(SHAPE)
    torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-5)
    if not traced:  # a scripted network takes any shape
        image = torch.randn(2, 2, 8, 8, 16)
        torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-5)


def test_torchscript_from_another_folder(network: HIEUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's exports find no ``scripts`` by ``--bundle_root``."""
    monkeypatch.setenv("PYTHONPATH", str(BUNDLE))
    options = _options(tmp_path, "model.ts")
    options |= {name: BUNDLE / options[name] for name in ("config_file", "meta_file")}
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "ckpt_export", *(f"--{k}={v}" for k, v in options.items())],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.ts").is_file()


@torch.no_grad()
def test_onnx(network: HIEUNet, tmp_path: Path, monai_bundle: Run) -> None:
    monai_bundle("onnx_export", cwd=BUNDLE, **_options(tmp_path, "model.onnx"), use_trace=True, input_shape=list(SHAPE))
    core = openvino.Core()
    exported = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = torch.randn(SHAPE)
    output = torch.from_numpy(exported(image.numpy())[0])
    torch.testing.assert_close(output, network(image), rtol=1e-4, atol=1e-4)
