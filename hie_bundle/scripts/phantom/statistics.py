"""Figures and a contact sheet of a cohort in BONBID-HIE's layout, simulated or real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk


def find_cases(dataset_dir: str | Path) -> list[tuple[str, Path, Path, Path]]:
    """Case id, ADC, ZADC and label file of every case below ``dataset_dir``, by id."""
    cases = []
    for adc in sorted(Path(dataset_dir).rglob("1ADC_ss/*-ADC_ss.mha")):
        case = adc.name.removesuffix("-ADC_ss.mha")
        zadc = adc.parents[1] / "2Z_ADC" / f"Zmap_{case}-ADC_smooth2mm_clipped10.mha"
        cases.append((case, adc, zadc, adc.parents[1] / "3LABEL" / f"{case}_lesion.mha"))
    if not cases:
        raise FileNotFoundError(f"No 1ADC_ss/*-ADC_ss.mha below {dataset_dir}")
    return sorted(cases)


def cohort_stats(dataset_dir: str | Path, threshold: float = -2.0) -> dict[str, Any]:
    """Figures by which a phantom is compared with the real cohort.

    Brain is where ADC is not 0. Shares are of cases; Dice has the challenge's convention for empty masks (1 if both
    are empty, 0 if one is).

    Args:
        dataset_dir: folder with ``BONBID2023_*`` folders.
        threshold: the baseline segments ``ZADC < threshold``.
    """
    rows = []
    for _, adc_path, z_path, label_path in find_cases(dataset_dir):
        image = sitk.ReadImage(str(adc_path))
        adc, z, label = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (adc_path, z_path, label_path))
        brain, lesion = adc > 0, label > 0
        guess = z < threshold
        both = int(lesion.sum() + guess.sum())
        a, s = adc[brain].astype(np.float64), z[brain].astype(np.float64)
        rows.append(
            dict(
                fraction=lesion.sum() / brain.sum(),
                voxels=brain.sum(),
                volume_ml=brain.sum() * np.prod(image.GetSpacing()) / 1000,
                adc=(a.sum(), (a * a).sum()),
                z=(s.sum(), (s * s).sum()),
                adc_mean=a.mean(),
                adc_std=a.std(),
                z_mean=s.mean(),
                z_std=s.std(),
                dice=1.0 if both == 0 else 2 * int((lesion & guess).sum()) / both,
                size=image.GetSize(),
                healthy_below=float((guess & brain & ~lesion).sum() / brain.sum()),
            )
        )
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    fraction, dice = table["fraction"], table["dice"]
    voxels = table["voxels"].sum()

    def pooled(key: str) -> tuple[float, float]:
        total, squares = table[key].sum(0) / voxels
        return float(total), float(np.sqrt(squares - total**2))

    lesioned = dice[fraction > 0]
    return {
        "cases": len(rows),
        "share_under_1_percent": float((fraction < 0.01).mean()),
        "share_over_20_percent": float((fraction > 0.2).mean()),
        "share_empty": float((fraction == 0).mean()),
        "adc_mean": pooled("adc")[0],
        "adc_std": pooled("adc")[1],
        "adc_mean_of_cases": float(table["adc_mean"].mean()),
        "adc_std_of_cases": float(table["adc_std"].mean()),
        "zadc_mean": pooled("z")[0],
        "zadc_std": pooled("z")[1],
        "zadc_mean_of_cases": float(table["z_mean"].mean()),
        "zadc_std_of_cases": float(table["z_std"].mean()),
        "baseline_dice": float(dice.mean()),
        "baseline_dice_lesioned": float(lesioned.mean()) if len(lesioned) else float("nan"),
        "healthy_below_threshold": float(table["healthy_below"].mean()),
        "brain_volume_ml": float(table["volume_ml"].mean()),
        "mean_size": [round(float(n), 1) for n in table["size"].mean(0)],
        "dice_by_size": {
            name: float(dice[(fraction > low) & (fraction <= high)].mean())
            for name, low, high in (("<1%", 0, 0.01), ("1-5%", 0.01, 0.05), ("5-20%", 0.05, 0.2), (">20%", 0.2, 1))
            if ((fraction > low) & (fraction <= high)).any()
        },
    }


def print_stats(stats: dict[str, Any]) -> None:
    """Print the figures of :func:`cohort_stats` as a table."""
    for key, value in stats.items():
        print(f"{key:28s} {value:.3f}" if isinstance(value, float) else f"{key:28s} {value}")


def contact_sheet(dataset_dir: str | Path, output_file: str | Path, num_cases: int = 12) -> None:
    """Draw ADC and ZADC of ``num_cases`` cases side by side with the label's outline."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = find_cases(dataset_dir)[:num_cases]
    columns = 3
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(4 * columns, 2.5 * rows), facecolor="black", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (case, *paths) in enumerate(cases):
        images = [sitk.DICOMOrient(sitk.ReadImage(str(p)), "LPS") for p in paths]
        sx, sy, _ = images[0].GetSpacing()
        adc, z, label = (sitk.GetArrayFromImage(image) for image in images)
        sizes = label.sum((1, 2))
        k = int(sizes.argmax()) if sizes.any() else int((adc > 0).sum((1, 2)).argmax())
        inside = np.argwhere(adc > 0)
        (_, y0, x0), (_, y1, x1) = inside.min(0), inside.max(0) + 1
        window = (slice(max(y0 - 2, 0), y1 + 2), slice(max(x0 - 2, 0), x1 + 2))
        share = 100 * label.sum() / (adc > 0).sum()
        for j, (values, style) in enumerate(
            ((adc, dict(cmap="gray", vmin=0, vmax=2600)), (z, dict(cmap="RdBu_r", vmin=-10, vmax=10)))
        ):
            axis = axes[i // columns, 2 * (i % columns) + j]
            axis.imshow(values[k][window], aspect=sy / sx, **style)
            if label[k].any():
                axis.contour(label[k][window], [0.5], colors="#ffd400" if j == 0 else "k", linewidths=0.8)
        axes[i // columns, 2 * (i % columns)].set_title(f"{case}  {share:.2f} %", color="white", fontsize=8, loc="left")
    figure.tight_layout(pad=0.3)
    figure.savefig(output_file, dpi=110, facecolor="black")
    plt.close(figure)
