"""Simulated newborn cohort in BONBID-HIE's layout, for runs without the real data."""

from .case import Case, simulate_case
from .cohort import write_cohort
from .normative import Atlas, build_atlas, z_map
from .settings import Settings
from .statistics import cohort_stats, contact_sheet, print_stats
from .variety import CaseSettings, draw_settings

__all__ = [
    "Atlas",
    "Case",
    "CaseSettings",
    "Settings",
    "build_atlas",
    "cohort_stats",
    "contact_sheet",
    "draw_settings",
    "print_stats",
    "simulate_case",
    "write_cohort",
    "z_map",
]
