"""Old import paths of version 0.9.1, for configs of users that name them."""

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
    "baselines": ("evaluation.baselines",),
    "bonbid": ("data", "io.volumes", "geometry.brain", "runtime.errors", "runtime.redaction"),
    "boosting": ("evaluation.baselines",),
    "calibration": ("evaluation.calibration",),
    "components": ("geometry.components",),
    "curves": ("io.curves",),
    "distance": ("geometry.distance",),
    "distributed": ("runtime.distributed",),
    "errors": ("runtime.errors",),
    "finite": ("training.finite_steps", "runtime.finite"),
    "handlers": ("training.handlers",),
    "inferers": ("inference.inferers",),
    "interruption": ("runtime.interruption",),
    "loaders": ("data.loaders",),
    "logs": ("training.logs", "runtime.log_file"),
    "machine": ("runtime.machine",),
    "masks": ("transforms.masks",),
    "measures": ("evaluation.measures", "evaluation.measure"),
    "metrics": ("evaluation.metrics",),
    "openvino_backend": ("inference.openvino_backend",),
    "options": ("runtime.options",),
    "preparation": ("data.preparation",),
    "provenance": ("data.run_folder",),
    "recipe": ("runtime.recipe",),
    "scanner.adc_command": ("scanner.adc",),
    "scanner.atlas_command": ("scanner.atlas",),
    "scanner.brain": ("scanner.brain_mask",),
    "scanner.scan_command": ("cli.scan",),
    "scoring": ("report.scoring",),
    "segmenter": ("inference.segmenter",),
    "spacing": ("geometry.spacing",),
    "statistics": ("evaluation.statistics",),
    "surfaces": ("geometry.surfaces",),
    "tracking": ("training.tracking",),
    "prompted": (),
    "voxelwise": ("transforms.voxel_features",),
    "weights": ("io.weights",),
}
RENAMED = {
    "print_stats": ("report.cohort_figures", "print_stats"),
    "contact_sheet": ("report.cohort_figures", "contact_sheet"),
    "cohort_stats": ("report.cohort_figures", "cohort_stats"),
    "CaseEvaluation": ("report.case_evaluation", "CaseEvaluation"),
    "VoxelRegression": ("evaluation.baselines", "Baselines"),
    "own_name": ("data.privacy", "original_id"),
    "on_any_disk": ("data.layout", "filesystem_key"),
    "bare": ("runtime.distributed", "unwrap_ddp"),
    "require_usable": ("data.gate", "require_usable_on_all_ranks"),
}
# removed after 0.9.1, with what to do instead
_VOXELWISE = "the voxelwise network is gone; scripts.inference.z_evidence.AddZEvidenced took its place"
_MEDSAM2 = "it is in integrations/medsam2 now"
REMOVED = {"VoxelwiseFit": _VOXELWISE, "AddVoxelwised": _VOXELWISE, "BoxPrompted": _MEDSAM2, "sam2_predictor": _MEDSAM2}

# module: its classes of 0.9.1 that bore the name of their parent in MONAI or TorchIO
SUBCLASSES = {
    "data.loaders": {"DataLoader": "CaseLoader"},
    "io.curves": {"TensorBoardStatsHandler": "CurvesHandler"},
    "losses": {
        "BoundaryLoss": "SignedDistanceLoss",
        "DeepSupervisionLoss": "ScaleMeanLoss",
        "DiceCELoss": "RankDiceCELoss",
        "HausdorffDTLoss": "HausdorffLoss",
        "LogHausdorffDTLoss": "LogHausdorffLoss",
    },
    "training.handlers": {
        "CheckpointLoader": "WeightsLoader",
        "EarlyStopping": "PatienceHandler",
    },
    "transforms.bridge": {"RandTorchIOd": "AugmentByTorchIOd"},
    "transforms.fast": {
        "RandomAnisotropy": "FastAnisotropy",
        "RandomBlur": "FastBlur",
        "RandomElasticDeformation": "FastElasticDeformation",
    },
}


def renamed(module: str, name: str) -> Any:
    """A class of a module by its name in 0.9.1, for the module's ``__getattr__``.

    Raises:
        AttributeError: when there is none.
    """
    names = SUBCLASSES[module]
    if name not in names:
        raise AttributeError(f"module 'scripts.{module}' has no attribute {name!r}")
    warnings.warn(f"scripts.{module}.{name} is {names[name]} now", FutureWarning, stacklevel=3)
    return getattr(import_module(f"scripts.{module}"), names[name])


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.removeprefix("scripts.") in MOVED and name[:8] == "scripts." else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix("scripts.")
        module.__getattr__ = partial(lookup, old)  # type: ignore[method-assign]


def lookup(old: str, name: str) -> Any:
    """An attribute by its old path.

    Args:
        old: module of 0.9.1 below ``scripts``.
        name: of the attribute.

    Raises:
        AttributeError: when there is none.
    """
    for new in () if name.startswith("__") else MOVED.get(old, ()):
        found = import_module(f"scripts.{new}")
        if hasattr(found, name):
            warnings.warn(f"scripts.{old}.{name} is scripts.{new}.{name} now", FutureWarning, stacklevel=3)
            return getattr(found, name)
    if name in RENAMED:
        module, now = RENAMED[name]
        return getattr(import_module(f"scripts.{module}"), now)
    why = f": {REMOVED[name]}" if name in REMOVED else ""
    raise AttributeError(f"module 'scripts.{old}' has no attribute {name!r}{why}")


def install() -> None:
    """Add the finder of old paths behind Python's own."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # a folder left over from 0.9.1 would be found as a namespace package
