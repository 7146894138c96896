"""Tiny cases in BONBID-HIE's layout, for the tests of everything that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SHAPE = (9, 8, 7)


def oblique(degrees: float = 20.0) -> tuple[float, ...]:
    """Direction cosines, rotated about two axes and with the first axis flipped."""
    a, b = np.radians(degrees), np.radians(-0.6 * degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return tuple((about_x @ about_z @ np.diag([-1.0, 1.0, 1.0])).ravel())


def arrays(seed: int = 0, shape: tuple[int, int, int] = SHAPE, lesion_voxels: int = 12) -> dict[str, np.ndarray]:
    """ADC, ZADC and label of a box-shaped brain, axes (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(shape, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    adc = np.where(brain, rng.normal(1350, 300, shape).clip(300, 3000), 0).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label.ravel()[np.flatnonzero(brain)[:lesion_voxels]] = 1
    zadc = (adc - 1350) / 200 + rng.normal(0, 0.5, shape) - 5.0 * label
    zadc = np.where(brain, zadc.clip(-10, 10), 0).astype(np.float32)
    return {"adc": adc, "zadc": zadc, "label": label}


def image(
    array: np.ndarray,
    spacing: tuple[float, float, float] = (1.1, 1.2, 3.0),
    origin: tuple[float, float, float] = (-31.5, 12.25, 8.0),
    direction: tuple[float, ...] | None = None,
) -> sitk.Image:
    result = sitk.GetImageFromArray(array.T)
    result.SetSpacing(spacing)
    result.SetOrigin(origin)
    result.SetDirection(direction or oblique())
    return result


def case_files(root: Path, case: str, split: str | None = "Train", extension: str = ".mha") -> dict[str, Path]:
    folder = root / f"BONBID2023_{split}" if split else root
    return {
        "adc": folder / "1ADC_ss" / f"{case}-ADC_ss{extension}",
        "zadc": folder / "2Z_ADC" / f"Zmap_{case}-ADC_smooth2mm_clipped10{extension}",
        "label": folder / "3LABEL" / f"{case}_lesion{extension}",
    }


def write_case(
    root: Path,
    case: str = "MGHNICU_001-VISIT_01",
    split: str | None = "Train",
    extension: str = ".mha",
    seed: int = 0,
    lesion_voxels: int = 12,
    shape: tuple[int, int, int] = SHAPE,
    compress: bool = True,
    **geometry: Any,
) -> dict[str, Path]:
    files = case_files(root, case, split, extension)
    for part, array in arrays(seed, shape, lesion_voxels).items():
        files[part].parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image(array, **geometry), files[part], useCompression=compress)
    return files


def write_stacked(root: Path, case: str, label: bool = True, channels: int = 2, seed: int = 0) -> dict[str, Path]:
    """One 4D NIfTI file, (X, Y, Z, C), and its label."""
    import nibabel as nib

    root.mkdir(parents=True, exist_ok=True)
    parts = arrays(seed)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ _affine(image(parts["adc"]))
    maps = [parts["adc"].astype(np.float32), parts["zadc"], parts["zadc"]][:channels]
    files = {"stacked": root / f"{case}.nii.gz"}
    nib.save(nib.Nifti1Image(np.stack(maps, -1), affine), files["stacked"])
    if label:
        files["label"] = root / f"{case}_lesion.nii.gz"
        nib.save(nib.Nifti1Image(parts["label"], affine), files["label"])
    return files


def _affine(volume: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(volume.GetDirection()).reshape(3, 3) * volume.GetSpacing()
    affine[:3, 3] = volume.GetOrigin()
    return affine
