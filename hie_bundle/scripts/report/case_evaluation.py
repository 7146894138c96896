"""From masks to results: one row a case, then tables, pictures and the report on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from ..evaluation.calibration import (
    Calibration,
    CaseProbabilities,
    calibration_file,
    read_threshold,
    write_thresholds,
)
from ..evaluation.lesions import LESION_COLUMNS, case_lesions, detection
from ..evaluation.readers import reader_metrics
from ..geometry.brain import brain_of
from ..geometry.spacing import spacing_of
from ..inference.segmenter import DECIDING
from ..io.files import seen_from, sha256_of, write_atomically
from ..io.volumes import Volume
from ..io.weights import read_record
from ..runtime.distributed import from_first, gather_interleaved, is_first
from ..runtime.errors import UserError
from ..runtime.text import csv_table
from .page import provenance, write_report
from .pictures import CaseSlices, SliceView
from .plots import read_curves
from .tables import comparison_table, verdict, write_results

__all__ = ["CaseEvaluation"]

logger = logging.getLogger(__name__)
PATHS = ("dataset_dir", "datalist", "predictions_dir")  # names in the results, without their folders


@dataclass(eq=False)
class CaseEvaluation:
    """Measure every case on its native and on the resampled grid and write the results when all are done.

    An Ignite handler of an evaluator; without one, call :meth:`add` for each case and :meth:`completed` at the end. Of
    several processes each measures and draws its cases, and the first one writes the results of all.

    Of each case it reads ``case``, its id; ``native_image`` (ADC in 1e-6 mm²/s, ZADC, as they were acquired),
    ``native_label`` and ``native_pred`` (masks on their grid, of one channel); and, where there are any,
    ``native_probability`` (of lesion), ``native_members`` (masks of an ensemble's members, a channel each), ``pred``
    and ``label`` (masks on the network's grid). All have shape (C, X, Y, Z) and carry their affine, which is where the
    spacing in mm comes from. Without a ``native_image`` there is nothing on the native grid, no size class, no brain,
    no baseline and no picture, and the volumes are those of the network's grid.

    Attributes (those of ``evaluate.yaml`` are explained there):
        output_dir: folder for ``metrics.csv``, ``lesions.csv``, ``metrics.json``, ``comparison.txt`` (against the
            baselines), ``report.html``, ``overlays/`` and, of probabilities, ``thresholds.json``. The report shows the
            training curves of ``tensorboard/`` in this folder, if there are any.
        info: what the results are of (data, split, settings …); repeated in the summary and the report.
        checkpoints: file or files with the weights that predicted; named with their SHA-256 and what they say of their
            training.
        baselines: methods without a deep network; by default those that need no training split.
        readers: masks of further readers; by default there are none.
        calibration: ``fit`` one on these cases and keep it with the weights, or ``apply`` the one that is kept there;
            masks stay as they are.
        regions: a :class:`scripts.scanner.regions.RegionAtlas`, for ``regions.csv``: the injured share of each region
            by the truth and by the prediction; None: none.
        overlays: whether to draw a picture of each case, and its slices in the report.
        rows: what was measured, one a case, in plain numbers and words.
        views: the slices of each case for the report.
        lesions: the rows of ``lesions.csv`` of each case.
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
    rows: list[dict[str, Any]] = field(init=False, default_factory=list)
    views: dict[str, list[SliceView]] = field(init=False, default_factory=dict)
    probabilities: list[CaseProbabilities] = field(init=False, default_factory=list)
    after: list[CaseProbabilities] = field(init=False, default_factory=list)  # calibrated
    lesions: list[list[dict[str, Any]]] = field(init=False, default_factory=list)
    injured: list[list[dict[str, Any]]] = field(init=False, default_factory=list)
    chosen: float | None = field(init=False, default=None)
    calibrated: Calibration | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.folder = Path(self.output_dir).resolve()
        self.windows = {"ADC": self.adc_window, "ZADC": self.zadc_window}
        self.weights = [self.checkpoints] if isinstance(self.checkpoints, str) else list(self.checkpoints)

    def of(self, info: Mapping[str, Any], checkpoints: str | Sequence[str] = ()) -> CaseEvaluation:
        """The same for other predictions: with more ``info``, and the weights that they come from."""
        return replace(self, info={**self.info, **info}, checkpoints=checkpoints)

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Act after each case and at the end."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: SupervisedEvaluator | None = None) -> None:
        """Reset the results, and fit the baselines and read the threshold.

        Raises:
            UserError: when there is no threshold to be read, or a reader's mask or the calibration is missing.
        """
        self.readers.find()
        if self.calibration and not self.weights:
            raise UserError(
                "--calibration works with `run evaluating` only, since it is kept with the weights; remove it."
            )
        if self.calibration == "apply":
            self.calibrated = Calibration.read(calibration_file(self.weights), self._making)
        self.rows, self.views, self.probabilities, self.after, self.lesions = [], {}, [], [], []
        self.injured = []
        self.info = {**self.info, "baselines": self._fitted.describe()}
        if self.threshold_from is not None:
            self.chosen = read_threshold(self.threshold_from)
            where = seen_from(self.threshold_from, self.folder)
            self.info["threshold_from"] = f"{where}: {self.chosen:.2f}"

    @property
    def _making(self) -> dict[str, Any]:
        """Hash of the weights, and the settings that change masks, as a segmentation has them."""
        return {"weights_sha256": sha256_of(*self.weights), **{name: self.info.get(name) for name in DECIDING}}

    @cached_property
    def _fitted(self) -> FittedBaselines:
        """Fitted when the evaluation starts, or with the first case of one that is fed by hand."""
        fitted = from_first(self.baselines.fitted() if is_first() else None)  # by one process for all
        assert fitted is not None
        return fitted

    def __call__(self, engine: SupervisedEvaluator) -> None:
        for inputs, outputs in zip(engine.state.batch, engine.state.output, strict=True):
            self.add({**inputs, **outputs})

    def add(self, item: Mapping[str, Any]) -> None:
        """Measure and draw one case."""
        self.rows.append(self.measure(item))
        if self.overlays and "native_image" in item:
            self.draw(item)

    def measure(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The row of one case."""
        compared = {}
        if "native_image" in item:
            compared["native"] = (*(_mask(item[f"native_{n}"]) for n in ("pred", "label")), item["native_label"])
        if "pred" in item:
            compared["resampled"] = (_mask(item["pred"]), _mask(item["label"]), item["label"])
        grids = {grid: (pred, truth, spacing_of(on)) for grid, (pred, truth, on) in compared.items()}
        row = {"case": item["case"], "site": item.get("site") or "", "size_class": size_class(None)}
        if "native" in grids:
            row |= _brain_and_lesion(brain_of(item["native_image"][0].cpu().numpy()), *grids["native"])
        row |= _volumes(*next(iter(grids.values())))
        for grid, masks_on in grids.items():
            measured = metrics.case_metrics(*masks_on, self.tolerance_mm, self.lesion_overlap, grid)
            row |= {f"{grid}_{name}": value for name, value in measured.items()}
        if "native" in grids:
            adc, zadc = item["native_image"].cpu().numpy()
            truth = grids["native"][1]
            alone = np.isnan(zadc).all()  # no ZADC map: nothing to compare with
            masks = self._fitted.masks(adc, zadc, grids["native"][2])
            row |= {name: math.nan if alone else metrics.dice(mask, truth) for name, mask in masks.items()}
            maps = {"adc": adc} | ({} if alone else {"z": zadc})
            if "native_probability" in item:
                maps["probability"] = item["native_probability"].cpu().numpy()[0]
                row |= self._probabilities(maps["probability"], truth, brain_of(adc))
            affine = item["native_image"].affine.cpu().numpy()
            lesions = case_lesions(item["case"], grids["native"][0], truth, affine, maps, self.lesion_iou)
            if self.calibrated:
                drawn = [lesion for lesion in lesions if lesion["mask"] == "prediction"]
                for lesion, real in zip(drawn, self.calibrated.real(drawn), strict=True):
                    lesion["real_probability"] = real
            self.lesions.append(lesions)
            if self.regions:
                self.injured.append(self._injured(item["case"], Volume(adc, affine), *grids["native"]))
            if others := self.readers.masks(item["case"]):
                row |= reader_metrics(grids["native"][0], [truth, *others])
            for number, member in enumerate(item.get("native_members", ()), start=1):
                row[f"member_{number}_dice"] = metrics.dice(_mask(member[None]), truth)
        return row

    def _injured(
        self, case: str, adc: Volume, pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
    ) -> list[dict[str, Any]]:
        """A row a region of the case; none where the atlas does not fit."""
        labels, note = self.regions.on(adc)
        if labels is None:
            logger.warning("%s: %s", case, note)
            return []
        both = [self.regions.rows(labels, mask, spacing_mm) for mask in (truth, pred)]
        return [
            {"case": case, "region": a["region"], "volume_ml": a["volume_ml"], "lesion_ml": a["injured_ml"],
             "share": a["share"], "predicted_ml": b["injured_ml"], "predicted_share": b["share"]}
            for a, b in zip(*both, strict=True)
        ]  # fmt: skip

    def _probabilities(self, probability: np.ndarray, truth: np.ndarray, brain: np.ndarray) -> dict[str, float]:
        case = CaseProbabilities.of(probability, truth, brain)
        self.probabilities.append(case)
        measured = {"native_brier": case.brier, "native_ece": case.ece}
        if self.calibrated:
            self.after.append(after := CaseProbabilities.of(self.calibrated(probability), truth, brain))
            measured |= {"native_brier_calibrated": after.brier, "native_ece_calibrated": after.ece}
        return measured if self.chosen is None else measured | {"native_dice_chosen": case.dice_at(self.chosen)}

    def draw(self, item: Mapping[str, Any]) -> None:
        """Write the picture of one case, and keep its slices for the report."""
        adc, zadc = item["native_image"].cpu().numpy()
        masks = {name: _mask(item[f"native_{of}"]) for name, of in (("truth", "label"), ("pred", "pred"))}
        affine = item["native_image"].affine.cpu().numpy()
        slices = CaseSlices({"ADC": adc, "ZADC": zadc}, masks, affine, self.windows)
        self.views[item["case"]] = slices.views_of_errors()
        picture = self.folder / "overlays" / f"{file_name(item['case'])}.png"
        write_atomically(picture, slices.overlay(item["case"]))

    def completed(self, _: SupervisedEvaluator | None = None) -> None:
        """Write the tables and the report, and log the comparison with the baselines."""
        mine = (self.rows, self.views.items(), self.probabilities, self.after, self.lesions, self.injured)
        parts: list[Any] = [gather_interleaved(list(of)) for of in mine]
        if None in parts:
            return
        self.rows, views, self.probabilities, self.after, self.lesions, self.injured = parts
        self.views = dict(views)
        here = {name: seen_from(self.info[name], self.folder) for name in PATHS if self.info.get(name) is not None}
        info = {**self.info, **here, **provenance(self.weights, self.folder)}
        if self.weights:
            trainings = [read_record(Path(path)).get("training") for path in self.weights]
            info["training"] = [_said(training) for training in trainings]
            where = [info.get(name) for name in ("split", "fold", "num_folds", "test_site")]
            answers = [held_out(training, *where) for training in trainings]
            # of several weights the one that knew most decides
            info["held_out"] = None if None in answers else min(map(str, answers))
        single = [row for case in self.lesions for row in case]
        more = {"lesions": detection(single, len(self.rows), self.lesion_iou)} if self.lesions else {}
        summary = write_results(self.rows, self.folder, info, more)
        if self.lesions:
            write_atomically(self.folder / "lesions.csv", csv_table(single, LESION_COLUMNS))
        injured = [row for case in self.injured for row in case]
        if injured:
            write_atomically(self.folder / "regions.csv", csv_table(injured))
        if self.calibration == "fit":
            fitted = Calibration.fit(self._making, self.probabilities, single)
            fitted.write(calibration_file(self.weights), self.folder / "calibration.json")
        if self.probabilities:
            write_thresholds(self.folder / "thresholds.json", self.probabilities, {**self.info, **here})
        note = f"Baselines {self._fitted.describe()}. {verdict(self.rows)}".strip()
        table = f"{comparison_table(self.rows, self._fitted.labels)}\n{note}"
        write_atomically(self.folder / "comparison.txt", table + "\n")
        curves = read_curves(self.folder / "tensorboard")
        page = self.folder / "report.html"
        measured = (self.probabilities, single, self.after, injured)
        write_report(page, self.rows, summary, self.views, curves, self.windows, *measured)
        logger.info("\n%s", table)
        logger.info("Wrote report.html, metrics.csv, metrics.json and comparison.txt to %s", self.folder)


def _said(training: Mapping[str, Any] | None) -> str:
    """Training of the weights by their record, in a line."""
    if not training:
        return "unknown"
    known = {name: value for name, value in training.items() if value is not None}
    return ", ".join(f"{name} {round(v, 4) if isinstance(v, float) else v}" for name, v in known.items())


def _brain_and_lesion(
    brain: np.ndarray, pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    lesion_fraction = float(truth.sum() / max(brain.sum(), 1))
    anything = np.argwhere(brain | truth | pred)
    box = np.ptp(anything, axis=0) + 1 if len(anything) else np.zeros(3)
    return {
        "size_class": size_class(lesion_fraction),
        "lesion_fraction": lesion_fraction,
        "brain_ml": float(brain.sum()) * float(np.prod(spacing_mm)) / 1000,
        "largest_distance_mm": float(np.linalg.norm(box * spacing_mm)),
    }


def _volumes(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lesion_ml, predicted_ml = (float(mask.sum()) * voxel_ml for mask in (truth, pred))
    difference = predicted_ml - lesion_ml
    without_lesion = math.inf if difference else 0.0
    return {
        "lesion_ml": lesion_ml,
        "predicted_ml": predicted_ml,
        "volume_difference_ml": difference,
        "relative_volume_difference": difference / lesion_ml if lesion_ml else without_lesion,
    }


def _mask(tensor: torch.Tensor) -> np.ndarray:
    """
    Raises:
        UserError: when there are several channels.
    """
    if len(tensor) != 1:
        raise UserError(
            f"A mask has one channel, not {len(tensor)}: the recipe's `activate` and `decide` must return the "
            "lesion only."
        )
    return tensor.cpu().numpy()[0] > 0.5
