"""Transforms of the project. What augments by TorchIO is in ``bridge`` and ``fast``, which need it."""

from .batches import RandBatch
from .brain import KeepBraind, LimitToBraind
from .loading import KeepNatived, LoadMapsd, ToNatived
from .scores import BrainDepthd, ScanScored
from .spacing import ResizeToSpacingd
from .specks import RemoveSmallLesionsd
from .symmetry import MirrorDifferenced

__all__ = [
    "BrainDepthd",
    "KeepBraind",
    "KeepNatived",
    "LimitToBraind",
    "LoadMapsd",
    "MirrorDifferenced",
    "RandBatch",
    "RemoveSmallLesionsd",
    "ResizeToSpacingd",
    "ScanScored",
    "ToNatived",
]
