"""The mid-sagittal plane of heads that lie rotated and shifted, and the mirror difference taken there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.transforms.channels import MirrorDifferenced, mid_sagittal_plane, mirrored

# yaw, roll, pitch in degrees; shift in mm
POSES = [((0, 0, 0), (0, 0, 0)), ((17, 0, 5), (6, -3, 2)), ((-12, 14, -8), (-9, 4, 0)), ((4, -19, 12), (3, 3, -5))]
SHAPE, SPACING = (72, 76, 36), np.array([1.8, 1.8, 3.0])


def _head(
    angles: tuple[int, ...], shift: tuple[int, ...], flip: bool = False
) -> tuple[MetaTensor, dict[str, np.ndarray]]:
    """ADC and ZADC of a schematic brain: an egg with bright ventricles, and a lesion on one side."""
    rotation = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    centre = (np.array(SHAPE) - 1) / 2 * SPACING + shift
    points = np.indices(SHAPE).reshape(3, -1).T * SPACING
    head = (points - centre) @ rotation  # in the head's own axes
    x, y, z = head.T
    brain = (x / (44 - 0.1 * y)) ** 2 + (y / 54) ** 2 + (z / 38) ** 2 < 1
    ventricles = ((np.abs(x) - 9) / 5) ** 2 + ((y - 4) / 22) ** 2 + ((z - 6) / 8) ** 2 < 1
    back = (x / 25) ** 2 + ((y + 42) / 12) ** 2 + ((z + 20) / 12) ** 2 < 1
    lesion = ((x - 22) / 8) ** 2 + ((y + 4) / 8) ** 2 + ((z - 2) / 8) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 60, len(x))
    adc = np.where(brain, 1250 + 1500 * ventricles + 300 * back - 600 * lesion + noise, 0).clip(0)
    # healthy tissue that is low on both sides, and an injury on one
    both = ((np.abs(x) - 26) / 10) ** 2 + ((y - 25) / 10) ** 2 + (z / 12) ** 2 < 1
    zadc = np.where(brain, -3.0 * both - 5.0 * lesion, 0)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -60
    maps = np.stack([adc, zadc]).reshape(2, *SHAPE).astype(np.float32)
    if flip:  # stored from right to left
        maps, affine = (
            maps[:, ::-1].copy(),
            affine @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        )
    marks = {name: mask.reshape(SHAPE) for name, mask in (("lesion", lesion), ("both", both), ("brain", brain))}
    if flip:
        marks = {name: mask[::-1] for name, mask in marks.items()}
    marks["normal"], marks["centre"] = rotation[:, 0], centre
    return MetaTensor(torch.as_tensor(maps), affine=torch.as_tensor(affine)), marks


@pytest.mark.parametrize(("angles", "shift"), POSES)
def test_plane_of_rotated_and_shifted_heads(angles: tuple[int, ...], shift: tuple[int, ...]) -> None:
    image, marks = _head(angles, shift)
    point, normal = mid_sagittal_plane(image.numpy()[0], image.affine.numpy())
    assert np.degrees(np.arccos(min(1, abs(normal @ marks["normal"])))) < 2
    assert abs((point - marks["centre"]) @ normal) < 1


@pytest.mark.parametrize("flip", [False, True], ids=["stored left to right", "stored right to left"])
@pytest.mark.parametrize(("angles", "shift"), POSES[1:3])
def test_difference_shows_one_sided_injury_alone(angles: tuple[int, ...], shift: tuple[int, ...], flip: bool) -> None:
    image, marks = _head(angles, shift, flip)
    result = MirrorDifferenced(keys="image", channels=[1, 0], sigma_mm=2.0)({"image": image})["image"]
    assert isinstance(result, MetaTensor)
    np.testing.assert_array_equal(result.affine.numpy(), image.affine.numpy())
    assert torch.equal(result[:2].as_tensor(), image.as_tensor())
    difference, of_adc = result.numpy()[2:]
    assert difference[marks["lesion"]].mean() < -4
    assert of_adc[marks["lesion"]].mean() < -450
    assert abs(of_adc[marks["both"]].mean()) < 50
    assert abs(difference[marks["both"]].mean()) < 1  # low on both sides: no difference
    assert not difference[~marks["brain"]].any()


def test_mirroring_twice_gives_the_volume_back() -> None:
    image, marks = _head(*POSES[1])
    plane = marks["centre"], marks["normal"]
    once = mirrored(image.as_tensor(), SPACING, plane)
    twice = mirrored(once, SPACING, plane)
    inside = (once[0] > 0) & (twice[0] > 0)
    assert float((twice[1] - image[1].as_tensor())[inside].abs().mean()) < 0.05
    # and once is what the other side looks like
    lesion = torch.as_tensor(marks["lesion"])
    assert float(image[1][lesion].mean()) < -4.5
    assert float(once[1][lesion].mean()) > -0.5


def test_without_a_brain_there_is_no_plane() -> None:
    with pytest.raises(ValueError, match="no brain"):
        mid_sagittal_plane(np.zeros((8, 8, 8)), np.eye(4))
