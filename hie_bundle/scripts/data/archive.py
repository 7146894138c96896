"""Unpacking an archive safely, and telling later whether everything that was in it is still there."""

from __future__ import annotations

import errno
import json
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..io.files import write_json

__all__ = ["MANIFEST", "ArchiveError", "differences", "unpack"]

MANIFEST = ".download.json"
_CHUNK = 1 << 20


class ArchiveError(ValueError):
    """An archive that must not be unpacked, or cannot be."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into a folder that does not exist yet; the folder is there whole, or not at all.

    A single top folder in the archive is skipped. A manifest with every file's size and CRC-32 is written beside the
    files, for ``differences``.

    Args:
        archive: the zip file.
        folder: what to make.

    Raises:
        ArchiveError: it is not a zip file, is damaged, or contains an entry outside its folder.
        OSError: writing failed.
    """
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = _safe_members(file)
            top = {path.parts[0] for path in members}
            skip = 1 if len(top) == 1 and all(len(path.parts) > 1 for path in members) else 0
            manifest = {}
            total = sum(info.file_size for info in members.values())
            if total > shutil.disk_usage(folder.parent).free:
                raise OSError(errno.ENOSPC, "not enough room", str(folder))
            with tqdm(total=total, **_bar(folder.name)) as bar:
                for path, info in members.items():
                    inside = PurePosixPath(*path.parts[skip:])
                    target = temporary / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(info) as source, target.open("xb") as sink:
                        while chunk := source.read(_CHUNK):  # never more than the declared size; checks the CRC
                            sink.write(chunk)
                            bar.update(len(chunk))
                    if target.stat().st_size != info.file_size:
                        raise ArchiveError(f"its member {path} is shorter than declared")
                    manifest[str(inside)] = [info.file_size, info.CRC]
        write_json(temporary / MANIFEST, manifest)
        temporary.replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(f"it cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _safe_members(file: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files to unpack, by their path, without those that macOS adds.

    The archive is the one that was published, its hash says so; what is refused would do harm even then.
    """
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in file.infolist():
        name = info.orig_filename
        path = PurePosixPath(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not path.parts:
            raise ArchiveError(f"its member {name!r} would lie outside the folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"its member {name!r} is a link or a device")
        if info.is_dir() or "__MACOSX" in path.parts or path.name == ".DS_Store":
            continue
        members[path] = info
    if not members:
        raise ArchiveError("it is empty")
    return members


def differences(folder: Path) -> list[str]:
    """Files that are no longer as they were unpacked.

    Args:
        folder: made by ``unpack``.

    Returns:
        A line for each such file.

    Raises:
        FileNotFoundError: the folder has no manifest, so nothing is known about it.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    lines = []
    with tqdm(total=sum(size for size, _ in manifest.values()), **_bar(f"verifying {folder.name}")) as bar:
        for name, (size, crc) in manifest.items():
            path = folder / name
            if not path.is_file():
                lines.append(f"{path} is missing")
            elif path.stat().st_size != size or _crc(path) != crc:
                lines.append(f"{path} was changed")
            bar.update(size)
    return lines


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _bar(what: str) -> dict[str, object]:
    return {"desc": what, "unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}
