"""Upper and lower bounds of a model that is prompted by boxes around regions of low ZADC:

    python integrations/medsam2/benchmark.py DATASET_DIR [--below -2] [--smallest_mm3 60] [--margin 1]

Mean native Dice of the test split for four masks: the threshold; filled boxes (what ``tests/medsam2`` shows the
workflow to give with a predictor that fills its box); the truth inside the boxes (a model without errors); the same,
with the prompted region where the box holds no lesion (a model that always finds an object).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from prompted import prompts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.data.folds import size_class  # noqa: E402
from scripts.data.layout import find_cases  # noqa: E402
from scripts.evaluation.metrics import dice  # noqa: E402
from scripts.geometry.brain import brain_of  # noqa: E402
from scripts.geometry.components import without_small  # noqa: E402
from scripts.io.volumes import read_volume  # noqa: E402


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--below", type=float, default=-2.0)
    parser.add_argument("--smallest_mm3", type=float, default=60.0)
    parser.add_argument("--margin", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    for case in find_cases(arguments.dataset_dir):
        if case.split != "test":
            continue
        item = case.item()
        (adc, zadc), truth = (read_volume(file) for file in item["image"]), read_volume(item["label"])
        below = brain_of(adc.array) & (zadc.array < arguments.below)
        voxel_mm3 = float(np.prod(adc.spacing_mm))
        asked = prompts(without_small(below, arguments.smallest_mm3 / voxel_mm3), arguments.margin)
        label = truth.array > 0
        boxes, something = (np.zeros(label.shape, bool) for _ in range(2))
        for prompt in asked:
            left, top, right, bottom = prompt.box
            box = np.s_[left : right + 1, top : bottom + 1, prompt.first : prompt.last + 1]
            boxes[box] = True
            something[box] |= label[box] if label[box].any() else below[box]
        figures = [dice(mask, label) for mask in (below, boxes, boxes & label, something)]
        rows.append((size_class(float(label.sum() / brain_of(adc.array).sum())), *figures, len(asked)))
    print("lesion  cases  threshold  boxes, filled  truth in boxes  always something  prompts a case")
    for name in [*dict.fromkeys(sorted(row[0] for row in rows)), "all"]:
        chosen = np.array([row[1:] for row in rows if name in (row[0], "all")])
        print(f"{name:7} {len(chosen):5} " + "  ".join(f"{mean:.3f}" for mean in chosen.mean(axis=0)))


if __name__ == "__main__":
    main()
