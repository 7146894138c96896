"""Alternating timings of two ways to do the same, and what they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.runtime.cores import available_cores


def machine() -> dict[str, Any]:
    """What the figures depend on; no names of hosts or users."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, the device's queued work included."""
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(stock: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Time both ``repeats`` times in turn, each first every other time, after one call of each that does not count."""
    ways = {"stock": stock, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for repeat in range(repeats):
        for name in sorted(ways, reverse=repeat % 2 == 1):
            times[name].append(seconds(ways[name]))
    return summary(times)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the two and their ratio, with the single values."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "stock_s": medians["stock"],
        "ours_s": medians["ours"],
        "ratio": medians["stock"] / medians["ours"],
        "repeats": len(times["ours"]),
        "all_s": times,
    }
