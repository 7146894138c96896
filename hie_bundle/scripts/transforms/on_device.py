"""Augmentation of whole batches on the network's device.

The recipe's transforms (TorchIO, MONAI) draw the parameters of each item on the host, which are then applied to the
whole batch at once. Random numbers differ from those of augmentation on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchio
from monai.engines.utils import PrepareBatchDefault
from monai.transforms import RandCropByPosNegLabeld, SpatialPadd
from numpy.typing import NDArray
from scipy import ndimage

from .batches import RandBatch
from .bridge import AugmentByTorchIOd
from .fast import FastAnisotropy, FastBlur, FastElasticDeformation, coarsen, lattice_bases, sample, spline_grid
from .pipeline import listed

Batch = Mapping[str, Any]
PAPER = [torchio.RandomNoise, FastAnisotropy, FastBlur, torchio.RandomGamma, FastElasticDeformation]


def batched_form(augment: Any, prepare_batch: Any) -> PaperBatch | PatchBatch | None:
    """Batched form of a recipe's augmentation: empty, the paper's five transforms, or crop and padding with
    :class:`RandBatch`; None for other augmentations."""
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
    """Crop, rotate, scale and flip a patch of each case of a batch by one resampling, and change its intensities.

    Equals :class:`RandBatch` after MONAI's ``crop``, which draws the centres, except that rotated patches contain the
    surrounding voxels of the case instead of background.
    """

    def __init__(self, crop: RandCropByPosNegLabeld, batch: RandBatch) -> None:
        self.cropper = crop.cropper
        self.batch = batch

    def __call__(self, batchdata: Batch, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of a batch of :class:`scripts.training.resident.ResidentCases`, as in :class:`RandBatch`."""
        image, label = batchdata["image"], batchdata["label"]
        size, crop = torch.tensor(image.shape[2:]), torch.tensor(self.cropper.spatial_size)
        matrices = self.batch.draw_matrices(len(image), crop.tolist())[..., :3] * (crop / size).flip(0)[:, None]
        offset = ((2 * self.draw_centres(batchdata) + 1) / size - 1).flip(1)
        theta = torch.cat([matrices, offset[..., None]], dim=2)
        return self.batch.resample(image, label, theta.to(image.device, non_blocking=True))

    def draw_centres(self, batchdata: Batch) -> torch.Tensor:
        """Crop centres in voxels, (B, 3), drawn by MONAI's transform; cases smaller than the crop are centred."""
        self.cropper.set_random_state(int(torch.randint(2**31, ())))
        crop, centres = torch.tensor(self.cropper.spatial_size), []
        for size, (lesion, background) in zip(batchdata["size"], batchdata["voxels"], strict=True):
            self.cropper.randomize(torch.empty(1, *size.tolist(), device="meta"), lesion, background)
            inner = torch.minimum(crop, size)
            start = torch.tensor(self.cropper.centers)[0] - inner // 2
            centres.append(start - (crop - inner) // 2 + (crop - 1) / 2)
        return torch.stack(centres)


@dataclass
class Parameters:
    """Parameters of the paper's augmentations for one item; the defaults are the identity."""

    mean: float = 0.0  # of the noise
    std: float = 0.0
    axis: int = 0  # of the anisotropy
    downsampling: float = 1.0
    blur_mm: Sequence[float] = (0.0, 0.0, 0.0)  # standard deviations
    gamma: Sequence[float] = (1.0,)  # of each channel, or of all
    displacement_mm: NDArray[np.float32] | None = None  # of the control points, (K, M, N, 3)


class PaperBatch:
    """The paper's five augmentations of a batch on one grid: noise, anisotropy, blur, gamma, elastic deformation.

    Anisotropy and blur are one matrix per item and axis; the elastic field is a product of B-spline bases.
    ``transforms`` are TorchIO's in this order, with their ranges and probabilities, or empty.
    """

    def __init__(self, transforms: Sequence[torchio.Transform] = ()) -> None:
        self.transforms: list[Any] = list(transforms)

    def __call__(self, batchdata: Batch, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of a batch of :class:`scripts.training.resident.ResidentCases`, of the same shapes."""
        image, label = batchdata["image"], batchdata["label"]
        if not self.transforms:
            return image, label
        return self.apply(image, label, batchdata["spacing_mm"], [self.draw(image.shape[1]) for _ in image])

    def draw(self, channels: int) -> Parameters:
        """Draw the parameters of one item with TorchIO's transforms."""
        noise, anisotropy, blur, gamma, elastic = self.transforms
        points = elastic.num_control_points
        drawn = Parameters(gamma=[1.0] * channels, displacement_mm=np.zeros((*points, 3), np.float32))
        applied = [float(torch.rand(1)) <= transform.probability for transform in self.transforms]
        if applied[0]:
            drawn.mean, drawn.std, _ = noise.get_params(noise.mean_range, noise.std_range)
        if applied[1]:
            drawn.axis, drawn.downsampling = anisotropy.get_params(anisotropy.axes, anisotropy.downsampling_range)
        if applied[2]:
            drawn.blur_mm = blur.get_params(blur.std_ranges)
        if applied[3]:
            drawn.gamma = [gamma.get_params(gamma.log_gamma_range) for _ in range(channels)]
        if applied[4]:
            drawn.displacement_mm = elastic.get_params(points, elastic.max_displacement, elastic.num_locked_borders)
        return drawn

    @staticmethod
    def apply(
        image: torch.Tensor, label: torch.Tensor, spacing_mm: torch.Tensor, drawn: Sequence[Parameters]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment images (B, C, X, Y, Z) and labels (B, 1, X, Y, Z) of voxel size ``spacing_mm`` (B, 3)."""

        def uploaded(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, np.float32)).to(image.device, non_blocking=True)

        def each(values: Sequence[Any]) -> torch.Tensor:
            return uploaded(values).reshape(len(image), -1, 1, 1, 1)

        mean, std = each([one.mean for one in drawn]), each([one.std for one in drawn])
        image = image + mean + std * torch.randn_like(image)
        for axis in range(3):
            size = image.shape[2 + axis]
            spacing = spacing_mm[:, axis].tolist()
            matrix = uploaded([_along(axis, size, step, one) for step, one in zip(spacing, drawn, strict=True)])
            lines = image.movedim(2 + axis, 2)
            image = torch.einsum("bij,bcjr->bcir", matrix, lines.flatten(3)).view(lines.shape).movedim(2, 2 + axis)
        image = image.sign() * image.abs() ** each([one.gamma for one in drawn])
        shape = image.shape[2:]
        points = uploaded([one.displacement_mm for one in drawn]) / uploaded(spacing_mm)[:, None, None, None]
        bases = [basis.to(image.device) for basis in lattice_bases(tuple(shape), tuple(points.shape[1:4]))]
        grid = spline_grid(points, bases) + torch.stack(
            torch.meshgrid(*(torch.arange(n, device=image.device) for n in shape), indexing="ij"), dim=-1
        )
        grid = ((2 * grid + 1) / torch.tensor(shape, device=image.device) - 1).flip(-1)
        return sample(image, grid), sample(label, grid, "nearest")


def _along(axis: int, size: int, spacing_mm: float, drawn: Parameters) -> NDArray[np.float32]:
    """Matrix (N, N) of anisotropy and subsequent blur along an axis of N voxels."""
    coarse = coarsen(torch.eye(size), 0, drawn.downsampling if drawn.axis == axis else 1.0)
    return ndimage.gaussian_filter(coarse.numpy(), (drawn.blur_mm[axis] / spacing_mm, 0))
