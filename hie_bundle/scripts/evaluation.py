"""The Ignite handler that turns an evaluator's predictions into results: one row a case, then tables on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import SupervisedEvaluator
from monai.transforms import Orientation

from . import bonbid, metrics, report

__all__ = ["CaseEvaluation"]

logger = logging.getLogger(__name__)


class CaseEvaluation:
    """Measure every case on its native and on the resampled grid and write the results when the evaluator is done.

    Of each case it reads, after postprocessing: ``pred`` and ``label`` (masks on the network's grid), ``native_pred``
    and ``native_label`` (masks on the file's grid), and ``native_image`` (ADC in 1e-6 mm²/s, ZADC, as in the files).
    All have shape (C, X, Y, Z) and carry their affine, which is where the spacing in mm comes from.

    Args:
        output_dir: where ``metrics.csv`` (one row a case), ``metrics.json`` (the summary) and ``comparison.txt`` (the
            network against the baseline) go.
        info: what the results are of (checkpoint, split, …); repeated in the summary.
        tolerance_mm: tolerance of the normalised surface Dice.
        baseline_threshold: the challenge's baseline calls lesion what is below this in ZADC.
        overlays: whether to draw a picture of each case to ``overlays/<case>.png``.
    """

    def __init__(
        self,
        output_dir: str,
        info: dict[str, Any] | None = None,
        tolerance_mm: float = 2.0,
        baseline_threshold: float = -2.0,
        overlays: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir).resolve()
        self.info = info or {}
        self.tolerance_mm = tolerance_mm
        self.baseline_threshold = baseline_threshold
        self.overlays = overlays
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: SupervisedEvaluator) -> None:
        """Act after each case and at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        for inputs, outputs in zip(engine.state.batch, engine.state.output, strict=True):
            item = {**inputs, **outputs}
            self.rows.append(self.measure(item))
            if self.overlays:
                self.draw(item)

    def measure(self, item: dict[str, Any]) -> dict[str, Any]:
        """The row of one case."""
        adc, zadc = item["native_image"].cpu().numpy()
        brain = (adc != 0) | (zadc != 0)  # the maps are skull-stripped: exactly zero outside the brain
        truth, pred = _mask(item["native_label"]), _mask(item["native_pred"])
        spacing_mm = _spacing_mm(item["native_label"])
        voxel_ml = float(np.prod(spacing_mm)) / 1000
        lesion_fraction = float(truth.sum() / max(brain.sum(), 1))
        native = metrics.case_metrics(pred, truth, spacing_mm, self.tolerance_mm)
        resampled = metrics.case_metrics(
            _mask(item["pred"]), _mask(item["label"]), _spacing_mm(item["label"]), self.tolerance_mm
        )
        return {
            "case": item["case"],
            "size_class": bonbid.size_class(lesion_fraction),
            "lesion_fraction": lesion_fraction,
            "brain_ml": float(brain.sum()) * voxel_ml,
            "lesion_ml": float(truth.sum()) * voxel_ml,
            "predicted_ml": float(pred.sum()) * voxel_ml,
            **{f"native_{name}": value for name, value in native.items()},
            **{f"resampled_{name}": value for name, value in resampled.items()},
            "baseline_dice": metrics.dice(brain & (zadc < self.baseline_threshold), truth),
        }

    def draw(self, item: dict[str, Any]) -> None:
        """Write the picture of one case."""
        upright = Orientation(axcodes="RAS", labels=None)
        image, truth, pred = (upright(item[f"native_{name}"]) for name in ("image", "label", "pred"))
        adc, zadc = image.cpu().numpy()
        png = report.render_case(adc, zadc, _mask(truth), _mask(pred), _spacing_mm(image), item["case"])
        report.write_atomically(self.output_dir / "overlays" / f"{item['case']}.png", png)

    def completed(self, _: SupervisedEvaluator) -> None:
        """Write the tables and log the comparison with the baseline."""
        report.write_results(self.rows, self.output_dir, self.info)
        table = report.comparison_table(self.rows)
        report.write_atomically(self.output_dir / "comparison.txt", table + "\n")
        logger.info("\n%s", table)
        logger.info("Wrote metrics.csv, metrics.json and comparison.txt to %s", self.output_dir)


def _mask(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()[0] > 0.5


def _spacing_mm(tensor: torch.Tensor) -> tuple[float, ...]:
    assert isinstance(tensor, MetaTensor)
    return tuple(float(s) for s in affine_to_spacing(tensor.affine.cpu().numpy()))
