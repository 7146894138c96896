"""Metrics of one case from two masks on one grid, by the challenge's definition and by the paper's.

The two are not the same numbers. The challenge weighs every piece of surface by its area (surfels, as in
google-deepmind/surface-distance); the paper used MONAI's metrics, which count border voxels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from numpy.typing import NDArray
from surface_distance import (
    compute_average_surface_distance as surfel_average_distance,
)
from surface_distance import (
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

__all__ = ["case_metrics", "challenge_metrics", "dice", "paper_metrics"]

Mask = NDArray[np.bool_]


def dice(pred: Mask, truth: Mask) -> float:
    """2·|P ∩ T| / (|P| + |T|) (paper, Eq. 9); 1 when both masks are empty, 0 when exactly one is."""
    total = int(pred.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((pred & truth).sum()) / total


def challenge_metrics(
    pred: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float = 2.0
) -> dict[str, float]:
    """The official metrics of the BONBID-HIE challenge.

    Args:
        pred: predicted mask, bool, shape (X, Y, Z).
        truth: annotated mask, same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: tolerance of the normalised surface Dice; the challenge's is 2.

    Returns:
        ``dice``; ``masd_mm``, the mean of the two directed, surfel-area-weighted average surface distances; ``nsd``,
        the surface Dice at the tolerance. Both masks empty: 1, 0, 1. Exactly one empty: 0, NaN, 0.
    """
    if not pred.any() and not truth.any():
        return {"dice": 1.0, "masd_mm": 0.0, "nsd": 1.0}
    if not pred.any() or not truth.any():
        return {"dice": 0.0, "masd_mm": math.nan, "nsd": 0.0}
    distances = compute_surface_distances(truth, pred, list(spacing_mm))
    return {
        "dice": dice(pred, truth),
        "masd_mm": float(np.mean(surfel_average_distance(distances))),
        "nsd": float(compute_surface_dice_at_tolerance(distances, tolerance_mm)),
    }


def paper_metrics(pred: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float = 2.0) -> dict[str, float]:
    """The surface metrics as the paper computed them, with MONAI.

    Args:
        pred: predicted mask, bool, shape (X, Y, Z).
        truth: annotated mask, same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: tolerance of the normalised surface Dice; the paper does not state its own.

    Returns:
        ``paper_msd_mm``, the mean of the two directed average surface distances (Eq. 7); ``paper_nsd``, the surface
        Dice at the tolerance (Eq. 8). With exactly one mask empty the distance is infinite and the surface Dice 0;
        with both empty both are undefined (NaN), as MONAI leaves them.
    """
    if not pred.any() and not truth.any():
        return {"paper_msd_mm": math.nan, "paper_nsd": math.nan}
    if not pred.any() or not truth.any():
        return {"paper_msd_mm": math.inf, "paper_nsd": 0.0}
    p, t = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (pred, truth))
    spacing = [float(s) for s in spacing_mm]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directed = [
            float(compute_average_surface_distance(a, b, include_background=True, spacing=spacing))
            for a, b in ((p, t), (t, p))
        ]
        nsd = compute_surface_dice(p, t, [tolerance_mm], include_background=True, spacing=spacing)
    return {"paper_msd_mm": sum(directed) / 2, "paper_nsd": float(nsd)}


def case_metrics(pred: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float = 2.0) -> dict[str, float]:
    """Both definitions side by side, cropped to where there is something.

    Arguments as for :func:`challenge_metrics`; returns what it and :func:`paper_metrics` return.

    Raises:
        ValueError: when the masks have different shapes or are not three-dimensional.
    """
    if pred.shape != truth.shape or pred.ndim != 3:
        raise ValueError(f"the masks must be three-dimensional and of one shape, got {pred.shape} and {truth.shape}.")
    occupied = np.nonzero(pred | truth)
    if len(occupied[0]):
        # a border of background on every side keeps the surfaces what they are in the whole volume
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in occupied)
        pred, truth = (np.pad(mask[box], 1) for mask in (pred, truth))
    return {
        **challenge_metrics(pred, truth, spacing_mm, tolerance_mm),
        **paper_metrics(pred, truth, spacing_mm, tolerance_mm),
    }
