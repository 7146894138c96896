"""The commands and programs of the documentation, as they stand there, at a tiny size (`make test-slow`)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import BUNDLE, TINY
from processes import NO_NETWORK
from test_docs import blocks, lines_of

PAPER = [word for name, value in TINY.items() for word in (f"--{name}", value)] + ["--epochs", "1", "--device", "cpu"]
STRONG = ["--spacing_mm", "[5,5,6]", "--patch_size", "[16,24,8]", "--crop_size", "[20,24,10]", "--flips", "[]",
          "--features", "[2,4,6,8]", "--num_workers", "0", "--batch_size", "2", "--epochs", "1",
          "--device", "cpu"]  # fmt: skip
COHORT = ["--num_train", "1", "--num_val", "1", "--num_test", "1", "--num_healthy", "4", "--matrix_sizes", "[36,44]",
          "--slice_range", "[10,14]", "--fine_mm", "4", "--atlas_step_mm", "4", "--num_workers", "1"]  # fmt: skip
# all in one process: the import of PyTorch and MONAI takes longer than what most of them do
PROGRAM = """
import json, sys, traceback
from pathlib import Path
import fire
import monai.bundle

import hie_bundle

main = hie_bundle.scripts_module("cli").main

failed = {}
for name, kind, content in json.loads(Path("commands.json").read_text()):
    print("##", name, flush=True)
    try:
        if kind == "python":
            adc, zadc = "X-ADC_ss.nii.gz", "Zmap_X-ADC_smooth2mm_clipped10.nii.gz"
            exec(content, {"adc": adc, "zadc": zadc})
        elif kind == "hie-bundle":
            main(content)
        else:
            fire.Fire({"run": monai.bundle.run}, command=content)
    except (Exception, SystemExit) as error:
        if getattr(error, "code", 1) not in (0, None):  # Typer ends a command that succeeded with 0
            traceback.print_exc()
            failed[name] = repr(error)
Path("failed.json").write_text(json.dumps(failed))
"""


def _commands() -> list[tuple[str, str, object]]:
    """Name, kind and words (or text) of what is not marked, with what makes it small; in the order of the pages."""
    found: list[tuple[str, str, object]] = []
    for place, (page, mark, language, text) in enumerate(blocks()):
        if mark:
            continue
        if language == "python":
            found.append((f"{page}: {text.splitlines()[0]}", "python", text))
        for line in lines_of(text) if not language else ():
            words, name = shlex.split(line), f"{page}: {line}"
            if page.endswith("phantom.md"):  # its folder is to be made
                words = [f"phantom{place}" if word == "DIR" else word for word in words]
            if line in (
                "pip install .",
                "make install && . .venv/bin/activate",
            ):  # tests/cli/test_package.py; `make test`
                continue
            if words[0] == "hie-bundle":
                found.append((name, "hie-bundle", words[1:] + (COHORT if words[1] == "phantom" else [])))
                continue
            assert words[:4] == ["python", "-m", "monai.bundle", "run"], name
            found.append((name, "monai.bundle", words[3:] + _small(words)))
    return found


def _small(words: list[str]) -> list[str]:
    if "phantom" in words:
        return COHORT
    if any("data.yaml" in word for word in words):
        return ["--num_workers", "1"]
    if any("inference.yaml" in word for word in words):
        return [word for name in ("spatial_size", "features", "num_workers") for word in (f"--{name}", TINY[name])] + [
            "--device",
            "cpu",
        ]
    # each page trains in the same place
    return [*(STRONG if any("strong" in word for word in words) else PAPER), "--overwrite", "True"]


def _turn(command: tuple[str, str, object]) -> int:
    """First the training whose weights others use, last those that replace them."""
    return (
        0
        if command[0].startswith("hie_bundle/docs/README.md")
        else 2
        if "network_" in command[0] or "strong" in command[0]
        else 1
    )


@pytest.mark.slow
def test_what_the_pages_tell_to_type_works(tiny_cohort: Path, tmp_path: Path) -> None:
    commands = _commands()
    assert len(commands) > 15
    shutil.copytree(BUNDLE, tmp_path / "hie_bundle", ignore=shutil.ignore_patterns("__pycache__", "eval", "model.pt"))
    shutil.copytree(
        BUNDLE / "models" / "simulated", tmp_path / "hie_bundle" / "models" / "simulated", dirs_exist_ok=True
    )
    for name in ("data", "DIR"):
        shutil.copytree(tiny_cohort, tmp_path / name)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    (tmp_path / "studies").mkdir()
    case = next((tiny_cohort / "BONBID2023_Test").rglob("*ADC_ss.mha"))
    for source, names in (
        (case, ("ADC.nii.gz", "adc.nii.gz", "X-ADC_ss.nii.gz")),
        (next((tiny_cohort / "BONBID2023_Test").rglob(f"Zmap_{case.name.removesuffix('_ss.mha')}*")),
         ("ZADC.nii.gz", "zadc.nii.gz", "Zmap_X-ADC_smooth2mm_clipped10.nii.gz")),
    ):  # fmt: skip
        from scripts.io.volumes import read_volume

        volume = read_volume(source)
        for name in names:
            nibabel.save(nibabel.Nifti1Image(np.asarray(volume.array, np.float32), volume.affine), tmp_path / name)
    commands.sort(key=_turn)
    (tmp_path / "model.pt").symlink_to(tmp_path / "hie_bundle" / "models" / "model.pt")
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (NO_NETWORK, tmp_path)))}
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True,
                            text=True, timeout=1500, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert failed == {}, result.stderr[-6000:]
    # what they promise
    assert list((tmp_path / "masks").glob("*_lesion.nii.gz"))
    assert list((tmp_path / "pages").glob("*.html"))
    assert list((tmp_path / "OUT").glob("*_lesion.nii.gz"))
    assert (tmp_path / "runs" / "demo" / "eval" / "report.html").exists()
    assert list((tmp_path / "stacks" / "test").glob("*.nii.gz"))
