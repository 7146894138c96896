"""Offline preprocessing: the same tensors as online, in files that other tools read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bonbid_cases import arrays, oblique, write_case, write_stacked
from conftest import BUNDLE
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage

from scripts import data
from scripts.data import preparation
from scripts.data.preparation import preprocess
from scripts.io.volumes import read_volume
from scripts.runtime.errors import DatasetError, UserError

TRAIN = BUNDLE / "configs" / "train.yaml"
SIZE = [12, 12, 8]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """One case for each split, of different shapes and directions, .mha and NIfTI."""
    root = tmp_path / "data"
    write_case(root, "a-VISIT_01", "Train", seed=0, shape=(19, 16, 9), direction=oblique(20))
    write_case(root, "b-VISIT_01", "Train", seed=1, shape=(9, 11, 7), direction=(0.0, 0, 1, 1, 0, 0, 0, -1, 0))
    write_case(root, "c-VISIT_01", "Val", seed=2, direction=(-1.0, 0, 0, 0, 1, 0, 0, 0, -1))
    write_case(root, "d-VISIT_01", "Test", seed=3, extension=".nii.gz", lesion_voxels=0)
    return root


def transforms(spatial_size: list[int]) -> Compose:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser.update({"spatial_size": spatial_size})
    return Compose(parser.get_parsed_content("validate#preprocessing").transforms)


def times(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*.nii*") if path.is_file()]
    return {path.name + path.parent.name: path.stat().st_mtime_ns for path in files}


def resample(cohort: Path, output: Path, **options: Any) -> None:
    preprocess(cohort, output, recipe_configs=[TRAIN], overrides={"spatial_size": SIZE}, num_workers=2, **options)


@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_training_sees_the_same_tensors(cohort: Path, tmp_path: Path, extension: str) -> None:
    resample(cohort, tmp_path / "out", extension=extension)
    pipeline = transforms(SIZE)
    for split in ("train", "val", "test"):
        raw, prepared = data.datalist(cohort, split), data.datalist(tmp_path / "out", split)
        assert [item["case"] for item in raw] == [item["case"] for item in prepared]
        data.require_usable(prepared, tmp_path / "out", "evaluation")  # some of the labels are empty
        for online, offline in zip(map(pipeline, raw), map(pipeline, prepared), strict=True):
            assert offline["image"].shape == (2, *SIZE)
            np.testing.assert_allclose(offline["image"].numpy(), online["image"].numpy(), rtol=0, atol=2e-6)
            np.testing.assert_array_equal(offline["label"].numpy(), online["label"].numpy())
            for key in ("image", "label"):
                np.testing.assert_allclose(offline[key].affine, online[key].affine, rtol=1e-6, atol=1e-5)
    listed = [data.datalist("/nowhere", s, file=tmp_path / "out" / "datalist.json") for s in ("train", "val", "test")]
    assert listed == [data.datalist(tmp_path / "out", split) for split in ("train", "val", "test")]


def test_the_transforms_are_those_of_the_training_config(cohort: Path, tmp_path: Path) -> None:
    """A change in train.yaml changes what is written."""
    config = tmp_path / "other.yaml"
    text = TRAIN.read_text()
    assert text.count("axcodes: RAS") == 1
    config.write_text(text.replace("axcodes: RAS", "axcodes: LPI"))
    preprocess(cohort, tmp_path / "out", recipe_configs=[config], overrides={"spatial_size": SIZE})
    image = nib.load(tmp_path / "out" / "train" / "a-VISIT_01.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "I")


def test_only_what_is_missing_or_older_is_written(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    resample(cohort, out)
    before = times(out)
    assert len(before) == 8
    resample(cohort, out)
    assert times(out) == before
    (out / "train" / "a-VISIT_01.nii.gz").unlink()
    (out / "train" / ".0123abcd.a-VISIT_01.nii.gz").touch()  # of a run that was killed
    changed = next(cohort.rglob("*c-VISIT_01_lesion.mha"))
    future = max(before.values()) + 1_000_000
    os.utime(changed, ns=(future, future))
    resample(cohort, out)
    after = times(out)
    assert sorted(after) == sorted(before)
    assert not (out / "train" / ".0123abcd.a-VISIT_01.nii.gz").exists()
    assert {name.split("-")[0] for name in after if after[name] != before[name]} == {"a", "c"}


@pytest.mark.parametrize("format", preparation.FORMATS)
def test_an_interrupted_run_leaves_whole_files_and_goes_on(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    out, save, saved = tmp_path / "out", nib.save, []

    def full(image: nib.Nifti1Image, path: Path) -> None:
        save(image, path)
        if len(saved) == 3:
            with Path(path).open("r+b") as file:
                file.truncate(100)
            raise OSError(28, "No space left on device", str(path))
        saved.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "save", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            preprocess(cohort, out, format, recipe_configs=[TRAIN], overrides={"spatial_size": SIZE}, num_workers=1)
    assert len(times(out)) == 3
    assert not list(out.rglob(".*"))
    for path in out.rglob("*.nii.gz"):
        read_volume(path)
    preprocess(cohort, out, format, recipe_configs=[TRAIN], overrides={"spatial_size": SIZE})
    assert len(times(out)) == (12 if format == "nnunet" else 8)


def test_native_stacks_hold_the_maps_unresampled(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    preprocess(cohort, out, "native_stack")
    pipeline = transforms(SIZE)
    for case in data.find_cases(cohort):
        stacked = out / str(case.split) / f"{case.case}.nii.gz"
        label = out / str(case.split) / "labels" / "final" / f"{case.case}.nii.gz"  # where MONAI Label looks
        (item,) = (item for item in data.datalist(out, case.split) if item["case"] == case.case)
        assert item == {"image": str(stacked), "label": str(label), "case": case.case}
        two, one = LoadImage(image_only=True)([case.adc, case.zadc]), LoadImage(image_only=True)(stacked)
        np.testing.assert_array_equal(np.moveaxis(one.numpy(), -1, 0), two.numpy())
        np.testing.assert_allclose(one.affine, two.affine, rtol=1e-6, atol=1e-5)
        raw, prepared = pipeline(case.item()), pipeline(item)
        np.testing.assert_allclose(prepared["image"].numpy(), raw["image"].numpy(), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(prepared["label"].numpy(), raw["label"].numpy())


@pytest.mark.parametrize("format", preparation.FORMATS)
def test_geometry_is_the_same_for_itk_and_nibabel(cohort: Path, tmp_path: Path, format: str) -> None:
    preprocess(cohort, tmp_path / "out", format, recipe_configs=[TRAIN], overrides={"spatial_size": SIZE})
    files = list((tmp_path / "out").rglob("*a-VISIT_01*.nii.gz"))
    assert len(files) == (3 if format == "nnunet" else 2)
    for path in files:
        ours, image = nib.load(path), sitk.ReadImage(path)
        affine = np.eye(image.GetDimension() + 1)
        affine[:-1, :-1] = np.array(image.GetDirection()).reshape(len(affine) - 1, -1) * image.GetSpacing()
        affine[:-1, -1] = image.GetOrigin()
        itk = np.diag([-1.0, -1, 1, 1]) @ affine[np.ix_([0, 1, 2, -1], [0, 1, 2, -1])]
        np.testing.assert_allclose(itk, ours.affine, atol=1e-4)
        np.testing.assert_allclose(ours.get_qform(), ours.get_sform(), atol=1e-4)


def nnunet_verifies(python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        "from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "if __name__ == '__main__':\n"
        "    verify_dataset_integrity(sys.argv[1], 1)\n"
    )
    script = folder.parent / "verify.py"
    script.write_text(code)
    places = {name: str(folder.parent) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return subprocess.run(
        [python, str(script), str(folder)], capture_output=True, text=True, env=os.environ | places, check=False
    )


def test_nnunet_dataset(cohort: Path, tmp_path: Path) -> None:
    write_case(cohort, "e-VISIT_01", "Val", seed=4)["label"].unlink()
    preprocess(cohort, tmp_path / "out", "nnunet", labels=False, dataset_name="Dataset007_X")
    folder = tmp_path / "out" / "Dataset007_X"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz"))
    training = [f"{case}-VISIT_01" for case in "abc"]
    assert names == sorted(
        [f"imagesTr/{case}_000{channel}.nii.gz" for case in training for channel in (0, 1)]
        + [f"labelsTr/{case}.nii.gz" for case in training]
        + [f"imagesTs/{case}-VISIT_01_000{channel}.nii.gz" for case in "de" for channel in (0, 1)]
        + ["labelsTs/d-VISIT_01.nii.gz"]
    )
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "ADC", "1": "ZADC"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    truth = arrays(0, (19, 16, 9))
    for part, name in (
        ("adc", "imagesTr/a-VISIT_01_0000.nii.gz"),
        ("zadc", "imagesTr/a-VISIT_01_0001.nii.gz"),
        ("label", "labelsTr/a-VISIT_01.nii.gz"),
    ):
        np.testing.assert_array_equal(np.asarray(nib.load(folder / name).dataobj), truth[part])


@pytest.mark.slow
def test_nnunet_accepts_its_dataset(cohort: Path, tmp_path: Path) -> None:
    """nnU-Net's own check, run by the Python that NNUNET_PYTHON names (one with nnunetv2 installed)."""
    python = os.environ.get("NNUNET_PYTHON")
    if not python:
        pytest.skip("NNUNET_PYTHON does not name a Python with nnunetv2")
    preprocess(cohort, tmp_path / "out", "nnunet")
    folder = tmp_path / "out" / "Dataset001_HIE"
    result = nnunet_verifies(python, folder)
    assert "verify_dataset_integrity Done" in result.stdout, result.stdout + result.stderr
    assert "Error" not in result.stdout
    shutil.copy(folder / "labelsTr" / "a-VISIT_01.nii.gz", folder / "labelsTr" / "b-VISIT_01.nii.gz")
    assert "Error" in nnunet_verifies(python, folder).stdout  # it would have said so


def test_stacked_and_unlabelled_cases(tmp_path: Path) -> None:
    write_stacked(tmp_path / "data", "x")
    write_stacked(tmp_path / "data", "y", label=False, seed=1)
    with pytest.raises(DatasetError, match="is missing"):
        preprocess(tmp_path / "data", tmp_path / "out", "native_stack")
    for format in ("native_stack", "resampled"):
        out = tmp_path / format
        resample(tmp_path / "data", out, format=format, labels=False)
        assert [bool(case.label) for case in data.find_cases(out)] == [True, False]
    again, before = (nib.load(tmp_path / name / "y.nii.gz").get_fdata() for name in ("native_stack", "data"))
    np.testing.assert_array_equal(again, before)


def test_refusals(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no format 'nifti'; choose one of resampled, native_stack, nnunet"):
        preprocess(cohort, tmp_path / "out", "nifti")
    with pytest.raises(DatasetError, match=r"no extension '\.mha'"):
        preprocess(cohort, tmp_path / "out", "native_stack", extension=".mha")
    for inside in (cohort, cohort / "prepared"):
        with pytest.raises(DatasetError, match="must be outside dataset_dir"):
            preprocess(cohort, inside, "native_stack")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DatasetError, match="contains other files"):
        preprocess(cohort, tmp_path / "mine", "native_stack")
    resample(cohort, tmp_path / "out")
    before = times(tmp_path / "out")
    for arguments in ({"format": "native_stack"}, {"overrides": {"spatial_size": [8, 8, 8]}}, {"extension": ".nii"}):
        with pytest.raises(DatasetError, match="from another dataset or with other settings"):
            preprocess(
                cohort, tmp_path / "out", **{"recipe_configs": [TRAIN], "overrides": {"spatial_size": SIZE}} | arguments
            )  # type: ignore[arg-type]
    assert times(tmp_path / "out") == before
    next(cohort.rglob("a-VISIT_01*lesion*")).write_bytes(b"")
    with pytest.raises(DatasetError, match="1 of 4 cases"):
        preprocess(cohort, tmp_path / "new", "nnunet")
    assert not (tmp_path / "new").exists()
