"""TorchIO's augmentations, several times faster.

Each class draws the same parameters from the same random state as its parent and has the same arguments. Arguments
without a fast path (interpolation other than linear or nearest, integer images) use the parent's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import SimpleITK as sitk
import torch
import torchio
from torch.nn import functional
from torchio.data.io import get_sitk_metadata_from_ras_affine

from ..moved import lookup

__getattr__ = partial(lookup, "transforms.fast")

_GRID_SAMPLE_MODES = {"linear": "bilinear", "nearest": "nearest"}


class FastElasticDeformation(torchio.RandomElasticDeformation):
    """``torchio.RandomElasticDeformation`` with the dense field from small matrix products.

    A cubic B-spline on a regular lattice is separable: along each axis the field is a matrix of basis values times the
    control points. ITK evaluates the 64 terms of the 3D spline at each voxel, once for each channel; here three matrix
    products serve all channels and images on the same grid.
    """

    def apply_transform(self, subject: torchio.Subject) -> torchio.Subject:
        if not {self.image_interpolation, self.label_interpolation} <= _GRID_SAMPLE_MODES.keys():
            return super().apply_transform(subject)
        subject.check_consistent_spatial_shape()
        control_points = self.get_params(self.num_control_points, self.max_displacement, self.num_locked_borders)
        torch.rand(1)  # TorchIO's inner transform draws once
        if not any(self.max_displacement):
            return subject
        deformation = torchio.ElasticDeformation(control_points, self.max_displacement)
        grid = _sampling_grid(deformation, subject.spatial_shape, subject.get_first_image().affine)
        for image in self.get_images(subject):
            is_scalar = isinstance(image, torchio.ScalarImage)
            mode = _GRID_SAMPLE_MODES[self.image_interpolation if is_scalar else self.label_interpolation]
            image.set_data(sample(image.data.float()[None], grid, mode)[0])
        return subject


def _sampling_grid(
    deformation: torchio.ElasticDeformation, shape: tuple[int, int, int], affine: np.ndarray
) -> torch.Tensor:
    """Sampling positions of the output's voxels, (1, X, Y, Z, 3), for ``grid_sample``."""
    origin, spacing, direction = get_sitk_metadata_from_ras_affine(affine)
    reference = sitk.Image(shape, sitk.sitkUInt8)
    reference.SetOrigin(origin)
    reference.SetSpacing(spacing)
    reference.SetDirection(direction)
    transform = deformation.get_bspline_transform(reference)
    deformation.parse_free_form_transform(transform, deformation.max_displacement)

    # ITK's lattice follows the image's axes, but its first corner is the lowest in LPS, and its axes have the order of
    # LPS. So a lattice index is an affine function of one voxel index: offset[a] + scale[a, b] * i_b.
    coefficients = transform.GetCoefficientImages()
    lattice = coefficients[0]
    index_to_mm = np.reshape(direction, (3, 3)) * spacing
    mm_to_lattice = np.linalg.inv(np.reshape(lattice.GetDirection(), (3, 3)) * lattice.GetSpacing())
    scale = mm_to_lattice @ index_to_mm
    offset = mm_to_lattice @ (np.array(origin) - lattice.GetOrigin())
    lattice_axes = np.abs(scale).argmax(axis=0)  # of each voxel axis

    # Displacements in mm to voxels. Cubic B-splines reproduce linear functions, so the control points' own voxel
    # indices are added and the products give positions, not displacements.
    displacement_mm = np.stack([sitk.GetArrayViewFromImage(image).transpose() for image in coefficients])
    position = np.tensordot(np.linalg.inv(index_to_mm), displacement_mm, axes=1)
    bases = []
    for axis, lattice_axis in enumerate(lattice_axes):
        step, start = scale[lattice_axis, axis], offset[lattice_axis]
        lattice_index = np.arange(lattice.GetSize()[lattice_axis])
        column = [1, 1, 1]
        column[lattice_axis] = -1
        position[axis] += ((lattice_index - start) / step).reshape(column)
        bases.append(_cubic_b_spline(start + step * np.arange(shape[axis])[:, None] - lattice_index))
    position = position.transpose(0, *(1 + lattice_axes))
    normalised = (2 * position + 1) / np.reshape(shape, (3, 1, 1, 1)) - 1

    control_points = torch.from_numpy(normalised[::-1].copy()).float().movedim(0, -1)
    return spline_grid(control_points[None], [torch.from_numpy(basis).float() for basis in bases])


class FastAnisotropy(torchio.RandomAnisotropy):
    """``torchio.RandomAnisotropy`` that resamples along the chosen axis alone.

    Voxels beyond the coarse grid become zero, as in TorchIO, but rounding never removes a slice along another axis. The
    fast path is for linear interpolation without labels (the defaults) and 3D images of floating point.

    Raises:
        RuntimeError: by TorchIO, when the images are on different grids.
    """

    def apply_transform(self, subject: torchio.Subject) -> torchio.Subject:
        floating = all(image.data.is_floating_point() for image in subject.get_images())
        plain = self.scalars_only and self.image_interpolation == "linear" and not subject.is_2d()
        if not (floating and plain):
            return super().apply_transform(subject)
        axis, downsampling = self.get_params(self.axes, self.downsampling_range)
        torch.rand(2)  # TorchIO's two resamplings draw once each
        subject.check_consistent_space()
        for image in subject.get_images(intensity_only=True, include=self.include, exclude=self.exclude):
            image.set_data(coarsen(image.data, axis + 1, downsampling))
        return subject


class FastBlur(torchio.RandomBlur):
    """``torchio.RandomBlur`` for narrow kernels: whole volumes are shifted, weighted and added."""

    def apply_transform(self, subject: torchio.Subject) -> torchio.Subject:
        images = self.get_images_dict(subject)
        if not images or not all(image.data.is_floating_point() for image in images.values()):
            return super().apply_transform(subject)
        std_voxels = {name: np.divide(self.get_params(self.std_ranges), one.spacing) for name, one in images.items()}
        torch.rand(1)  # TorchIO's inner transform draws once
        for name, image in images.items():
            # one channel at a time: shifted copies stay in the processor's cache
            image.set_data(torch.stack([_gaussian_filter(channel, std_voxels[name]) for channel in image.data]))
        return subject


def spline_grid(control_points: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Values of a cubic B-spline at every voxel, (B, X, Y, Z, 3), from control points (B, K, M, N, 3) and the axes'
    bases, (X, K), (Y, M) and (Z, N).
    """
    in_x, in_y, in_z = bases
    slab = torch.einsum("bkmnc,zn,ym->bkyzc", control_points, in_z, in_y)
    shape = (len(in_x), *slab.shape[2:])
    return torch.stack([(in_x @ one.flatten(1)).view(shape) for one in slab])


@cache
def lattice_bases(shape: tuple[int, int, int], control_points: tuple[int, int, int]) -> list[torch.Tensor]:
    """The spline's basis along each axis for the lattice of control points that ITK lays over a volume."""
    reference = sitk.Image(shape, sitk.sitkUInt8)
    transform = sitk.BSplineTransformInitializer(reference, [count - 3 for count in control_points])
    lattice = transform.GetCoefficientImages()[0]
    return [
        torch.from_numpy(_cubic_b_spline((np.arange(size)[:, None] - origin) / step - np.arange(count))).float()
        for size, count, origin, step in zip(
            shape, control_points, lattice.GetOrigin(), lattice.GetSpacing(), strict=True
        )
    ]


def sample(data: torch.Tensor, grid: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """``grid_sample`` with ``align_corners=False``; the channel's minimum outside the volume, as in TorchIO."""
    sampled = functional.grid_sample(data, grid, mode, padding_mode="border", align_corners=False)
    outside = (grid.abs() > 1).any(dim=-1)[:, None]
    return torch.where(outside, data.amin(dim=(2, 3, 4), keepdim=True), sampled)


def _cubic_b_spline(x: np.ndarray) -> np.ndarray:
    """The centred cubic B-spline, zero beyond ±2."""
    x = np.abs(x)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6)


def coarsen(data: torch.Tensor, axis: int, factor: float) -> torch.Tensor:
    """Downsample a floating-point tensor along an axis by nearest neighbour and upsample it linearly to its size.

    Both grids have the same centre; voxels beyond the coarse one become 0.
    """
    size = data.shape[axis]
    coarse_size = math.floor(size / factor) if size > 1 else 1
    fine_of_coarse = (size - 1) / 2 + (np.arange(coarse_size) - (coarse_size - 1) / 2) * factor
    nearest = np.clip(np.floor(fine_of_coarse + 0.5).astype(int), 0, size - 1)
    coarse_of_fine = (coarse_size - 1) / 2 + (np.arange(size) - (size - 1) / 2) / factor
    inside = (coarse_of_fine >= -0.5) & (coarse_of_fine <= coarse_size - 0.5)
    clamped = np.clip(coarse_of_fine, 0, coarse_size - 1)
    below = np.floor(clamped).astype(int)
    above = np.minimum(below + 1, coarse_size - 1)
    column = [-1 if dim == axis else 1 for dim in range(data.ndim)]
    weight = torch.from_numpy(clamped - below).to(data.dtype).view(column)
    first, second = (data.index_select(axis, torch.from_numpy(nearest[index])) for index in (below, above))
    return torch.lerp(first, second, weight).mul_(torch.from_numpy(inside).view(column))


def _gaussian_filter(volume: torch.Tensor, std_voxels: np.ndarray) -> torch.Tensor:
    """``scipy.ndimage.gaussian_filter`` with its defaults: kernels cut at 4 std, borders reflected."""
    for axis, std in enumerate(std_voxels):
        radius = int(4 * std + 0.5)
        if radius == 0:
            continue
        weights = np.exp(-0.5 * (np.arange(radius + 1) / std) ** 2)
        centre, *tail = (weights / (weights[0] + 2 * weights[1:].sum())).tolist()
        size = volume.shape[axis]
        index = np.pad(np.arange(size), radius, mode="symmetric")
        padded = volume.index_select(axis, torch.from_numpy(index))
        volume = padded.narrow(axis, radius, size) * centre
        for shift, weight in enumerate(tail, start=1):
            volume.add_(padded.narrow(axis, radius - shift, size), alpha=weight)
            volume.add_(padded.narrow(axis, radius + shift, size), alpha=weight)
    return volume
