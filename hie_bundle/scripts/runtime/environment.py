"""Environment of a run: versions, the bundle's revision, hardware."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from .cores import available_cores
from .mixins import CONFIGS, bundle_version

PACKAGES = (
    "monai", "torch", "pytorch-ignite", "torchio", "numpy", "scipy", "scikit-learn", "nibabel", "itk", "SimpleITK",
    "surface-distance-based-measures", "connected-components-3d", "edt", "matplotlib", "openvino",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages used in training and evaluation."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache  # the running code is the state at import
def bundle() -> dict[str, Any]:
    """Version of the bundle; in a git clone also the revision and whether there are changes."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(CONFIGS.parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    found: dict[str, Any] = {"version": bundle_version()}
    # an installation inside another project's clone has no revision
    if git("ls-files", "--error-unmatch", "configs/metadata.json") is not None:
        found |= {"revision": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "."))}
    return found


def hardware(device: str) -> dict[str, Any]:
    """Hardware of this machine: system, CPU, cores and threads per process, memory in GB, and the device."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": models[0] if models else platform.processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found
