"""A promptable model in the network's place: by a stand-in whose masks are known, and by ``sam2`` with random weights.

The package ``sam2`` has an environment of its own (integrations/medsam2/README.md); these tests run there, too:

    python -m pytest tests/medsam2
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bonbid_cases import write_case
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from prompted import NO_LESION, BoxPrompted, Prompt, prompts, sam2_predictor, write_slices
from prompted_cases import FillsItsBox, filled

from hie_bundle import Segmenter
from scripts.runtime.errors import UserError, user_error

CONFIGS = BUNDLE / "configs"
MEDSAM2 = ROOT / "integrations" / "medsam2" / "medsam2.yaml"
STAND_IN = {"network_def#predictor#_target_": "prompted_cases.FillsItsBox"}


def _run(names: list[str], predictor: torch.nn.Module, folder: Path, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "weights.pt"
    torch.save({"model": predictor.state_dict()}, path)
    workflow = ConfigWorkflow(
        [*(str(CONFIGS / f"{name}.yaml") for name in names), str(MEDSAM2)], workflow_type="infer", logging_file=False,
        device="cpu", num_workers=0, ckpt_path=str(path), output_dir=str(folder / "out"), **options,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    return folder / "out"


def _arrays(*files: Path) -> list[np.ndarray]:
    """On the network's axes, X, Y, Z along L, P, S: of equally large slices of a region the first is prompted."""
    return [sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "LPS")).T for file in files]


# --- prompts ------------------------------------------------------------------------------------------------------


def test_a_region_is_asked_for_where_it_is_largest() -> None:
    mask = np.zeros((12, 10, 6), bool)
    mask[3:5, 2:9, 1] = True
    mask[2:5, 2:9, 2] = True  # the largest slice
    mask[4, 8, 3:5] = True
    mask[11, 0, 5] = True  # alone, at the border
    assert prompts(mask) == [Prompt((2, 2, 4, 8), key=2, first=1, last=4), Prompt((11, 0, 11, 0), 5, 5, 5)]
    assert prompts(mask, margin=2)[1] == Prompt((9, 0, 11, 2), 5, 5, 5)
    assert prompts(np.zeros((3, 3, 3), bool)) == []


@torch.no_grad()
def test_the_model_sees_adc_upright_in_grey() -> None:
    adc = np.random.default_rng(0).uniform(100, 3000, (7, 5, 3)).astype(np.float32)
    zadc = np.zeros_like(adc)
    zadc[2, 1, 1] = -3
    predictor = FillsItsBox()
    logits = BoxPrompted(predictor, window=(500, 2500)).eval()(MetaTensor(np.stack([adc, zadc])[None]))
    (state,) = predictor.seen
    expected = ((adc.clip(500, 2500) - 500) / 2000 * 255).transpose(2, 1, 0)  # slice, row, column
    assert np.abs(np.stack(state["frames"])[..., 0] - expected).max() < 3
    assert logits.shape == (1, 1, 7, 5, 3)
    assert np.argwhere(logits[0, 0] > 0).T.tolist() == [[2, 1, 1]]


def test_it_is_not_trained() -> None:
    with pytest.raises(UserError, match="not trained"):
        BoxPrompted(FillsItsBox())(MetaTensor(torch.zeros(1, 2, 4, 4, 4)))


# --- the whole way, with the stand-in -----------------------------------------------------------------------------


def test_evaluation_measures_what_fills_its_boxes(tiny_cohort: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(tiny_cohort), "split": "test", "prompt_smallest_mm3": 700, "prompt_margin": 1}
    out = _run(["train", "evaluate"], FillsItsBox(), tmp_path, **options, **STAND_IN)
    rows = {row["case"]: row for row in csv.DictReader((out / "metrics.csv").open())}
    assert len(rows) == 3
    folder = tiny_cohort / "BONBID2023_Test"
    for case, row in rows.items():
        files = [next(folder.rglob(f"{prefix}{case}{end}*")) for prefix, end in
                 (("", "-ADC_ss"), ("Zmap_", ""), ("", "_lesion"))]  # fmt: skip
        adc, zadc, truth = _arrays(*files)
        voxel_mm3 = np.prod(sitk.ReadImage(str(files[0])).GetSpacing())
        expected = filled((adc > 0) & (zadc < -2), 700 / voxel_mm3, 1)
        (mask,) = _arrays(next((out / "masks").glob(f"{case}_lesion*")))
        np.testing.assert_array_equal(mask > 0, expected)
        dice = 2 * np.sum(expected & (truth > 0)) / max(np.sum(expected) + np.sum(truth > 0), 1)
        assert float(row["native_dice"]) == pytest.approx(dice if expected.any() or truth.any() else 1)
    assert any(float(row["predicted_ml"]) > 0 for row in rows.values())
    assert (out / "report.html").exists()


def test_masks_of_oblique_and_flipped_files_lie_where_the_boxes_are(tmp_path: Path) -> None:
    files = write_case(tmp_path / "data", split=None)
    adc, zadc = _arrays(files["adc"], files["zadc"])
    out = _run(["inference"], FillsItsBox(), tmp_path, dataset_dir=str(tmp_path / "data"), prompt_margin=0,
               prompt_smallest_mm3=0, prompt_below=-5, **STAND_IN)  # fmt: skip
    (file,) = out.glob("*_lesion.nii.gz")
    expected = filled((adc > 0) & (zadc < -5), 0, 0)
    assert 0 < expected.sum() < (adc > 0).sum()
    np.testing.assert_array_equal(_arrays(file)[0] > 0, expected)


def test_a_training_is_refused(tiny_cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # what MONAI wraps around it
        _run(["train"], FillsItsBox(), tmp_path, dataset_dir=str(tiny_cohort), **STAND_IN)
    assert "not trained" in str(user_error(caught.value))


# --- the package --------------------------------------------------------------------------------------------------

# a SAM 2.1 of 1.4 million parameters, by the names in the package's config
SMALL = [
    "++model.image_size=128",
    "++model.image_encoder.trunk.embed_dim=16",
    "++model.image_encoder.trunk.stages=[1,1,2,1]",
    "++model.image_encoder.trunk.global_att_blocks=[3]",
    "++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    "++model.memory_attention.num_layers=1",
]


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    pytest.importorskip("sam2", reason="the package sam2 is not installed: integrations/medsam2/README.md")
    torch.manual_seed(0)
    predictor: Any = sam2_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", SMALL)
    torch.nn.init.constant_(predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias, 9)  # always an object
    return predictor


def test_sam2_evaluates_and_segments_alike(small: torch.nn.Module, tiny_cohort: Path, tmp_path: Path) -> None:
    options = {"dataset_dir": str(tiny_cohort), "split": "val", "sam2_overrides": SMALL, "prompt_smallest_mm3": 3000}
    evaluated = _run(["train", "evaluate"], small, tmp_path / "a", **options)
    inferred = _run(["inference"], small, tmp_path / "b", **options)
    files = sorted((evaluated / "masks").glob("*_lesion.nii.gz"))
    assert len(files) == 2
    masks = [_arrays(file, inferred / file.name) for file in files]
    assert any(mask.any() for mask, _ in masks)
    for file, (one, other) in zip(files, masks, strict=True):
        np.testing.assert_array_equal(one, other)
        like = next((tiny_cohort / "BONBID2023_Val").rglob(f"{file.name.removesuffix('_lesion.nii.gz')}-ADC_ss*"))
        assert one.shape == _arrays(like)[0].shape
    assert (evaluated / "report.html").exists()


def test_sam2_is_asked_in_its_own_terms(small: torch.nn.Module, tmp_path: Path) -> None:
    """Slices that are no squares, so that rows and columns cannot be mistaken for each other."""
    adc = np.random.default_rng(1).uniform(600, 1800, (40, 28, 5)).astype(np.float32)
    zadc = np.zeros_like(adc)
    zadc[20:31, 5:10, 1:4] = -3
    network = BoxPrompted(small).eval()
    with torch.no_grad():
        logits = network(MetaTensor(np.stack([adc, zadc])[None]))[0, 0]
    assert torch.isfinite(logits).all()
    assert (logits[..., [0, 4]] == logits.min()).all()  # not asked for
    from sam2.utils.misc import load_video_frames

    write_slices(adc, (0, 2500), tmp_path)
    _, rows, columns = load_video_frames(str(tmp_path), 128, True, compute_device=torch.device("cpu"))
    assert (columns, rows) == (40, 28)
    state = small.init_state(str(tmp_path))
    _, _, alone = small.add_new_points_or_box(state, 1, obj_id=7, box=[20, 5, 30, 9])
    assert alone.shape == (1, 1, 28, 40)
    torch.testing.assert_close(logits[..., 1], alone[0, 0].T.clone())
    assert 0 < (logits > 0).sum() < (logits > NO_LESION).sum()


def test_weights_of_the_package_load_into_a_segmenter(
    small: torch.nn.Module, tiny_cohort: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": small.state_dict()}, path)
    segmenter = Segmenter(path, recipe=[MEDSAM2], sam2_overrides=SMALL, device="cpu", **{"limits#brain_ml_range": None})
    adc = next((tiny_cohort / "BONBID2023_Test").rglob("*-ADC_ss*"))
    zadc = next((tiny_cohort / "BONBID2023_Test").rglob(f"Zmap_{adc.name.split('-ADC_ss')[0]}*"))
    assert segmenter(str(adc), str(zadc)).shape == _arrays(adc)[0].shape


def test_without_the_package_the_message_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(UserError, match=r"needs the package sam2.*integrations/medsam2/README\.md"):
        sam2_predictor("configs/sam2.1/sam2.1_hiera_t.yaml")
