"""What an installation has, and what it lacks."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..io.weights import MODELS
from ..runtime.cores import available_cores
from ..runtime.errors import UserError
from ..runtime.mixins import CONFIGS, bundle_version

__all__ = ["doctor"]


def doctor() -> None:
    """Print what is installed, what the machine has, and whether the shipped weights are there.

    Raises:
        UserError: a required package is missing or has an unsupported version.
    """
    import psutil
    import torch

    print(f"hie_bundle {bundle_version()} in {CONFIGS.parent}")
    print(f"Python {platform.python_version()}, {sys.executable}, on {platform.platform()}")
    problems = []
    for name, allowed in _needed():
        found = _installed(name)
        problem = ""
        if found == "not installed":
            problem = f"not installed; {allowed or 'any version'} is needed"
        elif not SpecifierSet(allowed).contains(found, prereleases=True):
            problem = f"{allowed} is needed"
        print(f"  {name} {found}" + (f"   {problem}" if problem else ""))
        problems += [f"{name}: {problem}"] if problem else []
    memory = psutil.virtual_memory()
    print(f"{available_cores()} cores; {memory.total / 1e9:.0f} GB of memory, {memory.available / 1e9:.0f} GB free")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"CUDA: {', '.join(names) or 'none'}")
    print(f"OpenVINO: {_installed('openvino')} (for `segment --openvino`, on a CPU)")
    print(f"pydicom: {_installed('pydicom')} (for `adc` on folders of DICOM)")
    weights = [f"{path.name}, {path.stat().st_size / 1e6:.1f} MB" for path in (MODELS / "simulated").glob("model*.pt")]
    print(f"shipped weights: {'; '.join(sorted(weights)) or 'none, so `segment` needs --weights'}")
    if problems:
        raise UserError(
            "Required packages are missing or have unsupported versions; install or update them:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    print("All required packages are installed.")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _needed() -> list[tuple[str, str]]:
    """Required packages and their version ranges, from the installed project or else from the bundle's metadata."""
    try:
        lines = [Requirement(line) for line in requires("hie-bundle") or []]
        return [(line.name, str(line.specifier)) for line in lines if "extra" not in str(line.marker)]
    except PackageNotFoundError:
        metadata = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
        return [(name, "") for name in ("monai", "torch", *metadata["required_packages_version"])]
