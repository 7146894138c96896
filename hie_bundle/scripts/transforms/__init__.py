"""Transforms of the project. What augments by TorchIO is in ``bridge`` and ``fast``, which need it."""

from .loading import KeepNatived, LoadMapsd, ToNatived
from .spacing import ResizeToSpacingd
from .symmetry import MirrorDifferenced

__all__ = ["KeepNatived", "LoadMapsd", "MirrorDifferenced", "ResizeToSpacingd", "ToNatived"]
