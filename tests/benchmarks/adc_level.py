"""What a wrong scale of ADC does where there is no Z map, on labelled cases:

    python tests/benchmarks/adc_level.py DATASET_DIR [EVERY [WEIGHTS]]

Each EVERY-th case of the test split is segmented by its ADC map alone, times 0.8 to 1.2: as it is, and on the level
that the map itself says (`scripts.data.adc_level`). Prints the Dice, and the share of the brain that is marked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.data.adc_level import AdcLevel, adc_level  # noqa: E402
from scripts.data.layout import find_cases  # noqa: E402
from scripts.evaluation.metrics import dice  # noqa: E402
from scripts.inference.segmenter import Segmenter  # noqa: E402
from scripts.io.volumes import read_volume  # noqa: E402
from scripts.transforms import loading  # noqa: E402

SCALES = (0.8, 0.85, 1.0, 1.15, 1.2)


def as_it_is(*_: Any) -> AdcLevel:
    """No correction."""
    return AdcLevel(0.0, 0.0, 1.0, "")


def main(dataset_dir: str, every: str = "1", weights: str = "simulated") -> None:
    """See the module."""
    segmenter = Segmenter(weights)
    ways: dict[str, Callable[..., AdcLevel]] = {"as it is": as_it_is, "levelled": adc_level}
    scores: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    levels = []
    cases = [case for case in find_cases(dataset_dir) if case.split == "test" and case.label is not None]
    for case in cases[:: int(every)]:
        adc, truth = read_volume(case.adc), read_volume(case.label).array > 0.5
        brain = adc.array > 0
        own = adc_level(adc.array, adc.spacing_mm)
        levels.append((own.fluid, own.tissue))
        for scale in SCALES:
            for way, level in ways.items():
                loading.adc_level = level
                mask = segmenter.result((adc.array * scale).astype(np.float32), affine=adc.affine).mask > 0
                share = mask.sum() / brain.sum()
                scores.setdefault((way, scale), []).append(
                    (dice(mask, truth), share, share - truth.sum() / brain.sum())
                )
        print(f"{case.case}: fluid {own.fluid:.0f}, tissue {own.tissue:.0f}", flush=True)
        for (way, scale), rows in sorted(scores.items()):
            score, share, extra = np.array(rows).T
            line = f"Dice {score.mean():.3f}, marked {share.mean():.1%}, beyond the truth at most {extra.max():.1%}"
            print(f"  {way}, ADC × {scale:g}: {line}", flush=True)
    fluid, tissue = np.array(levels).T
    print(f"fluid {fluid.mean():.0f} ± {fluid.std():.0f}, tissue {tissue.mean():.0f} ± {tissue.std():.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
