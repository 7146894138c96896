"""Augmentation of whole batches on the network's device, without a loop over the items.

Each class takes its ranges from the recipe's transforms and draws from the same distributions; the random numbers
differ from those on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchio
from monai.engines.utils import PrepareBatchDefault
from monai.transforms import RandCropByPosNegLabeld, SpatialPadd

from .batches import RandBatch
from .bridge import AugmentByTorchIOd
from .fast import FastAnisotropy, FastBlur, FastElasticDeformation, coarse_lines, lattice_bases, sample, spline_grid
from .pipeline import listed

__all__ = ["PaperBatch", "PatchBatch", "batched_form"]

Batch = Mapping[str, Any]
PAPER = [torchio.RandomNoise, FastAnisotropy, FastBlur, torchio.RandomGamma, FastElasticDeformation]
CANDIDATES = 8  # voxels drawn for a patch without a lesion; the first outside of lesions is taken


def batched_form(augment: Any, prepare_batch: Any) -> PaperBatch | PatchBatch | None:
    """The batched form of a recipe's augmentation: none, the paper's five transforms, or crop and padding with
    :class:`RandBatch`; None for any other."""
    steps: list[Any] = listed(augment)
    if type(prepare_batch) is PrepareBatchDefault:
        if not steps:
            return PaperBatch()
        composed = steps[0].transform if len(steps) == 1 and isinstance(steps[0], AugmentByTorchIOd) else None
        inner = composed.transforms if isinstance(composed, torchio.Compose) else []
        return PaperBatch(inner) if [type(one) for one in inner] == PAPER else None
    crop_and_pad = [type(step) for step in steps] == [RandCropByPosNegLabeld, SpatialPadd]
    return PatchBatch(steps[0], prepare_batch) if crop_and_pad and type(prepare_batch) is RandBatch else None


class PatchBatch:
    """Cut a patch out of each case of a batch, rotated, scaled and flipped by one resampling, and change intensities.

    Equals :class:`RandBatch` after MONAI's crop, up to the random numbers; a rotation shows the rest of the case beyond
    the crop instead of background.

    Args:
        crop: has the share of patches on lesions and the size of the crop, which stays inside the case.
        batch: has all other ranges.
    """

    def __init__(self, crop: RandCropByPosNegLabeld, batch: RandBatch) -> None:
        self.lesion_share = float(crop.cropper.pos_ratio)
        self.crop_size: tuple[int, ...] = tuple(crop.cropper.spatial_size)  # type: ignore[arg-type]
        self.batch = batch

    def __call__(self, batchdata: Batch, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of a batch of :class:`scripts.training.resident.ResidentLoader`, as by :class:`RandBatch`."""
        image, label = batchdata["image"], batchdata["label"]
        centres = self.draw_centres(batchdata)
        size = torch.tensor(image.shape[2:], device=image.device)
        matrices = self.batch.draw_matrices(len(image), self.crop_size).to(image.device, non_blocking=True)
        ratio = torch.tensor(self.crop_size, device=image.device) / size
        theta = matrices[..., :3] * ratio.flip(0)[None, :, None]
        offset = ((2 * centres + 1) / size - 1).flip(1)
        theta = torch.cat([theta, offset[..., None].to(theta)], dim=2)
        return self.batch.resample(image, label, theta)

    def draw_centres(self, batchdata: Batch) -> torch.Tensor:
        """Centres of the crops in voxels, (B, 3), as MONAI's ``RandCropByPosNegLabel`` draws them."""
        label, sizes = batchdata["label"], batchdata["size"]
        count, device = len(label), label.device
        drawn = (torch.rand(count, CANDIDATES, 3, device=device) * sizes[:, None]).long()
        items = torch.arange(count, device=device)
        lesion = label[items[:, None], 0, drawn[..., 0], drawn[..., 1], drawn[..., 2]] > 0.5
        outside = drawn[items, lesion.to(torch.uint8).argmin(dim=1)]
        on_lesion = (torch.rand(count, device=device) < self.lesion_share) & batchdata["has_lesion"]
        voxel = torch.where(on_lesion[:, None], batchdata["lesion_voxel"], outside)
        # the crop stays within the case; a case that is smaller is padded on both sides
        crop = torch.tensor(self.crop_size, device=device)
        inner = torch.minimum(crop, sizes)
        first, last = inner // 2, sizes - (inner + 1) // 2
        start = torch.minimum(torch.maximum(voxel, first), torch.maximum(last, first)) - inner // 2
        return start - (crop - inner) // 2 + (crop - 1) / 2


class PaperBatch:
    """The paper's five augmentations of a batch on one grid: noise, anisotropy, blur, gamma, elastic deformation.

    Anisotropy and blur are one matrix an item and axis; the elastic field is a product of B-spline bases.

    Args:
        transforms: TorchIO's in this order, with their ranges and probabilities; or none.
    """

    def __init__(self, transforms: Sequence[torchio.Transform] = ()) -> None:
        self.transforms: list[Any] = list(transforms)

    def __call__(self, batchdata: Batch, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of a batch of :class:`scripts.training.resident.ResidentLoader`, of the same shapes."""
        image, label = batchdata["image"], batchdata["label"]
        if not self.transforms:
            return image, label
        return self.apply(image, label, self.draw(image, batchdata["spacing_mm"]))

    def draw(self, image: torch.Tensor, spacing_mm: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters of :meth:`apply` for images (B, C, X, Y, Z) with voxels of ``spacing_mm`` (B, 3)."""
        noise, anisotropy, blur, gamma, elastic = self.transforms
        count, channels = image.shape[:2]

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, *shape, device=image.device)

        def applied(transform: Any) -> torch.Tensor:
            return torch.rand(count, device=image.device) < transform.probability

        std = torch.stack([uniform(*blur.std_ranges[2 * axis : 2 * axis + 2]) for axis in range(3)], dim=1)
        axes = torch.tensor(anisotropy.axes, device=image.device)
        chosen = axes[torch.randint(len(axes), (count,), device=image.device)]
        on, off = applied(noise), torch.zeros((), device=image.device)
        low, high = anisotropy.downsampling_range
        largest = torch.tensor(elastic.max_displacement, device=image.device, dtype=torch.float32)
        points = largest * uniform(-1, 1, *elastic.num_control_points, 3)
        locked = elastic.num_locked_borders
        if locked:  # as TorchIO: along the first two axes
            inside = torch.zeros(points.shape[1:3], device=image.device)
            inside[locked:-locked, locked:-locked] = 1
            points = points * inside[..., None, None]
        return {
            "noise_mean": torch.where(on, uniform(*noise.mean_range), off),
            "noise_std": torch.where(on, uniform(*noise.std_range), off),
            "axis": torch.where(applied(anisotropy), chosen, -1),
            "factor": low + (high - low) * torch.rand(count),  # in host memory, where its matrices are made
            "blur_std": torch.where(applied(blur)[:, None], std / spacing_mm, off),
            "gamma": torch.where(applied(gamma)[:, None], uniform(*gamma.log_gamma_range, channels), off).exp(),
            "points": points / spacing_mm[:, None, None, None] * applied(elastic)[:, None, None, None, None],
        }  # fmt: skip

    @staticmethod
    def apply(
        image: torch.Tensor, label: torch.Tensor, parameters: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment an image (B, C, X, Y, Z) and its label (B, 1, X, Y, Z).

        Args:
            parameters: ``noise_mean`` and ``noise_std`` (B,); ``axis`` (B,; -1: none) and ``factor`` (B,) of the
                anisotropy; ``blur_std`` (B, 3) in voxels; ``gamma`` (B, C); ``points`` (B, K, M, N, 3), displacements
                of the control points in voxels.
        """
        one = (slice(None), None, None, None, None)
        image = image + parameters["noise_mean"][one] + parameters["noise_std"][one] * torch.randn_like(image)
        for axis in range(3):
            size = image.shape[2 + axis]
            matrix = blur_matrix(parameters["blur_std"][:, axis], size)
            coarse = anisotropy_matrix(parameters["factor"], size, image.device)
            identity = torch.eye(size, device=image.device)
            matrix = matrix @ torch.where((parameters["axis"] == axis)[:, None, None], coarse, identity)
            lines = image.movedim(2 + axis, 2)
            image = torch.einsum("bij,bcjr->bcir", matrix, lines.flatten(3)).view(lines.shape).movedim(2, 2 + axis)
        image = image.sign() * image.abs() ** parameters["gamma"][:, :, None, None, None]
        shape = image.shape[2:]
        points = parameters["points"]
        bases = [basis.to(image.device) for basis in lattice_bases(tuple(shape), tuple(points.shape[1:4]))]
        grid = spline_grid(points, bases) + torch.stack(
            torch.meshgrid(*(torch.arange(n, device=image.device) for n in shape), indexing="ij"), dim=-1
        )
        grid = ((2 * grid + 1) / torch.tensor(shape, device=image.device) - 1).flip(-1)
        return sample(image, grid), sample(label, grid, "nearest")


def blur_matrix(std: torch.Tensor, size: int) -> torch.Tensor:
    """``scipy.ndimage.gaussian_filter1d`` along an axis of N voxels as matrices (B, N, N).

    Args:
        std: (B,), in voxels; kernels are shorter than the axis.
        size: N.
    """
    index = torch.arange(size, device=std.device)
    radius = (4 * std + 0.5).floor()[:, None, None]
    scale = std.clamp_min(1e-6)[:, None, None]

    def weights(distance: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * (distance / scale) ** 2) * (distance.abs() <= radius)

    i, j = index[:, None], index[None]
    matrix = weights(i - j) + weights(i + j + 1) + weights(2 * size - 1 - i - j)
    return matrix / matrix.sum(dim=2, keepdim=True)


def anisotropy_matrix(factor: torch.Tensor, size: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """:func:`.fast.coarsen` by factors (B,), in host memory, along an axis of N voxels as matrices (B, N, N)."""
    lines = zip(*(coarse_lines(size, one) for one in factor.double().tolist()), strict=True)
    below, above, weight, inside = (
        torch.from_numpy(np.stack(one)).to(device, non_blocking=True)[..., None] for one in lines
    )
    matrix = torch.zeros(len(factor), size, size, dtype=torch.float64, device=device)
    matrix.scatter_add_(2, below, (1 - weight) * inside).scatter_add_(2, above, weight * inside)
    return matrix.float()
