"""What is wrong with a case, said in full; and files that load in MONAI as they were checked."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from bonbid_cases import SHAPE, arrays, image, oblique, write_case, write_stacked
from monai.transforms import LoadImage

from scripts import data
from scripts.data import gate
from scripts.data.checks import CaseReport
from scripts.data.gate import check_items, require_usable
from scripts.io.volumes import VolumeError, read_volume
from scripts.runtime.errors import DatasetError
from scripts.transforms.loading import LoadMapsd

Files = dict[str, Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hie_bundle" / "checks.json"


def report_of(files: Files) -> CaseReport:
    return data.read_case("case", {part: str(path) for part, path in files.items()})[0]


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], **geometry: Any) -> None:
    """Change a volume's voxels, axes (X, Y, Z), or where it lies."""
    old = sitk.ReadImage(path)
    new = image(change(sitk.GetArrayFromImage(old).T.copy()), old.GetSpacing(), old.GetOrigin(), old.GetDirection())
    for name, value in geometry.items():
        getattr(new, f"Set{name}")(value)
    sitk.WriteImage(new, path)


def replace(value: float, where: tuple[int, ...] = (4, 4, 3)) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change


def same(array: np.ndarray) -> np.ndarray:
    return array


def turned(degrees: float) -> list[float]:
    """The usual direction, turned in the plane of the slices."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return list((np.array(oblique()).reshape(3, 3) @ turn).ravel())


# --- usable -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".mha", ".nii", ".nii.gz"])
def test_a_usable_case_is_measured(tmp_path: Path, extension: str) -> None:
    files = write_case(tmp_path, extension=extension, lesion_voxels=21)
    truth = arrays(lesion_voxels=21)
    report = report_of(files)
    assert report.problems == []
    brain = truth["adc"] > 0
    assert brain.sum() == 7 * 6 * 5
    assert report.shape == list(SHAPE)
    assert report.spacing_mm == pytest.approx([1.1, 1.2, 3.0])
    assert report.orientation == "RPS oblique"  # LPS world, first axis flipped, second towards posterior
    assert report.adc_mean == pytest.approx(truth["adc"][brain].mean())
    assert report.adc_std == pytest.approx(truth["adc"][brain].std())
    assert report.zadc_range == pytest.approx([truth["zadc"].min(), truth["zadc"].max()])
    assert report.brain_ml == pytest.approx(210 * 1.1 * 1.2 * 3 / 1000)
    assert report.lesion_ml == pytest.approx(21 * 1.1 * 1.2 * 3 / 1000)
    assert report.lesion_fraction == pytest.approx(0.1)
    assert CaseReport.from_json(json.loads(json.dumps(asdict(report)))) == report


def test_a_stacked_file_is_measured_like_two_files(tmp_path: Path) -> None:
    stacked, three = report_of(write_stacked(tmp_path, "a")), report_of(write_case(tmp_path, extension=".nii.gz"))
    assert stacked.problems == []
    ours, theirs = asdict(stacked), asdict(three)
    words = ("case", "files", "problems", "notes", "orientation", "normalised")
    for name, value in ours.items():
        if name in words:
            assert name == "files" or value == theirs[name]
        else:
            assert value == pytest.approx(theirs[name], rel=1e-6), name


def test_an_empty_label_is_allowed(tmp_path: Path) -> None:
    report = report_of(write_case(tmp_path, lesion_voxels=0))
    assert report.problems == []
    assert report.notes == ["empty label"]
    assert report.lesion_fraction == 0


def test_a_lesion_that_leaves_the_brain_a_little_is_allowed(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    rewrite(files["label"], replace(1, (0, slice(0, 5), 0)))
    report = report_of(files)
    assert report.problems == []
    assert report.notes == ["5 of 17 lesion voxels outside the brain"]


def test_normalised_maps_are_allowed(tmp_path: Path) -> None:
    """Offline preprocessing leaves maps of mean 0 and standard deviation 1; the brain is still found."""
    files = write_case(tmp_path)
    for part in ("adc", "zadc"):
        rewrite(files[part], lambda array: ((array - array.mean()) / array.std()).astype(np.float32))
    report = report_of(files)
    assert report.problems == []
    assert report.normalised
    assert report.lesion_fraction == pytest.approx(12 / 210)


# --- unusable -----------------------------------------------------------------------------------------------------

# file of the case, what is done to the case, what is said about the file
FAULTS: dict[str, tuple[str, Callable[[Files], object], str]] = {
    "missing": ("zadc", lambda f: f["zadc"].unlink(), "is missing"),
    "truncated": ("adc", lambda f: f["adc"].write_bytes(f["adc"].read_bytes()[:-40]), "is truncated or overlong"),
    "empty file": ("label", lambda f: f["label"].write_bytes(b""), "no complete MetaImage header"),
    "folder": ("label", lambda f: (f["label"].unlink(), f["label"].mkdir()), "is not a regular file"),
    "pipe": ("label", lambda f: (f["label"].unlink(), os.mkfifo(f["label"])), "is not a regular file"),
    "other size": ("zadc", lambda f: rewrite(f["zadc"], lambda a: a[:, :-1]), "9 × 7 × 7 voxels, not 9 × 8 × 7"),
    "label's size": ("label", lambda f: rewrite(f["label"], lambda a: a[..., 1:]), "9 × 8 × 6 voxels, not 9 × 8 × 7"),
    "spacing": (
        "zadc",
        lambda f: rewrite(f["zadc"], same, Spacing=(1.1, 1.2, 3.1)),
        "spacing 1.1 1.2 3.1 mm, not 1.1 1.2 3 mm; corners up to 0.6 mm apart",
    ),
    "origin": (
        "label",
        lambda f: rewrite(f["label"], same, Origin=(-31.5, 12.25, 9.0)),
        "origin 31.5 -12.25 9 mm, not 31.5 -12.25 8 mm (RAS); corners up to 1 mm apart",
    ),
    "direction": ("label", lambda f: rewrite(f["label"], same, Direction=turned(5)), "directions 5° apart"),
    "NaN": ("zadc", lambda f: rewrite(f["zadc"], replace(np.nan)), "has 1 voxel that is NaN or infinite"),
    "infinite": (
        "adc",
        lambda f: rewrite(f["adc"], lambda a: replace(np.inf, (4, slice(0, 3), 3))(a.astype(np.float32))),
        "has 3 voxels that are NaN or infinite",
    ),
    "constant": ("adc", lambda f: rewrite(f["adc"], np.zeros_like), "is constant: every voxel is 0"),
    "label of 2": ("label", lambda f: rewrite(f["label"], replace(2)), "1 voxels with values other than 0 and 1 (2)"),
    "label of 255": ("label", lambda f: rewrite(f["label"], lambda a: 255 * a), "12 voxels with values other"),
    "soft label": (
        "label",
        lambda f: rewrite(f["label"], lambda a: 0.5 * a.astype(np.float32)),
        "values other than 0 and 1 (0.5)",
    ),
    "label with NaN": (
        "label",
        lambda f: rewrite(f["label"], lambda a: replace(np.nan)(a.astype(np.float32))),
        "values other than 0 and 1 (nan)",
    ),
    "swapped": (
        "adc",
        lambda f: (shutil.move(f["adc"], f["label"].parent / "x.mha"), shutil.move(f["zadc"], f["adc"]),
                   shutil.move(f["label"].parent / "x.mha", f["zadc"])),
        "and the ZADC map are swapped",
    ),
    "ADC twice": ("zadc", lambda f: shutil.copy(f["adc"], f["zadc"]), "is not a Z map: its values go from 0 to"),
    "ADC in mm²/s": (
        "adc",
        lambda f: rewrite(f["adc"], lambda a: (a / 1e6).astype(np.float32)),
        "the median of its positive voxels is 0.001333, not between 200 and 4000 (multiply it by 1e+06)",
    ),
    "outside": (
        "label",
        lambda f: rewrite(f["label"], lambda a: replace(1, (0, slice(None), 0))(np.zeros_like(a))),
        "has 8 of 8 lesion voxels outside the brain",
    ),
    "vectors": (
        "zadc",
        lambda f: sitk.WriteImage(sitk.Compose([sitk.ReadImage(f["zadc"])] * 2), f["zadc"]),
        "has ElementNumberOfChannels = 2 in its header",
    ),
    "signed bytes": (
        "label",
        lambda f: sitk.WriteImage(sitk.Cast(sitk.ReadImage(f["label"]), sitk.sitkInt8), f["label"]),
        "has ElementType MET_CHAR; convert it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable(tmp_path: Path, fault: str) -> None:
    part, spoil, message = FAULTS[fault]
    write_case(tmp_path, "good")
    files = write_case(tmp_path, "bad", seed=1)
    spoil(files)
    with pytest.raises(DatasetError) as error:
        require_usable(data.datalist(tmp_path, "train"), tmp_path, "training")
    text = str(error.value)
    assert text.startswith(f"1 of 2 cases in {tmp_path} cannot be used for training; nothing was started.\n  bad\n")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{files[part]} ")
    assert message in lines[0]
    assert "data.yaml" in text  # a command to go on with


@pytest.mark.parametrize("channels", [1, 3])
def test_stacked_files_with_another_number_of_channels(tmp_path: Path, channels: int) -> None:
    files = write_stacked(tmp_path, "a", channels=channels)
    message = f"has {channels} channel{'s' if channels > 1 else ''}; a stacked file has two, ADC and ZADC"
    message += ", and this recipe does not accept an ADC map alone (limits#zadc)" * (channels == 1)
    assert [problem.message for problem in report_of(files).problems] == [message]


def test_stacked_files_in_the_wrong_order(tmp_path: Path) -> None:
    files = write_stacked(tmp_path, "a")
    old = nib.load(files["stacked"])
    nib.save(nib.Nifti1Image(old.get_fdata()[..., ::-1], old.affine), files["stacked"])
    (problem,) = report_of(files).problems
    assert problem.file == str(files["stacked"])
    assert "swapped" in problem.message


def test_every_case_and_file_is_named(tmp_path: Path) -> None:
    named = []
    for number, fault in enumerate(("missing", "NaN", "label of 2")):
        part, spoil, _ = FAULTS[fault]
        files = write_case(tmp_path, f"case{number}")
        spoil(files)
        named.append(files[part])
    write_case(tmp_path, "case3")["adc"].unlink()
    with pytest.raises(DatasetError) as error:
        require_usable(data.datalist(tmp_path, "train"), tmp_path, "evaluation")
    assert str(error.value).startswith("4 of 4 cases")
    assert all(f"    {path} " in str(error.value) for path in named)


def test_labels_do_not_matter_for_inference(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    files["label"].write_bytes(b"")
    shutil.copy(files["label"], tmp_path / files["label"].name)  # a mask that an earlier run wrote here
    require_usable(data.datalist(tmp_path, None, labels=False), tmp_path, "inference")
    with pytest.raises(DatasetError):
        require_usable(data.datalist(tmp_path, None), tmp_path, "training")


def test_files_that_are_there_twice(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    copy = tmp_path / "BONBID2023_Train" / "old" / files["adc"].name
    copy.parent.mkdir()
    shutil.copy(files["adc"], copy)
    with pytest.raises(DatasetError, match="is a second file of the same case"):
        require_usable(data.datalist(tmp_path, "train"), tmp_path, "training")
    shutil.move(copy, tmp_path / copy.name)  # now of no split: another case of the same name
    with pytest.raises(DatasetError, match="is a second file of the same case"):
        require_usable(data.datalist(tmp_path, None), tmp_path, "inference")
    shutil.copy(files["zadc"], tmp_path / files["zadc"].name)  # with its ZADC map, as a copy outside the splits
    with pytest.raises(DatasetError, match="is a second file of the same case"):
        require_usable(data.datalist(tmp_path, None), tmp_path, "inference")


@pytest.mark.parametrize(
    "ids", [("Aa", "aA"), ("\u00e4", "a\u0308"), ("\u00c4", "a\u0308"), ("stra\u00dfe", "STRASSE")]
)
def test_cases_that_are_one_file_on_some_disks_are_refused(ids: tuple[str, str], tmp_path: Path) -> None:
    """As capitals and as forms of a letter; their masks would be one file there."""
    items = [
        data.find_cases(tmp_path / str(n))[0].item() for n, id in enumerate(ids) if write_case(tmp_path / str(n), id)
    ]
    with pytest.raises(DatasetError, match="ignore case or Unicode form") as caught:
        require_usable(items, tmp_path, "inference")
    assert all(item["image"][0] in str(caught.value) for item in items)
    require_usable(items[:1], tmp_path, "inference")


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        require_usable([], tmp_path / "absent", "training")
    assert f"run phantom --config_file hie_bundle/configs/data.yaml --output_dir {tmp_path}/absent" in str(error.value)
    assert f"run download --config_file hie_bundle/configs/data.yaml --dataset_dir {tmp_path}/absent" in str(
        error.value
    )
    write_case(tmp_path, split="Test")
    with pytest.raises(DatasetError, match=r"no case for training; it has 1 of test"):
        require_usable([], tmp_path, "training")


# --- remembered results -------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are really read."""
    cases: list[str] = []
    original = gate.read_case

    def counting(case: str, *args: Any) -> Any:
        cases.append(case)
        return original(case, *args)

    monkeypatch.setattr(gate, "read_case", counting)
    return cases


def test_only_changed_files_are_read_again(tmp_path: Path, reads: list[str]) -> None:
    files = {case: write_case(tmp_path, case, seed=seed) for seed, case in enumerate("abc")}
    items = data.datalist(tmp_path, "train")
    first = check_items(items)
    assert sorted(reads) == ["a", "b", "c"]
    reads.clear()
    assert check_items(items) == first
    assert reads == []
    rewrite(files["b"]["label"], replace(2))
    later = check_items(items)
    assert reads == ["b"]
    assert [report.usable for report in later] == [True, False, True]
    reads.clear()
    status = files["c"]["adc"].stat()
    os.utime(files["c"]["adc"], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    check_items(items)
    assert reads == ["c"]
    reads.clear()
    check_items(items, data.Limits(zadc_limit=1.0))
    assert sorted(reads) == ["a", "b", "c"]  # other limits, other results


def test_problems_are_remembered_but_missing_files_are_looked_for(tmp_path: Path, reads: list[str]) -> None:
    files = write_case(tmp_path, "a")
    rewrite(files["label"], replace(2))
    items = data.datalist(tmp_path, "train")
    assert not check_items(items)[0].usable
    assert not check_items(items)[0].usable
    assert reads == ["a"]
    moved = files["zadc"].rename(tmp_path / "kept")
    assert check_items(items)[0].problems[0].message == "is missing"
    moved.rename(files["zadc"])
    assert [problem.file for problem in check_items(items)[0].problems] == [str(files["label"])]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '{"|": {}}', '{"|": 5}', "OTHER"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, cache: Path, reads: list[str], content: str) -> None:
    write_case(tmp_path, "a")
    items = data.datalist(tmp_path, "train")
    check_items(items)
    known = json.loads(cache.read_text())
    (key,) = known
    del known[key]["report"]["problems"]  # as an older version may have written it
    cache.write_text(json.dumps(known) if content == "OTHER" else content.replace("|", json.dumps(key)[1:-1]))
    assert check_items(items)[0].usable
    assert check_items(items)[0].usable
    assert reads == ["a", "a"]


def test_an_unwritable_cache_does_no_harm(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, "a")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert check_items(data.datalist(tmp_path, "train"))[0].usable
    assert reads == ["a", "a"]


def test_processes_may_share_the_cache(tmp_path: Path, cache: Path) -> None:
    items = []
    for number in range(24):
        write_case(tmp_path, f"case{number}", seed=number)
    items = data.datalist(tmp_path, "train")
    failures: list[BaseException] = []

    def check(some: list[dict[str, Any]]) -> None:
        try:
            for item in some:
                assert check_items([item])[0].usable
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=check, args=(items[start::3],)) for start in (0, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert json.loads(cache.read_text())
    assert [path.name for path in cache.parent.iterdir()] == ["checks.json"]


# --- what is accepted loads in MONAI ------------------------------------------------------------------------------

DIRECTIONS = {
    "identity": (1.0, 0, 0, 0, 1, 0, 0, 0, 1),
    "flipped": (-1.0, 0, 0, 0, 1, 0, 0, 0, -1),
    "permuted": (0.0, 0, 1, 1, 0, 0, 0, -1, 0),
    "oblique": oblique(),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("extension", [".mha", ".nii", ".nii.gz"])
def test_loads_in_monai_identically(tmp_path: Path, extension: str, direction: str) -> None:
    files = write_case(tmp_path, extension=extension, direction=DIRECTIONS[direction])
    stacked = write_stacked(tmp_path, "x")["stacked"]
    for path in (*files.values(), stacked):
        ours, theirs = read_volume(path), LoadImage(image_only=True, dtype=None)(path)
        np.testing.assert_array_equal(ours.array, theirs.numpy())
        np.testing.assert_allclose(ours.affine, theirs.affine.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("extension", [".mha", ".nii.gz"])
def test_voxel_types_load_in_monai_identically(tmp_path: Path, extension: str, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 250, SHAPE).astype(kind)
    sitk.WriteImage(image(values), tmp_path / f"a{extension}")
    ours = read_volume(tmp_path / f"a{extension}").array
    np.testing.assert_array_equal(ours, values)
    np.testing.assert_array_equal(ours, LoadImage(image_only=True, dtype=None)(tmp_path / f"a{extension}").numpy())


def test_scaled_nifti_loads_in_monai_identically(tmp_path: Path) -> None:
    volume = nib.Nifti1Image(np.arange(504, dtype=np.int16).reshape(SHAPE), np.diag([1.0, 2, 3, 1]))
    volume.header.set_slope_inter(0.25, -3)
    nib.save(volume, tmp_path / "a.nii.gz")
    raw = (tmp_path / "a.nii.gz").read_bytes()
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope == 0.25, raw[:4]
    ours = read_volume(tmp_path / "a.nii.gz").array
    np.testing.assert_array_equal(ours, LoadImage(image_only=True, dtype=None)(tmp_path / "a.nii.gz").numpy())
    assert ours.ravel()[5] == 5 * 0.25 - 3


@pytest.mark.parametrize("shift_mm", [0.0, 1e-6, 1e-4, 0.05, 0.2])
def test_maps_on_one_grid_can_be_stacked(tmp_path: Path, shift_mm: float) -> None:
    """What the check lets pass is loaded, rounding in the headers included."""
    files = write_case(tmp_path)
    rewrite(files["zadc"], same, Origin=(-31.5 + shift_mm, 12.25, 8.0))
    report = report_of(files)
    if shift_mm > 0.1:
        assert "is on another grid" in report.problems[0].message
        return
    assert report.usable
    image = LoadMapsd("image")({"image": [files["adc"], files["zadc"]]})["image"]
    for channel, part in zip(image, ("adc", "zadc"), strict=True):
        np.testing.assert_array_equal(channel, read_volume(files[part]).array)
    np.testing.assert_allclose(image.affine, read_volume(files["adc"]).affine)


def test_huge_volumes_are_refused(tmp_path: Path) -> None:
    files = write_case(tmp_path)
    with pytest.raises(VolumeError, match="declares 1008 bytes of voxels, more than the limit of 1000"):
        read_volume(files["adc"], max_bytes=1000)


def test_unknown_kinds_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004")
    with pytest.raises(VolumeError, match=r"is not a \.mha, \.nii or \.nii\.gz file"):
        read_volume(tmp_path / "a.nrrd")
    with pytest.raises(FileNotFoundError):
        read_volume(tmp_path / "b.mha")


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_a_voxel_size_of_zero_beside_a_valid_position_is_refused(tmp_path: Path, extension: str) -> None:
    """Readers make 1 mm of it, and the mask would lie elsewhere than the map."""
    path = tmp_path / f"map{extension}"
    nifti = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    nib.save(nifti, path)
    data = bytearray(gzip.decompress(path.read_bytes()) if extension.endswith("gz") else path.read_bytes())
    assert struct.unpack_from("<3f", data, 80) == (2.0, 2.0, 3.0)
    struct.pack_into("<3f", data, 80, 0.0, 2.0, 3.0)
    path.write_bytes(gzip.compress(data) if extension.endswith("gz") else data)
    with pytest.raises(VolumeError, match=r"voxel size of 0 × 2 × 3 mm in its header"):
        read_volume(path)


def test_what_is_remembered_is_its_owners_alone(tmp_path: Path, cache: Path) -> None:
    write_case(tmp_path, "a")
    check_items(data.datalist(tmp_path, "train"))
    assert cache.stat().st_mode & 0o077 == 0
    assert "a-ADC_ss" in cache.read_text()
