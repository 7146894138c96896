"""Lesion-wise evaluation: one row per connected component of truth and prediction, and their matching.

Lesions are connected components (26 neighbours). Pairs of an overlapping lesion and predicted component are matched
greedily by decreasing intersection over union (IoU), each component at most once, down to an IoU threshold. This is
panoptica's ``NaiveThresholdMatching`` with ``Metric.IOU``; ``make test-panoptica`` compares the two. panoptica 2.1 is
not a dependency, since it needs NumPy below 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from ..geometry.components import components

IOU_THRESHOLDS = np.arange(1, 20) / 20
VOLUME_BINS_ML = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)
COMPONENT_COLUMNS = (
    "case", "lesion", "volume_ml", "x_mm", "y_mm", "z_mm", "first_slice", "last_slice", "mean_adc", "lowest_adc",
    "mean_z", "lowest_z", "mean_probability", "real_probability",
)  # fmt: skip
LESION_COLUMNS = ("case", "mask", *COMPONENT_COLUMNS[1:], "touches", "match", "iou", "dice", "matched", "min_iou")
Mask = NDArray[np.bool_]
Labels = NDArray[np.unsignedinteger[Any]]
Rows = Sequence[Mapping[str, Any]]


def match(truth: Labels, pred: Labels) -> list[tuple[int, int, float]]:
    """Matched lesions and predicted components with their IoU, best first, each component at most once.

    ``truth`` and ``pred`` have the number of each voxel's lesion or predicted component, 0 outside.
    """
    sizes = [np.bincount(labels.ravel()) for labels in (truth, pred)]
    both = (truth > 0) & (pred > 0)
    pairs, common = np.unique(np.stack([truth[both], pred[both]]), axis=1, return_counts=True)
    iou = common / (sizes[0][pairs[0]] + sizes[1][pairs[1]] - common)
    of_lesion: dict[int, tuple[int, int, float]] = {}
    taken = set()
    for place in np.argsort(-iou, kind="stable"):
        lesion, component = map(int, pairs[:, place])
        if lesion not in of_lesion and component not in taken:
            of_lesion[lesion] = lesion, component, float(iou[place])
            taken.add(component)
    return list(of_lesion.values())


def lesions_of(
    case: str, numbers: Labels, affine: NDArray[np.float64], maps: Mapping[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    """A row for each lesion.

    Args:
        case: its id.
        numbers: number of each voxel's lesion, 0 outside; shape (X, Y, Z).
        affine: (4, 4) from voxel indices to scanner coordinates in mm, RAS+.
        maps: ``adc``, optionally ``z`` and ``probability``, same shape.

    Returns:
        For each ``lesion`` (its number): ``volume_ml``; the centre ``x_mm``, ``y_mm``, ``z_mm``; ``first_slice`` and
        ``last_slice`` from 1 at the feet; mean and lowest ADC and Z; the mean probability.
    """
    orientation = io_orientation(affine)
    axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    slices, upwards = numbers.shape[axis], orientation[axis, 1] > 0
    voxel_ml = float(np.prod(voxel_sizes(affine))) / 1000
    rows = []
    for number, box in enumerate(ndimage.find_objects(numbers.astype(np.int32)), start=1):
        inside = numbers[box] == number
        indices = np.argwhere(inside) + [side.start for side in box]
        x, y, z = apply_affine(affine, indices.mean(axis=0)).tolist()
        first, last = box[axis].start, box[axis].stop
        ends = (first + 1, last) if upwards else (slices - last + 1, slices - first)
        values = {part: volume[box][inside] for part, volume in maps.items()}
        rows.append(
            {
                "case": case, "lesion": number, "volume_ml": len(indices) * voxel_ml, "x_mm": x, "y_mm": y, "z_mm": z,
                "first_slice": ends[0], "last_slice": ends[1],
                **{f"mean_{part}": float(of.mean()) for part, of in values.items()},
                **{f"lowest_{part}": float(of.min()) for part, of in values.items() if part != "probability"},
            }
        )  # fmt: skip
    return rows


def case_lesions(
    case: str,
    pred: Mask,
    truth: Mask,
    affine: NDArray[np.float64],
    maps: Mapping[str, NDArray[Any]],
    min_iou: float = 0.1,
) -> list[dict[str, Any]]:
    """The rows of a case for ``lesions.csv``: the lesions of the truth, then the predicted components.

    The masks have shape (X, Y, Z); ``affine`` and ``maps`` as for :func:`lesions_of`. A match needs an IoU of at
    least ``min_iou``.

    Returns:
        Rows of :func:`lesions_of` with ``mask`` (truth or prediction); ``touches``, whether the lesion overlaps the
        other mask; ``match``, the number of its partner there (0 if none), with ``iou`` and ``dice``; ``matched``,
        whether the IoU reaches ``min_iou``; and ``min_iou``.
    """
    labels = components(truth)[0], components(pred)[0]
    rows, pairs = [], match(*labels)
    for side, (name, other) in enumerate((("truth", pred), ("prediction", truth))):
        partners = {pair[side]: (pair[1 - side], pair[2]) for pair in pairs}
        touching = set(labels[side][other].tolist())
        for row in lesions_of(case, labels[side], affine, maps):
            partner, iou = partners.get(row["lesion"], (0, 0.0))
            paired = {"match": partner, "iou": iou, "dice": 2 * iou / (1 + iou)}
            judged = {"matched": partner > 0 and iou >= min_iou, "min_iou": min_iou}
            rows.append({**row, "mask": name, "touches": row["lesion"] in touching, **paired, **judged})
    return rows


def detection(rows: Rows, cases: int, min_iou: float) -> dict[str, float | None]:
    """Detection over all lesions of all cases (rows of :func:`case_lesions`) at one IoU threshold.

    Returns:
        ``lesions``, ``predicted`` and ``matched``, counts; ``recall``, ``precision``, ``f1`` and
        ``false_positives_a_case`` (None if the denominator is 0); ``min_iou``.
    """
    lesions, predicted = (sum(row["mask"] == name for row in rows) for name in ("truth", "prediction"))
    matched = sum(row["mask"] == "truth" and row["match"] > 0 and row["iou"] >= min_iou for row in rows)
    return {
        "lesions": lesions,
        "predicted": predicted,
        "matched": matched,
        "recall": matched / lesions if lesions else None,
        "precision": matched / predicted if predicted else None,
        "f1": 2 * matched / (lesions + predicted) if lesions + predicted else None,
        "false_positives_a_case": (predicted - matched) / cases if cases else None,
        "min_iou": min_iou,
    }


def recall_by_volume(rows: Rows) -> list[tuple[str, int, int]]:
    """Label, number of lesions and number of matched lesions of each non-empty volume bin."""
    found = []
    for low, high in pairwise(VOLUME_BINS_ML):
        inside = [row["matched"] for row in rows if row["mask"] == "truth" and low <= row["volume_ml"] < high]
        if inside:
            label = f"≥ {low:g}" if np.isinf(high) else f"{low:g}–{high:g}"
            found.append((label, len(inside), sum(inside)))
    return found
