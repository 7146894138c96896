"""``hie-bundle segment``: masks, pictures and measurements of files or folders."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.layout import LABEL_FOLDERS, file_name, filesystem_key, find_cases, part_of, site_of
from ..data.privacy import pseudonyms
from ..evaluation.calibration import Calibration, calibration_file
from ..geometry.components import components
from ..inference.segmenter import CAUTION, Segmentation, Segmenter
from ..io.files import clean_beside, sha256_of, try_writing, write_atomically
from ..io.images import write
from ..io.volumes import EXTENSIONS, Volume, extension_of
from ..runtime.errors import UserError, user_error
from ..runtime.redaction import redacted
from ..runtime.text import csv_table, printable
from .bids import describe, mask_place, sidecar_of, write_sidecar
from .shards import Shard, hash_of

if TYPE_CHECKING:
    from ..scanner.regions import RegionAtlas


@dataclass(frozen=True)
class Job:
    """One case and its input files; outputs of a ``hidden`` case do not name them."""

    case: str
    adc: Path
    zadc: Path | None
    hidden: bool = False
    site: str | None = None  # from the original case id

    @property
    def maps(self) -> list[Path]:
        """The files."""
        return [path for path in (self.adc, self.zadc) if path]

    @property
    def record(self) -> dict[str, Any]:
        """Names and files of the case, for outputs."""
        named = {"case": self.case, **({"site": self.site} if self.site else {})}
        return named if self.hidden else {**named, "adc": str(self.adc), "zadc": self.zadc and str(self.zadc)}


def segment(given: SimpleNamespace, config: Mapping[str, Any]) -> None:
    """Segment files or folders.

    Args:
        given: the options of `hie-bundle segment` by name.
        config: values that override ``inference.yaml`` and the recipe.

    Raises:
        UserError: no case is found, or the output cannot be written.
        SystemExit: 1 if a case could not be segmented.
    """
    if given.extension not in EXTENSIONS:
        raise UserError(f"--extension must be one of {', '.join(EXTENSIONS)}, not {given.extension}.")
    in_folder = not extension_of(given.output)
    jobs = find_jobs(Path(given.adc), Path(given.zadc) if given.zadc else None, Path(given.output))
    jobs = [replace(job, site=site_of(job.case)) for job in jobs]
    if given.anonymise_ids is not None:
        files = [path for job in jobs for path in job.maps]
        names = pseudonyms([job.case for job in jobs], given.anonymise_ids, files, given.output if in_folder else None)
        jobs = [replace(job, case=names[job.case], hidden=True) for job in jobs]
        jobs.sort(key=lambda job: job.case)
    if given.bids and (given.shard or not in_folder):
        raise UserError("--bids needs an output folder (-o DIR) and cannot be combined with --shard.")
    places = [_places(job, len(jobs) == 1, given) for job in jobs]
    _refuse_overwriting(jobs, places, [Path(one).resolve() for one in (given.adc, given.zadc) if one])
    for folder in {path.parent for place in places for path in place.values()}:
        try_writing(folder)
    share = Shard(given.shard, given.output) if given.shard else None
    if share and not in_folder:
        raise UserError("--shard needs an output folder: -o DIR.")
    weights = given.weights.split(",") if "," in given.weights else given.weights
    segmenter = Segmenter(weights, given.recipe, given.openvino, **config)
    calibration = None
    if given.calibrated:
        calibration = Calibration.read(calibration_file(segmenter.checkpoints), segmenter.making)
    atlas = None
    if given.regions:  # imports SimpleITK only if needed
        from ..scanner.regions import RegionAtlas

        atlas = RegionAtlas(given.regions)
    if given.bids:
        describe(given.output)
    silent = given.quiet or given.json
    rows: list[dict[str, Any]] = []
    with share.working() if share else nullcontext():
        todo = list(zip(jobs, places, strict=True))
        if share:
            how = {**segmenter.making, "calibrated": given.calibrated, "regions": given.regions,
                   "limits": asdict(segmenter.limits)}  # fmt: skip
            records = share.rows()
            todo = [one for one in share.of(todo)
                    if not share.is_done(records.get(one[0].case), how, one[0].maps, one[1])]  # fmt: skip
        clean_beside(path for _, place in todo for path in place.values())  # from a killed run
        for job, place in tqdm(todo, unit="case", disable=silent or len(jobs) == 1 or not sys.stderr.isatty()):
            maps_sha256 = hash_of(job.maps) if share else ""  # before reading, to detect replaced maps
            row, found = _segmented(job, place, segmenter, calibration, atlas)
            rows.append(row)
            if share:
                share.add({**row, **how}, maps_sha256, place)
            if found and not silent:
                lines = [found.line, found.plausibility.line, *found.notes, str(place["mask"])]
                tqdm.write(printable("\n  ".join(lines)), file=sys.stdout)
        manifest = share.gather({job.case: job.maps for job in jobs}) if share else None
    if manifest and not silent:
        print(manifest)
    for row, (_, place) in zip(rows, todo, strict=True):
        if gone := [str(path) for path in place.values() if "error" not in row and not path.is_file()]:
            row["error"] = f"{', '.join(gone)} was removed during the run."
            print(f"error: {row['error']}", file=sys.stderr)
    failed = sum("error" in row for row in rows)
    if given.json:
        checkpoints = [{"path": str(path), "sha256": sha256_of(path)} for path in segmenter.checkpoints]
        settings = {name: value for name, value in segmenter.making.items() if name != "weights_sha256"}
        content = {"caution": CAUTION, "weights": checkpoints, **settings, "cases": rows}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif not given.quiet and failed < len(rows):
        print(CAUTION)
    if failed:
        if len(jobs) > 1:
            print(f"error: {failed} of {len(rows)} cases could not be segmented.", file=sys.stderr)
        sys.exit(1)


def _segmented(
    job: Job, place: dict[str, Path], segmenter: Segmenter, calibration: Calibration | None, atlas: RegionAtlas | None
) -> tuple[dict[str, Any], Segmentation | None]:
    """Segment a case and write its files; return its record, with ``error`` on failure."""
    try:
        found = segmenter.result(job.adc, job.zadc, case=job.case)
        labels, figures = None, found.figures
        parts: list[dict[str, Any]] = []
        if atlas:
            labels, parts, note = atlas.injured(Volume(found.maps["ADC"], found.affine), found.mask)
            found = replace(found, notes=(*found.notes, note))
            figures = {**found.figures, **atlas.figures(parts)}
        _write(found, job, place, segmenter, calibration, figures, labels, parts)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        tqdm.write(f"error: {printable(mistake)}", file=sys.stderr)
        return {**job.record, "error": redacted(str(mistake))}, None
    return {**job.record, **{name: str(path) for name, path in place.items()}, **figures}, found


def find_jobs(adc: Path, zadc: Path | None, output: Path | None = None) -> list[Job]:
    """Find the cases of two files, two folders or one folder; skip earlier results in an output folder below it.

    Raises:
        UserError: no case was found, or a file and a folder are combined.
    """
    for path in (adc, *([zadc] if zadc else [])):
        if not path.exists():
            raise UserError(f"{path} does not exist.")
    if zadc and adc.is_dir() != zadc.is_dir():
        raise UserError(f"{adc} and {zadc} are a file and a folder; give two files or two folders.")
    if not adc.is_dir():
        return [Job(_case_of(adc), adc, zadc)]
    if zadc is None:
        maps = [(case, case.adc or case.stacked) for case in find_cases(adc)]
        jobs = [Job(case.case, first, case.zadc) for case, first in maps if first]
        if output is not None and adc.resolve() in output.resolve().parents:
            jobs = [job for job in jobs if output.resolve() not in job.adc.resolve().parents]
    else:
        partners = {_case_of(path): path for path in _images(zadc)}
        jobs = [Job(_case_of(path), path, partners.get(_case_of(path))) for path in _images(adc)]
        if jobs and not any(job.zadc for job in jobs):
            raise UserError(f"No file in {zadc} matches a file in {adc}; use one file name for both maps of a case.")
    if not jobs:
        raise UserError(
            f"{adc} holds no ADC map. Files have names like X-ADC_ss.nii.gz and Zmap_X-ADC_smooth2mm_clipped10.nii.gz "
            f"({', '.join(EXTENSIONS)}); or name the two files."
        )
    return jobs


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if extension_of(path) and path.is_file())


def _case_of(path: Path) -> str:
    part, case = part_of(path)
    return case if part else path.name.removesuffix(extension_of(path))


def _places(job: Job, single: bool, given: SimpleNamespace) -> dict[str, Path]:
    """The output files of a case, by type."""

    def place(target: str, endings: Sequence[str], name: str) -> Path:
        if not target.lower().endswith(tuple(endings)):
            return Path(target) / name
        if not single:
            raise UserError(f"{target} is a file, but there are several cases; give a folder.")
        return Path(target)

    if given.bids:
        mask = mask_place(given.output, job.case, given.extension)
        places = {"mask": mask, "sidecar": sidecar_of(mask)}
    else:
        mask = place(given.output, EXTENSIONS, f"{job.case}_lesion{given.extension}")
        places = {"mask": mask}
    extension = extension_of(mask)
    stem = mask.name.removesuffix(extension).removesuffix("_lesion").removesuffix("_mask")
    if given.probabilities:
        places["probability"] = mask.with_name(f"{stem}_{'probseg' if given.bids else 'probability'}{extension}")
    if given.lesions:
        places["lesion_table"] = mask.with_name(f"{stem}_lesions.csv")
    if given.studies:
        places["study"] = Path(given.studies) / f"{file_name(job.case)}.nii.gz"
    if given.overlay:
        places["overlay"] = place(given.overlay, [".png"], f"{job.case}.png")
    if given.report:
        places["report"] = place(given.report, [".html"], f"{job.case}.html")
    return places


def _refuse_overwriting(jobs: Sequence[Job], places: Sequence[dict[str, Path]], given: Sequence[Path]) -> None:
    """Refuse outputs that would overwrite inputs or each other, or be read as maps later; ``given`` is resolved."""
    inputs = {path.resolve() for job in jobs for path in job.maps}
    outputs = [path.resolve() for place in places for path in place.values()]
    if both := inputs & set(outputs):
        raise UserError(f"{min(both)} is an input map and is not overwritten; choose another -o.")
    for folder in sorted({path.parent for path in outputs if extension_of(path)}):
        below = any(one in folder.parents for one in given)
        if folder in given or (below and folder.name in LABEL_FOLDERS):
            raise UserError(
                f"{folder} holds maps or labels. A mask there would replace a label, and later runs would read a "
                "probability map as a case. Choose another -o (or --studies)."
            )
    first: dict[str, Path] = {}
    for path in outputs:
        other = first.setdefault(filesystem_key(str(path)), path)
        if other is path:
            continue
        if other == path:
            raise UserError(f"Two cases would be written to {path}: their files have the same name; rename one.")
        raise UserError(
            f"{other} and {path} are the same file on file systems that ignore case or Unicode form; "
            "rename one of the two cases."
        )


def _write(
    found: Segmentation, job: Job, place: dict[str, Path], segmenter: Segmenter, calibration: Calibration | None,
    figures: Mapping[str, Any], labels: NDArray[np.uint8] | None, parts: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    write(place["mask"], found.mask, found.affine)
    if "sidecar" in place:
        sources = {} if job.hidden else {"Sources": [path.name for path in job.maps]}
        write_sidecar(place["mask"], {**sources, **segmenter.making, **figures})
    if "probability" in place:
        write(place["probability"], (calibration or np.asarray)(found.probability), found.affine)
    if "study" in place:  # a stacked file: ADC and ZADC along a fourth axis
        # MONAI Label's server detects files moved from another folder, but not files renamed in place
        with TemporaryDirectory(dir=place["mask"].parent) as folder:
            study = Path(folder) / place["study"].name
            write(study, np.stack(list(found.maps.values()), axis=-1), found.affine)
            shutil.move(study, place["study"])
    if not {"lesion_table", "overlay", "report"} & place.keys():
        return
    from ..evaluation.lesions import COMPONENT_COLUMNS, lesions_of
    from ..report.page import write_case_page
    from ..report.pictures import CaseSlices, region_slices

    names = {"ADC": "adc", "ZADC": "z"}
    maps = {names[name]: volume for name, volume in found.maps.items()} | {"probability": found.probability}
    lesions = lesions_of(found.case, components(found.mask > 0)[0], found.affine, maps)
    for row, real in zip(lesions, calibration.real(lesions) if calibration else [None] * len(lesions), strict=True):
        row["real_probability"] = real
    if "lesion_table" in place:
        write_atomically(place["lesion_table"], csv_table(lesions, COMPONENT_COLUMNS))

    slices = CaseSlices(found.maps, {"pred": found.mask}, found.affine)
    if "overlay" in place:
        write_atomically(place["overlay"], slices.spread_picture(found.line))
    if "report" in place:
        tiles = [("Lesion", f"{found.lesion_ml:.2f} ml"), ("Of the brain", f"{100 * found.lesion_fraction:.2f} %"),
                 ("Lesions", str(found.lesions)), ("Brain", f"{found.brain_ml:.0f} ml")]  # fmt: skip
        facts = {} if job.hidden else {"ADC": str(job.adc), "ZADC": str(job.zadc or "none")}
        facts["Mask"] = str(place["mask"])
        for number, path in enumerate(segmenter.checkpoints, start=1):
            facts[f"Weights {number}"] = f"{path}, SHA-256 {sha256_of(path)}"
        facts["Threshold of the probability"] = str(segmenter.threshold)
        facts["Smallest lesion"] = f"{segmenter.smallest_lesion_mm3:g} mm³"
        facts["Limited to the brain"] = "yes" if segmenter.limit_to_brain else "no"
        notes = [found.plausibility.line, *found.notes]
        diagram = [] if labels is None else region_slices(labels, parts, found.affine)
        write_case_page(place["report"], slices, found.case, tiles, notes, facts, lesions, parts, diagram)
