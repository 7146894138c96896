"""The package as other tools take it: downloaded, loaded and predicting; and the Model Zoo's way to fetch weights."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from conftest import ROOT

from scripts.networks import HIEUNet


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with random weights in models/."""
    if not (ROOT / ".git").exists():
        pytest.skip("packages are made from a git clone")
    folder = tmp_path_factory.mktemp("clone") / "hie"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder)], check=True)
    torch.manual_seed(0)
    torch.save({"model": HIEUNet().state_dict()}, folder / "hie_bundle" / "models" / "model.pt")
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
    assert "hie_bundle/models/model.pt" in names
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
    )
    network = monai.bundle.load(
        name="hie_bundle", bundle_dir=tmp_path, model=workflow.network_def, key_in_ckpt="model", device="cpu"
    )
    expected = torch.load(bundle / "models" / "model.pt", weights_only=True)["model"]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    workflow.run()
    assert len(list((tmp_path / "masks").glob("*_lesion.nii.gz"))) == 3
    workflow.finalize()


def test_large_files_say_where_the_weights_are(clone: Path, tmp_path: Path) -> None:
    assert _make(clone, "large_files").returncode != 0
    weights = clone / "hie_bundle" / "models" / "model.pt"
    stored = tmp_path / "stored.pt"
    stored.write_bytes(weights.read_bytes())
    process = _make(clone, "large_files", f"URL={stored.as_uri()}")
    assert process.returncode == 0, process.stderr
    (entry,) = yaml.safe_load((clone / "hie_bundle" / "large_files.yml").read_text())["large_files"]
    assert entry["path"] == "models/model.pt"
    weights.unlink()
    monai.bundle.download_large_files(bundle_path=str(clone / "hie_bundle"))  # checks the hash
    assert weights.read_bytes() == stored.read_bytes()
