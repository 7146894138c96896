"""NaN and infinite values in tensors: found and reported by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .errors import UserError

SHOWN = 4  # names in a message


def not_finite(tensors: Mapping[str, Any]) -> str:
    """Describe which tensors contain NaN or Inf; empty if none does."""
    floats = {n: t for n, t in tensors.items() if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel()}
    if not floats:
        return ""
    # a sum is finite only if all terms are: one transfer for all tensors
    sums = torch.stack([tensor.detach().sum(dtype=torch.float64) for tensor in floats.values()])
    if bool(torch.isfinite(sums).all()):
        return ""
    bad = [name for name, tensor in floats.items() if not bool(torch.isfinite(tensor).all())]
    return ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")


def require_finite_output(logits: torch.Tensor, inputs: torch.Tensor) -> None:
    """Check that logits are finite; the metadata of ``inputs`` name the files.

    Raises:
        UserError: a logit is NaN or Inf.
    """
    if bool(torch.isfinite(logits).all()):
        return
    files = getattr(inputs, "meta", {}).get("filename_or_obj", "the input")
    names = ", ".join(map(str, files)) if isinstance(files, list | tuple) else str(files)
    seen = "" if bool(torch.isfinite(inputs).all()) else ", nor is its input"
    raise UserError(
        f"{names}: the network's output is not finite{seen}; no mask is written. If other cases work, check "
        "this case (`run check`); else the weights are damaged, or --precision float32 is needed."
    )
