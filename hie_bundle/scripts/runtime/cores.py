"""Number of cores of this process."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Number of cores available to this process; at least one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
