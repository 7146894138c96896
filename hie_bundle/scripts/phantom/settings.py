"""Settings of a simulated cohort: scans, atlas, injuries and annotator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from ..runtime.errors import UserError

KINDS = (
    "focal", "multifocal", "basal_ganglia_thalamus", "watershed", "territorial", "near_total", "cortical", "patches",
    "laminar", "satellites", "cells", "wanderers",
)  # fmt: skip


def _ascending(values: Any) -> Any:
    if values[0] > values[1]:
        raise ValueError("a range is (least, greatest)")
    return values


def _known(kinds: dict[str, float]) -> dict[str, float]:
    if unknown := sorted(kinds.keys() - set(KINDS)):
        raise ValueError(f"there is no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return kinds


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Settings of a cohort, with the plain cohort's values as defaults. Units are in the names.

    Smaller ``matrix_sizes`` and ``slice_range`` with a larger ``fine_mm`` and ``atlas_step_mm`` give a tiny cohort for
    tests.

    Raises:
        UserError: if a range is empty, a value impossible or a name unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # scan
    matrix_sizes: Annotated[tuple[Annotated[int, Field(ge=16)], ...], Field(min_length=1)] = (128, 160, 192, 256)
    slice_range: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ascending)] = (16, 64)
    spacing_range_mm: Range = (0.9, 2.0)  # in plane; exceeded where the matrix is too small for a brain
    slice_thickness_range_mm: Range = (2.0, 5.0)  # exceeded where there are too few slices
    fine_mm: PositiveFloat = 1.2  # sampling distance of the anatomy; partial volume is averaged from it
    artefact_probability: Probability = 0.08  # of motion, of signal loss and of a strong bias, each
    bias_scale_mm: PositiveFloat = 30.0  # smoothness of the scanner's ADC bias
    warp_scale_mm: PositiveFloat = 22.0  # smoothness of the deformation that gives each head its shape
    # atlas and Z map
    registration_mm: NonNegativeFloat = 1.35  # standard deviation of the misalignment with the atlas along each axis
    registration_scale_mm: PositiveFloat = 12.0  # smoothness of the misalignment
    num_healthy: Annotated[int, Field(ge=2)] = 13  # newborns in the atlas
    atlas_step_mm: PositiveFloat = 1.5  # voxel size of the atlas
    known_structures: NonNegativeFloat = 2.0  # mean number of healthy structures of low ADC that the atlas contains
    z_smoothing_mm: PositiveFloat = 2.0  # full width at half maximum
    z_clip: PositiveFloat = 10.0
    # injury and annotator
    kinds: Annotated[dict[str, PositiveFloat], AfterValidator(_known)] = {}  # weights; empty: by severity
    softness_mm: NonNegativeFloat = 0.8  # standard deviation of the blur at an injury's border
    drawn_at: Range = (0.38, 0.5)  # share of injury at which the outline is drawn
    outline_smoothing_mm: Range = (0.6, 1.2)
    drawn_whole: bool = False  # in three dimensions instead of slice by slice

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name, message = str(first["loc"][0]), first["msg"]
            if name not in type(self).model_fields:
                names = ", ".join(type(self).model_fields)
                raise UserError(f"The simulator has no setting {name}; it has {names}.") from error
            raise UserError(f"The simulator's {name} is {values[name]!r}: {message}.") from error

    def as_json(self) -> dict[str, Any]:
        """Values by name as JSON keeps them."""
        return self.model_dump(mode="json")


def varied(settings: Mapping[str, Any], family: Mapping[str, Any]) -> Settings:
    """Settings of a family: ``settings`` with the family's values in their place."""
    return Settings(**{**settings, **family})
