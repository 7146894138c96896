"""Offline preprocessing: the dataset in the forms that training, one-file-per-case tools and nnU-Net read."""

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

from ..io.files import clean_beside, try_writing, write_json
from ..io.images import write
from ..io.volumes import read_volume
from ..runtime.errors import DatasetError
from .checks import Limits, channels_of
from .datalists import write_datalist
from .gate import require_usable, thread_count
from .layout import MANIFEST, Case, find_cases
from .privacy import pseudonyms

__all__ = ["FORMATS", "preprocess"]

FORMATS = ("resampled", "native_stack", "nnunet")

# writes one case's files, given the case and the paths of its image files and of its label
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
    """Write every case in another form. What is there already and newer than its source is left as it is.

    ``resampled`` and ``native_stack`` write ``<split>/<case>.nii.gz``, 4D with the channels ADC and ZADC last,
    ``<split>/labels/final/<case>.nii.gz`` and ``datalist.json`` with the official split (of ``resampled`` also with the
    files that were read, which evaluation needs); each split's folder is one that MONAI Label can open. ``nnunet``
    writes a raw dataset of nnU-Net v2: the cases of train, val and no split in ``imagesTr`` and ``labelsTr``, those of
    test and those without a label in ``imagesTs`` and ``labelsTs``.

    Args:
        dataset_dir: folder with the cases.
        output_dir: outside ``dataset_dir``; created if needed; one that holds other files is refused.
        format: ``resampled``: what a recipe's transforms make of a case, float32; ``native_stack``: the two maps as
            they are, float32; ``nnunet``: the three files as they are, one NIfTI each.
        labels: every case must have a label; otherwise labels are written where there are any.
        recipe_configs: for ``resampled``: the config that trains, and mixins.
        overrides: other values for keys of these configs, e.g. ``{"spatial_size": [96, 96, 32]}``.
        dataset_name: for ``nnunet``: the dataset's folder in ``output_dir``.
        extension: of ``resampled`` and ``native_stack``: ``.nii.gz``, or ``.nii``, which is larger and loads faster.
        limits: what a case may look like; the defaults if None.
        num_workers: threads; one a core if None.
        patient_pattern: finds the patient's id in a case's id, see :func:`scripts.data.folds.patients_of`.
        anonymise_ids: file with a key; the cases have other ids then (:func:`scripts.data.privacy`), and
            ``datalist.json`` does not say which files they were made from: evaluations of ``resampled`` have no native
            grid.

    Raises:
        DatasetError: no usable case, an unknown format, another preprocessing's ``output_dir``, or a full disk.
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
            root.rmdir()  # what is refused below leaves nothing
    require_usable(items, source, "preprocessing", limits, num_workers=num_workers)
    settings: dict[str, Any] = {"format": format, "dataset_dir": str(source)}
    writer: Writer = partial(_write_maps, stack=format == "native_stack")
    if format == "resampled":
        writer, settings["recipe"] = _resampling_writer(recipe_configs, overrides or {})
    if format == "nnunet":
        root = root / dataset_name
        place: Callable[[Case], tuple[list[Path], Path]] = partial(_nnunet_paths, root)
    else:
        place, settings["extension"] = partial(_stack_paths, root, extension), extension
    if anonymise_ids is not None:
        if patient_pattern is not None:
            raise DatasetError("--patient_pattern finds no patient in the ids of --anonymise_ids; use one of the two.")
        names = pseudonyms([case.case for case in cases], anonymise_ids, output_dir=root)
        cases = sorted((replace(case, case=names[case.case]) for case in cases), key=lambda case: case.case)
        settings["dataset_dir"] = source.name
    try:
        _claim(root / MANIFEST, settings)
        jobs = [(case, *place(case)) for case in cases]
        clean_beside(path for _, images, label in jobs for path in (*images, label))  # of a run that was killed
        _run(writer, [job for job in jobs if not _is_done(*job)], num_workers)
        if format == "nnunet":  # as nnU-Net v2 reads it: by these names it normalises each map by mean and SD
            description = {
                "channel_names": {"0": "ADC", "1": "ZADC"},
                "labels": {"background": 0, "lesion": 1},
                "numTraining": len(list((root / "labelsTr").glob("*.nii.gz"))),
                "file_ending": ".nii.gz",
            }
            write_json(root / "dataset.json", description, indent=1)
    except OSError as error:
        raise DatasetError(f"{error.filename or root} cannot be written ({error.strerror or error}).") from error
    if format == "nnunet":
        print(f"{len(cases)} cases in {root}")
    else:
        # on another grid, the files that were read are what masks are compared with in the end
        natives = {item["case"]: item for item in items} if format == "resampled" and anonymise_ids is None else None
        write_datalist(root, root / "datalist.json", labels=labels, patient_pattern=patient_pattern, natives=natives)


def _claim(manifest: Path, settings: Mapping[str, Any]) -> None:
    """Mark the folder as this preprocessing's, or raise if it is another's."""
    if not manifest.exists():
        if manifest.parent.is_dir() and any(manifest.parent.iterdir()):
            raise DatasetError(f"{manifest.parent} has other files in it. Choose another output_dir.")
        write_json(manifest, settings, indent=1)
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        known = None
    if known != json.loads(json.dumps(settings)):
        raise DatasetError(
            f"{manifest.parent} was made from another dataset or with other settings (see {manifest.name} in it). "
            "Choose another output_dir, or delete it first."
        )


def _stack_paths(root: Path, extension: str, case: Case) -> tuple[list[Path], Path]:
    folder = root / case.split if case.split else root
    return [folder / f"{case.case}{extension}"], folder / "labels" / "final" / f"{case.case}{extension}"


def _nnunet_paths(root: Path, case: Case) -> tuple[list[Path], Path]:
    side = "Ts" if case.split == "test" or not case.label else "Tr"
    images = [root / f"images{side}" / f"{case.case}_{channel:04d}.nii.gz" for channel in (0, 1)]
    return images, root / f"labels{side}" / f"{case.case}.nii.gz"


def _is_done(case: Case, images: Sequence[Path], label: Path) -> bool:
    """Is everything there, and newer than its source?"""
    sources = [path for path in (case.adc, case.zadc, case.stacked, case.label) if path]
    targets = [*images, label] if case.label else list(images)
    if not all(path.exists() for path in targets):
        return False
    return min(path.stat().st_mtime_ns for path in targets) >= max(path.stat().st_mtime_ns for path in sources)


def _run(writer: Writer, jobs: Sequence[tuple[Case, list[Path], Path]], num_workers: int | None) -> None:
    with ThreadPoolExecutor(thread_count(num_workers)) as pool:
        try:
            done = pool.map(lambda job: writer(*job), jobs)
            list(tqdm(done, total=len(jobs), desc="preprocessing", unit="case", disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_maps(case: Case, images: Sequence[Path], label: Path, stack: bool) -> None:
    """Write the maps and the label as they are: one file for both maps, or one each."""
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
    """The writer that applies a recipe's transforms, and the recipe's description."""
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
