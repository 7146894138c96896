"""Derived channels of one brain: score within the scan, depth, background. test_symmetry has the mirror difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.stats import median_abs_deviation

from scripts.transforms.channels import BrainDepthd, ScanScored, ZeroBackgroundd

SHAPE, SPACING = (24, 20, 12), (2.0, 1.5, 4.0)


def _image(factor: float = 1.0) -> MetaTensor:
    rng = np.random.default_rng(0)
    adc = np.zeros(SHAPE)
    adc[2:22, 3:18, 1:11] = factor * rng.normal(1300, 200, (20, 15, 10)).clip(100)
    affine = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    return MetaTensor(torch.as_tensor(np.stack([adc, adc / 500]), dtype=torch.float32), affine=torch.as_tensor(affine))


def test_score_is_that_of_the_brain_alone() -> None:
    image = _image()
    result = ScanScored("image")({"image": image})["image"]
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, image.affine)
    assert torch.equal(result[:2].as_tensor(), image.as_tensor())
    adc, score = image.numpy()[0], result.numpy()[2]
    inside = adc[adc > 0]
    expected = (inside - np.median(inside)) / median_abs_deviation(inside, scale="normal")
    np.testing.assert_allclose(score[adc > 0], expected, atol=0.02)
    assert not score[adc == 0].any()


def test_score_does_not_move_with_the_scanners_level() -> None:
    plain, cooled = (ScanScored("image")({"image": _image(factor)})["image"].numpy()[2] for factor in (1.0, 0.8))
    np.testing.assert_allclose(plain, cooled, atol=1e-3)


def test_maps_of_one_value_or_without_a_brain() -> None:
    flat = MetaTensor(torch.full((2, 4, 4, 4), 1000.0))
    assert not ScanScored("image")({"image": flat})["image"][2].any()
    with pytest.raises(ValueError, match="no brain"):
        ScanScored("image")({"image": MetaTensor(torch.zeros(2, 4, 4, 4))})


def test_depth_is_the_distance_to_the_border_in_mm() -> None:
    image = _image()
    depth = BrainDepthd("image")({"image": image})["image"].numpy()[2]
    index = np.stack(np.indices(SHAPE), -1)
    # of a box: to the nearest face's first voxel outside
    faces = np.minimum(index - np.array([1, 2, 0]), np.array([22, 18, 11]) - index) * np.array(SPACING)
    expected = np.where(image.numpy()[0] > 0, faces.min(-1), 0)
    np.testing.assert_allclose(depth, expected, atol=1e-4)


def test_a_brain_at_the_volumes_edge_ends_there() -> None:
    full = MetaTensor(torch.full((2, 5, 5, 5), 1000.0), affine=torch.eye(4))
    depth = BrainDepthd("image")({"image": full})["image"][2]
    assert float(depth[0, 2, 2]) == 1.0
    assert float(depth[2, 2, 2]) == 3.0


def test_the_background_is_zero_in_all_channels() -> None:
    image = torch.tensor([[[[700.0, 0.0, -3.0]]], [[[-2.0, 9.0, 1.0]]], [[[torch.nan, torch.nan, 5.0]]]])
    (changed,) = ZeroBackgroundd("image")({"image": image}).values()
    assert changed.flatten(1).tolist() == [[700, 0, 0], [-2, 0, 0], [0, 0, 0]]
