"""Measurement of masks of other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ..data.checks import Limits
from ..data.layout import as_native
from ..data.mask_files import read_mask, usable_masks
from ..data.training_voxels import read_maps
from ..io.volumes import Volume, read_checked
from ..report.case_evaluation import CaseEvaluation
from ..runtime.errors import UserError


def score(
    items: Sequence[Mapping[str, Any]],
    predictions_dir: str | Path | None,
    evaluation: CaseEvaluation,
    limits: Limits | None = None,
) -> None:
    """Compare masks on disk with the labels, on the labels' grids, and write the results.

    Args:
        items: usable MONAI data items with labels; prepared cases are read from their original files.
        predictions_dir: folder with a mask of each case, see :func:`scripts.data.mask_files.find_masks`.
        evaluation: measures the cases and writes the results.
        limits: on the distance between the grids of mask and label, and on file sizes; None: the defaults.

    Raises:
        UserError: before any measurement, when the folder does not exist, or a mask is missing, unreadable, on another
            grid or not binary; names each.
    """
    limits = limits or Limits()
    items = [as_native(item) for item in items]
    if predictions_dir is None:
        raise UserError("Name the folder of masks: --predictions_dir DIR.")
    found = usable_masks(predictions_dir, items, limits)
    evaluation.started()
    for item in items:
        label = read_checked(item["label"], limits.max_bytes)
        maps, grid = read_maps(item, limits)
        evaluation.add(
            {
                "case": item["case"],
                "site": item.get("site"),
                "native_image": _tensor(maps, grid),
                "native_label": _tensor(label.array[None], label),
                "native_pred": _tensor(read_mask(found[item["case"]], limits)[None], label),
            }
        )
    evaluation.completed()


def segment_and_score(segment: Callable[[], object], score: Callable[..., None], folder: str | Path) -> None:
    """Write masks to a folder with ``segment``, then :func:`score` them."""
    segment()
    score(predictions_dir=folder)


def _tensor(array: np.ndarray, grid: Volume) -> MetaTensor:
    values = torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
    return MetaTensor(values, affine=torch.as_tensor(grid.affine), meta={"spacing": grid.spacing_mm})
