"""BONBID-HIE's layout: finding cases, splits and folds, checks, download. Knows files, not tensors."""

from .check_cache import check_items
from .checks import CaseReport, Limits, Problem, check_case, grid_difference
from .datalists import datalist, held_out, write_datalist
from .fetching import download
from .folds import SIZE_CLASSES, fold_of_case, size_class
from .gate import require_usable
from .layout import SPLITS, Case, file_name, find_cases, on_any_disk, output_name
from .listfiles import as_native
from .patients import patient_of, patients_of
from .pseudonyms import own_name, pseudonymised, pseudonyms
from .survey import check

__all__ = [
    "SIZE_CLASSES",
    "SPLITS",
    "Case",
    "CaseReport",
    "Limits",
    "Problem",
    "as_native",
    "check",
    "check_case",
    "check_items",
    "datalist",
    "download",
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
    "require_usable",
    "size_class",
    "write_datalist",
]
