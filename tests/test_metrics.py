"""Both definitions of each metric: equal to direct use of the reference tools, closed forms, empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter
from surface_distance import (
    compute_average_surface_distance as surfel_average,
)
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from scripts import metrics


def _blobs(seed: int, shape: tuple[int, int, int] = (28, 24, 14)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=shape), 2)
    other = noise + 0.5 * gaussian_filter(rng.normal(size=shape), 2)
    return noise > np.quantile(noise, 0.93), other > np.quantile(other, 0.95)


@pytest.mark.parametrize("seed", range(30))
def test_equal_to_direct_use_of_the_reference_tools(seed: int) -> None:
    pred, truth = _blobs(seed)
    spacing = tuple(float(s) for s in np.random.default_rng(seed).uniform(0.8, 4, 3))
    ours = metrics.case_metrics(pred, truth, spacing, tolerance_mm=2.0)
    distances = compute_surface_distances(truth, pred, spacing)
    assert ours["dice"] == pytest.approx(2 * (pred & truth).sum() / (pred.sum() + truth.sum()), abs=1e-12)
    assert ours["masd_mm"] == pytest.approx(sum(surfel_average(distances)) / 2, rel=1e-6)
    assert ours["nsd"] == pytest.approx(compute_surface_dice_at_tolerance(distances, 2.0), rel=1e-6)
    p, t = (torch.from_numpy(m)[None, None] for m in (pred, truth))
    there, back = (
        float(compute_average_surface_distance(a, b, include_background=True, spacing=list(spacing)))
        for a, b in ((p, t), (t, p))
    )
    assert ours["paper_msd_mm"] == pytest.approx((there + back) / 2, rel=1e-6)
    nsd = float(compute_surface_dice(p, t, [2.0], include_background=True, spacing=list(spacing)))
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
        (EMPTY, EMPTY, {"dice": 1, "masd_mm": 0, "nsd": 1, "paper_msd_mm": math.nan, "paper_nsd": math.nan}),
        (EMPTY, SOME, {"dice": 0, "masd_mm": math.nan, "nsd": 0, "paper_msd_mm": math.inf, "paper_nsd": 0}),
        (SOME, EMPTY, {"dice": 0, "masd_mm": math.nan, "nsd": 0, "paper_msd_mm": math.inf, "paper_nsd": 0}),
        (SOME, SOME, {"dice": 1, "masd_mm": 0, "nsd": 1, "paper_msd_mm": 0, "paper_nsd": 1}),
    ],
    ids=["both empty", "prediction empty", "truth empty", "equal"],
)
def test_empty_mask_conventions(pred: np.ndarray, truth: np.ndarray, expected: dict[str, float]) -> None:
    assert metrics.case_metrics(pred, truth, (1.0, 1.0, 3.0)) == pytest.approx(expected, nan_ok=True)


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
    before = metrics.challenge_metrics(pred, truth, spacing)
    after = metrics.challenge_metrics(*turned, [spacing[a] for a in axes])
    assert after == pytest.approx(before, rel=1e-6, nan_ok=True)
    swapped = metrics.challenge_metrics(truth, pred, spacing)
    assert swapped == pytest.approx(before, rel=1e-6, nan_ok=True)


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        metrics.case_metrics(EMPTY, EMPTY[:5], (1, 1, 1))
