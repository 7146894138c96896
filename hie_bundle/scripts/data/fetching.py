"""Fetching BONBID-HIE: resumable, verified before unpacking, complete or not there."""

from __future__ import annotations

import errno
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ..io.files import sha256_of
from ..runtime.errors import DatasetError
from .archive import MANIFEST, ArchiveError, differences, unpack
from .layout import SPLITS, find_cases

__all__ = ["download"]

_CHUNK = 1 << 18


class _Broken(Exception):
    """The connection ended early or could not be made; another try may go on from there."""


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
    """Fetch, verify and unpack the archives of some splits.

    A broken download stays in ``dataset_dir`` as a hidden ``.part`` file, from which the next call continues. A split's
    folder appears at once when everything in it is verified.

    Args:
        dataset_dir: gets a folder per split, named like its archive.
        base_url: folder of the archives, http or https.
        archives: ``name`` and ``sha256`` of each split's archive.
        splits: which of them, as a list or separated by commas.
        terms: where the data's terms of use are; printed.
        tries: how often a connection is made without a single byte's progress.
        pause_s: seconds between two of these, doubled each time, at most 30.
        timeout_s: seconds without any data after which a connection counts as broken.
        max_archive_bytes: largest archive.

    Raises:
        DatasetError: no connection, wrong checksum, unsafe archive, full disk, or another folder in the way.
    """
    wanted = [split.strip() for split in splits.split(",")] if isinstance(splits, str) else list(splits)
    unknown = [split for split in wanted if split not in archives]
    if unknown or not wanted:
        raise DatasetError(
            f"There is no split {', '.join(unknown) or '(none given)'}; choose of {', '.join(archives)}."
        )
    if not base_url.startswith(("http://", "https://")):
        raise DatasetError(f"base_url must start with http:// or https://, but is {base_url}.")
    if terms:
        print(f"Terms of use: {terms}")
    root = Path(dataset_dir)
    for split in wanted:
        name, sha256 = archives[split]["name"], archives[split]["sha256"].lower()
        folder = root / Path(name).stem
        if _is_there(folder):
            print(f"{folder}: already there and verified")
            continue
        part = root / f".{name}.part"
        try:
            root.mkdir(parents=True, exist_ok=True)
            _fetch(f"{base_url.rstrip('/')}/{name}", part, sha256, tries, pause_s, timeout_s, max_archive_bytes)
            unpack(part, folder)
        except ArchiveError as error:
            raise DatasetError(f"{name} was fetched to {part}, but {error}. Nothing was unpacked.") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DatasetError(
                    f"The disk of {root} is full. Make room and run the command again; it goes on where it stopped."
                ) from error
            raise DatasetError(f"{error.filename or root} cannot be written ({error.strerror or error}).") from error
        part.unlink()
        cases = find_cases(folder)
        print(f"{folder}: {len(cases)} cases, verified")


def _is_there(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        lines = differences(folder)
    except (OSError, ValueError, TypeError):
        lines = [f"it was not made by this command (no {MANIFEST} in it that can be read)"]
    if lines:
        more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
        raise DatasetError(
            f"{folder} is there, but cannot be verified. Move it away and run the command again to fetch it anew.\n  "
            + "\n  ".join(lines[:10] + more)
        )
    return True


def _fetch(url: str, part: Path, sha256: str, tries: int, pause_s: float, timeout_s: float, max_bytes: int) -> None:
    """Complete ``part`` and compare its checksum; what does not match is removed."""
    resumed = part.exists() and part.stat().st_size > 0
    if resumed and sha256_of(part) == sha256:  # complete, but not unpacked: the disk was full, say
        return
    _complete(url, part, tries, pause_s, timeout_s, max_bytes)
    found = sha256_of(part)
    if found != sha256 and resumed:  # what was there may have been of another file
        part.unlink()
        _complete(url, part, tries, pause_s, timeout_s, max_bytes)
        found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise DatasetError(
            f"{url} is not the file it should be: its sha256 is {found}, not {sha256}. It was removed again. "
            "Try later, or another base_url."
        )


def _complete(url: str, part: Path, tries: int, pause_s: float, timeout_s: float, max_bytes: int) -> None:
    left, wait_s = tries, pause_s
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _transfer(url, part, timeout_s, max_bytes)
        except _Broken as error:
            after = part.stat().st_size if part.exists() else 0
            left, wait_s = (tries, pause_s) if after > before else (left - 1, wait_s * 2)
            if left <= 0:
                kept = f" {after} bytes are kept; the same command goes on from there." if after else ""
                raise DatasetError(f"{url} cannot be fetched: {error}.{kept}") from error
            time.sleep(min(wait_s, 30.0))


def _transfer(url: str, part: Path, timeout_s: float, max_bytes: int) -> None:
    """One connection: append to ``part`` what it lacks, or begin anew if the server cannot resume."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            resumes = response.status == 206 and _range_start(response) == have
            if have and not resumes:
                if response.status == 206:  # some other part of the file
                    part.unlink()
                    raise _Broken("the server resumes at another place")
                have = 0
            length = response.headers.get("Content-Length")
            missing = int(length) if length and length.isdigit() else None
            if have + (missing or 0) > max_bytes:
                raise DatasetError(f"{url} has {have + (missing or 0)} bytes; at most {max_bytes} are fetched.")
            if missing is not None and missing > shutil.disk_usage(part.parent).free:
                raise OSError(errno.ENOSPC, "not enough room", str(part))
            with part.open("ab" if have else "wb") as sink:
                received = _copy(response, sink, have, missing, part.name.strip("."), max_bytes, url)
            if missing is not None and received < missing:
                raise _Broken(f"the connection ended after {have + received} of {have + missing} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file is another one
            if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
                part.unlink()
                raise _Broken("the server's file is shorter than what was there") from error
            return
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(f"the server answers {error.code} {error.reason}") from error
        raise DatasetError(f"{url} cannot be fetched: the server answers {error.code} {error.reason}.") from error
    except urllib.error.URLError as error:
        raise _Broken(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:  # before the first byte
        raise _Broken(f"no answer ({type(error).__name__})") from error


def _range_start(response: http.client.HTTPResponse) -> int | None:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _copy(
    response: IO[bytes], sink: IO[bytes], have: int, missing: int | None, name: str, max_bytes: int, url: str
) -> int:
    """Copy the response to the file; the number of bytes received."""
    received = 0
    total = None if missing is None else have + missing
    with tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(f"the connection broke ({type(error).__name__})") from error
            if not chunk:
                break
            sink.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
            if have + received > max_bytes:
                raise DatasetError(f"{url} is larger than {max_bytes} bytes.")
    return received
