"""How well an atlas' regions lie on simulated cases, whose own regions are known:

    python -m monai.bundle run phantom_atlas --config_file hie_bundle/configs/data.yaml --output_dir ATLAS --seed 11
    python tests/benchmarks/regions.py ATLAS SEED FIRST_CASE CASES

Printed are the Dice of the regions and, of cases with a lesion above 1 ml, the relative error of the injured share of
each region that holds a tenth of the lesion, by the label: the median of a case, then of the cases.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.io.volumes import LPS_TO_RAS, Volume  # noqa: E402
from scripts.phantom import simulate_case  # noqa: E402
from scripts.phantom.atlas_files import REGIONS, region_at  # noqa: E402
from scripts.scanner.regions import RegionAtlas, shares  # noqa: E402


def main(folder: str, seed: int, first: int, count: int) -> None:
    """Print a line a case, then the medians."""
    atlas, dices, errors = RegionAtlas(folder), [], []
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
        dice = [2 * (a & b).sum() / max(a.sum() + b.sum(), 1) for a, b in both]
        dices.append(dice)
        voxel_ml = float(np.prod(case.spacing_mm)) / 1000
        there, here = ({r["region"]: r for r in shares(x, REGIONS, case.label, voxel_ml)} for x in (truth, found))
        lesion_ml = case.label.sum() * voxel_ml
        hurt = [name for name, row in there.items() if row["injured_ml"] > max(0.1 * lesion_ml, 1e-9) and name in here]
        error = np.median([abs(here[n]["share"] / there[n]["share"] - 1) for n in hurt]) if hurt else np.nan
        errors += [error] if lesion_ml > 1 else []
        line = f"{number} {case.kind}: lesion {lesion_ml:.1f} ml, Dice {np.mean(dice):.2f}, error {error:.3f}; {note}"
        print(line, flush=True)
    for name, value in zip(REGIONS.values(), np.median(dices, axis=0), strict=True):
        print(f"{name:<28} Dice {value:.2f}")
    print(
        f"median Dice {np.median(dices):.2f}; median error of the share {np.median(errors):.3f} ({len(errors)} cases)"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
