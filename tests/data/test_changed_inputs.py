"""Files that change between their check and their loading: what was checked is what is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from bonbid_cases import write_case

from scripts.data.gate import require_usable
from scripts.data.layout import find_cases
from scripts.data.run_folder import RunFolder
from scripts.data.training_voxels import read_maps
from scripts.io.files import expect_unchanged
from scripts.runtime.errors import UserError
from scripts.transforms.loading import LoadMapsd


@pytest.fixture(autouse=True)
def _end_of_a_run() -> None:
    expect_unchanged(None)


@pytest.mark.parametrize("part", ["adc", "zadc", "label"])
@pytest.mark.parametrize("how", ["replaced", "changed", "removed"])
def test_what_was_checked_is_loaded_or_nothing(part: str, how: str, tmp_path: Path) -> None:
    """The mask of one file got the volume of another's brain, or a traceback ended the run."""
    write_case(tmp_path / "other", "MGHNICU_001-VISIT_01", seed=5)
    write_case(tmp_path / "data", "MGHNICU_001-VISIT_01")
    (case,), (other,) = find_cases(tmp_path / "data"), find_cases(tmp_path / "other")
    load = LoadMapsd(["image", "label"])
    require_usable([case.item()], tmp_path / "data", "evaluation")
    load(case.item())  # as it was
    file = Path(getattr(case, part))
    if how == "replaced":
        shutil.copy2(getattr(other, part), file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    elif how == "changed":
        times = file.stat()
        with file.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x01")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        file.unlink()
    said = "is missing" if how == "removed" else "was changed or replaced after it was checked"
    with pytest.raises(Exception, match=said) as caught:
        load(case.item())
    assert part == "label" or how == "removed" or isinstance(caught.value, UserError | RuntimeError)
    if part != "label" and how != "removed":
        with pytest.raises(UserError, match=said):
            read_maps(case.item(), load.limits)
    if how == "replaced":
        folder = RunFolder(tmp_path / "out", "inference")
        folder.claim()
        folder.recorded(lambda: None)
        load(case.item())  # that run has ended
