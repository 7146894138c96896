"""``hie-bundle doctor``: check an installation."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from ..io.weights import MODELS
from ..runtime.cores import available_cores
from ..runtime.errors import UserError
from ..runtime.mixins import CONFIGS, bundle_version


def doctor() -> None:
    """Print installed packages, hardware and shipped weights.

    Raises:
        UserError: a required package is missing or has an unsupported version.
    """
    import psutil
    import torch

    print(f"hie_bundle {bundle_version()} in {CONFIGS.parent}")
    print(f"Python {platform.python_version()}, {sys.executable}, on {platform.platform()}")
    problems = []
    for needed in _needed():
        found = _installed(needed.name)
        print(f"  {needed.name} {found}")
        if found == "not installed" or not needed.specifier.contains(found, prereleases=True):
            problems.append(f"  {needed.name} {found}: {needed.specifier or 'any version'} is needed")
    memory = psutil.virtual_memory()
    print(f"{available_cores()} cores; {memory.total / 1e9:.0f} GB of memory, {memory.available / 1e9:.0f} GB free")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"CUDA: {', '.join(names) or 'none'}")
    print(f"OpenVINO: {_installed('openvino')} (for `segment --openvino`, on a CPU)")
    print(f"pydicom: {_installed('pydicom')} (for `adc` on folders of DICOM)")
    weights = [f"{path.name}, {path.stat().st_size / 1e6:.1f} MB" for path in (MODELS / "simulated").glob("model*.pt")]
    print(f"shipped weights: {'; '.join(sorted(weights)) or 'none, so `segment` needs --weights'}")
    if problems:
        raise UserError("\n".join(["Required packages are missing or have unsupported versions:", *problems]))
    print("All required packages are installed.")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _needed() -> list[Requirement]:
    """Required packages and their version ranges, from the installed project or else from the bundle's metadata."""
    try:
        lines = [line for line in requires("hie-bundle") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        metadata = json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))
        lines = ["monai", "torch", *metadata["required_packages_version"]]
    return [Requirement(line) for line in lines]
