"""Names of files as people and systems give them: what is read everywhere, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bonbid_cases import write_case
from test_every_option import TINY, run

from scripts.cli import main
from scripts.data.layout import find_cases
from scripts.io.files import atomic_path, write_json
from scripts.io.images import write
from scripts.io.volumes import VolumeError, read_volume, write_volume
from scripts.runtime.errors import DatasetError, UserError, user_error
from scripts.transforms.loading import LoadMapsd

NOT_UTF8 = "M\udcff\udce9"


def _renamed(source: Path, target: Path, ending: str) -> Path:
    shutil.copytree(source, target)
    for path in list(target.rglob("*.mha")):
        path.rename(path.with_suffix(ending))
    return target


@pytest.mark.parametrize("ending", [".MHA", ".Mha"])
def test_an_extension_in_capitals_is_that_extension(ending: str, tiny_cohort: Path, tmp_path: Path) -> None:
    """ITK knows a MetaImage by .mha alone; the check had let others pass, which stopped the run."""
    data = _renamed(tiny_cohort, tmp_path / "data", ending)
    for case, other in zip(find_cases(data), find_cases(tiny_cohort), strict=True):
        images = [LoadMapsd(["image", "label"])(one.item()) for one in (case, other)]
        for key in ("image", "label"):
            assert np.array_equal(images[0][key], images[1][key])
            assert np.array_equal(images[0][key].affine, images[1][key].affine)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".MHA", ".NII.GZ", ".NII"])
def test_such_a_dataset_goes_all_the_way(ending: str, tiny_cohort: Path, tmp_path: Path) -> None:
    data = _renamed(tiny_cohort, tmp_path / "data", ".MHA")
    if ending != ".MHA":
        for path in list(data.rglob("*.MHA")):
            volume = read_volume(path)
            write(path.with_suffix(ending.lower()), volume.array, volume.affine)
            path.with_suffix(ending.lower()).rename(path.with_suffix(ending))
            path.unlink()
    places = {"dataset_dir": str(data), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    run("check", ("data",), {"dataset_dir": str(data)})
    run("folds", ("data",), {"dataset_dir": str(data), "num_folds": 2})
    for format in ("resampled", "native_stack", "nnunet"):
        prepared = {"dataset_dir": str(data), "output_dir": str(tmp_path / format), "format": format}
        run("preprocessing", ("data",), {**prepared, "spatial_size": TINY["spatial_size"]})
    run("training", ("train",), {**TINY, **places})
    run("evaluating", ("train", "evaluate"), {**TINY, **places})
    known = {key: TINY[key] for key in ("spatial_size", "features", "device")}
    weights = str(tmp_path / "model.pt")
    run(
        "run",
        ("inference",),
        {**known, "dataset_dir": str(data), "output_dir": str(tmp_path / "m"), "ckpt_path": weights},
    )
    assert len(list((tmp_path / "m").glob("*_lesion.nii.gz"))) == len(find_cases(data))
    options = [f"--{key}={value}" for key, value in known.items()]
    with pytest.raises(SystemExit, match="0"):
        main(["segment", str(data), "-o", str(tmp_path / "s"), "--weights", weights, "--recipe=paper", *options])
    assert len(list((tmp_path / "s").glob("*_lesion.nii.gz"))) == len(find_cases(data))


@pytest.mark.parametrize("name", ["M\nX", "M\u2028X", "M\x1b[2J", NOT_UTF8])
def test_a_name_that_cannot_be_shown_is_refused_and_not_left_out(name: str, tmp_path: Path) -> None:
    """One with a line break was skipped in silence; one that is no UTF-8 ended the process."""
    write_case(tmp_path, "M")
    assert len(find_cases(tmp_path)) == 1
    adc = next(tmp_path.rglob("M-ADC_ss.*"))
    for path in (adc.with_name(adc.name.replace("M-", f"{name}-")), tmp_path / name / adc.name):
        path.parent.mkdir(exist_ok=True)
        shutil.copy(adc, path)
        with pytest.raises(DatasetError, match="Rename it") as caught:
            find_cases(tmp_path)
        message = str(caught.value)
        assert message.isprintable()
        assert ascii(name)[1:-1] in message
        path.unlink()


def test_other_files_may_be_called_what_they_like(tmp_path: Path) -> None:
    write_case(tmp_path, "é\u00a0à 患者")
    for name in ("notes\n.txt", f"{NOT_UTF8}.txt", "._M\n-ADC_ss.mha"):
        (tmp_path / name).touch()
    (case,) = find_cases(tmp_path)
    assert case.case == "é\u00a0à 患者"
    assert read_volume(str(case.adc)).array.size


def test_a_path_that_is_no_utf8_is_refused_before_a_library_sees_it(tmp_path: Path) -> None:
    """Of a data list, say."""
    path = tmp_path / f"{NOT_UTF8}.mha"
    path.touch()
    with pytest.raises(VolumeError, match="not UTF-8; rename it"):
        read_volume(path)
    write_json(tmp_path / "a.json", {"file": str(path)})
    assert os.fsencode(json.loads((tmp_path / "a.json").read_text())["file"]) == os.fsencode(path)


def test_no_file_is_written_under_another_name_than_was_asked_for(tmp_path: Path) -> None:
    """ITK writes X.MHA as X.mhd and X.zraw."""
    for name in ("X.MHA", "X.Nii"):
        with pytest.raises(UserError, match="extension of a volume must be one of"):
            write(tmp_path / name, np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert list(tmp_path.iterdir()) == []


def test_what_itk_cannot_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``run phantom`` on a full disk ended with a traceback."""

    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "Exception thrown in SimpleITK\nFile cannot be written: .x.mha\nReason: No space left on device\n"
        )

    monkeypatch.setattr("SimpleITK.WriteImage", full)
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "x.mha") as temporary:
        write_volume(temporary, np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert str(user_error(caught.value)).startswith(f"{tmp_path / 'x.mha'}: No space left on device")
