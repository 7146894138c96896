"""Transforms of the project: loading two maps. What augments is in ``bridge`` and ``fast``, which need TorchIO."""

from .loading import LoadMapsd

__all__ = ["LoadMapsd"]
