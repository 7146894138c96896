"""Attempts to break segmentation and the command: mutated inputs, hostile options, kills, full and read-only disks.

    python tests/benchmarks/campaign.py --part inputs --count 500 --seed 0 --folder DIR

Each part prints one line of JSON: how often it was refused with a message, harmless, or wrong, and what was wrong. The
cohort is made in ``--folder`` once. A case is wrong if a traceback was shown, code ran, a file was left behind, memory
grew, or a mask differs from that of the unchanged case without a note (``silent``).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
BUNDLE = TESTS.parent / "hie_bundle"
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(BUNDLE)]

from processes import _FORKSERVER, become  # noqa: E402

TINY = {"spatial_size": "[24,24,16]", "features": "[2,4,6,8]", "num_workers": "0", "batch_size": "2", "device": "cpu"}
CODE = '$__import__("pathlib").Path("PWNED").touch()or"x"'
TEXTS = [
    CODE, "@device", "%config.yaml#x", "#0", "\x1b[31mred", "\u202egnp.exe", "=HYPERLINK(1)", "a\nb", "", " ", "-1",
    "nan", "1e309", "[[[[", "{}", "None", "True", "../../etc/passwd", "/dev/null", "x" * 5000, "é患者", "\udcff",
    "--help", "*",
]  # fmt: skip
_LIMIT = [float("inf")]  # when to stop
MAX_GROWTH_MB = 600  # of the memory of one segmentation of a small case


# --- a small cohort ------------------------------------------------------------------------------------------------


def cohort(folder: Path) -> Path:
    """Ten simulated cases of about 40 × 40 × 12 voxels."""
    from scripts import phantom

    target = folder / "cohort"
    if not target.is_dir():
        phantom.write_cohort(
            target, num_train=5, num_val=2, num_test=3, seed=3, num_workers=1, matrix_sizes=[36, 44],
            slice_range=[10, 14], fine_mm=4.0, atlas_step_mm=4.0, num_healthy=4, progress=False,
        )  # fmt: skip
    return target


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """ADC and ZADC of each case."""
    from scripts.data.layout import find_cases

    return [(case.adc, case.zadc) for case in find_cases(folder) if case.adc and case.zadc]


# --- mutated inputs ------------------------------------------------------------------------------------------------

Maps = tuple[np.ndarray, np.ndarray, np.ndarray]  # ADC, ZADC and affine


def _flip_axis(rng: random.Random, maps: Maps) -> Maps:
    return maps[0], np.flip(maps[1], rng.randrange(3)), maps[2]


def _shift(rng: random.Random, maps: Maps) -> Maps:
    return maps[0], np.roll(maps[1], rng.choice([3, 6]), rng.randrange(3)), maps[2]


def _noise(rng: random.Random, maps: Maps) -> Maps:
    return maps[0], np.random.default_rng(rng.randrange(999)).normal(0, 2, maps[1].shape) * (maps[0] > 0), maps[2]


def _scale(rng: random.Random, maps: Maps) -> Maps:
    factor = rng.choice([1e-6, 1e-3, 0.1, 0.3, 0.5, 2.0, 10.0, -1.0, 1e30])
    return (maps[0] * factor, maps[1], maps[2]) if rng.random() < 0.5 else (maps[0], maps[1] * -abs(factor), maps[2])


def _values(rng: random.Random, maps: Maps) -> Maps:
    changed = [maps[0].copy(), maps[1].copy()]
    which = rng.randrange(2)
    where = np.random.default_rng(rng.randrange(999)).random(maps[0].shape) < rng.choice([1e-4, 0.01, 0.3, 1.0])
    changed[which][where] = rng.choice([np.nan, np.inf, -np.inf, 0, 1e38, -4096, 65535])
    return changed[0], changed[1], maps[2]


def _skull(rng: random.Random, maps: Maps) -> Maps:
    return np.where(maps[0] > 0, maps[0], rng.choice([50.0, 700.0, 1500.0])), maps[1], maps[2]


def _swap(rng: random.Random, maps: Maps) -> Maps:
    return maps[1], maps[0], maps[2]


def _affine(rng: random.Random, maps: Maps) -> Maps:
    affine = maps[2].copy()
    row, column = rng.randrange(3), rng.randrange(4)
    affine[row, column] = rng.choice([np.nan, np.inf, 0.0, 1e9, affine[row, column] * 10, affine[row, column] + 0.7])
    return maps[0], maps[1], affine


def _shape(rng: random.Random, maps: Maps) -> Maps:
    return maps[0], maps[1][tuple(slice(0, rng.choice([1, n - 1, n])) for n in maps[1].shape)], maps[2]


VALUES: list[Callable[[random.Random, Maps], Maps]] = [
    _flip_axis, _shift, _noise, _scale, _values, _skull, _swap, _affine, _shape,
]  # fmt: skip


def _damage(rng: random.Random, path: Path) -> str:
    """Change bytes of a file."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["header", "header", "header", "cut", "longer", "empty", "body", "inner", "bomb", "other"])
    if how in ("header", "body"):
        low, high = (0, min(352, len(data))) if how == "header" else (min(352, len(data) - 1), len(data))
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(low, high)] = rng.randrange(256)
    elif how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "longer":
        data += bytes(rng.choice([1, 100, 10_000]))
    elif how == "empty":
        data = bytearray()
    elif how == "inner" and path.name.endswith(".gz"):  # a header field, behind whole compression
        inner = bytearray(gzip.decompress(bytes(data)))
        at = rng.choice([40, 42, 44, 46, 70, 72, 76, 80, 84, 88, 92, 108, 112, 116, 123, 252, 254, 280, 300, 344])
        inner[at : at + 2] = rng.randbytes(2)
        data = bytearray(gzip.compress(bytes(inner)))
    elif how == "bomb":
        if path.name.endswith(".gz"):
            data = bytearray(gzip.compress(gzip.decompress(bytes(data))[:352] + bytes(1 << 28)))
        else:
            head, _, _ = bytes(data).partition(b"ElementDataFile = LOCAL\n")
            packed = zlib.compress(bytes(1 << 28))
            head = head.replace(b"CompressedData = False", b"CompressedData = True")
            data = bytearray(head + b"CompressedDataSize = %d\nElementDataFile = LOCAL\n" % len(packed) + packed)
    elif how == "other":
        path.unlink()
        kind = rng.choice(["folder", "loop", "pipe", "gone", "text"])
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "text":
            path.write_text(CODE)
        return f"other: {kind}"
    path.write_bytes(data)
    return how


def inputs(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Mutate the maps of a case, in values, position or bytes, check them as ``segment`` does, and measure the mask.

    The mask is that of the two soft thresholds on ZADC (:func:`scripts.inference.z_evidence.z_evidence`), since a
    network takes seconds a case.
    """
    from nibabel.spatialimages import HeaderDataError

    from scripts.data.checks import Limits
    from scripts.io.images import write
    from scripts.io.volumes import read_volume, to_nifti
    from scripts.runtime.errors import UserError

    rng, found, wrong = random.Random(seed), Counter[str](), []
    limits = Limits(adc_range=(500, 2500), brain_ml_range=(100, 800))  # of segment.yaml
    cases = pairs(cohort(folder))
    plain = {files: _segmented(files, limits)[0] for files in cases[:4]}
    gate_s, work = [], folder / "work"
    names = ["a"] * 10 + [text.replace("/", "_")[:80] for text in TEXTS if text.isprintable() and text.strip()]
    for number in _numbers(count):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        files = rng.choice(list(plain))
        volumes = [read_volume(file) for file in files]
        maps = (np.float32(volumes[0].array), np.float32(volumes[1].array), volumes[0].affine)
        ending = rng.choice(names) + rng.choice([".nii.gz", ".nii", ".mha"])
        given: list[Any] = [work / f"adc{ending}", work / f"zadc{ending}"]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        how, outcome = "", ""
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                damage = rng.random() < 0.5
                if not damage and rng.random() < 0.1:
                    how, other = "other case", rng.choice([pair for pair in cases if pair != files])[1]
                    maps = (maps[0], np.float32(read_volume(other).array), maps[2])
                elif not damage:
                    change = rng.choice(VALUES)
                    how, maps = change.__name__, change(rng, maps)
                try:
                    if how == "_affine" or (not damage and rng.random() < 0.3):
                        given = [to_nifti(np.float32(array), maps[2]) for array in maps[:2]]
                    else:
                        for path, array in zip(given, maps[:2], strict=True):
                            write(path, np.float32(array), maps[2])
                except (ValueError, np.linalg.LinAlgError, HeaderDataError):
                    outcome = "refused by the writer"
                if not outcome:
                    how += _damage(rng, rng.choice(given)) if damage else ""
                    result, seconds = _segmented(given, limits)
                    gate_s.append(seconds)
                    outcome = _judge(result, plain[files], moved=how == "_affine")
        except UserError as error:
            outcome = "refused" if str(error).strip() else "no message"
        except Exception as error:
            outcome = f"traceback: {type(error).__name__}: {str(error)[:80]}"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MAX_GROWTH_MB * 1024:
            outcome = "memory"
        if list(folder.rglob("PWNED")) or Path("PWNED").exists():
            outcome = "code ran"
        found[outcome.partition(":")[0]] += 1
        if outcome not in ("refused", "refused by the writer", "same mask", "with a note"):
            wrong.append({"number": number, "how": how, "outcome": outcome})
    shutil.rmtree(work, ignore_errors=True)
    return {"found": dict(found), "wrong": wrong, "check_s": {"median": np.median(gate_s), "max": max(gate_s)}}


def _segmented(maps: Sequence[Any], limits: Any) -> tuple[SimpleNamespace, float]:
    """Mask and remarks on the two maps, and the processor time of their check; a UserError where they are refused."""
    from scripts.data.checks import read_case
    from scripts.geometry.brain import brain_of
    from scripts.inference.plausibility import plausibility_of
    from scripts.inference.segmenter import _parts
    from scripts.inference.z_evidence import z_evidence
    from scripts.runtime.errors import UserError

    begun = time.process_time()
    report, volumes = read_case("case", _parts(*maps, None), limits)
    seconds = time.process_time() - begun
    if report.problems:
        raise UserError("; ".join(f"{problem.file} {problem.message}" for problem in report.problems))
    adc, zadc = volumes["adc"], volumes["zadc"].array
    mask = z_evidence(zadc, brain_of(adc.array), adc.spacing_mm.tolist()) > 0.33
    said = {*report.notes, *plausibility_of(mask, adc, zadc, None).doubts}
    return SimpleNamespace(mask=mask, affine=adc.affine, said=said), seconds


def _judge(result: Any, plain: Any, moved: bool) -> str:
    """A mask of changed maps: the same, or another with a note or a doubt, or silently another."""
    shift = np.abs(result.affine - plain.affine).max()
    overlap = 0.0
    if result.mask.shape == plain.mask.shape:
        sizes = int(result.mask.sum() + plain.mask.sum())
        overlap = 2 * np.logical_and(result.mask, plain.mask).sum() / sizes if sizes else 1.0
    if overlap > 0.8 and (moved or shift < 0.1):  # of limits#grid_tolerance_mm
        return "same mask"
    return "with a note" if result.said - plain.said else f"silent: Dice {overlap:.2f}, affine {shift:.3g}"


# --- mutated DICOM -------------------------------------------------------------------------------------------------

ELEMENTS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PixelData",
    "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "SeriesNumber", "InstanceNumber", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID",
    "FrameOfReferenceUID", "PatientID", "PatientName", "ImageType", "Modality", "Manufacturer", "SeriesDescription",
    "PhotometricInterpretation", "SOPClassUID", "EchoTime", "NumberOfFrames",
)  # fmt: skip
HOSTILE: list[Any] = [
    "", "0", "-1", "nan", "1e39", "9" * 30, "a\\b", "1\\2", "1\\0\\0\\0\\1\\nan", "0.5", "7", CODE, "\x1b[31mred",
]  # fmt: skip


def _mutate_dicom(rng: random.Random, folder: Path) -> str:
    """Change one file of a folder, or an element of each."""
    import pydicom

    files = sorted(folder.iterdir())
    how = rng.choice(["element", "element", "element", "element", "delete", "bytes", "cut", "copy", "gone", "link"])
    chosen = files if how in ("element", "delete") and rng.random() < 0.4 else [rng.choice(files)]
    name, value, what = rng.choice(ELEMENTS), rng.choice(HOSTILE), how
    for path in chosen:
        if how in ("element", "delete"):
            header = pydicom.dcmread(path)
            if how == "delete" or name == "PixelData":
                header.pop(name, None)
            else:
                vr = pydicom.datadict.dictionary_VR(name)
                number = int(value) if value.lstrip("-").isdigit() and len(value) < 5 else 3
                tag = pydicom.datadict.tag_for_keyword(name)
                element = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, 0, None, 0, False, True)
                raw = (number % 65536).to_bytes(2, "little") if vr == "US" else value.encode()
                raw += b" " * (len(raw) % 2)
                header[name] = element._replace(length=len(raw), value=raw)
            header.save_as(path)
            what = f"{how} {name} {value!r} in {'all' if len(chosen) > 1 else 'one'}"
        elif how == "bytes":
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 4, 16])):
                data[rng.randrange(len(data) // 4 if rng.random() < 0.7 else len(data))] = rng.randrange(256)
            path.write_bytes(data)
        elif how == "cut":
            path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        elif how == "copy":
            shutil.copy(path, folder / rng.choice(["z.dcm", "\udcff.dcm", f"{CODE.replace('/', '')}.dcm"]))
        elif how == "gone":
            path.unlink()
        else:
            path.unlink()
            path.symlink_to(rng.choice([path.name, "/dev/zero", rng.choice(files).name]))
    return what


def dicom(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Mutate the files of a series with b = 0 and 1000 s/mm², and compare the ADC map, as ``scan`` fits it."""
    import logging

    import pydicom

    from scripts.runtime.errors import UserError
    from scripts.scanner.adc import adc_from_dicom
    from scripts.scanner.dicom import read_folder

    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    rng, found, wrong = random.Random(seed), Counter[str](), []
    source, work = _dicom(folder), folder / "mutated"
    plain, _ = adc_from_dicom(read_folder(source))
    inside = plain.array > 0
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("scripts").addHandler(handler)
    for number in _numbers(count):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        said.clear()
        how = "not written"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    how = _mutate_dicom(rng, work)
                except (ValueError, TypeError, KeyError, AttributeError, OSError, OverflowError):
                    found["refused by the writer"] += 1
                    continue
                adc, _ = adc_from_dicom(read_folder(work))
            same = adc.array.shape == plain.array.shape and np.abs(adc.affine - plain.affine).max() < 0.1
            same = same and np.mean(np.abs(adc.array - plain.array)[inside] > 50) < 0.01
            outcome = "same map" if same else "with a note" if said else "silent"
        except UserError as error:
            outcome = "refused" if str(error).strip() and error.args else "no message"
            if "DOE" in str(error) or (not str(error).isprintable() and "\x1b" in str(error)):
                outcome = f"message shows the header: {error}"
        except Exception as error:
            outcome = f"traceback: {type(error).__name__}: {str(error)[:120]}"
        if Path("PWNED").exists() or list(folder.rglob("PWNED")):
            outcome = "code ran"
        found[outcome.partition(":")[0]] += 1
        if outcome not in ("refused", "same map", "with a note"):
            wrong.append({"number": number, "how": how, "outcome": outcome})
    shutil.rmtree(work, ignore_errors=True)
    return {"found": dict(found), "wrong": wrong}


# --- hostile options -----------------------------------------------------------------------------------------------

WORDS = {
    "segment": [
        "weights", "recipe", "overlay", "report", "extension", "anonymise_ids", "shard", "device", "threshold", "flips",
        "output", "limits#adc_range", "smallest_lesion_mm3", "network_def#features", "$x", "dataset#data",
    ],
    "adc": ["images", "output_file", "b_values", "adc_scale"],
    "check": ["dataset_dir", "report_file", "patient_pattern"],
    "folds": ["dataset_dir", "num_folds", "output_file", "seed"], "zscore": ["adc", "output_file", "atlas_dir"],
}  # fmt: skip


def options(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Commands with one or two options of a hostile text, in this process."""
    from scripts.cli import main

    rng, found, wrong = random.Random(seed), Counter[str](), []
    adc, zadc = pairs(cohort(folder))[0]
    work = folder / "options"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    here = Path.cwd()
    os.chdir(work)
    try:
        for number in _numbers(count):
            command = rng.choice(list(WORDS))
            words = [command, *((str(adc), str(zadc), "-o", "out/m.nii.gz") if command == "segment" else ())]
            for name in rng.sample(WORDS[command], rng.choice([1, 1, 2])):
                words.append(f"--{name}={rng.choice(TEXTS)}")
            said = io.StringIO()
            outcome = "done"
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    main([word for word in words if "\0" not in word])
            except SystemExit as end:
                outcome = "refused" if end.code else "done"
            except BaseException as error:
                outcome = f"traceback: {type(error).__name__}: {str(error)[:80]}"
            if "Traceback" in said.getvalue():
                outcome = "traceback printed"
            if "\x1b[31m" in said.getvalue() or "\u202e" in said.getvalue():
                outcome = "escape printed"
            if list(folder.rglob("PWNED")):
                outcome = "code ran"
            found[outcome] += 1
            if outcome not in ("done", "refused"):
                wrong.append({"number": number, "words": [word[:120] for word in words[1:]], "outcome": outcome})
            left = [path for path in work.rglob(".*") if path.is_file()]
            if left:
                wrong.append({"number": number, "left": [str(path.relative_to(work)) for path in left]})
                for path in left:
                    path.unlink()
    finally:
        os.chdir(here)
    return {"found": dict(found), "wrong": wrong}


# --- kills ---------------------------------------------------------------------------------------------------------


class _Started:
    """``python -m WORDS`` in a folder, forked from a process that has imported MONAI; output goes to ``log.txt``."""

    def __init__(self, words: Sequence[str], cwd: Path, disk: str = "") -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "no_proxy": "*", "HIE_DISK": disk}
        self.log = cwd / "log.txt"
        if not (cwd / "hie_bundle").exists():
            (cwd / "hie_bundle").symlink_to(BUNDLE)
        given = (words[0], list(words[1:]), str(cwd), str(self.log), environment)
        self.process = _FORKSERVER.Process(target=_child, args=given)
        self.process.start()

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def _child(module: str, arguments: list[str], cwd: str, log: str, environment: dict[str, str]) -> None:
    out = Path(cwd, "out")
    if disk := environment.pop("HIE_DISK"):
        if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS: mounts of this process alone
            raise OSError(ctypes.get_errno(), "mounts need root")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", disk, "tmpfs", str(out)], check=True)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    try:
        become(module, arguments, cwd, environment)
    except KeyboardInterrupt:  # multiprocessing would print it itself
        sys.excepthook(*sys.exc_info())
        raise SystemExit(130) from None
    finally:
        if disk:
            hidden = [path.name for path in out.rglob(".*")]
            Path(cwd, "left.txt").write_text("\n".join(hidden))


def _weights(folder: Path) -> Path:
    """Weights of a small network, trained for one epoch."""
    if not (folder / "weights" / "model.pt").exists():
        (folder / "weights").mkdir(exist_ok=True)
        words = _bundle(
            "training", "train.yaml", **TINY, epochs=1, dataset_dir=cohort(folder), ckpt_dir=".", output_dir="logs"
        )
        assert _Started(words, folder / "weights").wait() == 0
    return folder / "weights" / "model.pt"


def _segment(folder: Path) -> list[str]:
    options = [f"--{name}={TINY[name]}" for name in ("spatial_size", "features", "device")]
    inputs = str(cohort(folder) / "BONBID2023_Test")
    return [
        "hie_bundle",
        "segment",
        inputs,
        "-o",
        "out",
        "--weights",
        str(_weights(folder)),
        "--recipe=paper",
        *options,
    ]


def _bundle(run_id: str, config: str, **given: Any) -> list[str]:
    words = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["monai.bundle", "run", run_id, "--config_file", str(BUNDLE / "configs" / config), *words]


def _dicom(folder: Path) -> Path:
    """Images with b = 0 and 1000 s/mm² of a simulated newborn, as a Philips scanner writes them."""
    place = folder / "dicom"
    if not place.is_dir():
        from head_cases import head_of
        from scanner_cases import Study

        from scripts.phantom.case import simulate_case
        from scripts.phantom.settings import Settings

        settings = Settings(matrix_sizes=(64,), slice_range=(20, 20), fine_mm=3.0, atlas_step_mm=3.0, num_healthy=4)
        head = head_of(simulate_case(0, 0, settings, counterfactual=True))
        study = Study(place, "Philips Medical Systems")
        for number, (b, image) in enumerate({0: head.b0, 1000: head.b1000}.items(), start=3):
            study.series(number, image * 2.0, head.affine, b_value=b, slope=0.5, scale=4.0)
    return place


def _archive(folder: Path) -> tuple[Path, str]:
    import hashlib

    place = folder / "served" / "BONBID2023_Train.zip"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        shutil.make_archive(str(place.with_suffix("")), "zip", cohort(folder), "BONBID2023_Train")
    return place, hashlib.sha256(place.read_bytes()).hexdigest()


class _Slowly(SimpleHTTPRequestHandler):
    """A server that takes its time, so that a kill meets a download; it honours ranges."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        with contextlib.suppress(OSError):
            for at in range(start, len(data), 1 << 14):
                self.wfile.write(data[at : at + (1 << 14)])
                time.sleep(0.02)


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill commands at random moments, start them again, and compare with what an unkilled one gave."""
    rng, found, wrong = random.Random(seed), Counter[str](), []
    data = cohort(folder)
    place, sha256 = _archive(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Slowly, directory=str(place.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    work = folder / "kills"
    shutil.rmtree(work, ignore_errors=True)
    commands = {
        "fine-tuning": _bundle(
            "training", "train.yaml", resume=True, ckpt_dir="out", output_dir="out/logs",
            init_weights=_weights(folder), dataset_dir=data, **{**TINY, "epochs": 2, "seed": 1},
        ),
        "download": _bundle("download", "data.yaml", dataset_dir="out", splits="[train]", pause_s=0.1,
                            base_url=f"http://127.0.0.1:{server.server_port}", **{"archives#train#sha256": sha256}),
        "segment": [*_segment(folder), "--shard", "1/1"],
        "preprocessing": _bundle("preprocessing", "data.yaml", dataset_dir=data, output_dir="out", format="nnunet"),
        "scan": ["hie_bundle", "scan", str(_dicom(folder)), "-o", "out"],
    }  # fmt: skip
    whole: dict[str, Any] = {}
    for name, words in commands.items():
        cwd = work / f"{name}_whole"
        cwd.mkdir(parents=True)
        begun = time.monotonic()
        status = _Started(words, cwd).wait()
        whole[name] = (time.monotonic() - begun, _content(cwd / "out"))
        if status:
            wrong.append(
                {"command": name, "outcome": f"unkilled: {status}", "log": (cwd / "log.txt").read_text()[-500:]}
            )
    for number in _numbers(count):
        name = rng.choice(list(commands))
        cwd = work / f"{number}_{name}"
        cwd.mkdir()
        number_of = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        process = _Started(commands[name], cwd)
        if process.wait(rng.uniform(0.3, 1.0) * whole[name][0]) is None:
            os.kill(process.process.pid, number_of)  # type: ignore[arg-type]
        process.wait()
        status = _Started(commands[name], cwd).wait()
        log, outcome = process.text(), "as if nothing had happened"
        if status and "holds a finished training" not in log and "out already exists" not in log:
            outcome = f"started again: exit {status}: {log[-300:]}"
        elif "Traceback" in log:
            outcome = f"traceback: {log[log.index('Traceback') :][:300]}"
        elif (content := _content(cwd / "out")) != whole[name][1]:
            outcome = f"differs: {sorted(set(content.items()) ^ set(whole[name][1].items()))[:4]}"
        elif left := [path.name for path in cwd.rglob(".*") if path.name != ".download.json"]:
            outcome = f"left: {left}"
        found[outcome if outcome.startswith("as if") else "wrong"] += 1
        if not outcome.startswith("as if"):
            wrong.append({"number": number, "command": name, "signal": number_of.name, "outcome": outcome})
        shutil.rmtree(cwd)
    server.shutdown()
    return {"found": dict(found), "wrong": wrong}


def _content(folder: Path) -> dict[str, str]:
    """Hashes of what a command wrote, but for times and logs; of weights the tensors alone."""
    import hashlib

    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix in (".log", ".jsonl", ".csv") or "events.out" in name:
            continue
        if path.name in ("run.json", "resume_state.pt", "datalist.json", "preprocessing.json", "scan.json"):
            found[name] = "there"
        elif path.suffix == ".dcm":  # each has identifiers of its own
            import pydicom

            found[name] = hashlib.sha256(pydicom.dcmread(path).PixelData).hexdigest()
        elif path.suffix == ".pt":
            import torch

            model = torch.load(path, weights_only=True)["model"]
            found[name] = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.values())).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --- disks ---------------------------------------------------------------------------------------------------------


def disks(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Outputs on disks that are full after some kilobytes, read-only, or gone (Linux, in a namespace of mounts)."""
    rng, found, wrong = random.Random(seed), Counter[str](), []
    data = cohort(folder)
    work = folder / "disks"
    shutil.rmtree(work, ignore_errors=True)
    tiny = {**TINY, "epochs": 1}
    commands = {
        "segment": [*_segment(folder), "--probabilities"],
        "preprocessing": _bundle("preprocessing", "data.yaml", dataset_dir=data, output_dir="out/x", format="nnunet"),
        "phantom": _bundle("phantom", "data.yaml", output_dir="out", num_train=2, num_val=1, num_test=1, num_workers=1,
                           matrix_sizes="[36,44]", slice_range="[10,14]", fine_mm=4.0, num_healthy=4),
        "training": _bundle("training", "train.yaml", **tiny, dataset_dir=data, ckpt_dir="out", output_dir="x"),
    }  # fmt: skip
    for number in _numbers(count):
        name, how = rng.choice(list(commands)), rng.choice(["size=16k", "size=64k", "size=160k", "ro"])
        cwd = work / str(number)
        (cwd / "out").mkdir(parents=True)
        run = _Started(commands[name], cwd, how)
        status, text = run.wait(), run.text()
        outcome = "refused" if status else "done"
        if "Traceback" in text:
            outcome = f"traceback: {text[text.index('Traceback') :][-400:]}"
        elif status and not any("out" in line for line in text.splitlines()[-5:]):
            outcome = f"no place named: {text[-300:]}"
        elif left := (cwd / "left.txt").read_text().split():
            outcome = f"left: {left}"
        found[outcome.partition(":")[0]] += 1
        if outcome not in ("refused", "done"):
            wrong.append({"number": number, "command": name, "how": how, "outcome": outcome})
    return {"found": dict(found), "wrong": wrong}


def _numbers(count: int) -> Iterator[int]:
    """As many as asked for, or as there is time for."""
    for number in range(count):
        if time.monotonic() > _LIMIT[0]:
            return
        yield number


def gate(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Processor time of the check of one case of 176 × 176 × 37 voxels, with its label, read from three files."""
    from scipy import ndimage

    from scripts.data.checks import read_case
    from scripts.data.layout import find_cases
    from scripts.io.images import write
    from scripts.io.volumes import read_volume

    found: dict[str, list[float]] = {}
    for extension in (".mha", ".nii.gz"):
        case = random.Random(seed).choice(find_cases(cohort(folder)))
        files = {}
        for part in ("adc", "zadc", "label"):
            volume = read_volume(getattr(case, part))
            zoom = np.divide((176, 176, 37), volume.array.shape)
            array = ndimage.zoom(volume.array, zoom, order=0, grid_mode=True, mode="nearest")
            files[part] = str(folder / f"gate_{part}{extension}")
            write(files[part], array, volume.affine @ np.diag([*(1 / zoom), 1]))
        for _ in range(count):
            begun = time.process_time()
            report, _ = read_case("case", files)
            found.setdefault(extension, []).append(round(time.process_time() - begun, 3))
        assert report.shape == [176, 176, 37]
    return {"found": Counter({name: len(times) for name, times in found.items()}), "cpu_s": found}


PARTS = {"inputs": inputs, "dicom": dicom, "options": options, "kills": kills, "disks": disks, "gate": gate}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then, with fewer attempts")
    parser.add_argument("--folder", type=Path, required=True, help="for the cohort and what is tried; made if needed")
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    begun = time.monotonic()
    _LIMIT[0] = begun + given.seconds
    result = PARTS[given.part](folder, given.count, given.seed)
    print(
        json.dumps(
            {
                "part": given.part,
                "count": sum(result["found"].values()),
                "seed": given.seed,
                **result,
                "s": round(time.monotonic() - begun),
            }
        )
    )


if __name__ == "__main__":
    main()
