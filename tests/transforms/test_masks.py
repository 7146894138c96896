"""Masks on disk: one for each case, on its grid, whole or not there. Read by SimpleITK and nibabel."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bonbid_cases import arrays, image
from conftest import as_checked
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, Resized

from scripts.data.layout import case_of_file_name, file_name, find_cases
from scripts.data.mask_files import find_masks
from scripts.runtime.errors import UserError
from scripts.transforms.loading import LoadMapsd
from scripts.transforms.masks import SaveMaskd

IDS = ["1.2.840.1", "1.2.840.2", "case.1", "case", "..", ".", ".hidden", "a/b", "a_b", "a%2Fb", "../up", "ä ö", "x\ny",
       "x\\y", "x:y", "-", "a.nii", "a\udcffb", "%", ""]  # fmt: skip


def test_every_id_has_a_name_of_its_own_that_leads_back_to_it() -> None:
    names = [file_name(case) for case in IDS]
    assert len(set(names)) == len(IDS)
    assert [case_of_file_name(name) for name in names] == IDS
    for name in names:
        assert not set("/\\\n:") & set(name)
        assert not name.startswith(".")
    assert file_name("MGHNICU_010-VISIT_01") == "MGHNICU_010-VISIT_01"


def _mask(seed: int = 0, shape: tuple[int, int, int] = (5, 4, 3)) -> MetaTensor:
    values = np.random.default_rng(seed).random((1, *shape)) > 0.5
    return MetaTensor(torch.as_tensor(values, dtype=torch.uint8), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".mha"])
def test_no_case_loses_its_mask_to_another(tmp_path: Path, extension: str) -> None:
    save = SaveMaskd("pred", tmp_path, extension)
    masks = {case: _mask(number) for number, case in enumerate(IDS)}
    for case, mask in masks.items():
        save({"pred": mask, "case": case})
    assert len(list(tmp_path.iterdir())) == len(IDS)
    found = find_masks(tmp_path, IDS)
    for case, mask in masks.items():
        (path,) = found[case]
        written = sitk.GetArrayFromImage(sitk.ReadImage(os.fsencode(path).decode("utf-8", "surrogateescape")))
        np.testing.assert_array_equal(written.T, mask[0].numpy())


DIRECTIONS = {"axes": np.eye(3), "turned": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]), "oblique": None}


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8, 1), (1, 8, 7), (9, 1, 1)])
def test_a_mask_has_the_shape_and_position_of_its_file(
    shape: tuple[int, int, int], direction: np.ndarray | None, extension: str, tmp_path: Path
) -> None:
    values = {name: np.random.default_rng(1).random(shape).astype(np.float32) for name in ("adc", "zadc")}
    paths = [str(tmp_path / f"x.{name}{extension}") for name in values]
    for path, array in zip(paths, values.values(), strict=True):
        sitk.WriteImage(image(array, direction=None if direction is None else tuple(direction.ravel())), path)
    as_checked(*paths)
    steps: list[Any] = [
        LoadMapsd("image"), EnsureChannelFirstd("image"), Orientationd("image", axcodes="RAS", labels=None),
        Resized("image", (16, 16, 16), mode="trilinear"),
    ]  # fmt: skip
    preprocessing = Compose(steps)
    data = preprocessing({"image": paths, "case": "x.1"})
    data["pred"] = data["image"][:1].clone()
    data = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)(data)
    data["pred"] = (data["pred"] > 0.5).to(torch.uint8)
    SaveMaskd("pred", tmp_path / "out", extension, like="image")(data)
    saved, truth = sitk.ReadImage(str(tmp_path / "out" / f"x.1_lesion{extension}")), sitk.ReadImage(paths[0])
    assert saved.GetDimension() == 3
    assert saved.GetSize() == truth.GetSize() == shape
    assert saved.GetPixelID() == sitk.sitkUInt8
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(saved, get)() == pytest.approx(getattr(truth, get)(), abs=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(saved).T, data["pred"][0].numpy())


def test_a_mask_on_another_grid_is_not_written(tmp_path: Path) -> None:
    sitk.WriteImage(image(arrays()["adc"]), str(tmp_path / "adc.mha"))
    for shape, affine in (((9, 8, 6), torch.eye(4)), ((9, 8, 7), torch.eye(4))):
        mask = MetaTensor(
            torch.zeros(1, *shape), affine=affine, meta={"filename_or_obj": str(tmp_path / "adc.mha")}
        )  # fmt: skip
        with pytest.raises(UserError, match="c: the mask is not on the grid of"):
            SaveMaskd("pred", tmp_path / "out")({"pred": mask, "case": "c"})
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk() -> Any:
    """No file may grow past 200 bytes: writing fails as on a full disk, in Python and in ITK."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".mha"])
def test_a_full_disk_is_said_and_leaves_the_earlier_mask(
    extension: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    save, first = SaveMaskd("pred", tmp_path, extension), _mask(1, (30, 30, 30))
    save({"pred": first, "case": "c"})
    before = (tmp_path / f"c_lesion{extension}").read_bytes()
    request.getfixturevalue("small_disk")
    with pytest.raises(UserError, match=r"c: the mask cannot be written to .*choose another --output_dir"):
        save({"pred": _mask(2, (30, 30, 30)), "case": "c"})
    assert (tmp_path / f"c_lesion{extension}").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_read_back_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that says nothing and writes something else: half of it, nothing, another array."""
    from scripts.transforms import masks

    def nothing(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
        path.touch()

    def other(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
        nibabel.save(nibabel.Nifti1Image(1 - array, affine), path)

    for writer in (nothing, other):
        monkeypatch.setattr(masks, "write_volume", writer)
        with pytest.raises(UserError, match="cannot be written"):
            SaveMaskd("pred", tmp_path)({"pred": _mask(), "case": "c"})
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_whose_ids_hold_dots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From files to names, as inference goes."""
    for case in ("1.2.840.1", "1.2.840.2"):
        for part, name in {"adc": f"{case}-ADC_ss.mha", "zadc": f"Zmap_{case}-ADC_smooth2mm_clipped10.mha"}.items():
            sitk.WriteImage(image(arrays()[part]), str(tmp_path / name))
    caplog.set_level(logging.INFO)
    save = SaveMaskd("pred", tmp_path / "out", like="image")
    for case in find_cases(tmp_path):
        data = LoadMapsd("image")(case.item(labels=False))
        data["pred"] = (data["image"][:1] > 0).to(torch.uint8)
        save(data)
        assert f"{case.case}_lesion.nii.gz" in caplog.text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"1.2.840.{n}_lesion.nii.gz" for n in (1, 2)]
