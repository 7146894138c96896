"""Writing a cohort in BONBID-HIE's layout."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from ..io.files import atomic_path, write_json
from ..io.volumes import write_itk
from ..runtime.cores import available_cores
from ..runtime.errors import UserError
from .case import simulate_case
from .settings import Settings

MANIFEST = "phantom.json"
FORMAT = 4  # raised whenever the same seed gives different volumes


def case_paths(folder: Path, case_number: int) -> tuple[Path, Path, Path]:
    """ADC, ZADC and label file of a case in a split's folder, named as in BONBID-HIE."""
    case = f"MGHNICU_{case_number + 1:03d}-VISIT_01"
    return (
        folder / "1ADC_ss" / f"{case}-ADC_ss.mha",
        folder / "2Z_ADC" / f"Zmap_{case}-ADC_smooth2mm_clipped10.mha",
        folder / "3LABEL" / f"{case}_lesion.mha",
    )


def write_cohort(
    output_dir: str | Path,
    num_train: int = 24,
    num_val: int = 4,
    num_test: int = 8,
    seed: int = 0,
    num_workers: int | None = None,
    first_case: int = 0,
    progress: bool = True,
    **settings: Any,
) -> None:
    """Write a simulated cohort to ``output_dir/BONBID2023_{Train,Val,Test}``; a second call writes missing cases.

    Cases are numbered from ``first_case`` through train, val and test; cohorts that are used together need different
    numbers. A case depends on ``seed``, its number and the ``settings`` of :class:`scripts.phantom.settings.Settings`
    alone. ``num_workers`` is the number of processes (None: one per core; 0 or 1: no subprocess).

    Raises:
        UserError: if ``output_dir`` holds another cohort, or a count or setting is invalid.
    """
    if min(num_train, num_val, num_test, first_case) < 0 or num_train + num_val + num_test == 0:
        raise UserError(
            f"Nothing to simulate: num_train={num_train}, num_val={num_val}, num_test={num_test}, "
            f"first_case={first_case}."
        )
    options = Settings(**settings)
    root = Path(output_dir)
    counts = {"Train": int(num_train), "Val": int(num_val), "Test": int(num_test)}
    manifest = {"format": FORMAT, "seed": int(seed), "cases": counts, "options": options.model_dump(mode="json")}
    if first_case:
        manifest |= {"first_case": int(first_case)}
    claim(root, manifest)

    jobs, number = [], int(first_case)
    for split, count in counts.items():
        folder = root / f"BONBID2023_{split}"
        for name in ("1ADC_ss", "2Z_ADC", "3LABEL") if count else ():
            (folder / name).mkdir(parents=True, exist_ok=True)
        for case_number in range(number, number + count):
            if not all(path.exists() for path in case_paths(folder, case_number)):
                jobs.append((folder, case_number))
        number += count

    num_workers = min(available_cores() if num_workers is None else num_workers, len(jobs))
    write = partial(write_case, seed=int(seed), settings=options)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, spawn) if num_workers > 1 else nullcontext() as pool:
        written = pool.map(write, jobs) if pool else map(write, jobs)
        list(tqdm(written, "phantom", len(jobs), unit="case", disable=not progress))


def claim(root: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a cohort to its folder, or compare it with the one there."""
    path = root / MANIFEST
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        options = before.get("options", {})
        # manifests up to 0.10 have more settings; without `kinds` of injury their volumes equal today's
        same = {name: options.get(name) for name in manifest["options"]}
        if options.get("kinds") or before | {"options": same} != manifest:
            raise UserError(
                f"{root} holds a phantom cohort made with other settings (see {path}). "
                "Choose another output_dir, or delete that folder first."
            )
        return
    foreign = [*root.glob("BONBID2023_*"), *root.glob("*/BONBID2023_*")]
    if foreign:
        raise UserError(
            f"{root} already holds {foreign[0].name}, which is not a phantom cohort. Choose another output_dir."
        )
    write_json(path, manifest, indent=2)


def write_case(job: tuple[Path, int], seed: int, settings: Settings) -> None:
    """Simulate a case by its folder and number, and write its three files atomically."""
    folder, case_number = job
    case = simulate_case(seed, case_number, settings)
    maps: tuple[NDArray[Any], ...] = (case.adc, case.zadc, case.label)
    for path, values in zip(case_paths(folder, case_number), maps, strict=True):
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
        image.SetSpacing(case.spacing_mm.tolist())
        image.SetOrigin(case.origin_mm.tolist())
        image.SetDirection(case.direction.ravel().tolist())
        with atomic_path(path) as draft:
            write_itk(image, draft, compressionLevel=3)
