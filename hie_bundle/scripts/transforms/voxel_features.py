"""Features of voxels for voxelwise models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..geometry.brain import brain_of
from ..io.volumes import Volume
from .channels import mid_sagittal_plane, mirrored

SCALES_MM = (1.0, 2.0, 4.0, 8.0)  # standard deviations of the Gaussians
MINIMA_MM = (3.0, 6.0)  # sides of the boxes
QUANTILES = (0.05, 0.25, 0.5, 0.75)
Floats = NDArray[np.float32]


def local_means(maps: NDArray[Any], brain: NDArray[np.bool_], spacing_mm: Sequence[float], sigma_mm: float) -> Floats:
    """Maps (N, X, Y, Z), smoothed within the brain by a Gaussian: (N, brain voxels)."""
    for box in ndimage.find_objects(brain.view(np.uint8)):  # one box, or none without a brain
        maps, brain = maps[(slice(None), *box)], brain[box]
    smooth = partial(ndimage.gaussian_filter, sigma=[sigma_mm / step for step in spacing_mm], mode="constant")
    weight = smooth(brain.astype(np.float32))[brain]
    return np.stack([smooth(np.where(brain, one, 0).astype(np.float32))[brain] / weight for one in maps])


def features(adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> Floats:
    """33 features of each brain voxel, (brain voxels, 33).

    Features: both maps, their local means at four scales and local minima; differences of the local means from the
    mirror image; position in the brain and depth; quantiles of the case's maps. The maps have the shape (X, Y, Z),
    ``adc`` is in 1e-6 mm²/s and 0 outside the brain, ``grid`` is a volume with their affine.
    """
    spacing = np.asarray(grid.spacing_mm)
    boxes = ndimage.find_objects(brain_of(adc).astype(np.uint8))  # most of a volume is background
    if not boxes:
        raise ValueError("there is no brain in the map: no voxel is above 0.")
    adc, zadc = (np.pad(values[boxes[0]], 4) for values in (adc, zadc))
    brain = brain_of(adc)
    maps = np.where(brain, np.stack([adc / 1000, zadc]), 0).astype(np.float32)
    plane = mid_sagittal_plane(adc, grid.affine)
    other_side = mirrored(torch.as_tensor(np.stack([brain.astype(np.float32), *maps])), spacing, plane).numpy()
    found = [values[brain] for values in maps]
    for scale in SCALES_MM:
        smooth = partial(ndimage.gaussian_filter, sigma=scale / spacing, mode="constant")
        seen = smooth(other_side[0])[brain]
        for value, mirror in zip(local_means(maps, brain, list(spacing), scale), other_side[1:], strict=True):
            found.append(value)
            if scale > SCALES_MM[0]:
                found.append(np.where(seen > 0.25, value - smooth(mirror)[brain] / np.maximum(seen, 1e-3), 0))
    for side in MINIMA_MM:
        size = np.maximum(1, np.round(side / spacing)).astype(int)
        for own in maps:
            outside_high = np.where(brain, own, np.inf)
            found.append(ndimage.minimum_filter(outside_high, size=size, mode="constant", cval=np.inf)[brain])
    points = np.argwhere(brain) * spacing
    point, normal = plane
    extent = np.maximum(np.ptp(points, axis=0), 1)
    found += [np.abs((points - point) @ normal), *((points - points.mean(axis=0)) / extent).T]
    found.append(ndimage.distance_transform_edt(brain, sampling=spacing)[brain])
    for own in maps:
        found += [np.full(len(points), value) for value in np.quantile(own[brain], QUANTILES)]
    return np.stack(found, axis=1).astype(np.float32)
