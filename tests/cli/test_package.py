"""The package as other tools take it: downloaded, loaded and predicting; and the Model Zoo's way to fetch weights."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
import yaml
from conftest import ROOT
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.io.weights import read_record, save_weights
from scripts.networks import HIEUNet
from scripts.runtime.recipe import recipe_of


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with random weights in models/."""
    if not (ROOT / ".git").exists():
        pytest.skip("packages are made from a git clone")
    folder = tmp_path_factory.mktemp("clone") / "hie"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder)], check=True)
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(str(folder / "hie_bundle" / "configs" / "train.yaml"))
    path = folder / "hie_bundle" / "models" / "model.pt"
    save_weights(HIEUNet(), path, recipe_of(parser), {"loss": "dice", "epoch": 3})
    return folder


def test_package_is_downloaded_loaded_and_predicts(clone: Path, tmp_path: Path, tiny_cohort: Path) -> None:
    version = json.loads((clone / "hie_bundle" / "configs" / "metadata.json").read_text())["version"]
    archive = clone / "dist" / f"hie_bundle_v{version}.zip"
    contents = []
    for _ in range(2):
        process = _make(clone, "package")
        assert process.returncode == 0, process.stderr
        contents.append({entry.filename: entry.CRC for entry in zipfile.ZipFile(archive).infolist()})
    assert contents[0] == contents[1]
    names = set(contents[0])
    for name in ("LICENSE", "configs/metadata.json", "configs/train.yaml", "configs/inference.yaml", "docs/README.md"):
        assert f"hie_bundle/{name}" in names
    assert {"hie_bundle/models/model.pt", "hie_bundle/models/model.json"} <= names
    assert not [name for name in names if "__pycache__" in name or not name.startswith("hie_bundle/")]

    monai.bundle.download(name="hie_bundle", bundle_dir=tmp_path, url=archive.as_uri())
    bundle = tmp_path / "hie_bundle"
    workflow = monai.bundle.create_workflow(
        config_file=str(bundle / "configs" / "inference.yaml"),
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(tiny_cohort),
        output_dir=str(tmp_path / "masks"),
        split="test",
        spatial_size=[32, 32, 16],
        other_recipe=True,
    )
    network = monai.bundle.load(name="hie_bundle", bundle_dir=tmp_path, model=workflow.network_def, device="cpu")
    expected = torch.load(clone / "hie_bundle" / "models" / "model.pt", weights_only=True)["model"]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    workflow.run()
    assert len(list((tmp_path / "masks").glob("*_lesion.nii.gz"))) == 3
    workflow.finalize()


def test_the_zoos_own_steps_on_the_package(clone: Path, tmp_path: Path, monai_bundle: Callable[..., Any]) -> None:
    """``verify_net_in_out``, ``ckpt_export`` without a key, ``check_properties``."""
    process = _make(clone, "package")
    assert process.returncode == 0, process.stderr
    (archive,) = (clone / "dist").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    bundle = tmp_path / "hie_bundle"
    # with a narrow network of the same kind: the export's own time is not what is tested
    features = [2, 3, 4, 5]
    record = json.loads((bundle / "models" / "model.json").read_text())
    assert record["training"] == {"loss": "dice", "epoch": 3}
    torch.save(HIEUNet(features=features).state_dict(), bundle / "models" / "model.pt")
    common = {"cwd": bundle, "meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml"}
    for command in (["verify_net_in_out", "network_def"], ["ckpt_export", "network_def"]):
        options = {"device": "cpu"} if command[0] == "verify_net_in_out" else {
            "filepath": "models/model.ts", "ckpt_file": "models/model.pt",
        }  # fmt: skip
        monai_bundle(*command, **common, **options, features=features)
    exported = torch.jit.load(bundle / "models" / "model.ts")
    network = HIEUNet(features=features).eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    image = torch.randn((1, 2, 16, 16, 8))
    torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-5)
    for kind, name in (("train", "train"), ("infer", "inference")):
        workflow = ConfigWorkflow(str(bundle / "configs" / f"{name}.yaml"), workflow_type=kind, logging_file=False,
                                  dataset_dir=str(tmp_path / "none"), output_dir=str(tmp_path / "out"))  # fmt: skip
        workflow.initialize()
        assert workflow.check_properties() == []


def test_large_files_say_where_the_weights_are(clone: Path, tmp_path: Path) -> None:
    assert _make(clone, "large_files").returncode != 0
    weights = clone / "hie_bundle" / "models" / "model.pt"
    stored = tmp_path / "stored.pt"
    process = _make(clone, "large_files", f"URL={stored.as_uri()}")
    assert process.returncode == 0, process.stderr
    stored.write_bytes((clone / "dist" / "models" / "model.pt").read_bytes())
    (entry,) = yaml.safe_load((clone / "hie_bundle" / "large_files.yml").read_text())["large_files"]
    assert entry["path"] == "models/model.pt"
    weights.unlink()
    monai.bundle.download_large_files(bundle_path=str(clone / "hie_bundle"))  # checks the hash
    assert weights.read_bytes() == stored.read_bytes()
    assert read_record(weights)["recipe"]["spatial_size"] == [192, 192, 32]
