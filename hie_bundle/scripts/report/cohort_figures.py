"""Figures and a contact sheet of a cohort in BONBID-HIE's layout, simulated or real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..data.folds import SIZE_CLASSES, size_class
from ..data.layout import find_cases
from ..geometry.brain import brain_of
from ..io.volumes import read_volume
from ..runtime.errors import UserError

if TYPE_CHECKING:
    from ..evaluation.baselines import FittedBaselines


# BONBID-HIE as published (docs/phantom.md names the sources)
PUBLISHED: dict[str, str] = {
    "share_empty": "some",
    "share_under_1_percent": "> 0.5",
    "adc_mean": "1350",
    "adc_std": "430",
    "zadc_mean": "0.35",
    "zadc_std": "2.5",
    "threshold_dice": "0.56",  # a regression on ZADC alone is a threshold
    "mean_size_x": "176",
    "mean_size_y": "176",
    "mean_size_z": "37",
}


def _cases(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """MONAI data items of every case below ``dataset_dir`` with ADC, ZADC and a label, by split and id.

    Raises:
        UserError: if there is none.
    """
    items: list[dict[str, Any]] = [
        {"case": case.case, "image": [str(case.adc), str(case.zadc)], "label": str(case.label)}
        for case in find_cases(dataset_dir)
        if case.adc and case.zadc and case.label
    ]
    if not items:
        raise UserError(f"There is no case with ADC, ZADC and a label below {dataset_dir}.")
    return items


def case_stats(item: Mapping[str, Any], baselines: FittedBaselines) -> dict[str, float]:
    """Figures of one case; sums and sums of squares allow pooling over cases."""
    from ..evaluation.metrics import dice

    image = sitk.ReadImage(item["image"][0])
    adc = sitk.GetArrayFromImage(image)
    zadc, label = (sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in (item["image"][1], item["label"]))
    brain, lesion = brain_of(adc), label > 0
    row = {"voxels": float(brain.sum()), "fraction": float(lesion.sum() / brain.sum())}
    row["volume_ml"] = row["voxels"] * float(np.prod(image.GetSpacing())) / 1000
    for name, mask in baselines.masks(adc, zadc, image.GetSpacing()[::-1]).items():
        row[name] = dice(mask, lesion)
    row["healthy_below"] = float((brain & (zadc < baselines.challenge) & ~lesion).sum() / brain.sum())
    for name, values in (("adc", adc[brain]), ("zadc", zadc[brain])):
        values = values.astype(np.float64)
        row |= {f"{name}_sum": values.sum(), f"{name}_squares": (values**2).sum()}
        row |= {f"{name}_mean": values.mean(), f"{name}_std": values.std()}
    row |= {f"size_{axis}": float(n) for axis, n in zip("xyz", image.GetSize(), strict=True)}
    row["lesion_adc"] = float(adc[lesion].mean()) if lesion.any() else np.nan
    row["lesion_zadc"] = float(zadc[lesion].mean()) if lesion.any() else np.nan
    return row


def cohort_stats(dataset_dir: str | Path, threshold: float = -2.0, fit: bool = False) -> dict[str, float]:
    """Figures by which a simulated cohort is compared with the real one.

    A lesion's fraction is its share of the brain's voxels. ``adc_*`` and ``zadc_*`` pool the brain voxels of all cases,
    ``*_of_cases`` average the cases' own figures. Dice is the challenge's: 1 if truth and mask are both empty, 0 if one
    is. ``smoothed_dice`` is that of ZADC smoothed by 2 mm below -2. A figure without any case is NaN.

    Args:
        dataset_dir: folder with ``BONBID2023_*`` folders.
        threshold: the baseline segments ``ZADC < threshold``.
        fit: also tune the thresholds and fit the logistic regression on one half of the cases for the other, and the
            reverse.

    Raises:
        UserError: if there is no case.
    """
    from ..evaluation.baselines import Baselines, FittedBaselines

    items = _cases(dataset_dir)
    halves = [items[::2], items[1::2]] if fit and len(items) > 1 else [items]
    fitted = [Baselines(half, challenge=threshold).fitted() for half in halves[::-1]]
    if len(halves) == 1:
        fitted = [FittedBaselines([], challenge=threshold)]
    rows = [case_stats(item, one) for half, one in zip(halves, fitted, strict=True) for item in half]
    column = {key: np.array([row.get(key, np.nan) for row in rows]) for key in set().union(*rows)}
    fraction, voxels = column["fraction"], column["voxels"].sum()

    def mean(values: np.ndarray) -> float:
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else float("nan")

    stats = {
        "num_cases": len(rows),
        "share_empty": mean(fraction == 0),
        "share_under_1_percent": mean(fraction < 0.01),
        "share_over_20_percent": mean(fraction > 0.2),
    }
    for name in ("adc", "zadc"):
        pooled = column[f"{name}_sum"].sum() / voxels
        stats[f"{name}_mean"] = float(pooled)
        stats[f"{name}_std"] = float(np.sqrt(column[f"{name}_squares"].sum() / voxels - pooled**2))
        stats[f"{name}_mean_of_cases"] = mean(column[f"{name}_mean"])
        stats[f"{name}_std_of_cases"] = mean(column[f"{name}_std"])
    stats |= {"lesion_adc": mean(column["lesion_adc"]), "lesion_zadc": mean(column["lesion_zadc"])}
    classes = np.array([size_class(value) for value in fraction])
    for method in ("baseline_dice", "threshold_dice", "smoothed_dice", "regression_dice"):
        if method in column:
            stats[method] = mean(column[method])
            stats[f"{method}_lesioned"] = mean(column[method][fraction > 0])
            stats |= {f"{method} {name}": mean(column[method][classes == name]) for name in SIZE_CLASSES}
    stats["healthy_share_below"] = mean(column["healthy_below"])
    stats["brain_volume_ml"] = mean(column["volume_ml"])
    return stats | {f"mean_size_{axis}": mean(column[f"size_{axis}"]) for axis in "xyz"}


def print_stats(stats: dict[str, float], published: Mapping[str, str] | None = None) -> None:
    """Print the figures of :func:`cohort_stats` as a table, the published figures beside them if there are any."""
    width = max(map(len, stats))
    if published:
        print(f"{'':<{width}}  {'here':>10}  {'published':>10}")
    for name, value in stats.items():
        beside = f"  {published.get(name, ''):>10}".rstrip() if published else ""
        print(f"{name:<{width}}  {value:10.3f}{beside}")


def print_calibration(dataset_dir: str | Path, threshold: float = -2.0) -> None:
    """Print the figures of a cohort, fitted baselines included, beside those that are published for BONBID-HIE."""
    print_stats(cohort_stats(dataset_dir, threshold, fit=True), PUBLISHED)


def contact_sheet(dataset_dir: str | Path, output_file: str | Path, num_cases: int = 12) -> None:
    """Draw ``num_cases`` cases, spread over the cohort, as axial slices of ADC and ZADC with the lesion's outline.

    The slice is the one where lesion area times brain area is greatest, or brain area alone if there is no lesion.
    The patient's right is on the left, and all cases have the same scale in millimetres.

    Args:
        dataset_dir: folder with ``BONBID2023_*`` folders.
        output_file: image to write; the suffix gives the format.
        num_cases: at most this many.

    Raises:
        UserError: if there is no case.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from ..geometry.slices import upright

    cases = _cases(dataset_dir)
    cases = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, num_cases).round().astype(int))]
    z_colours = LinearSegmentedColormap.from_list(
        "z", ["#b8f2ff", "#2aa8ff", "#1c4f9c", "#2b2f38", "#9c4a1c", "#ff9a2a", "#fff2b8"]
    )
    styles = (ScalarMappable(Normalize(0, 2600), "gray"), ScalarMappable(Normalize(-10, 10), z_colours))
    half_width_mm, half_height_mm, columns = 54.0, 66.0, min(3, len(cases))
    rows = -(-len(cases) // columns)
    height, foot, head = 2.75 * rows + 0.95, 0.7, 0.25  # inches
    figure = Figure(figsize=(4.2 * columns, height), facecolor="black")
    FigureCanvasAgg(figure)
    cells = figure.subplots(rows, 2 * columns, squeeze=False)
    figure.subplots_adjust(0.005, foot / height, 0.995, 1 - head / height, wspace=0.01, hspace=0.12)
    for axis in cells.flat:
        axis.set_axis_off()
    for number, case in enumerate(cases):
        volumes = map(read_volume, map(Path, (*case["image"], case["label"])))
        turned = [upright(volume.array, volume.affine) for volume in volumes]
        step_x, step_y, _ = turned[0][1]
        # slices, rows from front to back, columns from the patient's right to left
        adc, zadc, label = (array[::-1, ::-1].transpose(2, 1, 0) for array, _ in turned)
        areas = brain_of(adc).sum((1, 2)) * (label.sum((1, 2), dtype=int) if label.any() else 1)
        k = int(areas.argmax())
        brain = brain_of(adc[k])
        centre_y, centre_x = (np.argwhere(brain).min(0) + np.argwhere(brain).max(0)) / 2
        y, x = (np.arange(n) for n in brain.shape)
        x_mm, y_mm = (x - centre_x) * step_x, (y - centre_y) * step_y
        extent = (x_mm[0] - step_x / 2, x_mm[-1] + step_x / 2, y_mm[-1] + step_y / 2, y_mm[0] - step_y / 2)
        pair = cells[number // columns, 2 * (number % columns) :][:2]
        for axis, values, style, colour in zip(pair, (adc, zadc), styles, ("#ffd400", "white"), strict=True):
            shown = np.ma.masked_where(~brain, values[k])
            axis.imshow(shown, cmap=style.cmap, norm=style.norm, extent=extent, interpolation="bilinear")
            if label[k].any():
                axis.contour(x_mm, y_mm, label[k], [0.5], colors=colour, linewidths=0.9)
            axis.set(xlim=(-half_width_mm, half_width_mm), ylim=(half_height_mm, -half_height_mm))
        share = 100 * (label > 0).sum() / brain_of(adc).sum()
        title = f"{case['case']}   " + (f"lesion {share:.2f} %" if share else "no lesion")
        pair[0].set_title(title, color="0.85", fontsize=8, loc="left", pad=2, x=0.02)
    for left, style, text in ((0.04, styles[0], "ADC (10⁻⁶ mm²/s)"), (0.38, styles[1], "ZADC")):
        place = figure.add_axes((left, 0.5 * foot / height, 0.26, 0.12 / height))
        bar = figure.colorbar(style, cax=place, orientation="horizontal")
        bar.outline.set_visible(False)  # type: ignore[operator]
        place.tick_params(colors="0.85", labelsize=7, length=2)
        place.set_title(text, color="0.85", fontsize=8, pad=2)
    figure.legend(
        handles=[Line2D([], [], color="#ffd400", label="lesion on ADC"), Line2D([], [], color="w", label="on ZADC")],
        loc="lower right",
        ncols=2,
        fontsize=8,
        labelcolor="0.85",
        frameon=False,
    )
    figure.savefig(output_file, dpi=130, facecolor="black")
