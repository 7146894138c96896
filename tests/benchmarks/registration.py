"""What the registration of an atlas costs in a Z map, on simulated newborns whose true positions and Z are known:

    python tests/benchmarks/registration.py [CASES]

Prints for each case the position error in the brain (mm), the correlation of the Z map with the true one, the volume
below Z = -2 in the lesion as a share of the true one, how far the damage moves the atlas (mm, against the same scan
without the injury), and the Dice of masks by the computed and by the true Z map, weights `simulated`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "hie_bundle"), str(ROOT / "tests"), str(ROOT / "tests" / "scanner")]

from head_cases import affine_of  # noqa: E402
from test_scanner_zscore import SETTINGS, atlas_affine  # noqa: E402

from scripts.evaluation.metrics import dice  # noqa: E402
from scripts.inference.segmenter import Segmenter  # noqa: E402
from scripts.io.volumes import Volume, to_itk  # noqa: E402
from scripts.phantom.case import simulate_case  # noqa: E402
from scripts.phantom.normative import build_atlas  # noqa: E402
from scripts.scanner.zscore import zscore  # noqa: E402

COLUMNS = ("position mm", "r", "volume", "moved mm", "Dice", "Dice, true Z")


def main(cases: str = "6") -> None:
    """See the module. The cases are two of each of the cohorts 0, 1, 2 …, each with its own atlas."""
    segmenter = Segmenter("simulated")
    rows = []
    for number in range(int(cases)):
        seed = number // 2
        known = build_atlas(seed, SETTINGS.num_healthy, SETTINGS.atlas_step_mm)
        mean, std = (
            to_itk(np.where(known.brain, part, 0).astype(np.float32), atlas_affine(known))
            for part in (known.mean, known.std)
        )
        case = simulate_case(seed, number % 2, SETTINGS, counterfactual=True)
        assert case.healthy_adc is not None
        assert case.canonical_mm is not None
        affine, lesion = affine_of(case), case.label > 0
        (z, transform, *_), (_, healthy, *_) = (
            zscore(Volume(adc.astype(np.float32), affine), (mean, std)) for adc in (case.adc, case.healthy_adc)
        )

        def places(where, by, affine=affine):  # type: ignore[no-untyped-def]
            points = np.c_[np.argwhere(where), np.ones(where.sum())] @ (np.diag([-1.0, -1, 1, 1]) @ affine).T
            return np.array([by.TransformPoint(point) for point in points[::31, :3]]) * [-1, -1, 1]

        error = places(case.brain, transform) - case.canonical_mm[:, case.brain].T[::31]
        moved = places(lesion, transform) - places(lesion, healthy)
        masks = [
            segmenter.result(case.adc.astype(np.float32), given, affine=affine).mask > 0 for given in (z, case.zadc)
        ]
        row = (
            np.linalg.norm(error, axis=1).mean(),
            np.corrcoef(z[case.brain], case.zadc[case.brain])[0, 1],
            (z[lesion] < -2).sum() / max(1, (case.zadc[lesion] < -2).sum()) if lesion.any() else np.nan,
            np.linalg.norm(moved, axis=1).mean() if lesion.any() else np.nan,
            *(dice(mask, lesion) for mask in masks),
        )
        rows.append(row)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in zip(COLUMNS, row, strict=True))
        print(f"cohort {seed}, case {number % 2}: {figures}", flush=True)
    figures = ", ".join(f"{name} {value:.2f}" for name, value in zip(COLUMNS, np.nanmean(rows, 0), strict=True))
    print(f"mean: {figures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
