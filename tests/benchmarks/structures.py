"""ADC of the simulator's healthy newborns by structure, beside published values (docs/phantom.md):

    python tests/benchmarks/structures.py SEED

The mean of the normative atlas within 3 mm of a point of each structure, over both sides.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.phantom import build_atlas  # noqa: E402

# structure: position (canonical mm, right side) and published mean ADC of term newborns; docs/phantom.md has sources
STRUCTURES: dict[str, tuple[tuple[float, float, float], str]] = {
    "frontal white matter": ((17, 34, 16), "to 1480"),
    "parietal white matter": ((19, -30, 26), "to 1480"),
    "occipital white matter": ((20, -44, 10), "to 1480"),
    "perirolandic white matter": ((20, -8, 30), "1150"),
    "caudate head": ((10, 18, 6), "1230-1260"),
    "lentiform nucleus": ((21, 3, 2), "1230-1260"),
    "thalamus": ((8, -12, 5), "1150-1170"),
    "posterior limb of the internal capsule": ((17, -7, 7), "1100-1180"),
    "splenium": ((2, -36, 7), ""),
    "hippocampus": ((22, -13, -11), ""),
    "cerebellar hemisphere": ((14, -38, -26), "1115"),
    "vermis": ((0, -40, -22), "859-1260"),
    "pons": ((0, -6, -24), ""),
}

RADIUS_MM = 3.0


def main(seed: int) -> None:
    """Print a line a structure."""
    atlas = build_atlas(seed)
    ball = np.stack(np.meshgrid(*[np.arange(-RADIUS_MM, RADIUS_MM + 0.5)] * 3)).reshape(3, -1)
    ball = ball[:, np.square(ball).sum(0) <= RADIUS_MM**2].astype(np.float32)
    width = max(map(len, STRUCTURES))
    print(f"{'ADC of healthy newborns (1e-6 mm²/s)':<{width}}  {'here':>6}  published")
    for name, (centre, published) in STRUCTURES.items():
        sides = [ball + np.array([[sign * centre[0]], [centre[1]], [centre[2]]], np.float32) for sign in (-1, 1)]
        print(f"{name:<{width}}  {np.mean([atlas(points)[0].mean() for points in sides]):6.0f}  {published}".rstrip())


if __name__ == "__main__":
    main(int(sys.argv[1]))
