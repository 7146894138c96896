"""HIE lesions in the brain of newborns, from two maps of diffusion MRI: segmentation in three lines.

::

    from hie_bundle import segment

    mask = segment("X-ADC_ss.nii.gz", "Zmap_X-ADC_smooth2mm_clipped10.nii.gz")
    mask.to_filename("X_lesion.nii.gz")

The folder is a MONAI bundle, whose configs name its code ``scripts``; it is imported by that name here, too, so that
there is one of each class.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.inference.segmenter import Segmentation, Segmenter, segment
    from scripts.runtime.errors import UserError

__all__ = ["Segmentation", "Segmenter", "UserError", "segment"]

_ROOT = Path(__file__).resolve().parent


def __getattr__(name: str) -> Any:
    """Import a name, and PyTorch with it, at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(scripts_module("runtime.errors" if name == "UserError" else "inference.segmenter"), name)


def scripts_module(name: str) -> Any:
    """A module of the bundle's ``scripts``.

    Raises:
        ImportError: when the process has imported another package of this name.
    """
    package = sys.modules.get("scripts")
    if package is None:
        before = list(sys.path)
        sys.path.insert(0, str(_ROOT))
        try:
            package = importlib.import_module("scripts")
        finally:
            sys.path[:] = before
    if str(_ROOT / "scripts") not in map(str, package.__path__):
        raise ImportError(
            f"Another package called 'scripts' has been imported already ({list(package.__path__)}); the bundle's code "
            "has that name, too, as MONAI's bundles do. Import hie_bundle in a process of its own, or rename yours."
        )
    return importlib.import_module(f"scripts.{name}")


def main() -> None:
    """The command ``hie-bundle``."""
    scripts_module("runtime.errors").show_plainly()  # Ctrl-C while the others are imported
    scripts_module("cli").main()
