"""False alarms and misses of the checks of values: ``python tests/benchmarks/map_relations.py DATASET_DIR [EVERY]``.

Each usable case of a dataset is checked as it is, and with one thing made wrong. The table has the share of cases that
were refused, that got a note, and the quantiles of the local correlation of the two maps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[2] / "hie_bundle"))

from scripts.data.checks import Limits, agreement_of_maps, read_case
from scripts.data.layout import find_cases
from scripts.io.volumes import Volume, read_volume

Maps = dict[str, np.ndarray]


def faults(own: Maps, other: Maps) -> Iterator[tuple[str, Maps]]:
    """Wrong variants of a case; ``other`` is another case."""
    adc, zadc, label = own["adc"], own["zadc"], own["label"]
    brain = adc > 0
    rng = np.random.default_rng(0)
    yield "as it is", own
    fitted = np.zeros_like(zadc)
    boxes = [ndimage.find_objects(mask.astype(int))[0] for mask in (brain, other["adc"] > 0)]
    zoom = [(a.stop - a.start) / (b.stop - b.start) for a, b in zip(*boxes, strict=True)]
    fitted[boxes[0]] = ndimage.zoom(other["zadc"][boxes[1]], zoom, order=1)
    yield "another case's ZADC, fitted", {**own, "zadc": fitted}
    for axis in (0, 2):
        for voxels in (1, 2, 3):
            yield f"ZADC shifted by {voxels} along axis {axis}", {**own, "zadc": np.roll(zadc, voxels, axis)}
    yield "noise", {**own, "zadc": np.where(brain, rng.normal(0, 2, adc.shape), 0)}
    yield "inverted", {**own, "zadc": -zadc}
    for axis in range(3):
        yield f"ZADC mirrored along axis {axis}", {**own, "zadc": np.flip(zadc, axis)}
    yield "ADC × 0.5", {**own, "adc": adc * 0.5}
    yield "ADC × 2", {**own, "adc": adc * 2}
    yield "12-bit overflow", {**own, "adc": np.where(adc > 2047, adc - 4096, adc)}
    plane = np.zeros((3, 3, 3), bool)
    plane[:, 1, 1] = plane[1, :, 1] = True
    ring = ndimage.binary_dilation(brain, plane, iterations=3) & ~brain
    skull = np.where(ring, rng.normal(800, 200, adc.shape).clip(100), adc)
    yield "ring of skull, ZADC 0", {**own, "adc": skull}
    yield "ring of skull, with ZADC", {**own, "adc": skull, "zadc": np.where(ring, (skull - 1300) / 250, zadc)}
    yield "ZADC of -99 outside the brain", {**own, "zadc": np.where(brain, zadc, -99)}
    if label.sum() >= 20:
        yield "label flipped along the first axis", {**own, "label": np.flip(label, 0)}
        yield "label is the brain", {**own, "label": brain.astype(np.uint8)}


def main(folder: str, every: int = 1) -> None:
    cases = [case for case in find_cases(folder) if case.adc and case.zadc and case.label][::every]
    volumes = [
        {part: read_volume(getattr(case, part)) for part in ("adc", "zadc", "label")} for case in cases
    ]  # fmt: skip
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    seconds = []
    for number, own in enumerate(volumes):
        arrays = [
            {part: volume.array.astype(np.float32) for part, volume in one.items()}
            for one in (own, volumes[(number + 1) % len(volumes)])
        ]
        for fault, maps in faults(*arrays):
            files = {part: Volume(array, own[part].affine) for part, array in maps.items()}
            start = time.perf_counter()
            report = read_case("case", files, Limits(brain_ml_range=(100, 800)))[0]
            seconds += [time.perf_counter() - start] if fault == "as it is" else []
            brain = maps["adc"] > 0
            agreement = agreement_of_maps(maps["adc"], maps["zadc"], brain, own["adc"].spacing_mm)
            notes = [note for note in report.notes if note != "empty label"]
            found.setdefault(fault, []).append((not report.usable, bool(notes), agreement))
    print(f"{len(cases)} cases, {np.median(seconds):.2f} s a case\n| fault | cases | refused | noted | correlation |")
    print("| --- | --- | --- | --- | --- |")
    for fault, rows in found.items():
        refused, noted, agreement = np.array(rows, float).T
        span = " / ".join(f"{value:.2f}" for value in np.quantile(agreement, (0, 0.5, 1)))
        print(f"| {fault} | {len(rows)} | {refused.sum():.0f} | {(noted * (1 - refused)).sum():.0f} | {span} |")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
