"""Damaged, contradictory and hostile files: a clear error or the right array, never a crash, a hang or a wrong one."""

from __future__ import annotations

import gzip
import multiprocessing
import re
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from bonbid_cases import write_case
from monai.transforms import LoadImage

from scripts.data.checks import read_case
from scripts.io.volumes import read_volume

META_FIELDS: dict[str, list[str]] = {
    "ObjectType": ["Tube", ""],
    "NDims": ["2", "4", "-3", "three", "99999999999"],
    "DimSize": [
        "9 8", "9 8 7 2", "8 9 7", "9 8 6", "9 8 8", "-9 -8 7", "0 8 7", "9 8 x", "9.5 8 7", "nan 8 7", "",
        "999999 999999 999999", "99999999999999999999 1 1", "4294967305 8 7", "50000 50000 7",
    ],
    "ElementType": [
        "MET_UCHAR", "MET_CHAR", "MET_USHORT", "MET_INT", "MET_LONG_LONG", "MET_FLOAT", "MET_DOUBLE", "MET_STRING",
        "MET_SHORT_ARRAY", "MET_NONE", "garbage",
    ],
    "ElementSpacing": ["0 1.2 3", "-1.1 1.2 3", "nan 1.2 3", "inf 1.2 3", "1.1 1.2", "a b c", "1.1 1.2 3.3"],
    "TransformMatrix": ["0 0 0 0 0 0 0 0 0", "1 0 0 0 1 0", "nan 0 0 0 1 0 0 0 1", "1 1 0 0 1 0 0 0 1", "x"],
    "Offset": ["0 0 0", "nan 0 0", "1 2", "1e400 0 0", "left"],
    "BinaryData": ["False", "maybe"],
    "BinaryDataByteOrderMSB": ["True", "2"],
    "CompressedData": ["False", "yes"],
    "CompressedDataSize": ["0", "-1", "12", "999999999999", "many"],
    "ElementNumberOfChannels": ["2", "0", "-1", "4294967297", "x"],
    "HeaderSize": ["-1", "40", "9999999"],
    "ElementDataFile": ["LIST", "/etc/passwd", "../other.raw", "other.raw", "slice%03d.raw 1 9 1", ""],
}  # fmt: skip


def meta_mutations(data: bytes, compressed: bool) -> Iterator[tuple[str, bytes]]:
    """Files made from a good one by one directed change each."""
    end = data.index(b"LOCAL\n") + 6
    header, body = data[:end].decode(), data[end:]
    for field, values in META_FIELDS.items():
        line = re.search(rf"^{field} = .*\n", header, re.MULTILINE)
        for value in values:
            text = f"{field} = {value}\n"
            changed = header.replace(line.group(), text) if line else text + header
            yield f"{field}={value}", changed.encode() + body
        if line:
            yield f"no {field}", header.replace(line.group(), "").encode() + body
            yield f"{field} twice", (line.group() + header).encode() + body
    yield "no data", header.encode()
    yield "half the data", data[: end + len(body) // 2]
    yield "one byte less", data[:-1]
    yield "one byte more", data + b"\0"
    yield "no header", body
    yield "half the header", data[: end // 2]
    yield "endless header", b"A = B\n" * 300_000
    yield "no line ends", data[:end].replace(b"\n", b" ") + body
    yield "binary header", b"\xff\xfe" + data
    yield "colons", header.replace(" = ", " : ").encode() + body
    if compressed:
        for name, packed in (
            ("garbage", bytes(range(256)) * 8),
            ("bomb", zlib.compress(bytes(200_000_000), 9)),
            ("too little", zlib.compress(bytes(100))),
            ("damaged", body[:40] + bytes([body[40] ^ 255]) + body[41:]),
            ("damaged checksum", body[:-1] + bytes([body[-1] ^ 1])),
            ("trailing", body + b"trailing"),
        ):
            sized = re.sub(r"CompressedDataSize = \d+", f"CompressedDataSize = {len(packed)}", header)
            yield f"compressed {name}", sized.encode() + packed


def nifti_mutations(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The same for an uncompressed NIfTI-1 file's bytes; the caller compresses them again."""

    def put(form: str, offset: int, *values: float) -> bytes:
        changed = bytearray(data)
        struct.pack_into("<" + form, changed, offset, *values)
        return bytes(changed)

    for size in (0, 1, 540, 1543569408, -348):
        yield f"sizeof_hdr={size}", put("i", 0, size)
    for dims in (
        (3, 8, 9, 7), (3, 9, 8, 6), (3, 9, 8, 8), (3, -9, 8, 7), (3, 0, 8, 7), (3, 32767, 32767, 32767), (2, 9, 8),
        (4, 9, 8, 7, 2), (5, 9, 8, 7, 1, 2), (7, 1, 1, 1, 1, 1, 1, 504), (0,), (8, 9, 8, 7), (-3, 9, 8, 7),
    ):  # fmt: skip
        yield f"dim={dims}", put(f"{len(dims)}h", 40, *dims)
    for code in (0, 1, 2, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304, 9999, -4):
        yield f"datatype={code}", put("h", 70, code)
    for offset in (0.0, 1.0, 348.0, 356.0, -352.0, 1e9, 1e38, float("nan"), float("inf")):
        yield f"vox_offset={offset}", put("f", 108, offset)
    for slope in (float("inf"), float("-inf")):
        yield f"scl_slope={slope}", put("f", 112, slope)
    yield "no position", put("hh", 252, 0, 0)
    yield "negative codes", put("hh", 252, -1, -1)
    yield "metres", put("B", 123, 1)
    for row in ((0, 0, 0, 0), (float("nan"), 0, 0, 0), (float("inf"), 0, 0, 0), (1, 1, 1, 0), (1e30, 0, 0, 0)):
        yield f"srow_x={row}", put("4f", 280, *row)
    yield "magic", put("4s", 344, b"ni1\0")  # type: ignore[arg-type]
    yield "no magic", put("4s", 344, b"xxxx")  # type: ignore[arg-type]
    yield "half the header", data[:170]
    yield "header only", data[:352]
    yield "half the data", data[: 352 + (len(data) - 352) // 2]
    yield "one byte less", data[:-1]
    yield "one byte more", data + b"\0"
    yield "nothing", b""


def random_mutations(
    data: bytes, header: int, rng: np.random.Generator, count: int, skip: tuple[int, int]
) -> Iterator[tuple[str, bytes]]:
    """Bytes of the header changed at random, cuts and insertions anywhere; nothing between the offsets ``skip``."""
    for number in range(count):
        changed = bytearray(data)
        kind = ("byte", "bytes", "cut", "insert", "remove")[number % 5]
        if kind in ("byte", "bytes"):
            for _ in range(1 if kind == "byte" else 4):
                place = int(rng.integers(header))
                if not skip[0] <= place < skip[1]:
                    changed[place] = int(rng.integers(256))
        elif kind == "cut":
            del changed[int(rng.integers(len(data))) :]
        elif kind == "insert":
            place = int(rng.integers(header))
            changed[place:place] = rng.bytes(int(rng.integers(1, 9)))
        else:
            place = int(rng.integers(header))
            del changed[place : place + int(rng.integers(1, 9))]
        yield f"{kind} {number}", bytes(changed)


def mutations(files: dict[str, dict[str, Path]], random: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Form of the file, what was done to it, and its new content."""
    rng = np.random.default_rng(seed)
    for form in ("compressed.mha", "plain.mha"):
        data = files[form]["adc"].read_bytes()
        header = data.index(b"LOCAL\n") + 6
        for name, content in meta_mutations(data, form.startswith("compressed")):
            yield form, name, content
        for name, content in random_mutations(data, header, rng, random, (0, 0)):
            yield form, name, content
    data = files["plain.nii"]["adc"].read_bytes()
    for form, pack in (("plain.nii", bytes), ("compressed.nii.gz", gzip.compress)):
        for name, content in nifti_mutations(data):
            yield form, name, pack(content)
        # slope and intercept are left alone: with others, the file is as good as before
        for name, content in random_mutations(data, 348, rng, random, (112, 120)):
            yield form, name, pack(content)
    packed = files["compressed.nii.gz"]["adc"].read_bytes()
    yield "compressed.nii.gz", "not gzip", data
    yield "plain.nii", "gzip", packed
    yield "compressed.nii.gz", "garbage", bytes(range(256)) * 4
    yield "compressed.nii.gz", "bomb", gzip.compress(data + bytes(200_000_000), 1)
    yield "compressed.nii.gz", "damaged checksum", packed[:-8] + bytes(4) + packed[-4:]
    for place in rng.integers(20, len(packed) - 8, random):
        yield "compressed.nii.gz", f"bit {place}", packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :]
    for place in rng.integers(1, len(packed), random):
        yield "compressed.nii.gz", f"cut {place}", packed[:place]


def make_files(folder: Path) -> dict[str, dict[str, Path]]:
    return {
        f"{kind}{extension}": write_case(folder / kind / extension[1:], extension=extension, compress=compress)
        for kind, extension, compress in (
            ("compressed", ".mha", True),
            ("plain", ".mha", False),
            ("plain", ".nii", False),
            ("compressed", ".nii.gz", True),
        )
    }


def examine(folder: Path, keep: Callable[[int], bool], random: int, seed: int = 0) -> tuple[int, int]:
    """Check every mutation that ``keep`` chooses by its number; how many were refused and accepted."""
    files = make_files(folder)
    truth = read_volume(files["plain.mha"]["adc"])
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in truth.array.shape], indexing="ij")).reshape(3, -1)
    corners = np.vstack([ends, np.ones(8)])
    refused = accepted = 0
    for number, (form, name, content) in enumerate(mutations(files, random, seed)):
        if not keep(number):
            continue
        path = folder / f"mutant.{form.partition('.')[2]}"
        path.write_bytes(content)
        parts = {"adc": str(path), "zadc": str(files[form]["zadc"]), "label": str(files[form]["label"])}
        start = time.perf_counter()
        report = read_case("case", parts)[0]
        assert time.perf_counter() - start < 20, f"{form}, {name}: too slow"
        if report.problems:
            refused += 1
            blamed = {problem.file for problem in report.problems}
            assert str(path) in blamed or all("is on another grid" in p.message for p in report.problems), name
            assert all(problem.message and "\n" not in problem.message for problem in report.problems)
            continue
        accepted += 1
        ours = read_volume(path)
        readings = [(ours.array, ours.affine)]
        with suppress(TypeError):  # of ITK, whose dictionary has no key with a byte above 127
            theirs = LoadImage(image_only=True, dtype=None)(path)
            readings.append((theirs.numpy(), theirs.affine.numpy()))
        for array, affine in readings:
            np.testing.assert_array_equal(array, truth.array, err_msg=f"{form}, {name}")
            shift = np.linalg.norm(((affine - truth.affine) @ corners)[:3], axis=0).max()
            assert shift < 0.101, f"{form}, {name}: {shift} mm"
    return refused, accepted


def test_fuzz_quickly(tmp_path: Path) -> None:
    """Every sixth directed mutation."""
    refused, accepted = examine(tmp_path, lambda number: number % 6 == 0, random=0)
    assert refused >= 40
    assert accepted < refused / 4


def _limited(folder: Path, results: multiprocessing.Queue[tuple[int, int]]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # whoever believes a declared size meets this
    results.put(examine(folder, lambda number: True, random=100))


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    """All of them and many random ones, in a process of their own: a crash is seen as such."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_limited, args=(tmp_path, results))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    refused, accepted = results.get(timeout=5)
    print(f"{refused} refused, {accepted} accepted")
    assert refused + accepted >= 300
    assert accepted > 0


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_in_the_file_is_not_followed_elsewhere(tmp_path: Path, count: int) -> None:
    """A header may name other files; none of them is opened."""
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(1008))
    files = make_files(tmp_path)
    data = files["plain.mha"]["adc"].read_bytes()
    header = data[: data.index(b"LOCAL\n")]
    path = tmp_path / "mutant.mha"
    path.write_bytes(header + f"{secret}\n".encode() * count)
    (problem, *_) = read_case("case", {"adc": str(path), "zadc": str(files["plain.mha"]["zadc"])})[0].problems
    assert "ElementDataFile" in problem.message
