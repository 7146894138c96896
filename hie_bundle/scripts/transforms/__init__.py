"""Transforms of the project. What augments by TorchIO is in ``bridge`` and ``fast``, which need it."""

from .batches import RandBatch
from .limit_to_brain import KeepBraind, LimitToBraind
from .loading import KeepNatived, LoadMapsd, ToNatived
from .pipeline import FinestScaled, pipeline
from .resample import ResizeToSpacingd
from .scores import BrainDepthd, ScanScored
from .small_lesions import RemoveSmallLesionsd, ThresholdLesionsd
from .symmetry import MirrorDifferenced

__all__ = [
    "BrainDepthd",
    "FinestScaled",
    "KeepBraind",
    "KeepNatived",
    "LimitToBraind",
    "LoadMapsd",
    "MirrorDifferenced",
    "RandBatch",
    "RemoveSmallLesionsd",
    "ResizeToSpacingd",
    "ScanScored",
    "ThresholdLesionsd",
    "ToNatived",
    "pipeline",
]
