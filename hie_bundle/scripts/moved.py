"""Names of version 0.9.1 that users' configs may contain, and their new places."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# module of 0.9.1 below ``scripts``: the modules that have its names now
MOVED = {
    "baselines": "evaluation.baselines", "boosting": "evaluation.baselines", "calibration": "evaluation.calibration",
    "bonbid": "data io.volumes geometry.brain runtime.errors runtime.redaction", "components": "geometry.components",
    "curves": "io.curves", "distance": "geometry.distance", "distributed": "runtime.distributed",
    "errors": "runtime.errors", "finite": "training.finite_steps runtime.finite", "handlers": "training.handlers",
    "inferers": "inference.inferers", "interruption": "runtime.interruption", "loaders": "data.loaders",
    "logs": "training.logs runtime.log_file", "machine": "runtime.machine", "masks": "transforms.masks",
    "measures": "evaluation.measures evaluation.measure", "metrics": "evaluation.metrics",
    "openvino_backend": "inference.openvino_backend", "options": "runtime.options", "prompted": "",
    "preparation": "data.preparation", "provenance": "data.run_folder", "recipe": "runtime.recipe",
    "scanner.adc_command": "scanner.adc", "scanner.atlas_command": "scanner.atlas",
    "scanner.brain": "scanner.brain_mask",
    "scanner.scan_command": "cli.scan", "scoring": "report.scoring", "segmenter": "inference.segmenter",
    "spacing": "geometry.spacing", "statistics": "evaluation.statistics", "surfaces": "geometry.surfaces",
    "tracking": "training.tracking", "voxelwise": "transforms.voxel_features", "weights": "io.weights",
}  # fmt: skip
# name of 0.9.1: module and name now
RENAMED = {
    "CaseEvaluation": "report.case_evaluation.CaseEvaluation", "VoxelRegression": "evaluation.baselines.Baselines",
    "cohort_stats": "report.cohort_figures.cohort_stats", "contact_sheet": "report.cohort_figures.contact_sheet",
    "print_stats": "report.cohort_figures.print_stats", "require_usable": "data.gate.require_usable_on_all_ranks",
    "own_name": "data.privacy.original_id", "on_any_disk": "data.layout.filesystem_key",
    "bare": "runtime.distributed.unwrap_ddp", "DataLoader": "data.loaders.CaseLoader",
    "TensorBoardStatsHandler": "io.curves.CurvesHandler", "BoundaryLoss": "losses.SignedDistanceLoss",
    "DeepSupervisionLoss": "losses.ScaleMeanLoss", "DiceCELoss": "losses.RankDiceCELoss",
    "HausdorffDTLoss": "losses.HausdorffLoss", "LogHausdorffDTLoss": "losses.LogHausdorffLoss",
    "CheckpointLoader": "training.handlers.WeightsLoader", "EarlyStopping": "training.handlers.PatienceHandler",
    "RandTorchIOd": "transforms.bridge.AugmentByTorchIOd", "RandomAnisotropy": "transforms.fast.FastAnisotropy",
    "RandomBlur": "transforms.fast.FastBlur", "RandomElasticDeformation": "transforms.fast.FastElasticDeformation",
}  # fmt: skip
# removed after 0.9.1, with what to do instead
_VOXELWISE = "the voxelwise network is gone; scripts.inference.z_evidence.AddZEvidenced took its place"
_MEDSAM2 = "it is in integrations/medsam2 now"
REMOVED = {"VoxelwiseFit": _VOXELWISE, "AddVoxelwised": _VOXELWISE, "BoxPrompted": _MEDSAM2, "sam2_predictor": _MEDSAM2}


def lookup(old: str, name: str) -> Any:
    """``__getattr__`` of a module of 0.9.1 (``old``, below ``scripts``)."""
    modules = [] if name.startswith("__") else MOVED.get(old, "").split()
    for place in [RENAMED[name]] if name in RENAMED else [f"{module}.{name}" for module in modules]:
        module, _, now = f"scripts.{place}".rpartition(".")
        if hasattr(import_module(module), now):
            warnings.warn(f"scripts.{old}.{name} is {module}.{now} now", FutureWarning, stacklevel=2)
            return getattr(import_module(module), now)
    why = f": {REMOVED[name]}" if name in REMOVED else ""
    raise AttributeError(f"module 'scripts.{old}' has no attribute {name!r}{why}")


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.startswith("scripts.") and name[8:] in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = partial(lookup, module.__name__.removeprefix("scripts."))  # type: ignore[method-assign]


def install() -> None:
    """Add the finder of old modules."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # a folder left over from 0.9.1 would be found as a namespace package
