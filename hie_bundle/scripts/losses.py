"""Losses beyond MONAI's. Inputs are logits and 0/1 masks of shape (B, C, *spatial)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from monai.losses import BoundaryLoss as StockBoundaryLoss
from monai.losses import DeepSupervisionLoss as StockDeepSupervisionLoss
from monai.losses import DiceCELoss as StockDiceCELoss
from monai.losses import HausdorffDTLoss as StockHausdorffDTLoss
from monai.utils import LossReduction
from scipy import ndimage
from torch import nn

from .geometry.components import components
from .geometry.distance import boundary_distance
from .moved import lookup
from .runtime.distributed import mean_over_ranks, with_other_ranks

__getattr__ = partial(lookup, "losses")


class HausdorffLoss(StockHausdorffDTLoss):
    """``monai.losses.HausdorffDTLoss`` (Karimi et al. 2019), faster for one channel of logits with ``sigmoid``.

    Arguments, values, gradients and errors equal the parent's. Each mask needs one distance transform instead of two,
    without CUDA synchronisation. Half precision is converted to float32, since squared distances overflow it.

    Used alone, the loss leads to empty masks: for a ball of radius 5 voxels, MONAI's loss of an empty prediction is
    0.058, of the same ball shifted by 4 voxels 0.141.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        input = _float(input)
        if input.ndim not in (4, 5) or input.shape != target.shape or input.shape[1] > 1 or not self.sigmoid:
            return super().forward(input, target)
        probability = input.sigmoid()
        masks = torch.cat((probability.detach() > 0.5, target > 0.5))
        predicted, true = boundary_distance(masks, squared=True).pow_(self.alpha / 2).chunk(2)
        weighted_error = (probability - target).square() * predicted.add_(true)
        loss = weighted_error.mean(dim=([0] if self.batch else []) + list(range(2, input.ndim)), keepdim=True)
        if self.reduction == LossReduction.NONE:
            return loss
        return loss.sum() if self.reduction == LossReduction.SUM else loss.mean()


class LogHausdorffLoss(HausdorffLoss):
    """log(1 + HausdorffDTLoss): damps outlier distances (paper, section 2, the log term of Eq. 5 and 6).

    (Eq. 4 as printed, 1 / (1 + HD), decreases with distance.)

    ``over_ranks``: in distributed training the logarithm is of the mean over all ranks, which must have equal batch
    sizes; the mean of the ranks' gradients is then the gradient of the whole batch.
    """

    def __init__(self, over_ranks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.over_ranks = over_ranks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        distance = super().forward(input, target)
        if not self.over_ranks:
            return torch.log1p(distance)
        whole = mean_over_ranks(distance)
        # value of log(1 + whole), with derivative 1 / (1 + whole) by this rank's distance
        return torch.log1p(whole) + (distance - distance.detach()) / (1 + whole)


class RankDiceCELoss(StockDiceCELoss):
    """``monai.losses.DiceCELoss``; ``over_ranks`` extends ``batch`` to the batches of all ranks, of equal shape."""

    def __init__(self, over_ranks: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.over_ranks = over_ranks

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.over_ranks:
            return super().forward(input, target)
        inputs, targets = with_other_ranks(input), with_other_ranks(target)
        loss = super().forward(torch.cat(inputs), torch.cat(targets))
        # each rank has the gradient of its own part only; DDP averages, so multiply by the number of ranks
        return loss.detach() + len(inputs) * (loss - loss.detach())


class CompoundLoss(nn.Module):
    """Weighted sum of a region loss and a boundary loss (paper, Eq. 5 and 6: α and β)."""

    def __init__(
        self, region: nn.Module, boundary: nn.Module, region_weight: float = 0.9, boundary_weight: float = 0.1
    ) -> None:
        super().__init__()
        self.region = region
        self.boundary = boundary
        self.region_weight = region_weight
        self.boundary_weight = boundary_weight

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.region_weight * self.region(input, target) + self.boundary_weight * self.boundary(input, target)


class TwoClassLoss(nn.Module):
    """A loss on the probabilities (B, 2, *spatial) of background and lesion, given the lesion's logit (B, 1, *spatial).

    It wraps MONAI's ``GeneralizedDiceLoss`` (its class weights cancel out with one channel) and
    ``AsymmetricUnifiedFocalLoss`` (it has no sigmoid).

    Raises:
        ValueError: when the input of a call has several channels.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        input = _one_logit(input)
        probabilities = torch.cat((torch.sigmoid(-input), torch.sigmoid(input)), dim=1)
        return self.loss(probabilities, torch.cat((1 - target, target), dim=1).to(input.dtype))


class SignedDistanceLoss(StockBoundaryLoss):
    """``monai.losses.BoundaryLoss`` (Kervadec et al. 2019) with one distance transform per mask, on its device.

    Arguments, values, gradients and errors equal the parent's.
    """

    @torch.no_grad()
    def compute_distance_map(self, target: torch.Tensor) -> torch.Tensor:
        """Signed distances in voxels: outside a lesion the distance to it, inside 1 − distance to background."""
        mask = target.as_subclass(torch.Tensor) > 0.5
        distance = boundary_distance(mask)
        return torch.where(mask, (1 - distance).clamp_max(0), distance)


class ComponentDiceLoss(nn.Module):
    """Mean of the lesions' Dice losses, each in its Voronoi cell, so that small and large lesions have equal weight.

    A cell has the voxels nearest to one connected component (26 neighbours) of the true mask, as in the CC-Dice loss
    (Jaus et al. 2025); its loss is ``monai.losses.DiceLoss``. A volume without lesion is one cell.

    ``smooth_nr`` and ``smooth_dr`` are added to numerator and denominator of each Dice.

    Raises:
        ValueError: when the input of a call has several channels.
    """

    def __init__(self, smooth_nr: float = 1e-5, smooth_dr: float = 1e-5) -> None:
        super().__init__()
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = []
        for logits, mask in zip(_one_logit(input), target, strict=True):
            parts, count = _nearest_component(mask[0])
            probability, truth = torch.sigmoid(logits).flatten(), mask.to(logits.dtype).flatten()
            values = torch.stack([probability * truth, probability, truth])
            both, predicted, true = values.new_zeros(3, count).index_add(1, parts, values)
            losses.append((1 - (2 * both + self.smooth_nr) / (predicted + true + self.smooth_dr)).mean())
        return torch.stack(losses).mean()


class ScaleMeanLoss(StockDeepSupervisionLoss):
    """``monai.losses.DeepSupervisionLoss`` with weights that sum to 1, as in nnU-Net.

    The input may also be a stack of scales, (B, scales, C, *spatial), finest first, as from ``DynUNet``.
    """

    def get_weights(self, levels: int = 1) -> list[float]:
        weights = super().get_weights(levels)
        return [weight / sum(weights) for weight in weights]

    def forward(self, input: Any, target: torch.Tensor) -> torch.Tensor:
        if isinstance(input, torch.Tensor) and input.ndim == target.ndim + 1:
            input = list(input.unbind(1))
        return super().forward(input, target)


def _float(input: torch.Tensor) -> torch.Tensor:
    """Convert half precision to float32."""
    return input.to(torch.promote_types(input.dtype, torch.float32))


def _one_logit(input: torch.Tensor) -> torch.Tensor:
    if input.shape[1] != 1:
        raise ValueError(f"the loss needs one channel, the lesion's logit, not {input.shape[1]}.")
    return _float(input)


def _nearest_component(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Index, from 0, of the component nearest to each voxel, flattened; and the number of cells, at least 1."""
    lesion = (mask > 0.5).as_subclass(torch.Tensor).cpu().numpy()
    labels, count = components(lesion)
    if count < 2:
        return torch.zeros(lesion.size, dtype=torch.int64, device=mask.device), 1
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    parts = labels[tuple(nearest)].astype(np.int64) - 1
    return torch.from_numpy(parts).flatten().to(mask.device), count
