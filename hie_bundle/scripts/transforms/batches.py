"""Augmentation of whole batches where the network runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines.utils import PrepareBatchDefault
from torch.nn import functional

from ..runtime.errors import UserError

__all__ = ["RandBatch"]

# MONAI's crop around lesions warns at each patch of a case without a lesion
warnings.filterwarnings("ignore", "Num foregrounds 0, Num backgrounds")


class RandBatch(PrepareBatchDefault):
    """Rotate, scale and flip the patches of a batch, change their intensities, and crop them to the network's input.

    A trainer's ``prepare_batch``; the parameters of each patch come from PyTorch's generator. Voxels of 0 stay 0.

    Args:
        spatial_size: of the output, centred in the input.
        spacing_mm: size of a voxel.
        rotation: largest angle about each axis, radians.
        scaling: largest relative change of size along each axis.
        flip_probability: of the first axis, left to right.
        intensity_factor: largest relative change of a channel.
        intensity_shift: largest shift of a channel.
        noise: largest standard deviation of Gaussian noise; half of the patches have noise.
        dropout: probability of setting ``dropped`` channels to 0, as for a missing map.
        dropped: indices of these channels, from 0.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float],
        rotation: Sequence[float] = (0.0, 0.0, 0.0),
        scaling: float = 0.0,
        flip_probability: float = 0.0,
        intensity_factor: float = 0.0,
        intensity_shift: float = 0.0,
        noise: float = 0.0,
        dropout: float = 0.0,
        dropped: Sequence[int] = (),
    ) -> None:
        if not all(type(channel) is int and channel >= 0 for channel in dropped):
            raise UserError(f"prepare_batch#dropped must list channel numbers from 0 on, not {dropped!r}.")
        self.spatial_size = tuple(spatial_size)
        self.spacing_mm = torch.tensor(spacing_mm, dtype=torch.float32)
        self.rotation = torch.tensor(rotation, dtype=torch.float32)
        self.scaling = scaling
        self.flip_probability = flip_probability
        self.intensity_factor = intensity_factor
        self.intensity_shift = intensity_shift
        self.noise = noise
        self.dropout = dropout
        self.dropped = list(dropped)

    def __call__(
        self, batchdata: Any, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, C, *spatial_size) and label (B, 1, *spatial_size), from 0 to 1, of a batch on a device."""
        image, label = map(_plain, super().__call__(batchdata, device, non_blocking, **kwargs))
        matrices = self.draw_matrices(len(image), image.shape[2:]).to(image.device, non_blocking=non_blocking)
        return self.resample(image, label, matrices)

    def resample(
        self, image: torch.Tensor, label: torch.Tensor, matrices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resample image and label by affines of :meth:`draw_matrices`; change the image's intensities."""
        grid = functional.affine_grid(matrices, [len(image), 1, *self.spatial_size], align_corners=False)
        moved = functional.grid_sample(torch.cat([image, label], dim=1), grid, align_corners=False)
        return self.change_intensities(moved[:, :-1]), moved[:, -1:]

    def draw_matrices(self, count: int, size: Sequence[int]) -> torch.Tensor:
        """Affine from output to input of each of ``count`` patches of a size, (count, 3, 4), for ``affine_grid``."""
        angles = self._uniform(count, 3) * self.rotation
        turned = torch.eye(3).repeat(count, 1, 1)
        for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
            cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
            turn = torch.eye(3).repeat(count, 1, 1)
            turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cosine, -sine, sine, cosine
            turned = turned @ turn
        zoom = 1 / (1 + self.scaling * self._uniform(count, 3))
        zoom[:, 0] *= torch.where(torch.rand(count) < self.flip_probability, -1.0, 1.0)
        # normalised output coordinates, centred, to millimetres, to normalised input coordinates
        out_mm = torch.tensor(self.spatial_size) * self.spacing_mm / 2
        in_mm = torch.tensor(tuple(size)) * self.spacing_mm / 2
        matrices = turned @ torch.diag_embed(zoom) * out_mm / in_mm[:, None]
        matrices = matrices.flip(1, 2)  # z, y, x
        return torch.cat([matrices, torch.zeros(count, 3, 1)], dim=2)

    def change_intensities(self, image: torch.Tensor) -> torch.Tensor:
        """Scale, shift, add noise to and drop channels, shape (B, C, X, Y, Z); 0 stays 0."""
        shape = (*image.shape[:2], 1, 1, 1)
        factor = 1 + self.intensity_factor * self._uniform(*shape)
        shift = self.intensity_shift * self._uniform(*shape)
        noise = self.noise * torch.rand(len(image), 1, 1, 1, 1) * (torch.rand(len(image), 1, 1, 1, 1) < 0.5)
        kept = torch.ones(shape)
        kept[:, self.dropped] = (torch.rand(len(image), 1, 1, 1, 1) >= self.dropout).float()
        factor, shift, noise, kept = (one.to(image.device, non_blocking=True) for one in (factor, shift, noise, kept))
        changed = image * factor + shift + noise * torch.randn_like(image)
        return changed * (image != 0) * kept

    @staticmethod
    def _uniform(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape) - 1


def _plain(tensor: Any) -> torch.Tensor:
    """Remove metadata: they do not describe a rotated patch, and slow every operation."""
    return (tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor).float()
