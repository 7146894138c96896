"""Masks that end where the brain does: on any grid, and through the configs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing
from test_every_option import TINY, run

from scripts.data.layout import find_cases
from scripts.io.volumes import read_volume
from scripts.transforms.decisions import KeepBraind, LimitToBraind

AFFINE = torch.tensor(np.diag([-2.0, 2.0, 3.0, 1.0]))


def _item() -> dict[str, MetaTensor]:
    adc = torch.zeros(8, 9, 7)
    adc[2:6, 2:7, 1:6] = 1300.0
    return {"image": MetaTensor(torch.stack([adc, torch.zeros_like(adc)]), affine=AFFINE)}


def test_nothing_outside_the_brain_stays_and_nothing_inside_goes() -> None:
    item = KeepBraind()(_item())
    item["pred"] = MetaTensor(torch.ones(1, 8, 9, 7), affine=AFFINE)
    found = LimitToBraind("pred")(item)["pred"]
    assert torch.equal(found[0] > 0, _item()["image"][0] > 0)
    assert torch.equal(found.affine, AFFINE)


def test_on_another_grid_the_brain_is_where_it_is_in_millimetres() -> None:
    item = KeepBraind()(_item())
    fine = Spacing((1.0, 1.0, 1.0), mode="nearest")(_item()["image"])
    item["pred"] = MetaTensor(torch.ones(1, *fine.shape[1:]), affine=fine.affine)
    found = LimitToBraind("pred")(item)["pred"]
    assert torch.equal(found[0] > 0, fine[0] > 0)


def test_without_it_nothing_changes_and_native_maps_go_before_prepared_ones() -> None:
    item = KeepBraind(wanted=False)({**_item(), "pred": MetaTensor(torch.ones(1, 8, 9, 7), affine=AFFINE)})
    assert "brain" not in item
    assert LimitToBraind("pred")(item)["pred"].all()
    whole = {"image": MetaTensor(torch.ones(2, 4, 4, 4), affine=AFFINE), "native_image": _item()["image"]}
    assert KeepBraind()(whole)["brain"].shape == (1, 8, 9, 7)
    adc = _item()["image"]
    normalised = (adc - adc.mean((1, 2, 3), keepdim=True)) / 500
    normalised[0] /= normalised[0].std()
    normalised[1] = torch.randn(normalised[1].shape)
    normalised[1] = (normalised[1] - normalised[1].mean()) / normalised[1].std()
    assert torch.equal(KeepBraind()({"image": normalised})["brain"][0] > 0, adc[0] > 0)


@pytest.mark.parametrize("limit", [True, False])
def test_through_training_evaluation_and_inference(limit: bool, tiny_cohort: Path, tmp_path: Path) -> None:
    """A threshold of 0 takes everything for a lesion: the masks are the brains, or the volumes."""
    places = {"dataset_dir": str(tiny_cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    options = {**TINY, **places, "limit_to_brain": limit, "threshold": 0.0}
    run("training", ("train",), options)
    run("evaluating", ("train", "evaluate"), options)
    known = {
        key: options[key]
        for key in ("spatial_size", "features", "device", "dataset_dir", "limit_to_brain", "threshold")
    }
    run("run", ("inference",), {**known, "split": "val", "output_dir": str(tmp_path / "masks"),
                                "ckpt_path": str(tmp_path / "model.pt")})  # fmt: skip
    cases = [case for case in find_cases(tiny_cohort) if case.split == "val"]
    for case in cases:
        adc = read_volume(str(case.adc)).array
        for folder in ("eval/masks", "masks"):
            mask = read_volume(tmp_path / folder / f"{case.case}_lesion.nii.gz").array
            assert np.array_equal(mask > 0, adc > 0 if limit else np.ones_like(adc, bool))
