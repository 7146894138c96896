"""Exact Euclidean distance transforms of batches of binary masks, on the CPU and on CUDA devices."""

from __future__ import annotations

import math

import edt
import numpy as np
import torch

CHUNK_BYTES = 64 << 20  # size of temporary arrays in ``separable``


def boundary_distance(mask: torch.Tensor, squared: bool = False) -> torch.Tensor:
    """Distance in voxels, or its square, of each voxel to the centre of the nearest voxel of the other class.

    Equals SciPy's ``distance_transform_edt(mask) + distance_transform_edt(~mask)`` for each mask of the batch. Empty
    and full masks give zeros, as in ``monai.losses.HausdorffDTLoss``. The package ``edt`` is used on the CPU, tensor
    operations without a copy to the host on other devices.

    Args:
        mask: bool, shape (B, C, H, W) or (B, C, H, W, D); the result has this shape and is float32.
        squared: return squared distances.
    """
    mask = mask.detach().as_subclass(torch.Tensor)  # operations on a MetaTensor are slower
    if mask.device.type != "cpu":
        distance = separable(mask)
        return distance if squared else distance.sqrt_()
    transform = edt.edtsq if squared else edt.edt
    fields = []  # a list, since freeing and reallocating memory would take over an eighth of the time
    for one_mask in mask.flatten(0, 1):
        foreground = one_mask.contiguous().numpy()
        if not foreground.any() or foreground.all():
            fields.append(torch.zeros(one_mask.shape))
            continue
        labels = foreground.view(np.uint8) + np.uint8(1)  # two labels: one pass gives both distances
        fields.append(torch.from_numpy(transform(labels, parallel=torch.get_num_threads())))
    return torch.stack(fields).view(mask.shape)


def separable(mask: torch.Tensor) -> torch.Tensor:
    """Squared distances on any device, axis by axis (Saito and Toriwaki 1994; Felzenszwalb and Huttenlocher 2012).

    The first axis, the longest, is a running maximum; each later axis is a min-plus product with the squared distances
    along it.
    """
    first, *others = sorted(range(2, mask.ndim), key=lambda axis: mask.shape[axis], reverse=True)
    squared = _distance_along(mask, first).square()
    for axis in others:
        # for each class, the other class has distance 0 and its own class the distance so far
        to_background = _min_plus(torch.where(mask, squared, 0), axis)
        to_foreground = _min_plus(torch.where(mask, 0, squared), axis)
        squared = torch.where(mask, to_background, to_foreground)
    return torch.where(squared.isinf(), 0, squared)  # an empty or full mask is all inf


def _distance_along(mask: torch.Tensor, axis: int) -> torch.Tensor:
    """Steps along one axis to the nearest voxel of the other class on the same line; infinite if there is none."""
    lines = mask.movedim(axis, -1)
    n = lines.shape[-1]
    position = torch.arange(n, dtype=torch.float32, device=mask.device)
    changes = lines[..., 1:] != lines[..., :-1]
    never = torch.full((*lines.shape[:-1], 1), math.inf, device=mask.device)
    # Voxel i starts a run where it differs from i - 1; the last voxel of the other class before i is start - 1.
    before = torch.cat((-never, torch.where(changes, position[:-1], -math.inf)), dim=-1).cummax(dim=-1).values
    after = torch.cat((torch.where(changes, position[1:], math.inf), never), dim=-1).flip(-1).cummin(dim=-1).values
    steps = torch.minimum(position - before, after.flip(-1) - position)
    return steps.movedim(-1, axis)


def _min_plus(values: torch.Tensor, axis: int) -> torch.Tensor:
    """min over y of values[y] + (x - y)² along one axis, for all x."""
    lines = values.movedim(axis, -1)
    n = lines.shape[-1]
    position = torch.arange(n, dtype=torch.float32, device=values.device)
    cost = (position[:, None] - position[None, :]).square()
    flat = lines.reshape(-1, 1, n)
    result = torch.empty((flat.shape[0], n), dtype=torch.float32, device=values.device)
    step = max(1, CHUNK_BYTES // (4 * n * n))
    for start in range(0, flat.shape[0], step):
        torch.amin(flat[start : start + step] + cost, dim=-1, out=result[start : start + step])
    return result.view(lines.shape).movedim(-1, axis)
