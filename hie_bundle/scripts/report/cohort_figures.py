"""Figures and a contact sheet of a cohort in BONBID-HIE's layout, simulated or real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.folds import SIZE_CLASSES, size_class
from ..data.layout import find_cases
from ..evaluation.baselines import Baselines, FittedBaselines
from ..evaluation.metrics import dice
from ..geometry.brain import brain_of
from ..io.files import write_atomically
from ..io.panels import panels_png
from ..io.volumes import read_volume
from ..runtime.errors import UserError
from .pictures import CaseSlices
from .tables import BASELINES

SHEET_WINDOWS = {"ADC": (0, 2600), "ZADC": (-10, 10)}

# BONBID-HIE as published (docs/phantom.md names the sources)
PUBLISHED: dict[str, str] = {
    "share_empty": "some",
    "share_under_1_percent": "> 0.5",
    "adc_mean": "1350",
    "adc_std": "430",
    "zadc_mean": "0.35",
    "zadc_std": "2.5",
    "threshold_dice": "0.56",  # regression on ZADC alone, which is a threshold
    "mean_size_x": "176",
    "mean_size_y": "176",
    "mean_size_z": "37",
}


def _cases(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """MONAI data items of every case below ``dataset_dir`` with ADC, ZADC and a label, by split and id."""
    items = [case.item() for case in find_cases(dataset_dir) if case.adc and case.zadc and case.label]
    if not items:
        raise UserError(f"{dataset_dir} has no case with ADC, ZADC and a label; check the file names with `run check`.")
    return items


def _case_stats(item: Mapping[str, Any], baselines: FittedBaselines) -> dict[str, float]:
    """Figures of one case."""
    adc, zadc, label = (read_volume(path) for path in (*item["image"], item["label"]))
    brain, lesion = brain_of(adc.array), label.array > 0
    voxels = float(brain.sum())
    row = {"voxels": voxels, "fraction": float(lesion.sum() / voxels)}
    row["brain_volume_ml"] = voxels * float(np.prod(adc.spacing_mm)) / 1000
    row["healthy_share_below"] = float((brain & (zadc.array < baselines.challenge) & ~lesion).sum() / voxels)
    masks = baselines.masks(adc.array, zadc.array, adc.spacing_mm.tolist())
    row |= {name: dice(mask, lesion) for name, mask in masks.items()}
    for name, volume in (("adc", adc.array), ("zadc", zadc.array)):
        values = volume[brain].astype(np.float64)
        row |= {f"{name}_mean_of_cases": values.mean(), f"{name}_std_of_cases": values.std()}
        row[f"lesion_{name}"] = float(volume[lesion].mean()) if lesion.any() else np.nan
    return row | {f"mean_size_{axis}": float(n) for axis, n in zip("xyz", adc.array.shape, strict=True)}


def cohort_stats(dataset_dir: str | Path, threshold: float = -2.0, fit: bool = False) -> dict[str, float]:
    """Statistics of a cohort, for comparing a simulated cohort with the real one.

    A lesion's fraction is its share of the brain's voxels. ``adc_*`` and ``zadc_*`` pool the brain voxels of all cases,
    ``*_of_cases`` are means of per-case values. Dice is the challenge's: 1 if truth and mask are both empty, 0 if one
    is. ``smoothed_dice`` thresholds ZADC smoothed by 2 mm at -2. A statistic without any case is NaN. The challenge's
    baseline segments ``ZADC < threshold``.

    ``fit`` also tunes the thresholds and fits the logistic regression, by two-fold cross-fitting.

    Raises:
        UserError: the folder has no cases.
    """
    items = _cases(dataset_dir)
    halves, fitted = [items], [FittedBaselines([], challenge=threshold)]
    if fit and len(items) > 1:
        halves = [items[::2], items[1::2]]
        fitted = [Baselines(half, challenge=threshold).fitted() for half in halves[::-1]]
    rows = [_case_stats(item, one) for half, one in zip(halves, fitted, strict=True) for item in half]
    names = dict.fromkeys(name for row in rows for name in row)
    column = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    fraction, weights = column.pop("fraction"), column.pop("voxels")

    def mean(values: np.ndarray) -> float:
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")

    stats = {"num_cases": len(rows), "share_empty": mean(fraction == 0)}
    stats |= {"share_under_1_percent": mean(fraction < 0.01), "share_over_20_percent": mean(fraction > 0.2)}
    for name in ("adc", "zadc"):
        means, spreads = column[f"{name}_mean_of_cases"], column[f"{name}_std_of_cases"]
        pooled = float(np.average(means, weights=weights))
        variance = np.average(spreads**2 + (means - pooled) ** 2, weights=weights)
        stats |= {f"{name}_mean": pooled, f"{name}_std": float(np.sqrt(variance))}
    stats |= {name: mean(values) for name, values in column.items()}
    classes = np.array([size_class(value) for value in fraction])
    for method in filter(column.__contains__, BASELINES):
        stats[f"{method}_lesioned"] = mean(column[method][fraction > 0])
        stats |= {f"{method} {name}": mean(column[method][classes == name]) for name in SIZE_CLASSES}
    return stats


def print_stats(stats: dict[str, float], published: Mapping[str, str] | None = None) -> None:
    """Print :func:`cohort_stats` as a table, with a column of published values if given."""
    width = max(map(len, stats))
    if published:
        print(f"{'':<{width}}  {'here':>10}  {'published':>10}")
    for name, value in stats.items():
        beside = f"  {published.get(name, ''):>10}".rstrip() if published else ""
        print(f"{name:<{width}}  {value:10.3f}{beside}")


def print_calibration(dataset_dir: str | Path, threshold: float = -2.0) -> None:
    """Print the statistics of a cohort, including fitted baselines, next to the published ones of BONBID-HIE."""
    print_stats(cohort_stats(dataset_dir, threshold, fit=True), PUBLISHED)


def contact_sheet(dataset_dir: str | Path, output_file: str | Path, num_cases: int = 12) -> None:
    """Draw axial ADC and ZADC slices of ``num_cases`` evenly spaced cases, with the lesion's outline.

    The slice has the largest product of lesion and brain area, or the largest brain area without a lesion.
    The patient's right is on the left.

    Raises:
        UserError: the folder has no cases.
    """
    cases = _cases(dataset_dir)
    cases = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, num_cases).round().astype(int))]
    panels = []
    for case in cases:
        adc, zadc, label = (read_volume(path) for path in (*case["image"], case["label"]))
        slices = CaseSlices({"ADC": adc.array, "ZADC": zadc.array}, {"pred": label.array}, adc.affine, SHEET_WINDOWS)
        lesion, brain = slices.masks["pred"], slices.brain
        z = int((brain.sum((0, 1)) * (lesion.sum((0, 1)) if lesion.any() else 1)).argmax())
        share = f"lesion {100 * lesion.sum() / brain.sum():.2f} %" if lesion.any() else "no lesion"
        panels += [slices.panel("ADC", z, f"{case['case']}, {share}"), slices.panel("ZADC", z, "")]
    rows = [panels[start : start + 6] for start in range(0, len(panels), 6)]
    windows = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in SHEET_WINDOWS.items())
    write_atomically(output_file, panels_png(rows, windows))
