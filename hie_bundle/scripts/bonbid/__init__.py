"""BONBID-HIE's layout: finding cases, splits and folds, checks, download. Knows files, not tensors."""

from .brain import are_normalised, brain_of
from .checks import CaseReport, Limits, Problem, check_case, grid_difference
from .datalists import datalist, held_out, write_datalist
from .errors import DatasetError
from .fetching import download
from .folds import SIZE_CLASSES, fold_of_case, size_class
from .gate import require_usable
from .layout import SPLITS, Case, file_name, find_cases, on_any_disk, output_name
from .listfiles import as_native
from .patients import patient_of, patients_of
from .pseudonyms import own_name, pseudonymised, pseudonyms, redacted
from .remembered import check_items
from .survey import check
from .volumes import (
    EXTENSIONS,
    LPS_TO_RAS,
    Volume,
    VolumeError,
    extension_of,
    read_grid,
    read_volume,
    to_itk,
    to_nifti,
    write_volume,
)

__all__ = [
    "EXTENSIONS",
    "LPS_TO_RAS",
    "SIZE_CLASSES",
    "SPLITS",
    "Case",
    "CaseReport",
    "DatasetError",
    "Limits",
    "Problem",
    "Volume",
    "VolumeError",
    "are_normalised",
    "as_native",
    "brain_of",
    "check",
    "check_case",
    "check_items",
    "datalist",
    "download",
    "extension_of",
    "file_name",
    "find_cases",
    "fold_of_case",
    "grid_difference",
    "held_out",
    "on_any_disk",
    "output_name",
    "own_name",
    "patient_of",
    "patients_of",
    "pseudonymised",
    "pseudonyms",
    "read_grid",
    "read_volume",
    "redacted",
    "require_usable",
    "size_class",
    "to_itk",
    "to_nifti",
    "write_datalist",
    "write_volume",
]
