"""Comparison of several variants, trained and evaluated under the same conditions."""

from .command import loss_study
from .results import Results, collect
from .variants import Variant

__all__ = ["Results", "Variant", "collect", "loss_study"]
