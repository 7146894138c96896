"""Metrics of one case from masks on one grid: the challenge's definitions, the paper's, overlap, lesions, readers.

The challenge's and the paper's surface metrics differ. The challenge weights each surface element by its area (surfels,
as in google-deepmind/surface-distance); the paper used MONAI's metrics, which count border voxels. Here each computes
its directed distances once, between surface elements only.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import SimpleITK as sitk
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray
from surface_distance import (
    compute_average_surface_distance,
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
)

from ..geometry.components import components
from ..geometry.surfaces import Mask, border_distances, cropped, share_within, surfel_distances
from .measure import FAMILIES, Measure, measured_by, register

Spacing = tuple[float, ...]  # in mm, along each axis
_CHALLENGE = "challenge's definition (surface elements weighted by area)"
_PAPER = "paper's definition (MONAI, border voxels)"


def dice(pred: Mask, truth: Mask) -> float:
    """2·|P ∩ T| / (|P| + |T|) (paper, Eq. 9); 1 when both masks are empty, 0 when exactly one is."""
    total = int(pred.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((pred & truth).sum()) / total


@measured_by(
    Measure(
        "dice", "Dice", "2·|P∩T| / (|P|+|T|); 1 when both masks are empty, 0 when one is.",
        better="higher", group="shared", in_cases=True, published="dice",
    ),
    Measure("precision", "Precision", "Share of the prediction that is lesion; undefined without a prediction.",
            better="higher", compared=False),
    Measure("sensitivity", "Sensitivity", "Share of the lesion that is predicted; undefined without a lesion.",
            better="higher", compared=False),
)  # fmt: skip
def overlap_metrics(pred: Mask, truth: Mask) -> dict[str, float]:
    """Voxel overlap of two masks of one shape (X, Y, Z); the challenge and the paper agree on it."""
    common = int((pred & truth).sum())
    predicted, true = int(pred.sum()), int(truth.sum())
    return {
        "dice": dice(pred, truth),
        "precision": common / predicted if predicted else math.nan,
        "sensitivity": common / true if true else math.nan,
    }


@measured_by(
    Measure(
        "masd_mm", "MASD",
        f"Mean of the two directed average surface distances, {_CHALLENGE}; 0 when both masks are empty, undefined "
        "when one is.",
        "mm", "lower", 2, group="challenge", in_cases=True,
    ),
    Measure(
        "nsd", "NSD",
        f"Share of the surfaces within the tolerance, {_CHALLENGE}; 1 when both masks are empty, 0 when one is.",
        better="higher", group="challenge", in_cases=True,
    ),
    Measure(
        "hd95_mm", "HD95",
        "95th percentile of the surface distances (Hausdorff); 0 when both masks are empty, infinite when one is.",
        "mm", "lower", 2, in_cases=True, compared=False,
    ),
)  # fmt: skip
def challenge_metrics(pred: Mask, truth: Mask, spacing_mm: Spacing, tolerance_mm: float = 2.0) -> dict[str, float]:
    """The challenge's surface metrics and HD95, equal to those of ``surface_distance``.

    That package computes distance maps of the volume; here distances are computed between surfels only.

    Args:
        pred: predicted mask, bool, shape (X, Y, Z).
        truth: annotated mask, same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: tolerance of the normalised surface Dice; 2 in the challenge.
    """
    if not pred.any() or not truth.any():
        equal = not (pred.any() or truth.any())
        return {"masd_mm": 0.0 if equal else math.nan, "nsd": float(equal), "hd95_mm": 0.0 if equal else math.inf}
    surfaces = surfel_distances(pred, truth, spacing_mm)
    return {
        "masd_mm": float(np.mean(compute_average_surface_distance(surfaces))),
        "nsd": float(compute_surface_dice_at_tolerance(surfaces, tolerance_mm)),
        "hd95_mm": float(compute_robust_hausdorff(surfaces, 95)),
    }


@measured_by(
    Measure(
        "paper_msd_mm", "MSD",
        f"Mean of the two directed average surface distances (Eq. 7), {_PAPER}; infinite when one mask is empty, "
        "undefined when both are.",
        "mm", "lower", 2, group="paper", in_cases=True, published="msd",
    ),
    Measure(
        "paper_nsd", "NSD",
        f"Share of the border voxels within the tolerance (Eq. 8), {_PAPER}; 0 when one mask is empty, undefined when "
        "both are.",
        better="higher", group="paper", in_cases=True, published="nsd",
    ),
)  # fmt: skip
def paper_metrics(pred: Mask, truth: Mask, spacing_mm: Spacing, tolerance_mm: float = 2.0) -> dict[str, float]:
    """The paper's surface metrics, equal to MONAI's, with each directed distance computed once instead of twice.

    Arguments as in :func:`challenge_metrics`; the paper does not state its tolerance.
    """
    (there, back), nsd = _between_borders(pred, truth, spacing_mm, tolerance_mm)
    return {"paper_msd_mm": (_mean(there) + _mean(back)) / 2, "paper_nsd": nsd}


@measured_by(
    Measure(
        "paper_msd_voxels", "MSD in voxels",
        f"MSD (Eq. 7), {_PAPER}, in voxels of the network’s grid instead of mm; infinite when one mask is empty, "
        "undefined when both are.",
        "voxels", "lower", 2, group="paper", compared=False, grid="resampled",
    ),
    Measure(
        "paper_nsd_voxels", "NSD in voxels",
        f"NSD (Eq. 8), {_PAPER}, with the tolerance in voxels of the network’s grid instead of mm; 0 when one mask is "
        "empty, undefined when both are.",
        better="higher", group="paper", compared=False, grid="resampled",
    ),
    Measure(
        "paper_msd_pooled_voxels", "MSD in voxels, pooled",
        "Average over the border voxels of both masks together, in voxels of the network’s grid: "
        "MONAI’s surface distance with symmetric=True; infinite when one mask is empty, undefined when both are.",
        "voxels", "lower", 2, group="paper", compared=False, grid="resampled",
    ),
    Measure(
        "paper_msd_directed_voxels", "MSD in voxels, directed",
        "Average over the border voxels of the prediction alone, in voxels of the network’s grid: MONAI’s surface "
        "distance with default arguments; infinite when one mask is empty, undefined when both are.",
        "voxels", "lower", 2, group="paper", compared=False, grid="resampled",
    ),
)  # fmt: skip
def paper_voxel_metrics(pred: Mask, truth: Mask, tolerance_mm: float = 2.0) -> dict[str, float]:
    """The paper's surface metrics in voxels, which is probably how its authors computed them.

    The paper does not state it, but its preprocessing lost the maps' spacing, so MONAI measured in voxels. Eq. 7 is the
    mean of the two directed averages, which no single MONAI call gives: the default averages over one mask's border,
    ``symmetric=True`` pools the voxels of both borders. ``tolerance_mm`` is used as a number of voxels.
    """
    (there, back), nsd = _between_borders(pred, truth, (1.0, 1.0, 1.0), tolerance_mm)
    return {
        "paper_msd_voxels": (_mean(there) + _mean(back)) / 2,
        "paper_nsd_voxels": nsd,
        "paper_msd_pooled_voxels": _mean(np.concatenate([there, back])),
        "paper_msd_directed_voxels": _mean(there),
    }


@measured_by(
    Measure("lesions", "Lesions, truth", "Connected components (26 neighbours) of the truth.", digits=1,
            compared=False),
    Measure("predicted_lesions", "Lesions, predicted", "Components of the prediction.", digits=1, compared=False),
    Measure("lesion_sensitivity", "Lesion sensitivity",
            "Share of detected lesions; undefined without a lesion.", better="higher", compared=False),
    Measure("lesion_false_positives", "False-positive lesions", "Predicted components without a lesion.",
            better="lower", digits=1, compared=False),
    Measure("lesion_f1", "Lesion F1", "F1 score of lesion detection; 1 when both masks are empty, 0 when one is.",
            better="higher", in_cases=True, compared=False),
)  # fmt: skip
def lesion_metrics(pred: Mask, truth: Mask, lesion_overlap: float = 0.0) -> dict[str, float]:
    """Lesion detection: connected components (26-neighbourhood) of the two masks.

    A lesion is detected if at least one of its voxels, and at least the share ``lesion_overlap`` (in [0, 1]), is
    predicted. A predicted component is a true positive by the same rule, else a false positive.

    Raises:
        ValueError: when ``lesion_overlap`` is not in [0, 1].
    """
    if not 0 <= lesion_overlap <= 1:
        raise ValueError(f"lesion_overlap must be in [0, 1], not {lesion_overlap}.")
    true, detected = _components(truth, pred, lesion_overlap)
    predicted, correct = _components(pred, truth, lesion_overlap)
    sensitivity = detected / true if true else math.nan
    if not true and not predicted:
        f1 = 1.0
    elif not detected or not correct:
        f1 = 0.0
    else:
        precision = correct / predicted
        f1 = 2 * precision * sensitivity / (precision + sensitivity)
    return {
        "lesions": true,
        "predicted_lesions": predicted,
        "lesion_sensitivity": sensitivity,
        "lesion_false_positives": predicted - correct,
        "lesion_f1": f1,
    }


@measured_by(
    Measure(
        "cc_dice", "CC-Dice",
        "Mean over the lesions of the Dice in each lesion's Voronoi cell, so that all lesions have equal weight "
        "(Jaus et al. 2024, MONAI); 1 when both masks are empty, 0 when one is.",
        better="higher", compared=False,
    ),
)  # fmt: skip
def cc_dice(pred: Mask, truth: Mask) -> dict[str, float]:
    """Lesion-wise Dice, ``monai.metrics.compute_dice(per_component=True)`` (CC-Dice, arXiv:2410.18684).

    The Voronoi cells use distances in voxels, as in MONAI and the paper. A voxel between two lesions belongs to
    either, so flipping both masks can change the value by about 1e-3.
    """
    y_pred, y = (torch.as_tensor(np.stack([~mask, mask]))[None].float() for mask in (pred, truth))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Voronoi computation is running on CPU")
        value = compute_dice(y_pred, y, include_background=False, ignore_empty=False, per_component=True)
    return {"cc_dice": float(value)}


def case_metrics(
    pred: Mask,
    truth: Mask,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 2.0,
    lesion_overlap: float = 0.0,
    grid: str = "",
) -> dict[str, float]:
    """All registered measures of two masks, cropped to the box around both.

    Args:
        pred: predicted mask, bool, shape (X, Y, Z).
        truth: annotated mask, same shape.
        spacing_mm: voxel size along each axis.
        tolerance_mm: of all surface Dice metrics.
        lesion_overlap: see :func:`lesion_metrics`.
        grid: ``native`` or ``resampled``; excludes measures of the other grid only.

    Raises:
        ValueError: when the masks have different shapes or are not three-dimensional, a spacing is not one positive
            number for each axis, or a function returns other measures than registered.
    """
    pred, truth = cropped(pred, truth, spacing_mm)
    spacing = tuple(float(size) for size in spacing_mm)
    options = {"spacing_mm": spacing, "tolerance_mm": tolerance_mm, "lesion_overlap": lesion_overlap}
    found: dict[str, float] = {}
    for family in FAMILIES:
        if grid and family.grid not in ("", grid):
            continue
        takes = inspect.signature(family.function).parameters
        measured = family.function(pred, truth, **{name: options[name] for name in options if name in takes})
        if odd := set(measured) ^ set(family.names):
            name, others = family.function.__name__, ", ".join(sorted(odd))
            raise ValueError(f"{name} returns other measures than registered: {others}")
        found |= measured
    return found


register(
    Measure(
        "readers_dice", "Dice among the readers", "Mean Dice over all pairs of readers.",
        better="higher", group="readers", in_cases=True, compared=False,
    ),
    Measure(
        "to_readers_dice", "Dice against the readers", "Mean Dice of the prediction against each reader.",
        better="higher", group="readers", in_cases=True, compared=False,
    ),
    Measure(
        "readers_gap", "Prediction minus readers",
        "Dice against the readers minus Dice among them; near 0 if the prediction agrees with the readers as much as "
        "they agree with each other.",
        group="readers", compared=False,
    ),
    Measure(
        "staple_dice", "Dice against STAPLE",
        "Dice of the prediction against the readers' consensus (STAPLE, Warfield et al. 2004, probability above 0.5).",
        better="higher", group="readers", compared=False,
    ),
)  # fmt: skip


def reader_metrics(pred: Mask, readers: Sequence[Mask]) -> dict[str, float]:
    """Agreement of a prediction with at least two readers, and of the readers with each other.

    Returns the measures above, and ``reader_1_dice`` … of the prediction against each reader. All masks have the same
    shape, (X, Y, Z).
    """
    single = [dice(pred, mask) for mask in readers]
    among = float(np.mean([dice(a, b) for a, b in combinations(readers, 2)]))
    return {
        "readers_dice": among,
        "to_readers_dice": float(np.mean(single)),
        "readers_gap": float(np.mean(single)) - among,
        "staple_dice": dice(pred, staple(readers)),
        **{f"reader_{number}_dice": value for number, value in enumerate(single, start=1)},
    }


def staple(masks: Sequence[Mask]) -> Mask:
    """Consensus of masks of one shape (X, Y, Z), by SimpleITK's STAPLE; empty if all are."""
    if not any(mask.any() for mask in masks):
        return np.zeros_like(masks[0])
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    return np.asarray(sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) > 0.5)


def _between_borders(
    pred: Mask, truth: Mask, spacing: Spacing, tolerance: float
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], float]:
    """:func:`.border_distances` and the NSD; a single NaN or infinite distance each if a mask is empty."""
    if pred.any() and truth.any():
        directed = border_distances(pred, truth, spacing)
        return directed, share_within(directed, tolerance)
    distance, nsd = (math.inf, 0.0) if pred.any() or truth.any() else (math.nan, math.nan)
    return (np.array([distance], np.float32), np.array([distance], np.float32)), nsd


def _mean(distances: NDArray[np.float32]) -> float:
    return float(distances.mean(dtype=np.float64))


def _components(mask: Mask, other: Mask, overlap: float) -> tuple[int, int]:
    """Connected components of ``mask``, and how many of them ``other`` covers by the given share."""
    labels, count = components(mask)
    sizes, covered = (np.bincount(part.ravel(), minlength=count + 1)[1:] for part in (labels, labels[other]))
    return count, int(((covered >= overlap * sizes) & (covered > 0)).sum())
