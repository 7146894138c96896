"""Transforms of the project. What augments by TorchIO is in ``bridge`` and ``fast``, which need it."""

from .batches import RandBatch
from .decisions import KeepBraind, LimitToBraind, RemoveSmallLesionsd, ThresholdLesionsd
from .loading import AppendMapd, KeepNatived, LoadMapsd, ToNatived
from .pipeline import FinestScaled, pipeline
from .resample import ResizeToSpacingd
from .scores import BrainDepthd, ScanScored, ZeroBackgroundd
from .symmetry import MirrorDifferenced

__all__ = [
    "AppendMapd", "BrainDepthd", "FinestScaled", "KeepBraind", "KeepNatived", "LimitToBraind", "LoadMapsd",
    "MirrorDifferenced", "RandBatch", "RemoveSmallLesionsd", "ResizeToSpacingd", "ScanScored", "ThresholdLesionsd",
    "ToNatived", "ZeroBackgroundd", "pipeline",
]  # fmt: skip
