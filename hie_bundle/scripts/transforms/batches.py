"""Augmentation of whole batches on the network's device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines.utils import PrepareBatchDefault
from torch.nn import functional

from ..runtime.errors import UserError

# MONAI's crop around lesions warns at each patch of a case without a lesion
warnings.filterwarnings("ignore", "Num foregrounds 0, Num backgrounds")


@dataclass(eq=False)
class RandBatch(PrepareBatchDefault):
    """Rotate, scale and flip the patches of a batch, change their intensities, and crop them to the network's input.

    It is a trainer's ``prepare_batch``. Parameters are drawn per patch from PyTorch's generator. Voxels of 0 stay 0.
    """

    spatial_size: Sequence[int]  # of the output, centred in the input
    spacing_mm: Sequence[float]  # voxel size
    rotation: Sequence[float] = (0.0, 0.0, 0.0)  # largest angle about each axis, radians
    scaling: float = 0.0  # largest relative change of size along each axis
    flip_probability: float = 0.0  # of the first axis, left to right
    intensity_factor: float = 0.0  # largest relative change of a channel
    intensity_shift: float = 0.0  # largest shift of a channel
    noise: float = 0.0  # largest standard deviation of Gaussian noise; half of the patches have noise
    dropout: float = 0.0  # probability of setting ``dropped`` channels to 0, as for a missing map
    dropped: Sequence[int] = ()  # indices of these channels, from 0

    def __post_init__(self) -> None:
        if not all(type(channel) is int and channel >= 0 for channel in self.dropped):
            raise UserError(f"prepare_batch#dropped must list channel indices (0, 1, …), not {self.dropped!r}.")

    def __call__(
        self, batchdata: Any, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, C, *spatial_size) and label (B, 1, *spatial_size) in [0, 1] of a batch, on the device."""
        image, label = map(_plain, super().__call__(batchdata, device, non_blocking, **kwargs))
        matrices = self.draw_matrices(len(image), image.shape[2:]).to(image.device, non_blocking=non_blocking)
        return self.resample(image, label, matrices)

    def resample(
        self, image: torch.Tensor, label: torch.Tensor, matrices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resample image and label with affines of :meth:`draw_matrices`; change the image's intensities."""
        grid = functional.affine_grid(matrices, [len(image), 1, *self.spatial_size], align_corners=False)
        moved = functional.grid_sample(torch.cat([image, label], dim=1), grid, align_corners=False)
        return self.change_intensities(moved[:, :-1]), moved[:, -1:]

    def draw_matrices(self, count: int, size: Sequence[int]) -> torch.Tensor:
        """Affines from output to input for ``count`` patches of ``size``, (count, 3, 4), for ``affine_grid``."""
        angles = self._uniform(count, 3) * torch.tensor(self.rotation)
        turned = torch.eye(3).repeat(count, 1, 1)
        for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
            cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
            turn = torch.eye(3).repeat(count, 1, 1)
            turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cosine, -sine, sine, cosine
            turned = turned @ turn
        zoom = 1 / (1 + self.scaling * self._uniform(count, 3))
        zoom[:, 0] *= torch.where(torch.rand(count) < self.flip_probability, -1.0, 1.0)
        # normalised output coordinates, centred, to millimetres, to normalised input coordinates
        half_voxel_mm = torch.tensor(self.spacing_mm) / 2
        out_mm, in_mm = (torch.tensor(tuple(extent)) * half_voxel_mm for extent in (self.spatial_size, size))
        matrices = turned @ torch.diag_embed(zoom) * out_mm / in_mm[:, None]
        matrices = matrices.flip(1, 2)  # z, y, x
        return torch.cat([matrices, torch.zeros(count, 3, 1)], dim=2)

    def change_intensities(self, image: torch.Tensor) -> torch.Tensor:
        """Scale, shift and drop channels of an image (B, C, X, Y, Z), and add noise; 0 stays 0."""
        shape = (*image.shape[:2], 1, 1, 1)
        factor = 1 + self.intensity_factor * self._uniform(*shape)
        shift = self.intensity_shift * self._uniform(*shape)
        noise = self.noise * torch.rand(len(image), 1, 1, 1, 1) * (torch.rand(len(image), 1, 1, 1, 1) < 0.5)
        kept = torch.ones(shape)
        kept[:, list(self.dropped)] = (torch.rand(len(image), 1, 1, 1, 1) >= self.dropout).float()
        factor, shift, noise, kept = (one.to(image.device, non_blocking=True) for one in (factor, shift, noise, kept))
        changed = image * factor + shift + noise * torch.randn_like(image)
        return changed * (image != 0) * kept

    @staticmethod
    def _uniform(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape) - 1


def _plain(tensor: Any) -> torch.Tensor:
    """Remove metadata, which are wrong for a rotated patch and slow every operation."""
    return (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor).float()
