"""MONAI transforms of the project: the TorchIO bridge."""

from .bridge import RandTorchIOd

__all__ = ["RandTorchIOd"]
