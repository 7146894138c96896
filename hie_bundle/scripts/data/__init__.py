"""BONBID-HIE's layout: finding cases, splits and folds, checks, download. Knows files, not tensors."""

from .checks import CaseReport, Limits, Problem, check_case, grid_difference
from .datalists import datalist, held_out, write_datalist
from .fetching import download
from .folds import SIZE_CLASSES, fold_of_case, patient_of, patients_of, size_class
from .gate import check_items, require_usable
from .layout import SPLITS, Case, as_native, file_name, filesystem_key, find_cases, output_name
from .privacy import original_id, pseudonymised, pseudonyms
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
    "filesystem_key",
    "find_cases",
    "fold_of_case",
    "grid_difference",
    "held_out",
    "original_id",
    "output_name",
    "patient_of",
    "patients_of",
    "pseudonymised",
    "pseudonyms",
    "require_usable",
    "size_class",
    "write_datalist",
]
