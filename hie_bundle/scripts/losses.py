"""Losses of the study that MONAI does not have: a region loss plus the log of a Hausdorff distance loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.losses import HausdorffDTLoss as StockHausdorffDTLoss
from torch import nn

from .distance import boundary_distance
from .errors import UserError

__all__ = ["CompoundLoss", "HausdorffDTLoss", "LogHausdorffDTLoss", "choose_loss"]


class HausdorffDTLoss(StockHausdorffDTLoss):
    """``monai.losses.HausdorffDTLoss`` (Karimi et al. 2019) with its distance fields from :mod:`scripts.distance`.

    Same arguments, values and gradients as the parent; one exact distance transform per mask instead of two. The loss
    is computed in float32 also under autocast, since squared distances leave the range and precision of half.
    """

    @torch.no_grad()
    def distance_field(self, img: torch.Tensor) -> torch.Tensor:
        """Distance of each voxel to the nearest voxel of the other class.

        Args:
            img: probabilities or a mask, shape (B, C, *spatial), binarised at 0.5.

        Returns:
            float32 distances in voxels, same shape; zero where a mask is empty or full.
        """
        return boundary_distance(img > 0.5)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``monai.losses.HausdorffDTLoss.forward``."""
        return super().forward(input.float(), target.float())


class LogHausdorffDTLoss(HausdorffDTLoss):
    """log(1 + HausdorffDTLoss): damps outlier distances (paper, section 2, the log term of Eq. 5 and 6).

    Eq. 4 as printed, 1 / (1 + HD), falls as the distance grows, so its log would reward bad masks; the study's own
    code used the logarithm of one plus MONAI's loss, which is what this is.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``monai.losses.HausdorffDTLoss.forward``."""
        return torch.log1p(super().forward(input, target))


class CompoundLoss(nn.Module):
    """Weighted sum of a region loss and a boundary loss (paper, Eq. 5 and 6).

    Args:
        region: loss on overlap, e.g. ``monai.losses.TverskyLoss``.
        boundary: loss on distance, e.g. :class:`LogHausdorffDTLoss`.
        region_weight: α of Eq. 5 and 6.
        boundary_weight: β of Eq. 5 and 6.
    """

    def __init__(
        self, region: nn.Module, boundary: nn.Module, region_weight: float = 0.9, boundary_weight: float = 0.1
    ) -> None:
        super().__init__()
        self.region = region
        self.boundary = boundary
        self.region_weight = region_weight
        self.boundary_weight = boundary_weight

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: logits, shape (B, C, *spatial).
            target: 0/1 mask of the same shape.

        Returns:
            Scalar loss (with the parts' default mean reduction).
        """
        return self.region_weight * self.region(input, target) + self.boundary_weight * self.boundary(input, target)


def choose_loss(losses: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The loss called ``name``.

    Raises:
        UserError: when there is none, with the names that exist.
    """
    if name not in losses:
        raise UserError(f"loss_name '{name}' is unknown; choose one of: {', '.join(losses)}.")
    return losses[name]
