"""Datasets as files: layout of BONBID-HIE, splits and folds, checks, download, preprocessing."""

from .checks import CaseReport, Limits, Problem, grid_difference, read_case
from .datalists import datalist, fold_of_case, held_out, write_datalist
from .fetching import download
from .folds import SIZE_CLASSES, patient_of, patients_of, size_class
from .gate import check, check_items, require_usable
from .layout import SPLITS, Case, as_native, case_of, file_name, find_cases, first_file, item_files, output_name
from .privacy import pseudonymised, pseudonyms

__all__ = [
    "SIZE_CLASSES", "SPLITS", "Case", "CaseReport", "Limits", "Problem", "as_native", "case_of", "check", "check_items",
    "datalist", "download", "file_name", "find_cases", "first_file", "fold_of_case", "grid_difference", "held_out",
    "item_files", "output_name", "patient_of", "patients_of", "pseudonymised", "pseudonyms", "read_case",
    "require_usable", "size_class", "write_datalist",
]  # fmt: skip
