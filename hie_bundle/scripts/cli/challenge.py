"""``hie-bundle challenge``: one case from where the BONBID-HIE challenge puts it, its mask where it looks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io.volumes import extension_of
from ..runtime.errors import UserError
from .segment import segment

__all__ = ["challenge"]

ADC, ZADC = "images/skull-stripped-adc-brain-mri", "images/z-score-adc"
MASK = "images/hie-lesion-segmentation/overlay.mha"


def challenge(input: str = "/input", output: str = "/output", **options: Any) -> None:
    """Segment the one case in ``input``, whose mask becomes ``output/images/…``, without a network connection.

    Raises:
        UserError: when there is not one map of each kind, or the case cannot be used.
    """
    adc, zadc = (_only_map(Path(input) / part) for part in (ADC, ZADC))
    segment(str(adc), str(zadc), str(Path(output) / MASK), **options)


def _only_map(folder: Path) -> Path:
    found = sorted(path for path in folder.glob("*") if path.is_file() and extension_of(path))
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} maps; a case has one there.")
    return found[0]
