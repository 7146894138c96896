"""How well an atlas' regions lie on simulated cases, whose own regions are known:

    python -m monai.bundle run phantom_atlas --config_file hie_bundle/configs/data.yaml --output_dir ATLAS --seed 11
    python tests/benchmarks/regions.py ATLAS SEED FIRST_CASE CASES

Printed are the Dice of the regions and, of cases with a lesion above 1 ml, the relative error of the injured share of
each region that holds a tenth of the lesion, by the label: the median of a case, then of the cases. The same follows
for whole lobes, gyri and deep white matter together.

    python tests/benchmarks/regions.py ATLAS DATASET_DIR [CASES]

On files, whose regions are unknown: how often the atlas fits, volumes of the regions, how much left and right differ,
and in which region most of each lesion is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.data.layout import find_cases  # noqa: E402
from scripts.io.volumes import LPS_TO_RAS, Volume, read_volume  # noqa: E402
from scripts.phantom import simulate_case  # noqa: E402
from scripts.phantom.atlas_files import REGIONS, region_at  # noqa: E402
from scripts.scanner.regions import RegionAtlas, shares  # noqa: E402

Rows = Sequence[Mapping[str, Any]]


def simulated(folder: str, seed: int, first: int, count: int) -> None:
    """Print a line a case, then the medians."""
    atlas, dices = RegionAtlas(folder), []
    errors: dict[str, list[float]] = {"regions": [], "whole lobes": []}
    for number in range(first, first + count):
        case = simulate_case(seed, number, counterfactual=True)
        assert case.canonical_mm is not None
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = case.direction.reshape(3, 3) * case.spacing_mm, case.origin_mm
        found, note = atlas.on(Volume(case.adc.astype(float), LPS_TO_RAS @ affine))
        if found is None:
            print(number, case.kind, note)
            continue
        truth = np.zeros_like(found)
        known = case.brain & np.isfinite(case.canonical_mm).all(0)
        truth[known] = region_at(case.canonical_mm[:, known])
        both = [(found == n, truth == n) for n in REGIONS]
        dices.append([2 * (a & b).sum() / max(a.sum() + b.sum(), 1) for a, b in both])
        voxel_ml = float(np.prod(case.spacing_mm)) / 1000
        rows = [shares(labels, REGIONS, case.label, voxel_ml) for labels in (truth, found)]
        lesion_ml = case.label.sum() * voxel_ml
        here = {"regions": error(*rows, lesion_ml), "whole lobes": error(*map(by_lobe, rows), lesion_ml)}
        if lesion_ml > 1:
            for name, value in here.items():
                errors[name].append(value)
        told = ", ".join(f"{name} {value:.3f}" for name, value in here.items())
        print(f"{number} {case.kind}: {lesion_ml:.1f} ml, Dice {np.mean(dices[-1]):.2f}, {told}; {note}", flush=True)
    for name, value in zip(REGIONS.values(), np.median(dices, axis=0), strict=True):
        print(f"{name:<32} Dice {value:.2f}")
    print(f"median Dice {np.median(dices):.2f}; median error of the share in {len(errors['regions'])} cases:")
    print(", ".join(f"{name} {np.nanmedian(values):.3f}" for name, values in errors.items()))


def error(truth: Rows, found: Rows, lesion_ml: float) -> float:
    """Median relative error of the share over the regions that hold a tenth of the lesion."""
    shown = {row["region"]: row["share"] for row in found}
    hurt = [row for row in truth if row["injured_ml"] > max(0.1 * lesion_ml, 1e-9)]
    return float(np.median([abs(shown.get(row["region"], 0) / row["share"] - 1) for row in hurt])) if hurt else np.nan


def by_lobe(rows: Rows) -> Rows:
    """Gyri and deep white matter of a lobe as one region."""
    lobes: dict[str, list[float]] = {}
    for row in rows:
        name = re.sub("gyri|deep white matter", "lobe", row["region"])
        volumes = lobes.setdefault(name, [0.0, 0.0])
        volumes[0] += row["injured_ml"]
        volumes[1] += row["volume_ml"]
    return [{"region": name, "injured_ml": hurt, "share": hurt / all_ml} for name, (hurt, all_ml) in lobes.items()]


def files(folder: str, dataset_dir: str, count: int = 1000) -> None:
    """Print a line a case, then medians."""
    atlas, volumes, tried = RegionAtlas(folder), [], 0
    for case in find_cases(dataset_dir)[:count]:
        if case.adc is None or case.label is None:
            continue
        tried += 1
        adc, label = read_volume(case.adc), read_volume(case.label).array > 0.5
        labels, rows, note = atlas.injured(adc, label)
        most = max(rows, key=lambda row: row["injured_ml"], default={"region": "-", "injured_ml": 0})
        lesion_ml = label.sum() * float(np.prod(adc.spacing_mm)) / 1000
        print(f"{case.case}: {most['injured_ml']:.1f} of {lesion_ml:.1f} ml in {most['region']}; {note}", flush=True)
        if labels is not None:
            volumes.append({row["region"]: row["volume_ml"] for row in rows})
    print(f"The atlas fits {len(volumes)} of {tried} cases.")
    for name in atlas.names.values() if volumes else ():
        ml = np.array([case.get(name, 0) for case in volumes])
        other = np.array([case.get(name.replace("left ", "right "), 0) for case in volumes])
        sides = f", left by right {np.median(ml / other):.2f}" if name.startswith("left ") else ""
        print(f"{name:<32} {np.median(ml):5.1f} ml ({ml.min():.1f} to {ml.max():.1f}){sides}")


if __name__ == "__main__":
    if sys.argv[2].isdigit():
        simulated(sys.argv[1], *map(int, sys.argv[2:5]))
    else:
        files(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
