"""How often the plausibility line of a mask is right, on labelled cases:

    python tests/benchmarks/doubts.py DATASET_DIR [WEIGHTS]

Each case of the test split is segmented. False alarms are doubts about masks with a Dice of at least 0.7, hits are
doubts about masks below 0.5.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.data.layout import find_cases  # noqa: E402
from scripts.evaluation.metrics import dice  # noqa: E402
from scripts.inference.segmenter import Segmenter  # noqa: E402
from scripts.io.volumes import read_volume  # noqa: E402

GOOD, BAD = 0.7, 0.5  # Dice


def main(dataset_dir: str, weights: str = "simulated") -> None:
    """See the module."""
    segmenter = Segmenter(weights)
    scores, doubted = [], []
    for case in find_cases(dataset_dir):
        if case.split != "test" or case.label is None:
            continue
        found = segmenter.result(case.adc or case.stacked, case.zadc)
        scores.append(dice(found.mask > 0, read_volume(case.label).array > 0.5))
        doubted.append(bool(found.plausibility.doubts))
        print(f"{case.case}: Dice {scores[-1]:.3f}, {found.lesion_ml:.2f} ml, {found.plausibility.line}", flush=True)
    score, doubt = np.array(scores), np.array(doubted)
    for name, chosen in (("false alarms", score >= GOOD), ("hits", score < BAD), ("all doubts", score >= 0)):
        print(f"{name}: {int((doubt & chosen).sum())} of {int(chosen.sum())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
