"""Small files that would take gigabytes: refused before memory is allocated, whatever compressed them."""

from __future__ import annotations

import gzip
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.io.volumes import VolumeError, read_volume, to_nifti
from scripts.io.weights import read_record
from scripts.runtime.errors import UserError

SIZE = 1 << 28


def _nifti(folder: Path) -> Path:
    head = to_nifti(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_bytes()[:352]
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(head + bytes(SIZE)))
    return folder / "bomb.nii.gz"


def _mha(folder: Path) -> Path:
    packed = zlib.compress(bytes(SIZE))
    fields = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False, "CompressedData": True,
        "CompressedDataSize": len(packed), "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "1 1 1", "DimSize": "2 2 2", "ElementType": "MET_FLOAT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    head = "".join(f"{name} = {value}\n" for name, value in fields.items())
    (folder / "bomb.mha").write_bytes(head.encode() + packed)
    return folder / "bomb.mha"


@pytest.mark.parametrize("make", [_nifti, _mha])
def test_volumes(make: object, tmp_path: Path) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    assert path.stat().st_size < SIZE / 500
    tracemalloc.start()
    with pytest.raises(VolumeError, match=r"longer than its header declares|bytes of voxels; its header declares"):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SIZE / 50


def test_weights(tmp_path: Path) -> None:
    """PyTorch's files are zip archives without compression; what is compressed would be unpacked all the same."""
    torch.save({"model": {"weight": torch.zeros(SIZE // 16)}}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for info in whole.infolist():
            bomb.writestr(info.filename, whole.read(info))
    assert (tmp_path / "bomb.pt").stat().st_size < SIZE / 500
    with pytest.raises(UserError, match=r"bomb.pt is not a checkpoint .* \(it is compressed\)"):
        read_record(tmp_path / "bomb.pt")
