"""Settings of a simulated cohort: scans and atlas."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import ValidationError as Invalid

from ..runtime.errors import UserError


def _ascending(values: Any) -> Any:
    if values[0] > values[1]:
        raise ValueError("a range is (minimum, maximum)")
    return values


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]


class Settings(BaseModel):
    """Settings of a cohort; names of lengths end with the unit.

    Raises:
        UserError: for a descending range, an invalid value or an unknown name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    matrix_sizes: Annotated[tuple[Annotated[int, Field(ge=16)], ...], Field(min_length=1)] = (128, 160, 192, 256)
    slice_range: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ascending)] = (16, 64)
    spacing_range_mm: Range = (0.9, 2.0)  # in plane; exceeded if the matrix is too small for a brain
    slice_thickness_range_mm: Range = (2.0, 5.0)  # exceeded if there are too few slices for a brain
    fine_mm: PositiveFloat = 1.2  # sampling distance of the anatomy before averaging to voxels (partial volume)
    artefact_probability: Annotated[float, Field(ge=0, le=1)] = 0.08  # each of motion, signal loss and a strong bias
    registration_mm: NonNegativeFloat = 1.35  # standard deviation of the misalignment with the atlas along each axis
    num_healthy: Annotated[int, Field(ge=2)] = 13  # newborns in the atlas
    atlas_step_mm: PositiveFloat = 1.5  # voxel size of the atlas
    known_structures: NonNegativeFloat = 2.0  # mean number of healthy structures of low ADC in the atlas

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except Invalid as error:
            first = error.errors()[0]
            name, message = str(first["loc"][0]), first["msg"]
            if name not in type(self).model_fields:
                names = ", ".join(type(self).model_fields)
                raise UserError(f"The simulator has no setting {name}; it has {names}.") from error
            raise UserError(f"The simulator's {name} is {values[name]!r}: {message}.") from error
