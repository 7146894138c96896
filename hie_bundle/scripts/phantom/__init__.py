"""Simulated newborn cohort in BONBID-HIE's layout, for runs without the real data."""

from .case import Case, Settings, simulate_case
from .cohort import write_cohort
from .normative import Atlas, build_atlas, z_map
from .statistics import cohort_stats, contact_sheet, print_stats

__all__ = [
    "Atlas",
    "Case",
    "Settings",
    "build_atlas",
    "cohort_stats",
    "contact_sheet",
    "print_stats",
    "simulate_case",
    "write_cohort",
    "z_map",
]
