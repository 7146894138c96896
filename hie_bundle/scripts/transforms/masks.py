"""Saving of masks by case on the grid of the input files; averaging of readers' masks."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged, Transform
from monai.utils import ImageMetaKey, MetaKeys, ensure_tuple

from ..data.checks import grid_difference
from ..data.layout import file_name, output_name
from ..data.mask_files import Readers
from ..io.files import atomic_path
from ..io.volumes import EXTENSIONS, Volume, VolumeError, read_volume, write_volume
from ..runtime.errors import UserError

logger = logging.getLogger(__name__)

TOLERANCE_MM = 0.05  # largest difference between the grids of mask and input file


class SaveMaskd(SaveImaged):
    """Save the mask of a case as ``<case>_lesion<output_ext>``, on the grid of the case's file.

    The mask is written under a temporary name, read back, compared and then renamed. (``monai.transforms.SaveImaged``
    truncates a name at its last dot, so that cases overwrite each other.)

    Args:
        keys: of masks, shape (1, X, Y, Z), 0 and 1.
        output_dir: folder; created if needed.
        output_ext: ``.nii.gz``, ``.nii`` or ``.mha``.
        like: keys of images. The mask must be on the grid of the file in the metadata of the first such image, or in
            its own metadata if the item has none.
        print_log: log each file.

    Raises:
        UserError: in a call, if the mask is on another grid or cannot be written; an earlier file is unchanged.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        output_dir: str | Path,
        output_ext: str = ".nii.gz",
        like: str | Sequence[str] = (),
        print_log: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        if output_ext not in EXTENSIONS:
            raise UserError(f"output_ext is '{output_ext}'; choose from {', '.join(EXTENSIONS)}.")
        super().__init__(keys, None, str(output_dir), "", output_ext, allow_missing_keys=allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.output_ext = output_ext
        self.like = ensure_tuple(like)
        self.print_log = print_log

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            self._save(data, data[key])
        return dict(data)

    def _save(self, data: Mapping[Hashable, Any], mask: torch.Tensor) -> None:
        image = next((data[key] for key in self.like if key in data), mask)
        source = str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")) if isinstance(image, MetaTensor) else ""
        case = str(data["case"]) if "case" in data else output_name({"filename_or_obj": source})["subject"]
        array = np.ascontiguousarray(mask.cpu().numpy()).astype(np.uint8)
        if len(array) != 1:
            raise UserError(f"{case}: a mask has one channel, not {len(array)}.")
        affine = np.asarray(mask.affine if isinstance(mask, MetaTensor) else np.eye(4), np.float64)
        grid = _grid(image, source, array[0], affine)
        if difference := grid_difference(grid, Volume(array[0], affine), TOLERANCE_MM):
            raise UserError(f"{case}: the mask is not on the grid of {source}: {difference}. Nothing was written.")
        path = self.output_dir / f"{file_name(case)}_lesion{self.output_ext}"
        try:
            with atomic_path(path) as temporary:
                write_volume(temporary, array[0], grid.affine)
                written = read_volume(temporary)
                if difference := grid_difference(grid, written, TOLERANCE_MM):
                    raise VolumeError(f"the written file has another grid: {difference}")
                if not np.array_equal(written.array, array[0]):
                    raise VolumeError("the written file has other values than the mask; is the disk full?")
        except (OSError, RuntimeError, VolumeError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(
                f"{case}: the mask cannot be written to {path} ({why}). An earlier file and the masks of other cases "
                "are unchanged. Free some space, or choose another --output_dir."
            ) from error
        if self.print_log:
            logger.info("%s", path)


def _grid(image: torch.Tensor, source: str, array: np.ndarray, affine: np.ndarray) -> Volume:
    """Grid of the case's file at loading; the mask's own if unknown."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    if {MetaKeys.SPATIAL_SHAPE, MetaKeys.ORIGINAL_AFFINE} <= meta.keys():
        shape = tuple(int(n) for n in np.asarray(meta[MetaKeys.SPATIAL_SHAPE]).ravel()[:3])
        own = np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], np.float64).reshape(4, 4)
        return Volume(np.broadcast_to(np.uint8(0), shape), own)
    try:
        return read_volume(source)
    except (VolumeError, OSError):  # no file, or a format that only another loader reads
        return Volume(array, affine)


class MeanLabeld(Transform):
    """Replace the ``label`` of a case, (1, X, Y, Z) on its file's grid, by its mean with other readers' masks.

    Raises:
        UserError: when a mask is missing or unusable.
    """

    def __init__(self, readers: Readers) -> None:
        self.readers = readers
        readers.find()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        label = data["label"]
        masks = [torch.as_tensor(mask[None]).to(label) for mask in self.readers.masks(data["case"])]
        return {**data, "label": sum(masks, start=label) / (1 + len(masks))}
