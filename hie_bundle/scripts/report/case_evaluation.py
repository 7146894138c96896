"""From masks to results: one row a case, then tables, pictures and the report on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator

from .. import data, report
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
from ..geometry.slices import upright
from ..geometry.spacing import spacing_of
from ..inference.segmenter import DECIDING
from ..io.files import seen_from, sha256_of, write_atomically
from ..io.weights import read_record
from ..runtime.distributed import from_first, gather_interleaved, is_first
from ..runtime.errors import UserError

__all__ = ["CaseEvaluation"]

logger = logging.getLogger(__name__)
PATHS = ("dataset_dir", "datalist", "predictions_dir")  # names in the results, without their folders


class CaseEvaluation:
    """Measure every case on its native and on the resampled grid and write the results when all are done.

    Of several processes each measures and draws its cases, and the first one writes the results of all.

    An Ignite handler of an evaluator; without one, call :meth:`add` for each case and :meth:`completed` at the end.

    Of each case it reads ``case``, its id; ``native_image`` (ADC in 1e-6 mm²/s, ZADC, as they were acquired),
    ``native_label`` and ``native_pred`` (masks on their grid, of one channel); and, where there are any,
    ``native_probability`` (of lesion), ``native_members`` (masks of an ensemble's members, a channel each), ``pred``
    and ``label`` (masks on the network's grid). All have shape (C, X, Y, Z) and carry their affine, which is where the
    spacing in mm comes from. Without a ``native_image`` there is nothing on the native grid, no size class, no brain,
    no baseline and no picture, and the volumes are those of the network's grid.

    Args:
        output_dir: folder for ``metrics.csv`` (one row a case), ``lesions.csv`` (one row a lesion), ``metrics.json``
            (the summary), ``comparison.txt`` (the prediction against the baselines), ``report.html``, ``overlays/`` (a
            picture of each case) and, of probabilities, ``thresholds.json`` (the mean Dice at each threshold, and the
            best one). The report shows the training curves of ``tensorboard/`` in this folder, if there are any.
        info: what the results are of (data, split, settings …); repeated in the summary and the report.
        checkpoints: file or files with the weights that predicted; named with their SHA-256 and what they say of their
            training.
        tolerance_mm: tolerance of the normalised surface Dice.
        lesion_overlap: share of a lesion that must be met for it to count as detected, see
            :func:`scripts.evaluation.metrics.lesion_metrics`.
        lesion_iou: IoU from which a predicted component matches a lesion, see :func:`.case_lesions`.
        baselines: methods without a deep network; None takes those that need no training split.
        readers: masks of further readers; None: there are none.
        threshold_from: the ``thresholds.json`` of an evaluation of other cases: what its best threshold gives here.
        calibration: ``fit`` one on these cases and keep it with the weights, or ``apply`` the one that is kept there;
            masks stay as they are.
        overlays: whether to draw a picture of each case to ``overlays/<case>.png``, and its slices in the report.
        adc_window: ADC shown as black and as white.
        zadc_window: ZADC shown as black and as white.

    Attributes:
        rows: what was measured, one a case, in plain numbers and words.
        views: the slices of each case for the report.
        lesions: the rows of ``lesions.csv`` of each case.
    """

    def __init__(
        self,
        output_dir: str,
        info: Mapping[str, Any] | None = None,
        checkpoints: str | Sequence[str] = (),
        tolerance_mm: float = 2.0,
        lesion_overlap: float = 0.0,
        lesion_iou: float = 0.1,
        baselines: Baselines | None = None,
        readers: Readers | None = None,
        threshold_from: str | None = None,
        calibration: str | None = None,
        overlays: bool = True,
        adc_window: Sequence[float] = (0, 2500),
        zadc_window: Sequence[float] = (-6, 6),
    ) -> None:
        self.output_dir = Path(output_dir).resolve()
        self.info = self._with_near_paths(info or {})
        self.checkpoints = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
        self.tolerance_mm = tolerance_mm
        self.lesion_overlap = lesion_overlap
        self.lesion_iou = lesion_iou
        self.baselines = baselines or Baselines()
        self.readers = readers or Readers()
        self.fitted: FittedBaselines | None = None
        self.threshold_from = threshold_from
        self.chosen: float | None = None
        self.calibration = calibration
        self.calibrated: Calibration | None = None
        self.overlays = overlays
        self.adc_window = adc_window
        self.zadc_window = zadc_window
        self.rows: list[dict[str, Any]] = []
        self.views: dict[str, list[report.SliceView]] = {}
        self.probabilities: list[CaseProbabilities] = []
        self.after: list[CaseProbabilities] = []  # calibrated
        self.lesions: list[list[dict[str, Any]]] = []

    def of(self, info: Mapping[str, Any], checkpoints: str | Sequence[str] = ()) -> CaseEvaluation:
        """The same for other predictions: with more ``info``, and the weights that they come from."""
        other = copy(self)
        other.info = {**self.info, **self._with_near_paths(info)}
        other.checkpoints = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
        other.rows, other.views, other.probabilities, other.after, other.lesions = [], {}, [], [], []
        return other

    def _with_near_paths(self, info: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: seen_from(value, self.output_dir) if value is not None and name in PATHS else value
            for name, value in info.items()
        }

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Act after each case and at the end."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, _: SupervisedEvaluator | None = None) -> None:
        """Forget what was measured before, and have the regression and the threshold ready.

        Raises:
            UserError: when there is no threshold to be read, or a reader's mask or the calibration is missing.
        """
        self.readers.find()
        if self.calibration and not self.checkpoints:
            raise UserError("--calibration belongs to weights: it is for run evaluating.")
        if self.calibration == "apply":
            self.calibrated = Calibration.read(calibration_file(self.checkpoints), self._making)
        self.rows.clear()
        self.views.clear()
        self.probabilities.clear()
        self.after.clear()
        self.lesions.clear()
        if self.threshold_from is not None:
            self.chosen = read_threshold(self.threshold_from)
            where = seen_from(self.threshold_from, self.output_dir)
            self.info = {**self.info, "threshold_from": f"{where}: {self.chosen:.2f}"}
        self.fitted = from_first(self.baselines.fitted() if is_first() else None)  # by one process for all
        self.info = {**self.info, "baselines": self._fitted.describe()}

    @property
    def _making(self) -> dict[str, Any]:
        """Hash of the weights, and the settings that change masks, as a segmentation has them."""
        return {"weights_sha256": sha256_of(*self.checkpoints), **{name: self.info.get(name) for name in DECIDING}}

    @property
    def _fitted(self) -> FittedBaselines:
        """Fitted when the evaluation starts, or with the first case of one that is fed by hand."""
        if self.fitted is None:
            self.fitted = self.baselines.fitted()
        return self.fitted

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
        row = {"case": item["case"], "site": item.get("site") or "", "size_class": data.size_class(None)}
        if "native" in grids:
            row |= _brain_and_lesion(item, *grids["native"])
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
            if others := self.readers.masks(item["case"]):
                row |= reader_metrics(grids["native"][0], [truth, *others])
            for number, member in enumerate(item.get("native_members", ()), start=1):
                row[f"member_{number}_dice"] = metrics.dice(_mask(member[None]), truth)
        return row

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
        arrays = [*item["native_image"].cpu().numpy(), *(_mask(item[f"native_{name}"]) for name in ("label", "pred"))]
        affine = item["native_image"].affine.cpu().numpy()
        (adc, spacing_mm), *others = (upright(array, affine) for array in arrays)
        zadc, truth, pred = (array for array, _ in others)
        volumes = (adc, zadc, truth, pred, spacing_mm)
        windows = (self.adc_window, self.zadc_window)
        self.views[item["case"]] = report.case_views(*volumes, *windows)
        file = f"{data.file_name(item['case'])}.png"
        write_atomically(self.output_dir / "overlays" / file, report.render_case(*volumes, item["case"], *windows))

    def completed(self, _: SupervisedEvaluator | None = None) -> None:
        """Write the tables and the report, and log the comparison with the baselines."""
        rows, views = gather_interleaved(self.rows), gather_interleaved(list(self.views.items()))
        probabilities, lesions = gather_interleaved(self.probabilities), gather_interleaved(self.lesions)
        after = gather_interleaved(self.after)
        if rows is None or views is None or probabilities is None or lesions is None or after is None:
            return
        self.rows, self.views, self.probabilities, self.lesions = rows, dict(views), probabilities, lesions
        self.after = after
        info = {**self.info, **report.provenance(self.checkpoints, self.output_dir)}
        if self.checkpoints:
            trainings = [read_record(Path(path)).get("training") for path in self.checkpoints]
            info["training"] = [_said(training) for training in trainings]
            where = [info.get(name) for name in ("split", "fold", "num_folds", "test_site")]
            answers = [data.held_out(training, *where) for training in trainings]
            # of several weights the one that knew most decides
            info["held_out"] = None if None in answers else min(map(str, answers))
        single = [row for case in self.lesions for row in case]
        found = detection(single, len(self.rows), self.lesion_iou) if self.lesions else None
        summary = report.write_results(self.rows, self.output_dir, info, {"lesions": found} if found else {})
        if self.lesions:
            report.write_csv(self.output_dir / "lesions.csv", single, LESION_COLUMNS)
        labels, note = self._fitted.labels, f"Baselines {self._fitted.describe()}. {report.verdict(self.rows)}".strip()
        table = f"{report.comparison_table(self.rows, labels)}\n{note}"
        write_atomically(self.output_dir / "comparison.txt", table + "\n")
        if self.calibration == "fit":
            fitted = Calibration.fit(self._making, self.probabilities, single)
            fitted.write(calibration_file(self.checkpoints), self.output_dir / "calibration.json")
        if self.probabilities:
            write_thresholds(self.output_dir / "thresholds.json", self.probabilities, self.info)
        report.write_report(
            self.output_dir / "report.html",
            self.rows,
            summary,
            self.views,
            report.read_curves(self.output_dir / "tensorboard"),
            {"ADC (10⁻⁶ mm²/s)": self.adc_window, "ZADC": self.zadc_window},
            self.probabilities,
            single,
            self.after,
        )
        logger.info("\n%s", table)
        logger.info("Wrote report.html, metrics.csv, metrics.json and comparison.txt to %s", self.output_dir)


def _said(training: Mapping[str, Any] | None) -> str:
    """What weights say of their training, in a line."""
    if not training:
        return "unknown"
    known = {name: value for name, value in training.items() if value is not None}
    return ", ".join(f"{name} {round(v, 4) if isinstance(v, float) else v}" for name, v in known.items())


def _brain_and_lesion(
    item: Mapping[str, Any], pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    brain = brain_of(item["native_image"][0].cpu().numpy())
    lesion_fraction = float(truth.sum() / max(brain.sum(), 1))
    return {
        "size_class": data.size_class(lesion_fraction),
        "lesion_fraction": lesion_fraction,
        "brain_ml": float(brain.sum()) * float(np.prod(spacing_mm)) / 1000,
        "largest_distance_mm": _diagonal(brain | truth | pred, spacing_mm),
    }


def _volumes(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lesion_ml, predicted_ml = (float(mask.sum()) * voxel_ml for mask in (truth, pred))
    return {
        "lesion_ml": lesion_ml,
        "predicted_ml": predicted_ml,
        "volume_difference_ml": predicted_ml - lesion_ml,
        "relative_volume_difference": _relative(predicted_ml - lesion_ml, lesion_ml),
    }


def _relative(difference: float, volume: float) -> float:
    if volume:
        return difference / volume
    return math.inf if difference else 0.0


def _diagonal(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Of the box around a mask in mm; 0 of an empty one."""
    if not mask.any():
        return 0.0
    extent = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return float(
        np.linalg.norm([(axis[-1] - axis[0] + 1) * step for axis, step in zip(extent, spacing_mm, strict=True)])
    )


def _mask(tensor: torch.Tensor) -> np.ndarray:
    """
    Raises:
        UserError: when there are several channels.
    """
    if len(tensor) != 1:
        raise UserError(
            f"A mask has one channel, not {len(tensor)}: what the recipe's `activate` and `decide` make of the "
            "network's output must be the lesion alone."
        )
    return tensor.cpu().numpy()[0] > 0.5
