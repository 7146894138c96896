"""What to tell someone whose data cannot be used: what is wrong, and the commands that mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checks import CaseReport
from .layout import find_cases

__all__ = ["command", "list_problems", "nothing_found"]


def list_problems(reports: Iterable[CaseReport]) -> str:
    """The problems as indented lines: the case, then each file with what is wrong."""
    lines = []
    for report in reports:
        lines.append(f"  {report.case}")
        lines += [f"    {problem.file} {problem.message}" for problem in report.problems]
    return "\n".join(lines)


def nothing_found(dataset_dir: Path, purpose: str) -> str:
    """What to tell someone whose folder holds nothing for this purpose: which commands fill it."""
    cases = find_cases(dataset_dir)
    if cases:
        counts: dict[str, int] = {}
        for case in cases:
            counts[case.split or "no split"] = counts.get(case.split or "no split", 0) + 1
        there = ", ".join(f"{count} of {split}" for split, count in counts.items())
        return (
            f"{dataset_dir} holds no case for {purpose}, only others ({there}). Splits are folders named "
            "BONBID2023_Train, BONBID2023_Val and BONBID2023_Test, or train, val and test; without them, use "
            "--num_folds K --fold I, or a data list written by\n  "
            f"{command('folds', dataset_dir=dataset_dir)}"
        )
    state = "holds no case" if dataset_dir.is_dir() else "is not a folder"
    return (
        f"The dataset folder {dataset_dir} {state}. Make a simulated cohort there:\n"
        f"  {command('phantom', output_dir=dataset_dir)}\n"
        "or fetch the real one, BONBID-HIE:\n"
        f"  {command('download', dataset_dir=dataset_dir)}\n"
        "Own cases need three files each, in any folder below it: X-ADC_ss.mha, "
        "Zmap_X-ADC_smooth2mm_clipped10.mha and, with a label, X_lesion.mha (or .nii.gz), where X is the case's name."
    )


def command(run_id: str, **options: Any) -> str:
    """A command of ``data.yaml`` as it can be typed in the current folder."""
    config = Path(__file__).resolve().parents[2] / "configs" / "data.yaml"
    if config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    words = [f"--{name} {value}" for name, value in options.items()]
    program = Path(sys.executable).name if sys.executable else "python"
    return " ".join([program, "-m monai.bundle run", run_id, f"--config_file {config}", *words])
