"""Transforms of the project: loading two maps, the bridge to TorchIO, faster forms of three of its transforms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .loading import LoadMapsd

if TYPE_CHECKING:
    from .bridge import RandTorchIOd
    from .fast import RandomAnisotropy, RandomBlur, RandomElasticDeformation

__all__ = ["LoadMapsd", "RandTorchIOd", "RandomAnisotropy", "RandomBlur", "RandomElasticDeformation"]


def __getattr__(name: str) -> Any:
    """Import what augments, and TorchIO with it, when it is first asked for: training alone needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".bridge" if name == "RandTorchIOd" else ".fast", __name__)
    return getattr(module, name)
