"""Simulated newborn cohort in BONBID-HIE's layout, for runs without the real data."""

from functools import partial

from ..moved import lookup
from .atlas_files import write_phantom_atlas
from .case import Case, simulate_case
from .cohort import write_cohort
from .normative import Atlas, build_atlas
from .settings import Settings

__all__ = ["Atlas", "Case", "Settings", "build_atlas", "simulate_case", "write_cohort", "write_phantom_atlas"]

__getattr__ = partial(lookup, "phantom")  # cohort_stats and others, as configs of 0.9.1 name them
