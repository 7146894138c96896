"""Transforms of the project. What augments by TorchIO is in ``bridge`` and ``fast``, which need it."""

from .loading import LoadMapsd
from .spacing import ResizeToSpacingd
from .symmetry import MirrorDifferenced

__all__ = ["LoadMapsd", "MirrorDifferenced", "ResizeToSpacingd"]
