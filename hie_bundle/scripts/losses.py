"""Losses of the study that MONAI does not have: a region loss plus the log of a Hausdorff distance loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from monai.losses import DiceCELoss as StockDiceCELoss
from monai.losses import HausdorffDTLoss as StockHausdorffDTLoss
from monai.networks import one_hot
from monai.utils import LossReduction
from torch import nn

from .distance import boundary_distance
from .distributed import mean_over_ranks, with_other_ranks

__all__ = ["CompoundLoss", "DiceCELoss", "HausdorffDTLoss", "LogHausdorffDTLoss"]


class HausdorffDTLoss(StockHausdorffDTLoss):
    """``monai.losses.HausdorffDTLoss`` (Karimi et al. 2019) with its distance fields from :mod:`scripts.distance`.

    Same arguments, values, gradients and errors as the parent, but all masks of a batch, predicted and true, in one
    call with one exact distance transform each, instead of two in turn. On CUDA everything is computed on the device
    and nothing waits for it: that is why the parent's ``forward``, which indexes channels by lists, is not used. The
    loss is computed in float32 also under autocast, since squared distances leave the range and precision of half.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``monai.losses.HausdorffDTLoss.forward``; the result is float32 (float64 for float64 input)."""
        if input.ndim not in (4, 5):
            raise ValueError("Only 2D (NCHW) and 3D (NCHWD) supported")
        if input.dtype != torch.float64:
            input = input.float()
        channels = input.shape[1]
        if channels == 1:
            for option in ("softmax", "to_onehot_y"):
                if getattr(self, option):
                    warnings.warn(f"single channel prediction, `{option}=True` ignored.", stacklevel=2)
            if not self.include_background:
                warnings.warn("single channel prediction, `include_background=False` ignored.", stacklevel=2)
        if self.sigmoid:
            input = input.sigmoid()
        if self.softmax and channels > 1:
            input = input.softmax(dim=1)
        if self.other_act is not None:
            input = self.other_act(input)
        if self.to_onehot_y and channels > 1:
            target = one_hot(target, num_classes=channels)
        if not self.include_background and channels > 1:
            input, target = input[:, 1:], target[:, 1:]
        if target.shape != input.shape:
            raise AssertionError(f"ground truth has different shape ({target.shape}) from input ({input.shape})")

        masks = torch.cat((input.detach() > 0.5, target > 0.5))
        predicted, true = boundary_distance(masks, squared=True).pow_(self.alpha / 2).chunk(2)
        weighted_error = (input - target).square() * predicted.add_(true)
        loss = weighted_error.mean(dim=([0] if self.batch else []) + list(range(2, input.ndim)), keepdim=True)
        if self.reduction == LossReduction.NONE:
            return loss
        return loss.sum() if self.reduction == LossReduction.SUM else loss.mean()


class LogHausdorffDTLoss(HausdorffDTLoss):
    """log(1 + HausdorffDTLoss): damps outlier distances (paper, section 2, the log term of Eq. 5 and 6).

    Eq. 4 as printed, 1 / (1 + HD), falls as the distance grows, so its log would reward bad masks; the study's own
    code used the logarithm of one plus MONAI's loss, which is what this is.

    The mean over the batch is inside the logarithm, so the mean of the losses of a batch's parts is not its loss.

    Args:
        over_ranks: in distributed training, take the mean over the items of all ranks, which must be equally many on
            each. The value is then the loss of the whole batch on every rank, and the ranks' gradients average to its
            gradient, as they do without this for losses that are means over items.
        options: see ``monai.losses.HausdorffDTLoss``.
    """

    def __init__(self, over_ranks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.over_ranks = over_ranks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``monai.losses.HausdorffDTLoss.forward``."""
        distance = super().forward(input, target)
        if not self.over_ranks:
            return torch.log1p(distance)
        whole = mean_over_ranks(distance)
        # the value of log(1 + whole), with its derivative 1 / (1 + whole) for this rank's part
        return torch.log1p(whole) + (distance - distance.detach()) / (1 + whole)


class DiceCELoss(StockDiceCELoss):
    """``monai.losses.DiceCELoss``, for ``batch=True`` over the batches of all ranks.

    Args:
        over_ranks: in distributed training, the loss of all ranks' items together, which must be equally many and of
            one shape on each; as in :class:`LogHausdorffDTLoss` the ranks' gradients average to its gradient.
        options: see ``monai.losses.DiceCELoss``.
    """

    def __init__(self, over_ranks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.over_ranks = over_ranks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """See ``monai.losses.DiceCELoss.forward``."""
        if not self.over_ranks:
            return super().forward(input, target)
        inputs, targets = with_other_ranks(input), with_other_ranks(target)
        loss = super().forward(torch.cat(inputs), torch.cat(targets))
        # each rank has the derivative for its own part only, and their mean is taken
        return loss.detach() + len(inputs) * (loss - loss.detach())


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
