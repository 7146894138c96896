"""What may be set about a simulated cohort's scans and its atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..runtime.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Acquisition and atlas of a cohort; a config instantiates it once. Units stand in the names.

    Smaller ``matrix_sizes`` and ``slice_range`` with a larger ``fine_mm`` and ``atlas_step_mm`` give a tiny cohort for
    tests.

    Args:
        matrix_sizes: in-plane sizes to draw from, in voxels, 16 or more.
        slice_range: least and greatest number of slices.
        spacing_range_mm: least and greatest in-plane voxel size; exceeded where the matrix is too small for a brain.
        slice_thickness_range_mm: least and greatest slice thickness; exceeded where there are too few slices.
        fine_mm: sampling distance of the anatomy; partial volume is averaged from it.
        artefact_probability: of motion, of signal loss and of a strong bias, each.
        registration_mm: standard deviation along each axis of a case's misalignment with the atlas.
        num_healthy: number of healthy newborns in the normative atlas, 2 or more.
        atlas_step_mm: voxel size of the atlas.

    Raises:
        UserError: if a range is empty or a value impossible.
    """

    matrix_sizes: Sequence[int] = (128, 160, 192, 256)
    slice_range: Sequence[int] = (16, 64)
    spacing_range_mm: Sequence[float] = (0.9, 2.0)
    slice_thickness_range_mm: Sequence[float] = (2.0, 5.0)
    fine_mm: float = 1.2
    artefact_probability: float = 0.08
    registration_mm: float = 1.35
    num_healthy: int = 13
    atlas_step_mm: float = 1.5

    def __post_init__(self) -> None:
        try:
            # Numbers from a command line or a config are brought to one type, so that equal cohorts compare equal.
            kinds = {"matrix_sizes": int, "slice_range": int, "spacing_range_mm": float}
            for name, kind in (kinds | {"slice_thickness_range_mm": float}).items():
                object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
            for name in ("fine_mm", "artefact_probability", "registration_mm", "atlas_step_mm"):
                object.__setattr__(self, name, float(getattr(self, name)))
            object.__setattr__(self, "num_healthy", int(self.num_healthy))
        except (TypeError, ValueError) as error:
            raise UserError(f"The phantom's {name} is {getattr(self, name)!r}: {error}.") from error
        if not self.matrix_sizes or min(self.matrix_sizes) < 16:
            raise UserError(f"matrix_sizes must be 16 or more, got {list(self.matrix_sizes)}.")
        for name in ("slice_range", "spacing_range_mm", "slice_thickness_range_mm"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise UserError(f"{name} is a range (least, greatest), both positive, got {list(values)}.")
        if self.fine_mm <= 0 or self.atlas_step_mm <= 0:
            raise UserError(
                f"fine_mm and atlas_step_mm must be positive, got {self.fine_mm:g} and {self.atlas_step_mm:g}."
            )
        if not 0 <= self.artefact_probability <= 1:
            raise UserError(f"artefact_probability must be between 0 and 1, got {self.artefact_probability:g}.")
        if self.registration_mm < 0:
            raise UserError(f"registration_mm must not be negative, got {self.registration_mm:g}.")
        if self.num_healthy < 2:
            raise UserError(f"num_healthy must be 2 or more for a standard deviation, got {self.num_healthy}.")

    def as_json(self) -> dict[str, Any]:
        """Values by name as JSON keeps them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
