"""Cases without a ZADC map: checked, loaded, segmented, measured where the recipe allows it; refused elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from bonbid_cases import arrays, image, write_case
from conftest import BUNDLE, TINY
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts import data
from scripts.networks import HIEUNet
from scripts.runtime.errors import DatasetError, UserError, user_error
from scripts.transforms.loading import LoadMapsd

CONFIGS = BUNDLE / "configs"
RECIPES = Path(__file__).parents[1] / "recipes"
OPTIONAL = data.Limits(zadc="optional")


@pytest.mark.parametrize(("form", "extension"), [("list", ".nii.gz"), ("file", ".mha"), ("4D file", ".nii")])
def test_it_is_loaded_with_a_channel_of_nan(form: str, extension: str, tmp_path: Path) -> None:
    parts = arrays()
    paths = [str(tmp_path / f"{name}{extension}") for name in ("adc", "zadc")]
    for name, path in zip(("adc", "zadc"), paths, strict=True):
        SimpleITK.WriteImage(image(parts[name]), path)
        if form == "4D file":
            stored = nibabel.load(path)
            nibabel.save(nibabel.Nifti1Image(np.array(stored.dataobj)[..., None], stored.affine), path)
    adc, zadc = ([path] if form == "list" else path for path in paths)
    with pytest.raises(UserError, match="1 channel; a stacked file has two"):
        LoadMapsd("image")({"image": adc})
    load = Compose([LoadMapsd("image", limits=OPTIONAL), EnsureChannelFirstd("image")])
    loaded = load({"image": adc})["image"]
    assert loaded.shape == (2, *parts["adc"].shape)
    assert loaded.dtype == torch.float32
    np.testing.assert_array_equal(loaded[0].numpy(), parts["adc"])
    assert torch.isnan(loaded[1]).all()
    alone = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": paths[0]})["image"]
    torch.testing.assert_close(loaded.affine, alone.affine)
    assert loaded.meta["filename_or_obj"] == paths[0]
    with pytest.raises(UserError, match="is not an ADC map"):
        LoadMapsd("image", limits=OPTIONAL)({"image": zadc})


def test_it_is_found_and_checked_where_it_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, lone = (write_case(tmp_path, f"p{n}-VISIT_01", seed=n) for n in (1, 2))
    lone["zadc"].unlink()
    assert data.datalist(tmp_path, "train")[1]["image"] == [str(lone["adc"]), str(lone["zadc"])]
    items = data.datalist(tmp_path, "train", limits=OPTIONAL)
    assert [item["image"] for item in items] == [[str(whole["adc"]), str(whole["zadc"])], [str(lone["adc"])]]
    for each in (items, data.datalist(tmp_path, "train")):
        with pytest.raises(DatasetError, match=r"p2-VISIT_01\n.*(has 1 channel|is missing)"):
            data.require_usable(each, tmp_path, "training")
    data.require_usable(items, tmp_path, "training", OPTIONAL)
    reports = data.check_items(items, OPTIONAL)
    brain = arrays(2)["adc"]
    assert reports[1].files == {"adc": str(lone["adc"]), "label": str(lone["label"])}
    assert reports[1].notes == ["no ZADC map"]
    assert reports[1].brain_ml == pytest.approx((brain > 0).sum() * 1.1 * 1.2 * 3 / 1000)
    assert reports[1].adc_mean == pytest.approx(brain[brain > 0].mean())
    assert reports[1].zadc_range is None
    assert reports[1].lesion_fraction == pytest.approx(12 / (brain > 0).sum())
    data.check(tmp_path, limits=OPTIONAL)
    assert "no ZADC map" in capsys.readouterr().out
    data.write_datalist(tmp_path, tmp_path / "lists" / "list.json", limits=OPTIONAL)
    listed = data.datalist("", "train", file=tmp_path / "lists" / "list.json", limits=OPTIONAL)
    assert listed == items
    for wrong in (brain / 1e6, arrays()["zadc"]):  # mm²/s; no ADC map
        SimpleITK.WriteImage(image(wrong.astype(np.float32)), lone["adc"])
        (report,) = data.check_items(items[1:], OPTIONAL)
        assert report.problems[0].message.startswith("is not an ADC map in 1e-6 mm²/s")
    with pytest.raises(DatasetError, match="'required' or 'optional', not 'maybe'"):
        data.Limits(zadc="maybe")  # type: ignore[arg-type]


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path: Path) -> Path:
    """The tiny cohort, its first case of each split without a ZADC map."""
    root = shutil.copytree(tiny_cohort, tmp_path / "cohort")
    for folder in root.glob("*/2Z_ADC"):
        min(folder.iterdir()).unlink()
    return root


def _run(kind: str, cohort: Path, out: Path, *configs: str, **options: Any) -> ConfigWorkflow:
    files = [str(RECIPES / f"{n}.yaml" if (RECIPES / f"{n}.yaml").exists() else CONFIGS / f"{n}.yaml") for n in configs]
    tiny = {name: yaml.safe_load(value) for name, value in TINY.items()} | {"device": "cpu", "split": "val"}
    if configs == ("train", "adc_alone"):
        del tiny["split"]
    if kind == "infer":
        del tiny["batch_size"]
    workflow = ConfigWorkflow(
        files, workflow_type=kind, logging_file=False, dataset_dir=str(cohort), output_dir=str(out), **tiny, **options
    )
    workflow.initialize()
    workflow.run()
    return workflow


def test_every_workflow_takes_it(cohort: Path, tiny_cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _run("train", cohort, folder, "train", "adc_alone", ckpt_dir=str(folder), epochs=1, loss_name="dice")
    _run("train", cohort, folder, "train", "evaluate", "adc_alone", ckpt_dir=str(folder))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["baseline_dice"] == "nan" for row in rows] == [True, False]
    assert all(0 <= float(row["native_dice"]) <= 1 for row in rows)
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["baseline_dice"]["undefined"] == 1
    torch.manual_seed(0)
    path = str(tmp_path / "random.pt")  # some voxels on either side of 0.5, which a training this short would not give
    torch.save(HIEUNet(features=[2, 4, 6, 8], prior=0.5).state_dict(), path)
    _run("infer", cohort, folder / "masks", "inference", "adc_alone", ckpt_path=path)
    files = sorted((folder / "masks").glob("*_lesion.nii.gz"))
    adcs = sorted((cohort / "BONBID2023_Val" / "1ADC_ss").iterdir())
    assert len(files) == len(adcs) == 2
    for file, adc in zip(files, adcs, strict=True):
        assert nibabel.load(file).shape == SimpleITK.ReadImage(str(adc)).GetSize()
    # the mask is that of a network that never sees a ZADC map
    blind = {"transforms#values#missing#func": "$lambda image: torch.cat([image[:1], 0 * image[:1]])"}
    _run("infer", tiny_cohort, tmp_path / "other", "inference", "adc_alone", ckpt_path=path, **blind)
    one, other = (np.asarray(nibabel.load(f / files[0].name).dataobj) for f in (folder / "masks", tmp_path / "other"))
    assert 0 < one.mean() < 1
    np.testing.assert_array_equal(one, other)


def test_a_recipe_that_does_not_fill_it_in_is_refused(cohort: Path, tmp_path: Path) -> None:
    options = {"limits#zadc": "optional", "ckpt_dir": str(tmp_path), "epochs": 1}
    with pytest.raises(RuntimeError) as caught:
        _run("train", cohort, tmp_path, "train", **options)
    assert "The network's input has NaN" in str(user_error(caught.value))
