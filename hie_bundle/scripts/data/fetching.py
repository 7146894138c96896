"""Download of BONBID-HIE: resumable, verified, and complete or absent."""

from __future__ import annotations

import errno
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..io.files import read_json, sha256_of, write_json
from ..runtime.conditions import listed
from ..runtime.errors import DatasetError
from .layout import SPLITS, find_cases

MANIFEST = ".download.json"  # in a split's folder: size and CRC-32 of each file
_BAR = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": None}


class _Broken(Exception):
    """The connection failed or ended early; a retry may resume."""


def download(
    dataset_dir: str | Path,
    base_url: str,
    archives: Mapping[str, Mapping[str, str]],
    splits: str | Sequence[str] = SPLITS,
    terms: str = "",
    tries: int = 5,
    pause_s: float = 1.0,
    timeout_s: float = 60.0,
    max_archive_bytes: int = 16 << 30,
) -> None:
    """Download, verify and unpack the archives of some splits; ``configs/data.yaml`` describes the options.

    An incomplete download remains in ``dataset_dir`` as a hidden ``.part`` file, which the next call resumes. The
    folder of a split appears after all its files are verified.

    Raises:
        DatasetError: no connection, wrong checksum, unsafe archive, full disk, or a folder that cannot be verified.
    """
    wanted = [split.strip() for split in splits.split(",")] if isinstance(splits, str) else list(splits)
    unknown = [split for split in wanted if split not in archives]
    if unknown or not wanted:
        raise DatasetError(
            f"There is no split {', '.join(unknown) or '(none given)'}; choose one of {', '.join(archives)}."
        )
    if not base_url.startswith(("http://", "https://")):
        raise DatasetError(f"base_url must start with http:// or https://, but is {base_url}.")
    if terms:
        print(f"Terms of use: {terms}")
    root = Path(dataset_dir)
    for split in wanted:
        name, sha256 = archives[split]["name"], archives[split]["sha256"].lower()
        folder, part, url = root / Path(name).stem, root / f".{name}.part", f"{base_url.rstrip('/')}/{name}"
        if folder.exists():
            _require_unchanged(folder)
            print(f"{folder}: already downloaded and verified")
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            # an existing part may be complete (the disk was full on unpacking), or from another archive
            for attempt in range(2):
                resumed = _size(part) > 0
                if attempt or not resumed or sha256_of(part) != sha256:
                    _complete(url, part, tries, pause_s, timeout_s, max_archive_bytes)
                if (found := sha256_of(part)) == sha256:
                    break
                part.unlink()
                if not resumed:
                    raise DatasetError(
                        f"{url} is damaged or another file: its SHA-256 is {found}, not {sha256}. It was deleted. "
                        "Try again later, or set another base_url."
                    )
            _unpack(part, folder)
        except DatasetError:
            raise
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise DatasetError(f"{name} was fetched to {part}, but it cannot be unpacked ({error}).") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"The disk of {root} is full. Free some space and run the command again; it resumes."
            raise DatasetError(message) from error
        part.unlink()
        print(f"{folder}: {len(find_cases(folder))} cases, verified")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _complete(url: str, part: Path, tries: int, pause_s: float, timeout_s: float, max_bytes: int) -> None:
    """Download the rest of ``part``; give up after some tries without progress."""
    left, wait_s = tries, pause_s
    while True:
        before = _size(part)
        try:
            return _transfer(url, part, timeout_s, max_bytes)
        except _Broken as error:
            after = _size(part)
            left, wait_s = (tries, pause_s) if after > before else (left - 1, wait_s * 2)
            if left <= 0:
                kept = f" {after} bytes are kept; the same command resumes there." if after else ""
                raise DatasetError(f"{url} cannot be fetched: {error}.{kept}") from error
            time.sleep(min(wait_s, 30.0))


def _transfer(url: str, part: Path, timeout_s: float, max_bytes: int) -> None:
    """Append the rest to ``part`` by one connection, or start again if the server cannot resume."""
    import requests

    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
            status, range_of = response.status_code, response.headers.get("Content-Range", "")
            if status == 416 and have and range_of.rpartition("/")[2] == str(have):
                return  # nothing is missing
            if have and status in (206, 416) and not range_of.startswith(f"bytes {have}-"):
                part.unlink()
                raise _Broken("the file on the server has changed")
            if status in (408, 429) or status >= 500:
                raise _Broken(f"the server answers {status} {response.reason}")
            if status not in (200, 206):
                raise DatasetError(f"{url} cannot be fetched: the server answers {status} {response.reason}.")
            have = have if status == 206 else 0
            length = response.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            if (total or 0) > max_bytes:
                raise DatasetError(f"{url} has {total} bytes, more than the limit of {max_bytes}.")
            if total is not None and total - have > shutil.disk_usage(part.parent).free:
                raise OSError(errno.ENOSPC, "not enough room", str(part))
            response.raw.enforce_content_length = False  # keep a short response; its length is checked below
            bar = tqdm(total=total, initial=have, desc=part.name.strip("."), **_BAR)
            with bar, part.open("ab" if have else "wb", buffering=0) as sink:
                for chunk in response.iter_content(1 << 18):
                    have += sink.write(chunk)
                    bar.update(len(chunk))
                    if have > max_bytes:
                        raise DatasetError(f"{url} has more bytes than the limit of {max_bytes}.")
            if total is not None and have < total:
                raise _Broken(f"the connection ended after {have} of {total} bytes")
    except requests.RequestException as error:
        raise _Broken(f"no connection ({type(error).__name__})") from error


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip file into a new folder, with a manifest and without a single top folder."""
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as file:
            members = _members(file)
            top = {path.parts[0] for path in members}
            skip = 1 if len(top) == 1 and all(len(path.parts) > 1 for path in members) else 0
            total = sum(info.file_size for info in members.values())
            if total > shutil.disk_usage(folder.parent).free:
                raise OSError(errno.ENOSPC, "not enough room", str(folder))
            with tqdm(total=total, desc=folder.name, **_BAR) as bar:
                for path, info in members.items():  # zipfile reads no more than the declared size, and checks the CRC
                    if Path(file.extract(info, temporary)).stat().st_size != info.file_size:
                        raise ValueError(f"its member {path} is shorter than declared")
                    bar.update(info.file_size)
        inner = temporary / top.pop() if skip else temporary
        sizes = {str(PurePosixPath(*path.parts[skip:])): [i.file_size, i.CRC] for path, i in members.items()}
        write_json(inner / MANIFEST, sizes)
        inner.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(file: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files to unpack by path, without macOS metadata; refuse names that zipfile would change."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in file.infolist():
        name = info.orig_filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0") or not path.parts:
            raise ValueError(f"its member {name!r} would be outside the folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its member {name!r} is a link or a device")
        if not (info.is_dir() or "__MACOSX" in path.parts or path.name == ".DS_Store"):
            members[path] = info
    if not members:
        raise ValueError("it is empty")
    return members


def _require_unchanged(folder: Path) -> None:
    """Raise a DatasetError if files of an unpacked folder are missing or changed."""
    try:
        manifest = {name: (int(size), int(crc)) for name, (size, crc) in read_json(folder / MANIFEST).items()}
    except (TypeError, ValueError):
        manifest = {}
    lines = [] if manifest else [f"it was not created by this command (no readable {MANIFEST} in it)"]
    with tqdm(total=sum(size for size, _ in manifest.values()), desc=f"verifying {folder.name}", **_BAR) as bar:
        for name, (size, crc) in manifest.items():
            path = folder / name
            if not path.is_file():
                lines.append(f"{path} is missing")
            elif path.stat().st_size != size or zlib.crc32(path.read_bytes()) != crc:
                lines.append(f"{path} was changed")
            bar.update(size)
    if lines:
        message = f"{folder} exists, but cannot be verified. Move it away and run the command again to download it."
        raise DatasetError(f"{message}\n{listed([f'  {line}' for line in lines])}")
