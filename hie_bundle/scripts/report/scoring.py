"""Masks that another tool wrote, measured as the network's own are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ..data.checks import Limits, grid_difference
from ..data.layout import as_native, case_of_file_name
from ..data.privacy import original_id
from ..data.training_voxels import read_maps
from ..io.volumes import Volume, VolumeError, extension_of, read_volume
from ..report.case_evaluation import CaseEvaluation
from ..runtime.errors import UserError

__all__ = ["find_predictions", "score"]


def score(
    items: Sequence[Mapping[str, Any]],
    predictions_dir: str | Path | None,
    evaluation: CaseEvaluation,
    limits: Limits | None = None,
) -> None:
    """Compare masks on disk with the labels, on the labels' grids, and write the results.

    Args:
        items: MONAI data items, ``{"image": [adc, zadc] or stacked, "label": path, "case": id}``, usable ones; of
            prepared cases the files that they were made from (``native_image``, ``native_label``) are taken.
        predictions_dir: folder with a mask of each case, see :func:`find_predictions`.
        evaluation: what measures and writes.
        limits: how far a mask's grid may be from its label's, and how large a file may be; the defaults if None.

    Raises:
        UserError: when there is no such folder, or a mask is missing, cannot be read, lies on another grid or is not
            binary; names every one of them. Nothing is measured then.
    """
    limits = limits or Limits()
    items = [as_native(item) for item in items]
    if predictions_dir is None:
        raise UserError("Say where the masks are: --predictions_dir DIR.")
    folder = Path(predictions_dir)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder.absolute()} with masks.")
    found = find_predictions(folder, [original_id(item) for item in items])
    problems = {}
    for item in items:
        if problem := _problem(original_id(item), found[original_id(item)], str(item["label"]), limits):
            problems[original_id(item)] = problem
    if problems:
        lines = [f"  {case}: {problem}" for case, problem in problems.items()]
        raise UserError(
            f"{len(problems)} of {len(items)} masks in {folder.absolute()} cannot be scored; nothing was written.\n"
            + "\n".join(lines)
        )
    evaluation.started()
    for item in items:
        (path,) = found[original_id(item)]
        label = read_volume(item["label"], limits.max_bytes)
        maps, grid = read_maps(item, limits)
        evaluation.add(
            {
                "case": item["case"],
                "native_image": _tensor(maps, grid),
                "native_label": _tensor(label.array[None], label),
                "native_pred": _tensor(_single(read_volume(path, limits.max_bytes).array)[None], label),
            }
        )
    evaluation.completed()


def find_predictions(folder: Path, cases: Sequence[str]) -> dict[str, list[Path]]:
    """The files that may be each case's mask, anywhere below a folder.

    Args:
        folder: where to look.
        cases: the ids.

    Returns:
        For each case the files named ``<case>_lesion`` (as :class:`.SaveMaskd` writes them) with
        ``.nii.gz``, ``.nii`` or ``.mha``; without any, those whose name contains the id, not as part of a longer number
        or word, nor of another case's longer id.
    """
    files = sorted(path for path in folder.rglob("*") if extension_of(path) and path.is_file())
    exact: dict[str, list[Path]] = {case: [] for case in cases}
    near: dict[str, list[Path]] = {case: [] for case in cases}
    patterns = {case: re.compile(rf"(?<![^\W_]){re.escape(case)}(?![^\W_])") for case in cases}
    for path in files:
        stem = path.name.removesuffix(extension_of(path))
        if stem.endswith("_lesion") and (case := case_of_file_name(stem.removesuffix("_lesion"))) in exact:
            exact[case].append(path)
        elif matching := [case for case, pattern in patterns.items() if pattern.search(stem)]:
            near[max(matching, key=len)].append(path)
    return {case: exact[case] or near[case] for case in cases}


def _problem(case: str, paths: Sequence[Path], label_file: str, limits: Limits) -> str:
    """What is wrong with a case's mask; empty if nothing is."""
    if not paths:
        return f"there is no {case}_lesion.nii.gz (.nii, .mha), and no other such file with the case id in its name"
    if len(paths) > 1:
        return f"several files could be meant: {', '.join(str(path) for path in paths)}"
    (path,) = paths
    try:
        mask = read_volume(path, limits.max_bytes)
    except VolumeError as error:
        return f"{path} {error}"
    array = _single(mask.array)
    if array.ndim != 3:
        return f"{path} has shape {' × '.join(map(str, array.shape))}; a mask has three dimensions"
    label = read_volume(label_file, limits.max_bytes)
    if difference := grid_difference(label, Volume(array, mask.affine), limits.grid_tolerance_mm):
        return f"{path} is on another grid than the label: {difference}"
    if not ((array == 0) | (array == 1)).all():
        values = np.unique(array)
        shown = ", ".join(f"{value:g}" for value in values[:4]) + (", …" if len(values) > 4 else "")
        return f"{path} is not binary: its values are {shown}; 0 and 1 are allowed"
    return ""


def _single(array: np.ndarray) -> np.ndarray:
    """Without a fourth axis of length one, which some tools write."""
    return array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array


def _tensor(array: np.ndarray, grid: Volume) -> MetaTensor:
    values = torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
    return MetaTensor(values, affine=torch.as_tensor(grid.affine), meta={"spacing": grid.spacing_mm})
