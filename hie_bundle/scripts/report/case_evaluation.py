"""Evaluation of masks: one row per case, then tables, pictures and the report on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from ..data.datalists import held_out
from ..data.folds import size_class
from ..data.layout import file_name
from ..data.mask_files import Readers
from ..evaluation import metrics
from ..evaluation.baselines import Baselines, FittedBaselines
from ..evaluation.calibration import Calibration, CaseProbabilities, calibration_file, read_threshold, write_thresholds
from ..evaluation.lesions import LESION_COLUMNS, case_lesions, detection
from ..geometry.brain import brain_of
from ..geometry.spacing import spacing_of
from ..inference.segmenter import DECIDING
from ..io.files import seen_from, sha256_of, write_atomically, write_json
from ..io.volumes import Volume
from ..io.weights import read_record
from ..runtime.distributed import from_first, gather_interleaved, is_first
from ..runtime.errors import UserError
from ..runtime.text import csv_table
from .page import provenance, write_report
from .pictures import CaseSlices, SliceView
from .plots import read_curves
from .tables import comparison_table, verdict, write_results

logger = logging.getLogger(__name__)
PATHS = ("dataset_dir", "datalist", "predictions_dir")  # names in the results, without their folders
Rows = list[dict[str, Any]]
Masks = tuple[np.ndarray, np.ndarray, tuple[float, ...]]  # prediction, truth, voxel size in mm


@dataclass
class CaseResults:
    """Results of one case: its row of ``metrics.csv``, and further results on the native grid."""

    row: dict[str, Any]
    lesions: Rows = field(default_factory=list)  # of lesions.csv
    regions: Rows = field(default_factory=list)  # of regions.csv
    probabilities: CaseProbabilities | None = None
    calibrated: CaseProbabilities | None = None
    views: list[SliceView] = field(default_factory=list)  # for the report


@dataclass(eq=False)
class CaseEvaluation:
    """Measure every case on its native and on the resampled grid and write the results when all are done.

    An Ignite handler of an evaluator; without one, call :meth:`add` for each case and :meth:`completed` at the end. In
    distributed runs each process measures and draws its cases, and the first process writes the results of all.

    Keys of a case: ``case`` (id); ``native_image`` (ADC in 1e-6 mm²/s and ZADC, as acquired), ``native_label`` and
    ``native_pred`` (one-channel masks on the same grid); optionally ``native_probability`` (of lesion),
    ``native_members`` (masks of an ensemble's members, one channel each), ``pred`` and ``label`` (masks on the
    network's grid). All images have shape (C, X, Y, Z) and an affine, which gives the spacing in mm. Without a
    ``native_image``, native results, size class, brain, baselines and pictures are missing, and volumes are measured on
    the network's grid.

    Attributes (those of ``evaluate.yaml`` are explained there):
        output_dir: folder for ``metrics.csv``, ``lesions.csv``, ``metrics.json``, ``comparison.txt`` (against the
            baselines), ``report.html``, ``overlays/`` and, given probabilities, ``thresholds.json``. The report shows
            the training curves of ``tensorboard/`` in this folder, if there are any.
        info: data, split, settings …; repeated in the summary and the report.
        checkpoints: file or files with the weights of the predictions; reported with their SHA-256 and training record.
        baselines: methods without a deep network; by default the untuned ones.
        regions: a :class:`scripts.scanner.regions.RegionAtlas`; None: no ``regions.csv``.
        overlays: whether to draw a picture of each case and its slices in the report.
        cases: results of the measured cases.
    """

    output_dir: str | Path
    info: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: str | Sequence[str] = ()
    tolerance_mm: float = 2.0
    lesion_overlap: float = 0.0
    lesion_iou: float = 0.1
    baselines: Baselines = field(default_factory=Baselines)
    readers: Readers = field(default_factory=Readers)
    threshold_from: str | None = None
    calibration: str | None = None
    regions: Any = None
    overlays: bool = True
    adc_window: Sequence[float] = (0, 2500)
    zadc_window: Sequence[float] = (-6, 6)
    cases: list[CaseResults] = field(init=False, default_factory=list)
    chosen: float | None = field(init=False, default=None)  # threshold
    calibrated: Calibration | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir).resolve()
        self.windows = {"ADC": self.adc_window, "ZADC": self.zadc_window}
        self.weights = [self.checkpoints] if isinstance(self.checkpoints, str) else list(self.checkpoints)

    def of(self, info: Mapping[str, Any], checkpoints: str | Sequence[str] = ()) -> CaseEvaluation:
        """A copy for other predictions, with more ``info`` and their weights."""
        return replace(self, info={**self.info, **info}, checkpoints=checkpoints)

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Measure after each iteration, write the results at the end."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: SupervisedEvaluator | None = None) -> None:
        """Reset the results, and fit the baselines and read the threshold.

        Raises:
            UserError: when the threshold, a reader's mask or the calibration is missing.
        """
        self.readers.find()
        if self.calibration and not self.weights:
            raise UserError(
                "--calibration works with `run evaluating` only, since it is stored next to the weights; remove it."
            )
        if self.calibration == "apply":
            self.calibrated = Calibration.read(calibration_file(self.weights), self._making)
        self.cases = []
        self.info = {**self.info, "baselines": self._fitted.describe()}
        if self.threshold_from is not None:
            self.chosen = read_threshold(self.threshold_from)
            self.info["threshold_from"] = f"{seen_from(self.threshold_from, self.folder)}: {self.chosen:.2f}"

    @property
    def _making(self) -> dict[str, Any]:
        """Hash of the weights, and the settings that change masks, as in ``Segmenter.making``."""
        return {"weights_sha256": sha256_of(*self.weights), **{name: self.info.get(name) for name in DECIDING}}

    @cached_property
    def _fitted(self) -> FittedBaselines:
        """The fitted baselines, computed at first use."""
        fitted = from_first(self.baselines.fitted() if is_first() else None)  # once for all processes
        assert fitted is not None
        return fitted

    def __call__(self, engine: SupervisedEvaluator) -> None:
        for inputs, outputs in zip(engine.state.batch, engine.state.output, strict=True):
            self.add({**inputs, **outputs})

    def add(self, item: Mapping[str, Any]) -> None:
        """Measure and draw one case."""
        self.cases.append(self.measure(item))
        if self.overlays and "native_image" in item:
            self.cases[-1].views = self.draw(item)

    def measure(self, item: Mapping[str, Any]) -> CaseResults:
        """Results of one case, without its slice views."""
        native = "native_image" in item
        grids = {"native": _masks(item, "native_")} if native else {}
        if "pred" in item:
            grids["resampled"] = _masks(item, "")
        brain = brain_of(item["native_image"][0].cpu().numpy()) if native else None
        row = {"case": item["case"], "site": item.get("site") or "", **_sizes(*next(iter(grids.values())), brain)}
        for grid, masks in grids.items():
            measured = metrics.case_metrics(*masks, self.tolerance_mm, self.lesion_overlap, grid)
            row |= {f"{grid}_{name}": value for name, value in measured.items()}
        results = CaseResults(row)
        if native:
            self._add_native(results, item, grids["native"])
        return results

    def _add_native(self, results: CaseResults, item: Mapping[str, Any], masks: Masks) -> None:
        """Add results that need the maps: baselines, probabilities, lesions, regions, readers, ensemble members."""
        case, row, (pred, truth, spacing_mm) = item["case"], results.row, masks
        adc, zadc = item["native_image"].cpu().numpy()
        affine = item["native_image"].affine.cpu().numpy()
        alone = np.isnan(zadc).all()  # no ZADC map: no baselines
        for name, mask in self._fitted.masks(adc, zadc, spacing_mm).items():
            row[name] = math.nan if alone else metrics.dice(mask, truth)
        maps = {"adc": adc} if alone else {"adc": adc, "z": zadc}
        if "native_probability" in item:
            maps["probability"] = item["native_probability"].cpu().numpy()[0]
            results.probabilities = found = CaseProbabilities.of(maps["probability"], truth, brain_of(adc))
            row |= {"native_brier": found.brier, "native_ece": found.ece}
            if self.calibrated:
                after = CaseProbabilities.of(self.calibrated(maps["probability"]), truth, brain_of(adc))
                row |= {"native_brier_calibrated": after.brier, "native_ece_calibrated": after.ece}
                results.calibrated = after
            if self.chosen is not None:
                row["native_dice_chosen"] = found.dice_at(self.chosen)
        results.lesions = case_lesions(case, pred, truth, affine, maps, self.lesion_iou)
        if self.calibrated:
            drawn = [lesion for lesion in results.lesions if lesion["mask"] == "prediction"]
            for lesion, real in zip(drawn, self.calibrated.real(drawn), strict=True):
                lesion["real_probability"] = real
        if self.regions:
            results.regions = self._injured(case, Volume(adc, affine), masks)
        if others := self.readers.masks(case):
            row |= metrics.reader_metrics(pred, [truth, *others])
        for number, member in enumerate(item.get("native_members", ()), start=1):
            row[f"member_{number}_dice"] = metrics.dice(_mask(member[None]), truth)

    def _injured(self, case: str, adc: Volume, masks: Masks) -> Rows:
        """One row per region of the case; none if the atlas does not fit."""
        labels, note = self.regions.on(adc)
        if labels is None:
            logger.warning("%s: %s", case, note)
            return []
        predicted, true = (self.regions.rows(labels, mask, masks[2]) for mask in masks[:2])
        return [
            {"case": case, "region": t["region"], "volume_ml": t["volume_ml"], "lesion_ml": t["injured_ml"],
             "share": t["share"], "predicted_ml": p["injured_ml"], "predicted_share": p["share"]}
            for t, p in zip(true, predicted, strict=True)
        ]  # fmt: skip

    def draw(self, item: Mapping[str, Any]) -> list[SliceView]:
        """Write the picture of one case and return its slices for the report."""
        adc, zadc = item["native_image"].cpu().numpy()
        pred, truth, _ = _masks(item, "native_")
        affine = item["native_image"].affine.cpu().numpy()
        slices = CaseSlices({"ADC": adc, "ZADC": zadc}, {"truth": truth, "pred": pred}, affine, self.windows)
        picture = self.folder / "overlays" / f"{file_name(item['case'])}.png"
        write_atomically(picture, slices.overlay(item["case"]))
        return slices.views_of_errors()

    def completed(self, _: SupervisedEvaluator | None = None) -> None:
        """Write the tables and the report, and log the comparison with the baselines."""
        cases = gather_interleaved(self.cases)
        if cases is None:
            return
        self.cases = cases
        rows = [case.row for case in cases]
        lesions = [row for case in cases for row in case.lesions]
        regions = [row for case in cases for row in case.regions]
        before = [case.probabilities for case in cases if case.probabilities]
        after = [case.calibrated for case in cases if case.calibrated]
        here = {name: seen_from(self.info[name], self.folder) for name in PATHS if self.info.get(name) is not None}
        info = {**self.info, **here, **provenance(self.weights, self.folder), **self._training()}
        native = any("native_dice" in row for row in rows)
        more = {"lesions": detection(lesions, len(rows), self.lesion_iou)} if native else {}
        summary = write_results(rows, self.folder, info, more)
        if native:
            write_atomically(self.folder / "lesions.csv", csv_table(lesions, LESION_COLUMNS))
        if regions:
            write_atomically(self.folder / "regions.csv", csv_table(regions))
        if self.calibration == "fit":
            fitted = Calibration.fit(self._making, before, lesions)
            for file in (calibration_file(self.weights), self.folder / "calibration.json"):
                write_json(file, asdict(fitted), indent=1)
        if before:
            write_thresholds(self.folder / "thresholds.json", before, {**self.info, **here})
        note = f"Baselines {self._fitted.describe()}. {verdict(rows)}".strip()
        table = f"{comparison_table(rows, self._fitted.labels)}\n{note}"
        write_atomically(self.folder / "comparison.txt", table + "\n")
        views = {case.row["case"]: case.views for case in cases if case.views}
        curves = read_curves(self.folder / "tensorboard")
        page = self.folder / "report.html"
        write_report(page, rows, summary, views, curves, self.windows, before, lesions, after, regions)
        logger.info("\n%s", table)
        logger.info("Wrote report.html, metrics.csv, metrics.json and comparison.txt to %s", self.folder)

    def _training(self) -> dict[str, Any]:
        """Training record of the weights, and whether these cases were held out of it."""
        if not self.weights:
            return {}
        trainings = [read_record(Path(path)).get("training") for path in self.weights]
        where = [self.info.get(name) for name in ("split", "fold", "num_folds", "test_site")]
        answers = [held_out(training, *where) for training in trainings]
        known = [{k: v for k, v in (one or {}).items() if v is not None} for one in trainings]
        lines = [
            ", ".join(f"{k} {round(v, 4) if isinstance(v, float) else v}" for k, v in one.items()) for one in known
        ]
        # several weights: cases seen by any of them are not held out
        decisive = None if None in answers else min(map(str, answers))
        return {"training": [line or "unknown" for line in lines], "held_out": decisive}


def _sizes(
    pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], brain: np.ndarray | None
) -> dict[str, Any]:
    """Sizes of lesion, prediction and, if known, brain."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    sizes: dict[str, Any] = {"size_class": size_class(None)}
    if brain is not None:
        fraction = float(truth.sum() / max(brain.sum(), 1))
        anything = np.argwhere(brain | truth | pred)
        box = np.ptp(anything, axis=0) + 1 if len(anything) else np.zeros(3)
        sizes = {"size_class": size_class(fraction), "lesion_fraction": fraction}
        sizes["brain_ml"] = float(brain.sum()) * float(np.prod(spacing_mm)) / 1000
        sizes["largest_distance_mm"] = float(np.linalg.norm(box * spacing_mm))
    lesion_ml, predicted_ml = (float(mask.sum()) * voxel_ml for mask in (truth, pred))
    difference = predicted_ml - lesion_ml
    without_lesion = math.inf if difference else 0.0
    return {
        **sizes,
        "lesion_ml": lesion_ml,
        "predicted_ml": predicted_ml,
        "volume_difference_ml": difference,
        "relative_volume_difference": difference / lesion_ml if lesion_ml else without_lesion,
    }


def _masks(item: Mapping[str, Any], grid: str) -> Masks:
    """Prediction, label and voxel size on the grid with this key prefix."""
    return _mask(item[f"{grid}pred"]), _mask(item[f"{grid}label"]), spacing_of(item[f"{grid}label"])


def _mask(tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor to a mask; several channels raise a UserError."""
    if len(tensor) != 1:
        raise UserError(
            f"A mask has one channel, not {len(tensor)}: the recipe's `activate` and `decide` must return the "
            "lesion only."
        )
    return tensor.cpu().numpy()[0] > 0.5
