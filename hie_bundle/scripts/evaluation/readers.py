"""Agreement of several readers, and of a prediction with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import SimpleITK as sitk

from ..geometry.surfaces import Mask
from .measure import Measure, register
from .metrics import dice

__all__ = ["reader_metrics", "staple"]

register(
    Measure(
        "readers_dice", "Dice among the readers", "Mean Dice of each two readers of the case.",
        better="higher", group="readers", in_cases=True, compared=False,
    ),
    Measure(
        "to_readers_dice", "Dice against the readers", "Mean Dice of the prediction against each reader.",
        better="higher", group="readers", in_cases=True, compared=False,
    ),
    Measure(
        "readers_gap", "Prediction minus readers",
        "Dice against the readers minus Dice among them: near 0, the prediction agrees with them as they agree with "
        "each other.",
        group="readers", compared=False,
    ),
    Measure(
        "staple_dice", "Dice against STAPLE",
        "Dice of the prediction against the readers' consensus (STAPLE, Warfield et al. 2004, probability above 0.5).",
        better="higher", group="readers", compared=False,
    ),
)  # fmt: skip


def reader_metrics(pred: Mask, readers: Sequence[Mask]) -> dict[str, float]:
    """Agreement of a prediction with several readers, and of these with each other.

    Args:
        pred: predicted mask, shape (X, Y, Z).
        readers: two masks or more, same shape.

    Returns:
        The measures above, and ``reader_1_dice`` … of the prediction against each.
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
    """Consensus of masks of one shape (X, Y, Z), by SimpleITK's STAPLE; empty where all are."""
    if not any(mask.any() for mask in masks):
        return np.zeros_like(masks[0])
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    return np.asarray(sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) > 0.5)
