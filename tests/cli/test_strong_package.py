"""``make package RECIPE=strong``: a bundle whose own configs and weights are the recipe's, as tools take it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.cli.packaging import flatten
from scripts.io.weights import read_record, save_weights
from scripts.runtime.mixins import mixins
from scripts.runtime.recipe import recipe_of

CONFIGS = BUNDLE / "configs"


@pytest.mark.parametrize("recipe", ["strong", "strong_cpu"])
@pytest.mark.parametrize("base", ["train", "inference"])
def test_a_flat_config_says_what_its_files_say_together(base: str, recipe: str) -> None:
    text = flatten(CONFIGS / f"{base}.yaml", mixins(recipe))
    together = ConfigParser()
    together.read_config([str(CONFIGS / f"{base}.yaml"), *map(str, mixins(recipe))])
    assert yaml.safe_load(text) == {k: v for k, v in together.get().items() if k != "_meta_"}
    assert all("#" not in key for key in yaml.safe_load(text))
    # comments come along: those of what was replaced with the mixin's, and the others'
    channels = next(line for line in mixins(recipe)[0].read_text().splitlines() if line.startswith("in_channels:"))
    assert f"\n{channels}\n" in text
    assert "# the whole volume at once; or SlidingWindowInferer" in text


def test_flat_configs_of_one_key(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# about\na: 1   # one\nb:\n  c:\n  - x\n  d: 2\n\n# more\ne: [1, 2]\n")
    for text, expected in [
        ("a: 3\n", {"a": 3, "b": {"c": ["x"], "d": 2}, "e": [1, 2]}),
        ("b#c:\n- y\n- z\n", {"a": 1, "b": {"c": ["y", "z"], "d": 2}, "e": [1, 2]}),
        ("b#f: 4\ng: {h: 5}\n", {"a": 1, "b": {"c": ["x"], "d": 2, "f": 4}, "e": [1, 2], "g": {"h": 5}}),
        ("e:\n- 3\nb: null\n", {"a": 1, "b": None, "e": [3]}),
    ]:
        (tmp_path / "mixin.yaml").write_text(text)
        assert yaml.safe_load(flatten(tmp_path / "base.yaml", [tmp_path / "mixin.yaml"])) == expected
    (tmp_path / "mixin.yaml").write_text("+e: [3]\n")
    with pytest.raises(ValueError, match="cannot be merged into one file"):
        flatten(tmp_path / "base.yaml", [tmp_path / "mixin.yaml"])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in a clone that has random weights for the shipped ones, an ensemble of two."""
    if not (ROOT / ".git").exists():
        pytest.skip("packages are made from a git clone")
    clone = tmp_path_factory.mktemp("clone") / "hie"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(clone)], check=True)
    parser = ConfigParser()
    files = [str(CONFIGS / "inference.yaml"), *map(str, mixins("strong_cpu"))]
    parser.read_config(files)
    shipped = clone / "hie_bundle" / "models" / "simulated"
    shipped.mkdir(exist_ok=True)
    for old in shipped.glob("model*.pt"):
        old.unlink()
    for seed, name in enumerate(("model.pt", "model_1.pt")):
        torch.manual_seed(seed)
        network = ConfigParser(parser.get()).get_parsed_content("network_def")
        save_weights(network, shipped / name, recipe_of(parser), {})
    command = ["make", f"PYTHON={sys.executable}", "package", "RECIPE=strong"]
    made = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return clone / "dist"


def test_the_package_segments_trains_and_passes_the_zoos_checks(
    package: Path, tmp_path: Path, tiny_cohort: Path, monai_bundle: Callable[..., Any]
) -> None:
    (archive,) = package.glob("hie_bundle_strong_v*.zip")
    monai.bundle.download(name="hie_bundle_strong", bundle_dir=tmp_path, url=archive.as_uri())
    bundle = tmp_path / "hie_bundle_strong"
    assert {path.name for path in (bundle / "models").glob("*.pt")} == {"model.pt", "model_1.pt"}
    assert not (bundle / "models" / "simulated").exists()
    assert not {"strong.yaml", "fine_tune.yaml", "pretrain.yaml"} & {path.name for path in bundle.glob("configs/*")}
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == state[next(iter(state))].shape[1]
    monai_bundle("verify_net_in_out", "network_def", cwd=bundle, meta_file="configs/metadata.json",
                 config_file="configs/inference.yaml", device="cpu")  # fmt: skip

    folders = {"dataset_dir": str(tiny_cohort), "device": "cpu", "num_workers": 0}
    masks = {}
    clone = package.parent / "hie_bundle"
    shipped = [str(path) for path in sorted((clone / "models" / "simulated").glob("*.pt"), key=lambda p: len(p.name))]
    for name, files, options in (
        ("package", [bundle / "configs" / "inference.yaml"], {}),
        ("mixins", [CONFIGS / "inference.yaml", *mixins("strong_cpu")], {"ckpt_path": shipped}),
    ):
        workflow = ConfigWorkflow([str(file) for file in files], workflow_type="infer", logging_file=False, split="val",
                                  output_dir=str(tmp_path / name), **folders, **options)  # fmt: skip
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()
        found = sorted((tmp_path / name).glob("*_lesion.nii.gz"))
        masks[name] = [np.asarray(nibabel.load(path).dataobj) for path in found]
    assert len(masks["package"]) == 2
    for one, other in zip(masks["package"], masks["mixins"], strict=True):
        np.testing.assert_array_equal(one, other)

    workflow = ConfigWorkflow(str(bundle / "configs" / "train.yaml"), workflow_type="train", logging_file=False,
                              epochs=1, val_interval=1, training_precision="float32", output_dir=str(tmp_path / "eval"),
                              ckpt_dir=str(tmp_path / "tuned"), **folders)  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    tuned = read_record(tmp_path / "tuned" / "model.pt")["training"]
    assert Path(tuned["init_weights"]).samefile(bundle / "models" / "model.pt")


def test_the_package_has_the_form_that_monai_label_reads(package: Path) -> None:
    train, inference = (
        yaml.safe_load((package / "hie_bundle_strong" / "configs" / f"{name}.yaml").read_text())
        for name in ("train", "inference")
    )
    for section, keys in (("train", ("dataset", "trainer")), ("validate", ("dataset",))):
        assert all(isinstance(train[section][key], dict) for key in keys)
    assert isinstance(train["train"]["handlers"], list)
    # its requests say nothing of the learning rate: the one that leaves what the weights know
    assert train["learning_rate"] == yaml.safe_load((CONFIGS / "fine_tune.yaml").read_text())["learning_rate"]
    assert train["train"]["trainer"]["train_handlers"] == "@train#handlers"
    assert {"network", "network_def"} <= train.keys() & inference.keys()
    assert inference["loaded"] == "image"
    for name in ("preprocessing", "inferer", "postprocessing"):
        assert isinstance(inference[name], dict)
    text = json.dumps([train, inference])
    assert "Spacingd" not in text.replace("ResizeToSpacingd", "")
    assert "SelectItemsd" not in text
    blocks = [{k: c[k] for k in ("in_channels", "input_size", "transforms", "network_def")} for c in (train, inference)]
    assert blocks[0] == blocks[1]


def test_the_schedule_is_that_of_the_epochs_that_monai_label_asks_for(package: Path) -> None:
    parser = ConfigParser()
    parser.read_config(package / "hie_bundle_strong" / "configs" / "train.yaml")
    parser.update({"train#trainer#max_epochs": 60, "bundle_root": str(package / "hie_bundle_strong")})
    assert parser.get_parsed_content("lr_scheduler").total_iters == parser.get_parsed_content("patience") == 60
    assert parser.get_parsed_content("val_interval") == 3
