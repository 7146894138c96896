"""Offline preprocessing: resampled cases for training, stacked files, and datasets of nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..io.files import clean_beside, read_json, try_writing, write_json
from ..io.images import write
from ..io.volumes import read_volume
from ..runtime.errors import DatasetError
from .checks import Limits, channels_of
from .datalists import write_datalist
from .gate import require_usable, thread_count
from .layout import MANIFEST, Case, find_cases
from .privacy import pseudonyms

FORMATS = ("resampled", "native_stack", "nnunet")

# writes a case to the paths of its image files and its label
Writer = Callable[[Case, Sequence[Path], Path], None]


def preprocess(
    dataset_dir: str | Path,
    output_dir: str | Path,
    format: str = "resampled",
    labels: bool = True,
    recipe_configs: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    dataset_name: str = "Dataset001_HIE",
    extension: str = ".nii.gz",
    limits: Limits | None = None,
    num_workers: int | None = None,
    patient_pattern: str | None = None,
    anonymise_ids: str | Path | None = None,
) -> None:
    """Write every case in another format, unless its files exist and are newer than their sources.

    ``resampled`` and ``native_stack`` write ``<split>/<case>.nii.gz`` (4D, channels ADC and ZADC last),
    ``<split>/labels/final/<case>.nii.gz`` (so that MONAI Label opens a split's folder) and ``datalist.json`` with the
    official split (for ``resampled`` with the native files, which evaluation needs). ``nnunet`` writes a raw dataset of
    nnU-Net v2: test cases and unlabelled cases in ``imagesTs`` and ``labelsTs``, all others in ``imagesTr`` and
    ``labelsTr``.

    ``configs/data.yaml`` describes the other options. ``overrides`` are values for keys of the recipe's configs, e.g.
    ``{"spatial_size": [96, 96, 32]}``. With pseudonyms (``anonymise_ids``) ``datalist.json`` has no native files.

    Raises:
        DatasetError: no usable case, an unknown format, or an ``output_dir`` with other files.
    """
    if format not in FORMATS:
        raise DatasetError(f"There is no format {format!r}; choose one of {', '.join(FORMATS)}.")
    if extension not in (".nii.gz", ".nii"):
        raise DatasetError(f"There is no extension {extension!r}; choose .nii.gz or .nii.")
    root = Path(output_dir).absolute()
    source = Path(dataset_dir).absolute()
    if root == source or source in root.parents:
        raise DatasetError(f"output_dir {root} must be outside dataset_dir {source}; its files would be read as cases.")
    cases = [case for case in find_cases(source) if labels or case.has_maps]
    items = [case.item(labels or case.label is not None) for case in cases]
    if items:
        new = not root.exists()
        try_writing(root)
        if new:
            root.rmdir()  # an error below leaves no folder
    require_usable(items, source, "preprocessing", limits, num_workers=num_workers)
    settings: dict[str, Any] = {"format": format, "dataset_dir": str(source)}
    writer: Writer = partial(_write_maps, stack=format == "native_stack")
    if format == "resampled":
        writer, settings["recipe"] = _resampling_writer(recipe_configs, overrides or {})
    if format == "nnunet":
        root, extension = root / dataset_name, ".nii.gz"
    else:
        settings["extension"] = extension
    if anonymise_ids is not None:
        if patient_pattern is not None:
            raise DatasetError("--patient_pattern and --anonymise_ids cannot be combined; remove one of them.")
        names = pseudonyms([case.case for case in cases], anonymise_ids, output_dir=root)
        cases = sorted((replace(case, case=names[case.case]) for case in cases), key=lambda case: case.case)
        settings["dataset_dir"] = source.name
    _claim(root / MANIFEST, settings)
    jobs = [(case, *_paths(root, format, extension, case)) for case in cases]
    clean_beside(path for _, images, label in jobs for path in (*images, label))  # from a killed run
    jobs = [job for job in jobs if not _is_done(*job)]
    with ThreadPoolExecutor(thread_count(num_workers)) as pool:
        done = pool.map(lambda job: writer(*job), jobs)
        list(tqdm(done, total=len(jobs), desc="preprocessing", unit="case", disable=None))
    if format == "nnunet":  # for these channel names nnU-Net v2 uses Z-score normalisation
        description = {
            "channel_names": {"0": "ADC", "1": "ZADC"},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": len(list((root / "labelsTr").glob("*.nii.gz"))),
            "file_ending": extension,
        }
        write_json(root / "dataset.json", description, indent=1)
        print(f"{len(cases)} cases in {root}")
    else:
        # masks on another grid are compared with the native labels
        natives = {item["case"]: item for item in items} if format == "resampled" and anonymise_ids is None else None
        write_datalist(root, root / "datalist.json", labels=labels, patient_pattern=patient_pattern, natives=natives)


def _claim(manifest: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings to a new folder; raise a DatasetError if it has other settings or other files."""
    if not manifest.exists():
        if manifest.parent.is_dir() and any(manifest.parent.iterdir()):
            raise DatasetError(f"{manifest.parent} contains other files. Choose another output_dir.")
        write_json(manifest, settings, indent=1)
    if read_json(manifest) != json.loads(json.dumps(settings)):
        raise DatasetError(
            f"{manifest.parent} was created from another dataset or with other settings (see its {manifest.name}). "
            "Choose another output_dir, or delete it first."
        )


def _paths(root: Path, format: str, extension: str, case: Case) -> tuple[list[Path], Path]:
    """The files of a case's images and of its label."""
    name = f"{case.case}{extension}"
    if format == "nnunet":
        side = "Ts" if case.split == "test" or not case.label else "Tr"
        images = [root / f"images{side}" / f"{case.case}_{channel:04d}{extension}" for channel in (0, 1)]
        return images, root / f"labels{side}" / name
    folder = root / (case.split or "")
    return [folder / name], folder / "labels" / "final" / name


def _is_done(case: Case, images: Sequence[Path], label: Path) -> bool:
    """Whether all files exist and are newer than their sources."""
    sources = [path for path in (case.adc, case.zadc, case.stacked, case.label) if path]
    targets = [*images, label] if case.label else list(images)
    if not all(path.exists() for path in targets):
        return False
    return min(path.stat().st_mtime_ns for path in targets) >= max(path.stat().st_mtime_ns for path in sources)


def _write_maps(case: Case, images: Sequence[Path], label: Path, stack: bool) -> None:
    """Write the maps, stacked or one per file, and the unchanged label."""
    volumes = [read_volume(path) for path in ([case.stacked] if case.stacked else [case.adc, case.zadc]) if path]
    maps, affine = [array for volume in volumes for array in channels_of(volume)], volumes[0].affine
    arrays = [np.stack([array.astype(np.float32) for array in maps], axis=-1)] if stack else maps
    for path, array in zip(images, arrays, strict=True):
        write(path, array, affine)
    if case.label:
        write(label, (read_volume(case.label).array == 1).astype(np.uint8), affine)


def _resampling_writer(
    recipe_configs: Sequence[str | Path], overrides: Mapping[str, Any]
) -> tuple[Writer, Mapping[str, Any]]:
    """A writer that applies a recipe's transforms, and the recipe's description."""
    from monai.bundle import ConfigParser
    from monai.transforms import Compose

    from ..runtime.literals import literal
    from ..runtime.recipe import recipe_of

    if not recipe_configs:
        raise DatasetError(
            "--format resampled needs --recipe_configs, the configs of the recipe whose transforms it applies."
        )
    parser = ConfigParser()
    parser.read_config([str(file) for file in recipe_configs])
    parser.update(literal(overrides))
    described = recipe_of(parser)
    stages = parser.get_parsed_content("transforms")
    named = (stages[name] for name in ("load", "grid", "values"))
    compose = Compose([t for stage in named for t in (stage.values() if isinstance(stage, Mapping) else stage)])

    def write_resampled(case: Case, images: Sequence[Path], label: Path) -> None:
        data = compose(case.item(labels=case.label is not None))
        image = data["image"]
        write(images[0], np.moveaxis(image.numpy(), 0, -1).astype(np.float32), image.affine.numpy())
        if case.label:
            write(label, data["label"][0].numpy().astype(np.uint8), data["label"].affine.numpy())

    return write_resampled, described
