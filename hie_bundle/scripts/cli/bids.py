"""Masks as a BIDS derivative: https://bids-specification.readthedocs.io, derivatives of imaging data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..inference.segmenter import CAUTION
from ..io.files import write_json
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version

_ENTITIES = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?:_|$)")


def mask_place(folder: str | Path, case: str, extension: str) -> Path:
    """Path of a case's mask: ``sub-01/ses-1/dwi/sub-01_ses-1_desc-lesion_mask.nii.gz``.

    A case without a BIDS name gets one from its letters and digits.

    Raises:
        UserError: the extension is not ``.nii.gz`` or ``.nii``.
    """
    if extension not in (".nii.gz", ".nii"):
        raise UserError(f"BIDS does not allow {extension}; --extension must be .nii.gz or .nii with --bids.")
    match = _ENTITIES.match(case)
    parts = [part for part in match.groups() if part] if match else ["sub-" + re.sub(r"[^A-Za-z0-9]", "", case)]
    return Path(folder).joinpath(*parts, "dwi", "_".join([*parts, "desc-lesion_mask"]) + extension)


def sidecar_of(mask: Path) -> Path:
    """Path of a mask's JSON sidecar."""
    return mask.with_name(mask.name.partition(".")[0] + ".json")


def write_sidecar(mask: Path, figures: dict[str, Any]) -> None:
    """Write a mask's sidecar: measurements, and the fields that BIDS requires."""
    write_json(sidecar_of(mask), {"Type": "Lesion", "SpatialReference": "orig", **figures}, indent=2)


def describe(folder: str | Path) -> None:
    """Write ``dataset_description.json``, which marks the folder as a derivative."""
    generated = {"Name": "hie_bundle", "Version": bundle_version(), "Description": CAUTION}
    content = {"Name": "Masks of hypoxic-ischaemic lesions", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
               "GeneratedBy": [generated]}  # fmt: skip
    write_json(Path(folder) / "dataset_description.json", content, indent=2)
