"""Transforms of the project: loading two maps, the bridge to TorchIO, faster forms of three of its transforms."""

from .bridge import RandTorchIOd
from .fast import RandomAnisotropy, RandomBlur, RandomElasticDeformation
from .loading import LoadMapsd

__all__ = ["LoadMapsd", "RandTorchIOd", "RandomAnisotropy", "RandomBlur", "RandomElasticDeformation"]
