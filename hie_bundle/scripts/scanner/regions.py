"""Atlas regions of a case, and the injured share of each region."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from ..geometry.brain import brain_of
from ..io.volumes import Volume, to_itk
from ..runtime.errors import UserError
from .inputs import read, resample
from .registration import register
from .zscore import FitLimits, read_atlas

LIMITS = FitLimits(correlation=FitLimits.doubtful)  # regions need a better fit than the Z map


class RegionAtlas:
    """A normative atlas with regions, registered to cases as in ``run zscore``.

    Args:
        folder: contains ``mean.nii.gz`` and ``std.nii.gz`` of healthy newborns' ADC, ``regions.nii.gz`` (integer
            labels, on the same grid) and ``regions.json`` (``{"1": "left cerebellum", …}``).

    Raises:
        UserError: a file is missing or does not match the others.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.atlas = read_atlas(folder / "mean.nii.gz", folder / "std.nii.gz")
        mean = folder / "mean.nii.gz"
        regions = read(folder / "regions.nii.gz", 3, read(mean, 3), mean)
        self.regions = to_itk(regions.array.astype(np.uint8), regions.affine)
        try:
            names = json.loads((folder / "regions.json").read_text(encoding="utf-8"))
            self.names = {int(number): str(name) for number, name in names.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{folder / 'regions.json'} does not name regions by number ({error}).") from error
        if unnamed := set(np.unique(regions.array).astype(int).tolist()) - {0, *self.names}:
            raise UserError(f"{folder / 'regions.json'} does not name the regions {sorted(unnamed)}; add their names.")

    def on(self, adc: Volume) -> tuple[NDArray[np.uint8] | None, str]:
        """Map the regions to a case.

        Args:
            adc: skull-stripped ADC map, 1e-6 mm²/s.

        Returns:
            Region label of each voxel, 0 outside the brain, shape (X, Y, Z), and a remark; None and the reason if the
            atlas does not fit.
        """
        brain = brain_of(adc.array)
        image = to_itk(np.asarray(adc.array, np.float32), adc.affine)
        found = register(image, *self.atlas)
        if problems := LIMITS.problems(found.fit):
            return None, f"no regions: the atlas does not fit ({'; '.join(problems)})"
        labels = sitk.GetArrayFromImage(resample(self.regions, image, found.transform, nearest=True)).T
        # a brain voxel outside the atlas gets the nearest region
        nearest = ndimage.distance_transform_edt(
            labels == 0, adc.spacing_mm, return_distances=False, return_indices=True
        )
        return np.where(brain, labels[tuple(nearest)], 0).astype(np.uint8), (
            f"regions: atlas fitted with a correlation of {found.fit.correlation:.2f}"
        )

    def injured(self, adc: Volume, mask: NDArray[Any]) -> tuple[NDArray[np.uint8] | None, list[dict[str, Any]], str]:
        """Map the regions to a case, and measure the share of each that a lesion mask covers.

        Returns:
            Labels and remark of :meth:`on`; in between, a row per region with ``region``, ``number``, ``volume_ml``,
            ``injured_ml`` and ``share`` (in [0, 1]).
        """
        labels, note = self.on(adc)
        return labels, [] if labels is None else self.rows(labels, mask, list(adc.spacing_mm)), note

    def rows(self, labels: NDArray[np.uint8], mask: NDArray[Any], spacing_mm: Sequence[float]) -> list[dict[str, Any]]:
        """The rows of :meth:`injured` for another mask on the same labels."""
        return shares(labels, self.names, mask, float(np.prod(list(spacing_mm))) / 1000)

    @staticmethod
    def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Rows as a flat record: ``region_left_cerebellum_ml``, ``region_left_cerebellum_share`` etc."""
        return {
            f"region_{row['region'].replace(' ', '_')}_{unit}": round(row[key], 4)
            for row in rows
            for unit, key in (("ml", "injured_ml"), ("share", "share"))
        }


def shares(
    labels: NDArray[np.uint8], names: Mapping[int, str], mask: NDArray[Any], voxel_ml: float
) -> list[dict[str, Any]]:
    """The rows of :meth:`RegionAtlas.injured`, without regions of volume 0."""
    sizes, hurt = (
        np.bincount(part, minlength=max(names) + 1) * voxel_ml for part in (labels.ravel(), labels[mask > 0])
    )
    return [
        {
            "region": name, "number": n, "volume_ml": float(sizes[n]), "injured_ml": float(hurt[n]),
            "share": float(hurt[n] / sizes[n]),
        }
        for n, name in names.items()
        if sizes[n]
    ]  # fmt: skip
