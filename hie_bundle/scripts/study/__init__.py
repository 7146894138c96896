"""Training and evaluating several variants under the same conditions, and comparing them."""

from .command import loss_study
from .results import Results, collect
from .variants import Source, Variant, invocation

__all__ = ["Results", "Source", "Variant", "collect", "invocation", "loss_study"]
