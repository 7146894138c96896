"""Training and evaluating several variants under the same conditions, and comparing them."""

from .command import loss_study
from .results import Results, collect
from .variants import Variant

__all__ = ["Results", "Variant", "collect", "loss_study"]
