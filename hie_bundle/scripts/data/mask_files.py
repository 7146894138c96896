"""A folder of masks by other tools or readers: found by name and checked before the evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.volumes import Volume, VolumeError, extension_of, read_volume
from ..runtime.errors import UserError
from .checks import Limits, grid_difference
from .layout import as_native, case_of_file_name
from .privacy import original_id


class Readers:
    """Masks of further readers, one folder per reader (see :func:`find_masks`), for MONAI data items."""

    def __init__(
        self, folders: Sequence[str] = (), items: Sequence[Mapping[str, Any]] = (), limits: Limits | None = None
    ) -> None:
        self.folders = [folders] if isinstance(folders, str) else list(folders)
        self.items = items
        self.limits = limits or Limits()
        self.files: list[dict[str, Path]] = []

    def find(self) -> None:
        """:func:`usable_masks` of each folder."""
        self.files = [usable_masks(folder, self.items, self.limits) for folder in self.folders]

    def masks(self, case: str) -> list[NDArray[np.bool_]]:
        """The masks of one case, (X, Y, Z) each, after :meth:`find`."""
        return [read_mask(files[case], self.limits) for files in self.files]


def usable_masks(folder: str | Path, items: Sequence[Mapping[str, Any]], limits: Limits) -> dict[str, Path]:
    """Mask file by case (see :func:`find_masks`), for MONAI data items with labels (native labels of prepared cases).

    Raises:
        UserError: the folder does not exist, or a mask is missing, unreadable, not binary, or not on the label's grid.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder.absolute()}; name an existing folder of masks.")
    found = find_masks(folder, [original_id(item) for item in items])
    problems = [
        f"  {original_id(item)}: {problem}"
        for item in items
        if (problem := _problem(original_id(item), found[original_id(item)], as_native(item)["label"], limits))
    ]
    if problems:
        first = f"{len(problems)} of {len(items)} masks in {folder.absolute()} cannot be scored; nothing was written."
        raise UserError("\n".join([first, *problems]))
    return {item["case"]: found[original_id(item)][0] for item in items}


def find_masks(folder: Path, cases: Sequence[str]) -> dict[str, list[Path]]:
    """Possible mask files of each case id, anywhere below a folder.

    ``<case>_lesion`` with ``.nii.gz``, ``.nii`` or ``.mha`` takes precedence. Otherwise the name must contain the id as
    a whole word; the longest matching id counts.
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
    """Problem of a case's mask; empty if there is none."""
    if not paths:
        return f"there is no {case}_lesion.nii.gz (.nii, .mha), and no other mask has the case id in its name"
    if len(paths) > 1:
        return f"several files match: {', '.join(str(path) for path in paths)}"
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


def read_mask(path: Path, limits: Limits) -> NDArray[np.bool_]:
    """A mask of :func:`usable_masks`, shape (X, Y, Z)."""
    return _single(read_volume(path, limits.max_bytes).array) > 0


def _single(array: NDArray[Any]) -> NDArray[Any]:
    """Remove a fourth axis of length one, which some tools write."""
    return array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
