"""Transforms of the project. Only ``bridge``, ``fast`` and ``on_device`` import TorchIO."""

from .batches import RandBatch
from .channels import BrainDepthd, MirrorDifferenced, ScanScored, ZeroBackgroundd
from .decisions import KeepBraind, LimitToBraind, RemoveSmallLesionsd, ThresholdLesionsd
from .loading import AppendMapd, KeepNatived, LoadMapsd, ToNatived
from .pipeline import FinestScaled, pipeline
from .resample import ResizeToSpacingd

__all__ = [
    "AppendMapd", "BrainDepthd", "FinestScaled", "KeepBraind", "KeepNatived", "LimitToBraind", "LoadMapsd",
    "MirrorDifferenced", "RandBatch", "RemoveSmallLesionsd", "ResizeToSpacingd", "ScanScored", "ThresholdLesionsd",
    "ToNatived", "ZeroBackgroundd", "pipeline",
]  # fmt: skip
