"""Segmentation from Python: every kind of image, one code path with the workflow, bad input named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from bonbid_cases import image, oblique
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

import hie_bundle
from hie_bundle import Segmenter, UserError, segment
from scripts.io.weights import save_weights
from scripts.runtime.mixins import RECIPES
from scripts.runtime.recipe import recipe_of

CONFIGS = BUNDLE / "configs"
TINY: dict[str, Any] = {"spatial_size": [24, 24, 16], "features": [2, 4, 6, 8], "device": "cpu"}
ADC_ALONE = str(Path(__file__).parents[1] / "recipes" / "adc_alone.yaml")


def write_weights(path: Path, recipe: list[str], seed: int = 0, **options: Any) -> Path:
    """Untrained weights that say which recipe they are of; lesion and background are about equally likely."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "inference.yaml"), *recipe])
    parser.update({**TINY, **options, "prior": 0.5})
    torch.manual_seed(seed)
    save_weights(parser.get_parsed_content("network_def"), path, recipe_of(parser), {})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "model.pt", [ADC_ALONE])


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> Segmenter:
    return Segmenter(weights, recipe=[ADC_ALONE], **TINY)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An ellipsoid of 230 ml, oblique, stored from left to right."""
    folder = tmp_path_factory.mktemp("maps")
    shape = (40, 48, 14)
    grid = np.stack(np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in shape), indexing="ij"))
    brain = (grid**2).sum(0) < 1
    rng = np.random.default_rng(0)
    adc = np.where(brain, rng.normal(1300, 250, shape).clip(300, 3000), 0).astype(np.int16)
    zadc = np.where(brain, (adc - 1300) / 150 + rng.normal(0, 1, shape), 0).clip(-10, 10).astype(np.float32)
    arrays = {"adc": adc, "zadc": zadc}
    paths = {}
    for name, array in arrays.items():
        paths[name] = folder / f"{name}.nii.gz"
        written = image(array, (2.1, 1.9, 4.7), direction=oblique())
        SimpleITK.WriteImage(written, paths[name])
        SimpleITK.WriteImage(written, folder / f"{name}.mha")
    return paths


def _as_kind(kind: str, path: Path) -> tuple[Any, dict[str, Any]]:
    stored = nibabel.load(path)
    array, affine = np.asarray(stored.dataobj), stored.affine
    if kind == "itk":
        return itk.imread(str(path.with_suffix("").with_suffix(".mha"))), {}
    return {
        "path": lambda: (str(path), {}),
        "mha": lambda: (path.with_suffix("").with_suffix(".mha"), {}),
        "nibabel": lambda: (stored, {}),
        "SimpleITK": lambda: (SimpleITK.ReadImage(str(path)), {}),
        "MetaTensor": lambda: (MetaTensor(torch.from_numpy(array.copy()), affine=torch.as_tensor(affine)), {}),
        "MetaTensor 1": lambda: (MetaTensor(torch.from_numpy(array.copy())[None], affine=torch.as_tensor(affine)), {}),
        "tensor": lambda: (torch.from_numpy(array.copy()), {"affine": affine}),
        "array": lambda: (array, {"affine": affine}),
    }[kind]()


def _array(mask: Any) -> np.ndarray:
    if isinstance(mask, nibabel.Nifti1Image):
        return np.asarray(mask.dataobj)
    if isinstance(mask, SimpleITK.Image):
        return SimpleITK.GetArrayFromImage(mask).T
    if isinstance(mask, torch.Tensor):
        return mask.numpy().squeeze()
    return mask if isinstance(mask, np.ndarray) else itk.array_from_image(mask).T


KINDS = ["path", "mha", "nibabel", "SimpleITK", "itk", "MetaTensor", "MetaTensor 1", "tensor", "array"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_image_gives_the_same_mask_as_its_own_kind(
    kind: str, segmenter: Segmenter, files: dict[str, Path]
) -> None:
    expected = segmenter.result(files["adc"], files["zadc"])
    assert 0.05 < expected.mask[expected.mask.shape[0] // 2].mean() < 0.95
    (adc, where), (zadc, _) = (_as_kind(kind, path) for path in files.values())
    mask = segmenter(adc, zadc, **where)
    if kind in ("path", "mha"):
        assert isinstance(mask, nibabel.Nifti1Image)
        np.testing.assert_allclose(mask.affine, nibabel.load(files["adc"]).affine, atol=1e-4)
    elif kind == "itk":  # the kind of voxel is part of the class's name
        assert type(mask).__name__ == "itkImageUC3"
    else:
        assert type(mask) is type(adc)
    array = _array(mask)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, expected.mask)
    if kind in ("SimpleITK", "itk"):
        for get in ("GetSpacing", "GetOrigin"):
            assert tuple(getattr(mask, get)()) == tuple(getattr(adc, get)())
        assert np.array_equal(*(np.array(one.GetDirection()).ravel() for one in (mask, adc)))
    if kind == "nibabel":
        np.testing.assert_array_equal(mask.affine, adc.affine)
        assert mask.get_data_dtype() == np.uint8
    if isinstance(adc, torch.Tensor):
        assert mask.shape == adc.shape
    if isinstance(adc, MetaTensor):
        assert torch.equal(mask.affine, adc.affine)


def test_figures_are_those_of_the_mask(segmenter: Segmenter, files: dict[str, Path]) -> None:
    from scipy.ndimage import label

    found = segmenter.result(files["adc"], files["zadc"])
    voxel_ml = 2.1 * 1.9 * 4.7 / 1000
    adc = np.asarray(nibabel.load(files["adc"]).dataobj)
    assert found.lesion_ml == pytest.approx(found.mask.sum() * voxel_ml, rel=1e-5)
    assert found.brain_ml == pytest.approx((adc > 0).sum() * voxel_ml, rel=1e-5)
    assert found.lesion_fraction == pytest.approx(found.mask.sum() / (adc > 0).sum(), rel=1e-5)
    assert found.lesions == label(found.mask, np.ones((3, 3, 3)))[1]
    np.testing.assert_array_equal(found.mask, found.probability >= 0.5)
    np.testing.assert_allclose(voxel_sizes(found.affine), (2.1, 1.9, 4.7), rtol=1e-5)
    probability = segmenter.probability(nibabel.load(files["adc"]), nibabel.load(files["zadc"]))
    np.testing.assert_array_equal(np.asarray(probability.dataobj), found.probability)


def test_the_smallest_lesion_is_a_volume_on_the_files_grid(weights: Path, files: dict[str, Path]) -> None:
    from scipy.ndimage import label, sum_labels

    every = Segmenter(weights, recipe=[ADC_ALONE], **TINY).result(files["adc"], files["zadc"])
    threshold = float(np.quantile(every.probability, 0.97))
    segmenter = Segmenter(weights, recipe=[ADC_ALONE], smallest_lesion_mm3=200.0, threshold=threshold, **TINY)
    found = segmenter.result(files["adc"], files["zadc"])
    labels, number = label(found.probability > segmenter.threshold, np.ones((3, 3, 3)))
    volumes = sum_labels(labels > 0, labels, np.arange(1, number + 1)) * 2.1 * 1.9 * 4.7
    large = np.flatnonzero(volumes >= 200) + 1
    assert 0 < len(large) < number
    np.testing.assert_array_equal(found.mask > 0, np.isin(labels, large))
    assert segmenter.making["smallest_lesion_mm3"] == 200


def test_masks_are_those_of_the_workflow(tiny_cohort: Path, tmp_path: Path) -> None:
    """An ensemble of two, mirrored: every layer is in the way."""
    checkpoints = [str(write_weights(tmp_path / f"{seed}.pt", [], seed)) for seed in (0, 1)]
    options = {**TINY, "flips": [0], "ckpt_path": checkpoints}
    workflow = ConfigWorkflow(str(CONFIGS / "inference.yaml"), workflow_type="infer", logging_file=False, split="test",
                              dataset_dir=str(tiny_cohort), output_dir=str(tmp_path / "out"), **options)  # fmt: skip
    workflow.initialize()
    workflow.run()
    segmenter = Segmenter(checkpoints, recipe="paper", flips=[0], **TINY)
    folder = tiny_cohort / "BONBID2023_Test"
    maps = [sorted((folder / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC")]
    assert len(maps[0]) == 3
    for adc, zadc in zip(*maps, strict=True):
        ours = segmenter(adc, zadc, output=tmp_path / "ours" / "mask.nii.gz")
        case = adc.name.replace("-ADC_ss.mha", "")
        one, other = (nibabel.load(path) for path in (ours, tmp_path / "out" / f"{case}_lesion.nii.gz"))
        assert 0 < np.asarray(one.dataobj).mean() < 1
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


def test_adc_alone_is_said(segmenter: Segmenter, weights: Path, files: dict[str, Path], tmp_path: Path) -> None:
    alone = segmenter.result(files["adc"])
    assert alone.mask.any()
    assert alone.notes[0].startswith("no ZADC map: segmented by ADC alone")
    np.testing.assert_array_equal(alone.mask, segmenter.result(nibabel.load(files["adc"])).mask)
    strict = Segmenter(write_weights(tmp_path / "paper.pt", []), recipe="paper", **TINY)
    with pytest.raises(UserError, match=r"1 channel.*does not accept an ADC map alone"):
        strict(files["adc"])


def test_bad_input_is_named_and_not_segmented(segmenter: Segmenter, files: dict[str, Path]) -> None:
    adc, zadc = (nibabel.load(path) for path in files.values())
    arrays = [np.asarray(one.dataobj, np.float32) for one in (adc, zadc)]

    def changed(array: np.ndarray, affine: np.ndarray = adc.affine) -> nibabel.Nifti1Image:
        return nibabel.Nifti1Image(array.astype(np.float32), affine)

    big = adc.affine @ np.diag([1.8, 1.8, 1.8, 1])
    for maps, message in [
        ((changed(arrays[0] / 1e6), zadc), r"the ADC map is not an ADC map in 1e-6 mm²/s.*multiply it by 1e\+06"),
        ((zadc, adc), "the ADC map and the ZADC map are swapped"),
        ((changed(arrays[0], big), changed(arrays[1], big)), "not a newborn's brain: 1[0-9]{3} ml"),
        ((adc, changed(arrays[1], big)), "the ZADC map is on another grid than the ADC map"),
        ((changed(arrays[0] * 3), zadc), "is not an ADC map in 1e-6 mm²/s"),
        ((changed(np.where(arrays[0] > 0, np.nan, 0)), zadc), "NaN or infinite"),
    ]:
        with pytest.raises(UserError, match=message):
            segmenter(*maps)
    with pytest.raises(UserError, match="does not state the position of its voxels"):
        segmenter(arrays[0], arrays[1])
    with pytest.raises(UserError, match="has its own position; omit `affine`"):
        segmenter(adc, zadc, affine=np.eye(4))
    with pytest.raises(UserError, match="list is not an image"):
        segmenter([1], [2])
    with pytest.raises(UserError, match="`output` needs maps given as files"):
        segmenter(adc, zadc, output="x.nii.gz")
    with pytest.raises(UserError, match="extension of a volume must be one of"):
        segmenter(files["adc"], files["zadc"], output="x.png")
    with pytest.raises(UserError, match="is missing"):
        segmenter("absent.nii.gz", files["zadc"])


def test_weights_choose_their_recipe(tmp_path: Path, files: dict[str, Path]) -> None:
    paper = write_weights(tmp_path / "paper.pt", [], spatial_size=[192, 192, 32], features=[32, 64, 128, 256])
    assert Segmenter(paper, device="cpu").limits.brain_ml_range == [100, 800]
    with pytest.raises(UserError, match="trained with another recipe") as caught:
        Segmenter(paper, recipe="strong_cpu", device="cpu")
    assert "features: [32, 64, 128, 256] in the training, [16, 32, 64, 128] here" in str(caught.value)
    with pytest.raises(UserError, match="There is no recipe 'mighty'; choose one of paper, strong"):
        Segmenter(paper, recipe="mighty")
    with pytest.raises(UserError, match="There is no checkpoint at"):
        segment(files["adc"], files["zadc"], weights=tmp_path / "absent.pt")
    assert {"paper", "strong", "strong_cpu"} == set(RECIPES)


def test_a_process_of_somebody_else_stays_as_it_was(weights: Path, files: dict[str, Path], tmp_path: Path) -> None:
    program = f"""
import sys
hook, path = sys.excepthook, list(sys.path)
import hie_bundle
assert "torch" not in sys.modules
mask = hie_bundle.segment({str(files["adc"])!r}, {str(files["zadc"])!r}, weights={str(weights)!r},
                          recipe=[{ADC_ALONE!r}], **{TINY!r})
assert sys.excepthook is hook and sys.path == path
print(int(mask.get_fdata().sum()))
"""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for code, works in ((program, True), ("import scripts" + program, False)):
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                                check=False, cwd=tmp_path)  # fmt: skip
        if works:
            assert result.returncode == 0, result.stderr
            assert result.stdout.split() == [str(int(Segmenter(weights, recipe=[ADC_ALONE], **TINY).result(
                *files.values()).mask.sum()))]  # fmt: skip
            assert not re.search("warning", result.stderr, re.I)
        else:
            assert "Another package called 'scripts'" in result.stderr
    assert hie_bundle.Segmenter is Segmenter


@pytest.mark.skipif(not (BUNDLE / "models" / "simulated" / "model.pt").is_file(), reason="no weights are shipped yet")
def test_the_shipped_weights_find_the_lesions_of_a_simulated_case(tiny_cohort: Path) -> None:
    segmenter = Segmenter(device="cpu")
    folder = tiny_cohort / "BONBID2023_Val"
    maps = [sorted((folder / name).iterdir()) for name in ("1ADC_ss", "2Z_ADC", "3LABEL")]
    for adc, zadc, label in zip(*maps, strict=True):
        found, truth = segmenter.result(adc, zadc).mask, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(label))).T
        assert 2 * (found * truth).sum() / (found.sum() + truth.sum()) > 0.4


@pytest.mark.slow  # a minute
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = json.loads((BUNDLE / "docs" / "segment.ipynb").read_text())
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(r"[\d.]+ ml in \d+ parts", result.stdout)
    assert nibabel.load(tmp_path / "lesion.nii.gz").get_fdata().any()
    (dice,) = re.findall(r"Dice ([\d.]+)", result.stdout)
    assert float(dice) > 0.5
