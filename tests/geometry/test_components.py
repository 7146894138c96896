"""Lesions as wholes: one function, whoever asks."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.data import MetaTensor
from scipy import ndimage

from scripts.geometry.components import components, without_small
from scripts.transforms.decisions import RemoveSmallLesionsd


@pytest.mark.parametrize("shape", [(31, 27, 19), (8, 40, 5), (1, 9, 9)])
@pytest.mark.parametrize("order", ["C", "F", "mirrored"])
def test_components_are_scipys_in_number_and_order(shape: tuple[int, int, int], order: str) -> None:
    noise = np.random.default_rng(0).normal(size=shape)
    mask = ndimage.gaussian_filter(noise, 1) > 0.2
    mask = mask[::-1, :, ::-1] if order == "mirrored" else np.asarray(mask, order=order)
    for rank, connectivity in ((1, 6), (2, 18), (3, 26)):
        labels, count = components(mask, connectivity)
        expected, number = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
        assert count == number > 1
        np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(components(mask)[0], labels)


def test_an_empty_mask_has_none() -> None:
    labels, count = components(np.zeros((4, 4, 4), dtype=bool))
    assert count == 0
    assert not labels.any()


@pytest.mark.parametrize("voxels", [0, 1, 2.5, 7, 7 + 1e-9, 10_000])
def test_small_ones_are_taken_out(voxels: float) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(29, 31, 17)), 1) > 0.25
    labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(mask, labels, np.arange(1, number + 1))
    large = np.flatnonzero(sizes >= voxels - 1e-6) + 1
    np.testing.assert_array_equal(without_small(mask, voxels), np.isin(labels, large))


@pytest.mark.parametrize("angle", [0.0, 0.5])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.2, 1.6, 4.0), (2.0, 2.0, 3.0)])
def test_the_smallest_lesion_is_a_volume_in_mm3_on_any_grid(spacing: tuple[float, ...], angle: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    mask = torch.zeros(2, 24, 20, 12)
    mask[0, 2:5, 2:4, 3] = 1  # six voxels
    mask[0, 10:15, 10:15, 6] = 1
    mask[1, 3, 3, 3] = mask[1, 4, 4, 4] = 1  # two that touch at a corner
    data = {"pred": MetaTensor(mask, affine=affine)}
    volume = float(np.prod(spacing))
    for smallest, counts in ((0, (31, 2)), (2 * volume, (31, 2)), (2.1 * volume, (31, 0)), (6.1 * volume, (25, 0))):
        left = RemoveSmallLesionsd(["pred", "other"], smallest, allow_missing_keys=True)(data)["pred"]
        assert tuple(int(channel.sum()) for channel in left) == counts
        assert isinstance(left, MetaTensor)
        np.testing.assert_allclose(left.affine, affine)
    assert data["pred"].sum() == 33  # as it was


def test_nothing_else_looks_for_components_or_says_what_brain_is() -> None:
    """But for the simulation of annotators, whose pieces join at faces."""
    for file in (BUNDLE / "scripts").rglob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", file.read_text(), flags=re.S)
        if file.name != "components.py" and file.parent.name != "phantom":
            assert not re.search(r"ndimage\.label|import cc3d", code), file
        assert not re.search(r"\b(adc|maps\[:1\]|image\[0\]\S*) > 0\b", code), file
