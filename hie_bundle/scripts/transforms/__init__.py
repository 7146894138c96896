"""Transforms of the project: the bridge from MONAI to TorchIO, and faster forms of three of TorchIO's transforms."""

from .bridge import RandTorchIOd
from .fast import RandomAnisotropy, RandomBlur, RandomElasticDeformation

__all__ = ["RandTorchIOd", "RandomAnisotropy", "RandomBlur", "RandomElasticDeformation"]
