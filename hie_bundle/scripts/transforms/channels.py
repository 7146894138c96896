"""Derived channels: background set to 0, score within the scan, depth, differences from the mirror image.

Images have the shape (C, X, Y, Z). The first channel is ADC in 1e-6 mm²/s, 0 outside of the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage, optimize

from ..geometry.brain import brain_of
from .pipeline import EachImaged

MAD_OF_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
SAMPLING_MM = 4.0  # voxel size of the coarse map
START_DEGREES = 15.0  # starting tilts about each axis are 0 and ± this
LARGEST_ADC = 3000.0  # larger values are clipped
# a plane in the volume's own millimetres (voxel index times spacing): a point on it, and its unit normal
Plane = tuple[NDArray[np.float64], NDArray[np.float64]]


class ZeroBackgroundd(EachImaged):
    """Set all channels to 0 outside the brain (ADC ≤ 0), and NaN (a missing ZADC map) to 0."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(image) * (image[:1] > 0)


class ScanScored(EachImaged):
    """Append ADC's robust score within the scan: (ADC − median) / (1.4826 · median absolute deviation).

    Both medians are over the brain's voxels. Small lesions and fluid hardly change them, and global factors cancel,
    such as the scanner's calibration or the temperature of a cooled newborn. Outside the brain the score is 0.

    Raises:
        ValueError: when called with a map without brain.
    """

    def change(self, image: torch.Tensor) -> torch.Tensor:
        adc = image.as_tensor()[:1] if isinstance(image, MetaTensor) else image[:1]
        brain = brain_of(adc)
        if not brain.any():
            raise ValueError("there is no brain in the map: no voxel is above 0.")
        values = adc[brain].float()
        deviation = values - values.median()
        scale = MAD_OF_NORMAL * deviation.abs().median()
        score = torch.zeros_like(adc, dtype=torch.float32)
        score[brain] = deviation / scale.clamp_min(1.0)  # a constant map has no spread
        return torch.cat([image, score.to(image.dtype)])


class BrainDepthd(EachImaged):
    """Append each voxel's distance to the brain's border, in mm; 0 outside of the brain.

    Maps are unreliable at the border of the brain mask, and depth separates cortex from white matter.
    """

    def change(self, image: MetaTensor) -> torch.Tensor:
        spacing = voxel_sizes(image.affine.cpu().numpy())
        brain = np.pad(brain_of(image[0].cpu().numpy()), 1)  # no brain outside the volume
        depth = ndimage.distance_transform_edt(brain, sampling=spacing)[1:-1, 1:-1, 1:-1]
        return torch.cat([image, torch.as_tensor(depth[None]).to(image)])


def mid_sagittal_plane(adc: NDArray[Any], affine: NDArray[np.float64]) -> Plane:
    """The plane in which the brain is most symmetric.

    Two tilt angles and the offset from the centroid are optimised on a coarse, smoothed ADC map, from nine starting
    tilts. Outline and fluid spaces are symmetric even if a lesion is not.

    Args:
        adc: shape (X, Y, Z), 1e-6 mm²/s, 0 outside of the brain.
        affine: from voxel indices to world millimetres, with x as the left-right axis.

    Returns:
        A point on the plane and its unit normal, in the volume's own millimetres (index times spacing).

    Raises:
        ValueError: when there is no brain.
    """
    if not brain_of(adc).any():
        raise ValueError("there is no brain in the map: no voxel is above 0.")
    spacing = voxel_sizes(affine)
    smoothed = ndimage.gaussian_filter(np.clip(adc, 0, LARGEST_ADC).astype(np.float32), SAMPLING_MM / 2 / spacing)
    coarse = ndimage.zoom(smoothed, spacing / SAMPLING_MM, order=1, grid_mode=True, mode="nearest") / LARGEST_ADC
    actual = np.array(adc.shape) * spacing / coarse.shape  # coarse voxel size, mm
    centres = (np.indices(coarse.shape).reshape(3, -1).T + 0.5) * actual
    values = coarse.ravel()
    seen = values > 0.05
    points, values = centres[seen], values[seen]
    centroid = np.average(points, axis=0, weights=values)
    across, along, up = np.linalg.inv(affine[:3, :3] / spacing).T  # world x, y, z in the volume's own axes

    def plane_of(tilts: NDArray[np.float64]) -> Plane:
        yaw, roll, offset = tilts
        normal = across + np.tan(yaw) * along + np.tan(roll) * up
        normal = normal / np.linalg.norm(normal)
        return centroid + offset * normal, normal

    def difference(tilts: NDArray[np.float64]) -> float:
        point, normal = plane_of(tilts)
        other = (points - 2 * ((points - point) @ normal)[:, None] * normal) / actual - 0.5
        mirrored_values = ndimage.map_coordinates(coarse, other.T, order=1, mode="constant")
        return float(np.square(mirrored_values - values).mean())

    tilt = np.radians(START_DEGREES)
    starts = [np.array([yaw, roll, 0.0]) for yaw in (-tilt, 0, tilt) for roll in (-tilt, 0, tilt)]
    start = min(starts, key=difference)
    steps = np.vstack([start, start + np.diag([tilt / 2, tilt / 2, SAMPLING_MM])])
    found = optimize.minimize(
        difference, start, method="Nelder-Mead",
        options={"initial_simplex": steps, "xatol": 1e-3, "fatol": 1e-7, "maxiter": 120},
    )  # fmt: skip
    point, normal = plane_of(found.x)
    return point - spacing / 2, normal  # back from the corner of the first voxel to its centre


def mirrored(image: torch.Tensor, spacing_mm: NDArray[np.float64], plane: Plane) -> torch.Tensor:
    """A volume (C, X, Y, Z) reflected in a plane, on the same grid; 0 where the reflection is outside the volume."""
    shape = image.shape[1:]
    point, normal = plane
    # index -> index of its mirror image: both are affine, so the grid is one matrix product
    reflection = np.eye(3) - 2 * np.outer(normal, normal)
    matrix = np.diag(1 / spacing_mm) @ reflection @ np.diag(spacing_mm)
    shift = 2 * (point @ normal) * normal / spacing_mm
    # grid_sample expects z, y, x in units of half the volume
    half = np.maximum(np.array(shape) - 1, 1) / 2
    theta = np.diag(1 / half) @ matrix @ np.diag(half)
    offset = (matrix @ half + shift) / half - 1
    reverse = [2, 1, 0]
    theta = np.concatenate([theta[reverse][:, reverse], offset[reverse, None]], axis=1)
    grid = torch.nn.functional.affine_grid(
        torch.as_tensor(theta, dtype=torch.float32)[None], [1, 1, *shape], align_corners=True
    )
    plain = torch.as_tensor(image).float()
    return torch.nn.functional.grid_sample(plain[None], grid, padding_mode="zeros", align_corners=True)[0]


@dataclass(eq=False)
class MirrorDifferenced(EachImaged):
    """Append the differences between channels and their mirror images in the brain's mid-sagittal plane.

    Injury is often stronger on one side; Z-scores of healthy tissue have similar errors on both. The difference is 0
    where either side is outside of the brain. ``keys`` are images with their affine.
    """

    channels: Sequence[int] = (1,)  # channels to compare, each appends one; 0 is ADC, 1 is ZADC
    sigma_mm: float = 3.0  # standard deviation of the Gaussian that smooths the mirror image

    def change(self, image: MetaTensor) -> torch.Tensor:
        affine = image.affine.cpu().numpy().astype(np.float64)
        spacing = voxel_sizes(affine)
        maps = image.as_tensor().float()
        plane = mid_sagittal_plane(maps[0].cpu().numpy(), affine)
        brain = brain_of(maps[:1]).float()
        compared = maps[list(self.channels)]
        seen = mirrored(torch.cat([brain, compared * brain]).cpu(), spacing, plane)
        share, *values = (ndimage.gaussian_filter(one.numpy(), self.sigma_mm / spacing) for one in seen)
        # mean over brain voxels only, without the background's 0
        others = torch.as_tensor(np.stack(values) / np.maximum(share, 1e-3)).to(maps)
        inside = brain[0].bool() & torch.as_tensor(share > 0.25).to(brain.device)
        differences = torch.where(inside, compared - others, 0)
        return torch.cat([image, MetaTensor(differences.to(image.dtype), affine=image.affine)])
