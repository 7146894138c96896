"""Both definitions of each metric: equal to direct use of the reference tools, closed forms, empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from surface_distance import (
    compute_average_surface_distance as surfel_average,
)
from surface_distance import (
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from scripts.evaluation import metrics


def _blobs(seed: int, shape: tuple[int, int, int] = (28, 24, 14)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=shape), 2)
    other = noise + 0.5 * gaussian_filter(rng.normal(size=shape), 2)
    return noise > np.quantile(noise, 0.93), other > np.quantile(other, 0.95)


# voxel sizes with which distances of exactly 2 mm occur, and are not exact in binary
SPACINGS = [(0.4, 0.4, 1.2), (1.2, 1.6, 2.0), (1.0, 1.0, 1.0), (0.5, 2.0, 4.0)]


@pytest.mark.parametrize("seed", range(40))
def test_equal_to_direct_use_of_the_reference_tools(seed: int) -> None:
    pred, truth = _blobs(seed)
    random = tuple(float(s) for s in np.random.default_rng(seed).uniform(0.8, 4, 3))
    spacing = SPACINGS[seed % 4] if seed < 16 else random
    ours = metrics.case_metrics(pred, truth, spacing, tolerance_mm=2.0)
    distances = compute_surface_distances(truth, pred, spacing)
    common = (pred & truth).sum()
    assert ours["dice"] == pytest.approx(2 * common / (pred.sum() + truth.sum()), abs=1e-12)
    assert ours["precision"] == pytest.approx(common / pred.sum())
    assert ours["sensitivity"] == pytest.approx(common / truth.sum())
    assert ours["masd_mm"] == pytest.approx(sum(surfel_average(distances)) / 2, rel=1e-9)
    assert ours["nsd"] == pytest.approx(compute_surface_dice_at_tolerance(distances, 2.0), rel=1e-9)
    assert ours["hd95_mm"] == pytest.approx(compute_robust_hausdorff(distances, 95), rel=1e-9)
    p, t = (torch.from_numpy(m)[None, None] for m in (pred, truth))
    there, back = (
        float(compute_average_surface_distance(a, b, include_background=True, spacing=list(spacing)))
        for a, b in ((p, t), (t, p))
    )
    assert ours["paper_msd_mm"] == pytest.approx((there + back) / 2, rel=1e-6)
    nsd = float(compute_surface_dice(p, t, [2.0], include_background=True, spacing=list(spacing)))
    assert ours["paper_nsd"] == pytest.approx(nsd, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_in_voxels_as_monai_without_voxel_sizes(seed: int) -> None:
    pred, truth = _blobs(seed)
    ours = metrics.case_metrics(pred, truth, (1.2, 1.2, 4.0), tolerance_mm=2.0, grid="resampled")
    p, t = (torch.from_numpy(m)[None, None] for m in (pred, truth))

    def distance(a: torch.Tensor, b: torch.Tensor, **options: bool) -> float:
        return float(compute_average_surface_distance(a, b, include_background=True, **options))

    assert ours["paper_msd_directed_voxels"] == pytest.approx(distance(p, t), rel=1e-6)
    assert ours["paper_msd_pooled_voxels"] == pytest.approx(distance(p, t, symmetric=True), rel=1e-6)
    assert ours["paper_msd_voxels"] == pytest.approx((distance(p, t) + distance(t, p)) / 2, rel=1e-6)
    assert ours["paper_msd_voxels"] != pytest.approx(ours["paper_msd_mm"], rel=0.05)
    nsd = float(compute_surface_dice(p, t, [2.0], include_background=True))
    assert ours["paper_nsd_voxels"] == pytest.approx(nsd, rel=1e-6)
    assert not any("voxels" in name for name in metrics.case_metrics(pred, truth, (1, 1, 1), grid="native"))


@pytest.mark.parametrize("where", [np.s_[:6, :5, :4], np.s_[20:, 18:, 10:], np.s_[:, :, 7:8], np.s_[:, :, :]])
def test_masks_at_the_border_of_the_volume(where: tuple[slice, ...]) -> None:
    pred, truth = np.zeros((2, 28, 24, 14), bool)
    truth[where] = True
    pred[2:22, 3:15, 1:12] = True
    ours = metrics.case_metrics(pred, truth, (1.5, 1.0, 3.0))
    distances = compute_surface_distances(truth, pred, (1.5, 1.0, 3.0))
    assert ours["masd_mm"] == pytest.approx(sum(surfel_average(distances)) / 2, rel=1e-9)
    assert ours["nsd"] == pytest.approx(compute_surface_dice_at_tolerance(distances, 2.0), rel=1e-9)
    p, t = (torch.from_numpy(m)[None, None] for m in (pred, truth))
    nsd = float(compute_surface_dice(p, t, [2.0], include_background=True, spacing=[1.5, 1.0, 3.0]))
    assert ours["paper_nsd"] == pytest.approx(nsd, rel=1e-6)


def test_two_single_voxels() -> None:
    # three voxels of 2 mm apart: surfels sit on the corners, 4 mm from the nearest for one half and 6 mm for the other;
    # MONAI measures between the voxels' centres
    truth, pred = np.zeros((2, 12, 9, 8), bool)
    truth[3, 4, 4] = pred[6, 4, 4] = True
    ours = metrics.case_metrics(pred, truth, (2.0, 1.0, 3.0))
    assert ours["dice"] == 0
    assert ours["masd_mm"] == pytest.approx(5.0)
    assert ours["paper_msd_mm"] == pytest.approx(6.0)
    nsd = [metrics.challenge_metrics(pred, truth, (2.0, 1.0, 3.0), tolerance)["nsd"] for tolerance in (2.0, 4.5, 6.5)]
    assert nsd == pytest.approx([0, 0.5, 1])


EMPTY, SOME = np.zeros((6, 6, 4), bool), np.pad(np.ones((2, 2, 2), bool), ((2, 2), (2, 2), (1, 1)))


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        (
            EMPTY,
            EMPTY,
            {"dice": 1, "masd_mm": 0, "nsd": 1, "paper_msd_mm": math.nan, "paper_nsd": math.nan}
            | {"hd95_mm": 0, "precision": math.nan, "sensitivity": math.nan, "lesions": 0, "predicted_lesions": 0}
            | {"lesion_sensitivity": math.nan, "lesion_false_positives": 0, "lesion_f1": 1, "cc_dice": 1},
        ),
        (
            EMPTY,
            SOME,
            {"dice": 0, "masd_mm": math.nan, "nsd": 0, "paper_msd_mm": math.inf, "paper_nsd": 0}
            | {"hd95_mm": math.inf, "precision": math.nan, "sensitivity": 0, "lesions": 1, "predicted_lesions": 0}
            | {"lesion_sensitivity": 0, "lesion_false_positives": 0, "lesion_f1": 0, "cc_dice": 0},
        ),
        (
            SOME,
            EMPTY,
            {"dice": 0, "masd_mm": math.nan, "nsd": 0, "paper_msd_mm": math.inf, "paper_nsd": 0}
            | {"hd95_mm": math.inf, "precision": 0, "sensitivity": math.nan, "lesions": 0, "predicted_lesions": 1}
            | {"lesion_sensitivity": math.nan, "lesion_false_positives": 1, "lesion_f1": 0}
            | {"cc_dice": 0},
        ),
        (
            SOME,
            SOME,
            {"dice": 1, "masd_mm": 0, "nsd": 1, "paper_msd_mm": 0, "paper_nsd": 1}
            | {"hd95_mm": 0, "precision": 1, "sensitivity": 1, "lesions": 1, "predicted_lesions": 1}
            | {"lesion_sensitivity": 1, "lesion_false_positives": 0, "lesion_f1": 1, "cc_dice": 1},
        ),
    ],
    ids=["both empty", "prediction empty", "truth empty", "equal"],
)
def test_empty_mask_conventions(pred: np.ndarray, truth: np.ndarray, expected: dict[str, float]) -> None:
    measured = metrics.case_metrics(pred, truth, (1.0, 1.0, 3.0))
    assert measured.pop("paper_nsd_voxels") == pytest.approx(expected["paper_nsd"], nan_ok=True)
    for name in ("paper_msd_voxels", "paper_msd_pooled_voxels", "paper_msd_directed_voxels"):
        assert measured.pop(name) == pytest.approx(expected["paper_msd_mm"], nan_ok=True)
    assert measured == pytest.approx(expected, nan_ok=True)


def test_lesions_by_hand() -> None:
    truth, pred = np.zeros((2, 30, 10, 6), bool)
    truth[1:5, 1:5, 1:3] = True  # 32 voxels, 8 of them predicted
    truth[5, 5, 3] = True  # touches it at a corner: the same lesion
    truth[12:14, 2:4, 2] = True  # all 4 voxels predicted, by a component of 20 voxels
    truth[20:24, 5:9, 2:4] = True  # missed
    pred[1:5, 1:3, 1] = True
    pred[12:17, 2:6, 2] = True
    pred[27, 8, 5] = True  # a false positive
    expected = {
        # overlap: sensitivity, false positives, F1; predicted components are 8/8, 4/20 and 0/1 lesion
        0.0: (2 / 3, 1, 2 / 3),
        0.2: (2 / 3, 1, 2 / 3),
        0.25: (1 / 3, 2, 1 / 3),
        1.0: (1 / 3, 2, 1 / 3),
    }
    for overlap, (sensitivity, false_positives, f1) in expected.items():
        found = metrics.lesion_metrics(pred, truth, overlap)
        assert (found["lesions"], found["predicted_lesions"]) == (3, 3)
        assert found["lesion_sensitivity"] == pytest.approx(sensitivity)
        assert found["lesion_false_positives"] == false_positives
        assert found["lesion_f1"] == pytest.approx(f1)
    with pytest.raises(ValueError, match="lesion_overlap"):
        metrics.lesion_metrics(pred, truth, 1.1)


@pytest.mark.parametrize("seed", range(5))
def test_lesions_equal_scipys_components(seed: int) -> None:
    pred, truth = (mask & (np.random.default_rng(seed).random(mask.shape) > 0.5) for mask in _blobs(seed))
    labels, count = ndimage.label(truth, np.ones((3, 3, 3)))
    detected = sum((pred & (labels == i + 1)).any() for i in range(count))
    predicted, predicted_count = ndimage.label(pred, np.ones((3, 3, 3)))
    false = sum(not (truth & (predicted == i + 1)).any() for i in range(predicted_count))
    found = metrics.lesion_metrics(pred, truth)
    assert found["lesions"] == count
    assert found["lesion_sensitivity"] == pytest.approx(detected / count)
    assert found["lesion_false_positives"] == false


@pytest.mark.parametrize("seed", range(3))
def test_every_lesion_counts_alike_by_its_own_surroundings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.zeros((30, 12, 8), bool)
    truth[1:9, 2:10, 1:7] = truth[15, 5, 4] = truth[24:27, 4:8, 2:6] = True
    pred = truth ^ (rng.random(truth.shape) < 0.05)
    labels, count = ndimage.label(truth, np.ones((3, 3, 3)))
    away = np.stack([ndimage.distance_transform_edt(labels != i + 1) for i in range(count)])
    nearest = np.sort(away, axis=0)
    pred &= ~np.isclose(nearest[0], nearest[1])  # whose a voxel between two is, is left open
    own = away.argmin(axis=0)
    expected = np.mean([metrics.dice(pred & (own == i), truth & (own == i)) for i in range(count)])
    assert metrics.cc_dice(pred, truth)["cc_dice"] == pytest.approx(expected, rel=1e-6)
    large = np.zeros_like(truth)
    large[1:9, 2:10, 1:7] = True  # the small two are missed
    assert metrics.cc_dice(large, truth)["cc_dice"] == pytest.approx(1 / 3, rel=1e-6)
    assert metrics.dice(large, truth) > 0.9


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    axes=st.permutations([0, 1, 2]),
    flips=st.lists(st.sampled_from([0, 1, 2]), unique=True),
)
def test_flips_and_axis_order_change_nothing(
    seed: int, spacing: tuple[float, ...], axes: list[int], flips: list[int]
) -> None:
    pred, truth = _blobs(seed, (14, 12, 10))
    turned = [np.flip(mask, flips).transpose(axes) for mask in (pred, truth)]
    before = metrics.case_metrics(pred, truth, spacing)
    after = metrics.case_metrics(*turned, [spacing[a] for a in axes])
    for values in (before, after):
        del values["paper_nsd"]  # MONAI's rounding decides whether a distance of exactly the tolerance counts
        del values["cc_dice"]  # which lesion a voxel belongs to that is as near to two, depends on their order
    assert after == pytest.approx(before, rel=1e-6, nan_ok=True)
    swapped = metrics.case_metrics(truth, pred, spacing)
    for name in ("dice", "masd_mm", "nsd", "hd95_mm", "paper_msd_mm", "lesion_f1"):
        assert swapped[name] == pytest.approx(before[name], rel=1e-6, nan_ok=True)
    assert swapped["precision"] == pytest.approx(before["sensitivity"], nan_ok=True)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, math.inf, 1), (1, -1, 1)])
def test_impossible_voxel_sizes_are_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three positive numbers"):
        metrics.case_metrics(SOME, SOME, spacing)


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.case_metrics(EMPTY, EMPTY[:5], (1, 1, 1))
