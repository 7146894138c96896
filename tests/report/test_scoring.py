"""Masks of other tools: found by name, refused when unusable, measured like the reference tools do."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bonbid_cases import oblique, write_case
from conftest import BUNDLE, as_checked
from monai.bundle import ConfigWorkflow
from monai.metrics import compute_average_surface_distance, compute_dice, compute_surface_dice
from monai.transforms import Compose, EnsureChannelFirstd, Resized
from surface_distance import (
    compute_average_surface_distance as surfel_average_distance,
)
from surface_distance import (
    compute_dice_coefficient,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from scripts import data, report
from scripts.data.mask_files import find_masks
from scripts.geometry.spacing import spacing_of
from scripts.io.volumes import read_volume
from scripts.report import scoring
from scripts.report.case_evaluation import CaseEvaluation
from scripts.runtime.errors import UserError
from scripts.transforms.loading import LoadMapsd

CONFIGS = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "evaluate")]


def _blobs(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray, count: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"))
    extent = np.array(shape) * spacing
    mask = np.zeros(shape, bool)
    for _ in range(count):
        centre, radius = rng.uniform(0.25, 0.75, 3) * extent, rng.uniform(0.06, 0.2) * extent.min()
        mask |= (((grid - centre[:, None, None, None]) / radius) ** 2).sum(0) < rng.uniform(0.5, 2)
    return mask


def _rotation(rng: np.random.Generator, turned: bool) -> np.ndarray:
    q, _ = np.linalg.qr(np.eye(3) + (0.25 * rng.normal(size=(3, 3)) if turned else 0))
    return (q * np.sign(np.diag(q)))[:, rng.permutation(3)] * rng.choice([-1, 1], 3)


def _reference(truth_file: Path, pred_file: Path) -> dict[str, float]:
    """Both definitions from the files alone, straight from the tools that define them."""
    truth, pred = nib.load(truth_file), nib.load(pred_file)
    spacing = sitk.ReadImage(str(truth_file)).GetSpacing()  # as the challenge's evaluator reads it
    t, p = np.asarray(truth.dataobj) > 0, np.asarray(pred.dataobj) > 0
    if t.any() or p.any():
        distances = compute_surface_distances(t, p, spacing)
        values = {
            "dice": compute_dice_coefficient(t, p),
            "masd_mm": float(np.mean(surfel_average_distance(distances))),
            "nsd": compute_surface_dice_at_tolerance(distances, 2.0),
        }
    else:  # the challenge's convention
        values = {"dice": 1.0, "masd_mm": 0.0, "nsd": 1.0}
    a, b = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (p, t))
    steps = [float(s) for s in spacing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = [compute_average_surface_distance(*pair, True, spacing=steps) for pair in ((a, b), (b, a))]
        values["paper_msd_mm"] = float(sum(map(float, both)) / 2)
        values["paper_nsd"] = float(compute_surface_dice(a, b, [2.0], True, spacing=steps))
        if t.any() or p.any():
            assert float(compute_dice(a, b, ignore_empty=False)) == pytest.approx(values["dice"], abs=1e-6)
    return values


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0 in the reference, where a mask is empty
def test_scores_equal_the_reference_tools_on_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # which the reference needs where a mask is empty
    rng = np.random.default_rng(5)
    items, files = [], {}
    kinds = [(2, 2)] * 20 + [(1, 3)] * 8 + list(itertools.product((0, 1), repeat=2))[:3] * 2  # the last: empty ones
    for number, (true_blobs, predicted_blobs) in enumerate(kinds):
        shape = tuple(int(n) for n in rng.integers(12, 30, 3))
        spacing = rng.uniform(0.8, 2, 3) * np.array([1, 1, rng.uniform(1, 3)])
        affine = np.eye(4)
        affine[:3, :3] = _rotation(rng, turned=number % 3 > 0) * spacing
        affine[:3, 3] = rng.uniform(-80, 80, 3)
        truth = _blobs(rng, shape, spacing, true_blobs)
        pred = _blobs(rng, shape, spacing, predicted_blobs)
        if true_blobs and predicted_blobs and number % 2:
            pred |= np.roll(truth, 1, axis=number % 3)
        case, folder = f"case-{number:02d}", tmp_path / f"{number:02d}"
        folder.mkdir()
        paths = {part: folder / f"{part}.nii.gz" for part in ("adc", "zadc", "label")}
        for part, array in (
            ("adc", np.full(shape, 1200, np.int16)),
            ("zadc", rng.normal(size=shape).astype(np.float32)),
            ("label", truth.astype(np.uint8)),
        ):
            nib.save(nib.Nifti1Image(array, affine), paths[part])
        mask = tmp_path / "masks" / f"{case}_lesion.nii.gz"
        mask.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(pred.astype(np.uint8), affine), mask)
        items.append({"case": case, "image": [str(paths["adc"]), str(paths["zadc"])], "label": str(paths["label"])})
        files[case] = (paths["label"], mask)
    assert len(items) >= 30
    scoring.score(items, tmp_path / "masks", CaseEvaluation(str(tmp_path / "out"), overlays=False))
    rows = report.read_rows(tmp_path / "out" / "metrics.csv")
    assert [row["case"] for row in rows] == list(files)
    empty = {(row["lesion_ml"] == 0, row["predicted_ml"] == 0) for row in rows}
    assert len(empty) == 4
    for row in rows:
        expected = _reference(*files[row["case"]])
        measured = {name: row[f"native_{name}"] for name in expected}
        challenge, paper = (  # MONAI's are float32
            {name: (measured[name], expected[name]) for name in names}
            for names in (("dice", "masd_mm", "nsd"), ("paper_msd_mm", "paper_nsd"))
        )
        for ours, theirs in challenge.values():
            assert ours == pytest.approx(theirs, abs=1e-9, rel=0, nan_ok=True), row["case"]
        for ours, theirs in paper.values():
            assert ours == pytest.approx(theirs, abs=1e-6, rel=2e-7, nan_ok=True), row["case"]
        assert not any(name.startswith("resampled_") for name in row)


TIED = [(1.0, 1.0, 1.0), (1.2, 1.2, 1.6), (1.5, 1.5, 2.0), (2.0, 2.0, 2.0), (1.0, 1.0, 2.0), (1.2, 1.6, 2.4)]


def _write_tied(folder: Path, number: int) -> dict[str, Any]:
    """A case and its mask whose surfaces are often exactly 2 mm apart, permuted or oblique, as ``.mha`` or NIfTI."""
    rng = np.random.default_rng(number)
    shape, spacing = tuple(int(n) for n in rng.integers(8, 13, 3)), TIED[number % len(TIED)]
    truth = np.zeros(shape, np.uint8)
    low = rng.integers(1, 4, 3)
    truth[tuple(slice(start, start + 4) for start in low)] = 1
    pred = np.roll(truth, rng.integers(-2, 3, 3), axis=(0, 1, 2)) | (rng.random(shape) > 0.995)
    direction, origin = _rotation(rng, turned=number % 3 > 0), rng.uniform(-80, 80, 3)
    extension = (".mha", ".nii.gz")[number // len(TIED) % 2]
    maps = {"adc": np.full(shape, 1200, np.int16), "zadc": rng.normal(size=shape).astype(np.float32)}
    files = {}
    for part, array in {**maps, "label": truth, "mask": pred.astype(np.uint8)}.items():
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(spacing)
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(origin.tolist())
        files[part] = str(folder / f"tied-{number:03d}_{'lesion' if part == 'mask' else part}{extension}")
        if part == "mask":
            files[part] = str(folder / "masks" / Path(files[part]).name)
        sitk.WriteImage(image, files[part])
    return {"case": f"tied-{number:03d}", "image": [files["adc"], files["zadc"]], "label": files["label"]}


def test_surfaces_exactly_the_tolerance_apart_are_within_it_as_for_the_evaluator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The affine gives 2.0000000000000004 mm where the header says 2: a third of the figures were too low."""
    (tmp_path / "masks").mkdir()
    items = [_write_tied(tmp_path, number) for number in range(300)]
    evaluation = CaseEvaluation(str(tmp_path / "out"), overlays=False)
    monkeypatch.setattr(evaluation, "completed", lambda: None)
    scoring.score(items, tmp_path / "masks", evaluation)
    beyond = 0
    for item, row in zip(items, [case.row for case in evaluation.cases], strict=True):
        images = [sitk.ReadImage(str(file)) for file in (item["label"], next(tmp_path.glob(f"masks/{item['case']}_*")))]
        truth, pred = (sitk.GetArrayFromImage(image).T > 0 for image in images)
        distances = compute_surface_distances(truth, pred, images[0].GetSpacing())
        expected = float(np.mean(surfel_average_distance(distances)))
        assert row["native_nsd"] == pytest.approx(compute_surface_dice_at_tolerance(distances, 2.0), abs=1e-9, rel=0)
        assert row["native_masd_mm"] == pytest.approx(expected, abs=1e-9, rel=0)
        affine = read_volume(item["label"]).affine
        rounded = compute_surface_distances(truth, pred, np.linalg.norm(affine[:3, :3], axis=0))
        beyond += compute_surface_dice_at_tolerance(rounded, 2.0) != compute_surface_dice_at_tolerance(distances, 2.0)
    assert beyond > 30  # the data show the fault


def test_evaluation_takes_the_same_voxel_sizes_from_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    load = Compose([LoadMapsd(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    for number in range(24):
        item = _write_tied(tmp_path, number)
        as_checked(*item["image"])
        loaded = load({name: item[name] for name in ("image", "label")})
        stated = sitk.ReadImage(item["label"]).GetSpacing()
        assert spacing_of(loaded["label"]) == stated
        assert tuple(read_volume(item["label"]).spacing_mm) == stated
        halved = Resized("label", [4, 4, 4])(loaded)["label"]  # another grid than the header's
        sizes = np.array(loaded["label"].shape[1:]) / 4 * stated
        assert spacing_of(halved) == pytest.approx(sizes, rel=1e-6)


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """Three oblique cases and a folder with perfect masks of them."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for number in (1, 2, 10):
        files = write_case(tmp_path / "data", f"CASE_{number}", "Test", seed=number)
        shutil.copy(files["label"], masks / f"CASE_{number}_lesion.mha")
    return tmp_path / "data", masks, data.datalist(tmp_path / "data", "test")


def _score(cohort: tuple[Path, Path, list[dict[str, Any]]], out: Path) -> list[dict[str, Any]]:
    scoring.score(cohort[2], cohort[1], CaseEvaluation(str(out), overlays=False))
    return report.read_rows(out / "metrics.csv")


def test_names_that_are_understood(cohort: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    _, masks, _ = cohort
    for number, name in ((1, "sub/prediction-CASE_1.nii.gz"), (2, "CASE_2_seg.nii"), (10, "CASE_10.mha")):
        source = masks / f"CASE_{number}_lesion.mha"
        (masks / name).parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.ReadImage(str(source)), str(masks / name))
        source.unlink()
    (masks / "notes.txt").write_text("CASE_1")
    assert [row["native_dice"] for row in _score(cohort, tmp_path / "out")] == [1.0] * 3


def test_the_longest_id_in_a_name_counts(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a-b.nii.gz", "xa.nii.gz", "a1.nii.gz", "b_lesion.nii.gz", "my b.nii.gz"):
        (tmp_path / name).touch()
    found = find_masks(tmp_path, ["a", "a-b", "b", "c"])
    names = {case: [path.name for path in paths] for case, paths in found.items()}
    assert names == {"a": ["a.nii.gz"], "a-b": ["a-b.nii.gz"], "b": ["b_lesion.nii.gz"], "c": []}


def test_every_unusable_mask_is_named(cohort: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, masks, _ = cohort
    for number in (3, 4, 5, 6, 7):
        files = write_case(folder, f"CASE_{number}", "Test", seed=number)
        shutil.copy(files["label"], masks / f"CASE_{number}_lesion.mha")
    items = data.datalist(folder, "test")
    (masks / "CASE_1_lesion.mha").unlink()
    image = sitk.ReadImage(str(masks / "CASE_2_lesion.mha"))
    sitk.WriteImage(image[1:], str(masks / "CASE_2_lesion.mha"))
    image.SetDirection(oblique(21))
    sitk.WriteImage(image, str(masks / "CASE_3_lesion.mha"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) * 0.7, str(masks / "CASE_4_lesion.mha"))
    label = sitk.ReadImage(str(masks / "CASE_10_lesion.mha"))
    sitk.WriteImage(label * 255, str(masks / "CASE_5_lesion.mha"))
    shutil.copy(masks / "CASE_6_lesion.mha", masks / "CASE_6.mha")  # the exact name goes before this one
    content = (masks / "CASE_7_lesion.mha").read_bytes()
    (masks / "CASE_7_lesion.mha").write_bytes(content[:-20])
    with pytest.raises(UserError) as caught:
        scoring.score(items, masks, CaseEvaluation(str(tmp_path / "out")))
    message = str(caught.value)
    lines = {line.split(":")[0].strip(): line for line in message.splitlines()[1:]}
    assert sorted(lines) == ["CASE_1", "CASE_2", "CASE_3", "CASE_4", "CASE_5", "CASE_7"]
    assert message.startswith("6 of 8 masks in")
    for case, words in {
        "CASE_1": "there is no CASE_1_lesion.nii.gz",
        "CASE_2": "8 × 8 × 7 voxels, not 9 × 8 × 7",
        "CASE_3": "on another grid than the label: directions",
        "CASE_4": "on another grid",
        "CASE_5": "is not binary: its values are 0, 255",
        "CASE_7": "CASE_7_lesion.mha",
    }.items():
        assert words in lines[case]
    assert not (tmp_path / "out").exists()


def test_a_soft_mask_or_one_with_holes_is_not_binary(
    cohort: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    path = cohort[1] / "CASE_1_lesion.mha"
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    for wrong, words in ((0.7, "0, 0.7"), (math.nan, "0, nan")):
        sitk.WriteImage(image * wrong if wrong == wrong else _with_nan(image), str(path))
        with pytest.raises(UserError, match=f"not binary: its values are {words}"):
            scoring.score(cohort[2], cohort[1], CaseEvaluation(str(tmp_path / "out")))


def _with_nan(image: sitk.Image) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    array[array > 0] = np.nan
    result = sitk.GetImageFromArray(array)
    result.CopyInformation(image)
    return result


def test_two_files_of_one_case_are_not_guessed_between(
    cohort: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    masks = cohort[1]
    (masks / "CASE_2_lesion.mha").rename(masks / "CASE_2_a.mha")
    shutil.copy(masks / "CASE_2_a.mha", masks / "CASE_2_b.mha")
    with pytest.raises(UserError, match=r"CASE_2: several files match: .*CASE_2_a\.mha, .*CASE_2_b\.mha"):
        scoring.score(cohort[2], masks, CaseEvaluation(str(tmp_path / "out")))


def test_a_grid_within_the_tolerance_is_taken(cohort: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    path = cohort[1] / "CASE_1_lesion.mha"
    image = sitk.ReadImage(str(path))
    image.SetOrigin([value + 0.04 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(path))
    assert _score(cohort, tmp_path / "out")[0]["native_dice"] == 1.0
    with pytest.raises(UserError, match=r"CASE_1: .* is on another grid"):
        scoring.score(cohort[2], cohort[1], CaseEvaluation(str(tmp_path / "no")), data.Limits(grid_tolerance_mm=0.01))


@pytest.mark.parametrize("folder", [None, "absent"])
def test_no_folder_is_one_message(folder: str | None, cohort: tuple[Path, Path, list], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--predictions_dir DIR" if folder is None else "There is no folder .*absent"):
        scoring.score(cohort[2], folder and tmp_path / folder, CaseEvaluation(str(tmp_path / "out")))


def _run(run_id: str, **options: Any) -> None:
    tiny = {"spatial_size": [24, 24, 16], "features": [2, 4, 6, 8], "num_workers": 0, "split": "test"}
    workflow = ConfigWorkflow(CONFIGS, run_id=run_id, **tiny, **options)
    workflow.initialize()
    workflow.run()


def test_scoring_the_written_masks_gives_what_evaluating_measured(tiny_cohort: Path, tmp_path: Path) -> None:
    from scripts.networks import HIEUNet

    torch.manual_seed(0)
    network = HIEUNet(in_channels=2, out_channels=1, features=[2, 4, 6, 8])
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")
    evaluated, scored = tmp_path / "evaluated", tmp_path / "scored"
    _run(
        "evaluating", dataset_dir=str(tiny_cohort), output_dir=str(evaluated), ckpt_path=str(tmp_path / "model.pt"),
        threshold=0.02,
    )  # fmt: skip
    # neither a network nor weights can be had here
    _run(
        "scoring", dataset_dir=str(tiny_cohort), output_dir=str(scored), predictions_dir=str(evaluated / "masks"),
        network_def="$1 / 0", ckpt_path=str(tmp_path / "absent.pt"),
    )  # fmt: skip
    first, second = (report.read_rows(folder / "metrics.csv") for folder in (evaluated, scored))
    assert any(row["predicted_ml"] > 0 for row in first)
    for a, b in zip(first, second, strict=True):
        assert b.pop("case") == a.pop("case")
        assert b.pop("size_class") == a.pop("size_class")
        assert b.pop("site") == a.pop("site")
        assert b == pytest.approx({name: a[name] for name in b}, rel=1e-5, nan_ok=True)
        of_probabilities = {"native_brier", "native_ece"}
        resampled = {name for name in a if name.startswith("resampled_")}
        assert {name for name in a if name not in b} == resampled | of_probabilities
    for folder, log in ((evaluated, "evaluating.log"), (scored, "scoring.log")):
        assert {path.name for path in folder.iterdir()} - {"masks", "thresholds.json", "baselines.json"} == {
            "metrics.csv", "metrics.json", "lesions.csv", "comparison.txt", "report.html", "overlays", "run.json", log,
        }  # fmt: skip
    assert json.loads((evaluated / "metrics.json").read_text())["info"]["checkpoints"][0]["path"].endswith("model.pt")
    assert "../evaluated/masks" in (scored / "report.html").read_text()
    with (evaluated / "metrics.csv").open() as stream:
        cases = [row["case"] for row in csv.DictReader(stream)]
    # the threshold that these cases would have chosen, and what it gives where it is taken to
    kept = json.loads((evaluated / "thresholds.json").read_text())
    assert kept["mean_dice_at"]["0.02"] == pytest.approx(np.mean([row["native_dice"] for row in first]), abs=1e-6)
    _run(
        "evaluating", dataset_dir=str(tiny_cohort), output_dir=str(tmp_path / "at_it"),
        ckpt_path=str(tmp_path / "model.pt"), threshold_from=str(evaluated / "thresholds.json"),
    )  # fmt: skip
    chosen = [row["native_dice_chosen"] for row in report.read_rows(tmp_path / "at_it" / "metrics.csv")]
    assert np.mean(chosen) == pytest.approx(max(kept["mean_dice_at"].values()), abs=1e-6)
    for case in cases:  # the masks lie on the label's grid
        mask = sitk.ReadImage(str(evaluated / "masks" / f"{case}_lesion.nii.gz"))
        label = sitk.ReadImage(str(tiny_cohort / "BONBID2023_Test" / "3LABEL" / f"{case}_lesion.mha"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert mask.GetSize() == label.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, get)() == pytest.approx(getattr(label, get)(), abs=1e-4)
