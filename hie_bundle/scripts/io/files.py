"""Files: atomic writing, locks, hashes, and change detection."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from ..runtime.errors import UserError
from ..runtime.interruption import interruption

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")
_locks: dict[Path, int] = {}
_expected: dict[str, list[int]] = {}  # stamp by file; loading processes inherit it


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, with its extension; renamed to ``path`` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:  # the system does not name the file if the disk is full
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def try_writing(folder: str | Path, remedy: str = "nothing was started") -> None:
    """Create a folder if needed; raise a UserError with the remedy if it is not writable."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".") as probe:
            probe.write(b"0")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}); {remedy}.") from error


def clean(folder: Path) -> None:
    """Remove temporary files of killed processes (:func:`atomic_path`) from a folder that no other process uses."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def clean_beside(files: Iterable[Path]) -> None:
    """Remove temporary files of :func:`atomic_path` next to these files, which no other process may be writing."""
    for file in files:
        for path in file.parent.glob(f".????????.{glob.escape(file.name)}"):
            path.unlink(missing_ok=True)


@contextmanager
def hidden_folder(path: str | Path) -> Iterator[Path]:
    """A private folder next to ``path``, removed at the end of the block, and at SIGTERM and SIGHUP.

    Signals that are ignored or handled are left alone (SIGHUP under ``nohup``). Folders of killed processes for the
    same ``path`` are removed first; a lock protects folders in use.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for lock in path.parent.glob(f".????????.{glob.escape(path.name)}/{_LOCK}"):
        with suppress(UserError, OSError):  # in use, another user's, or removed
            take_lock(lock, f"{lock.parent} is in use.")
            shutil.rmtree(lock.parent, ignore_errors=True)
            release_lock(lock)
    work = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    work.mkdir(mode=0o700)
    fatal = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    fatal = [number for number in fatal if signal.getsignal(number) == signal.SIG_DFL]

    def remove() -> None:
        while work.exists():  # the main thread may be writing
            shutil.rmtree(work, ignore_errors=True)

    with interruption(lambda: "Nothing was written.", remove, fatal, grace_s=0):
        try:
            take_lock(work / _LOCK, f"{work} is in use.")
            yield work
        finally:
            release_lock(work / _LOCK)
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def whole_folder(path: str | Path, left: str) -> Iterator[Path]:
    """A hidden folder that is renamed to ``path`` if the block succeeds.

    After a :class:`UserError`, ``path`` has only the files with the extension ``left`` (pictures of the problem).

    Raises:
        UserError: ``path`` exists and contains other files.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(one.suffix != left for one in folder.iterdir())):
        raise UserError(f"{folder} already exists; choose another folder for the results.")

    def take_place(work: Path) -> None:
        if folder.exists():  # pictures of an earlier error
            shutil.rmtree(folder)
        release_lock(work / _LOCK)
        (work / _LOCK).unlink(missing_ok=True)
        folder.mkdir()  # with the user's default permissions
        work.chmod(folder.stat().st_mode)
        work.replace(folder)

    with hidden_folder(folder) as work:
        try:
            yield work
        except UserError as error:
            for one in work.iterdir():
                if one.suffix != left:
                    one.unlink()
            if any(work.iterdir()):
                take_place(work)
            raise UserError(str(error).replace(str(work), str(folder))) from error
        take_place(work)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Replace a file's content atomically.

    Text becomes UTF-8; surrogates (file names in other encodings) are written as ``\\udcff``, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def seen_from(path: str | Path, folder: str | Path) -> str:
    """A path relative to ``folder`` if it is below the folder or its parent; else only the file name."""
    path, folder = Path(path).absolute(), Path(folder).absolute()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else path.name


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    """Replace a file's content with ``data`` as JSON, atomically."""
    write_atomically(path, json.dumps(data, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing, damaged, or holds another type."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def take_lock(path: str | Path, busy: str, again: bool = False) -> int:
    """Lock a file until :func:`release_lock` or the end of this process; return its descriptor.

    Processes that inherit the descriptor also hold the lock, except forked loaders.

    Args:
        path: created if needed.
        busy: message of the UserError if the lock is taken.
        again: accept a lock that this process already holds.
    """
    path = Path(path).absolute()
    if path in _locks and not again:
        raise UserError(busy)
    while path not in _locks:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        taken = lock_descriptor(file, blocking=False)
        # its last owner may have removed it meanwhile
        if taken and path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            _locks[path] = file
            break
        os.close(file)
        if not taken:
            raise UserError(busy)
    return _locks[path]


def release_lock(path: str | Path, remove: bool = False) -> None:
    """Release a lock if this process holds it; with ``remove`` delete its file, and the folder if empty."""
    path = Path(path).absolute()
    if (file := _locks.pop(path, None)) is None:
        return
    if remove:
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()
    os.close(file)


def _forget_locks() -> None:
    for path in list(_locks):
        release_lock(path)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def stamp_of(path: str | Path) -> list[int]:
    """Size, modification and change times, and inode of a file."""
    status = Path(path).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def expect_unchanged(stamps: Mapping[str, list[int]] | None) -> None:
    """Register the stamps of checked files for :func:`refuse_changed`; None clears them at the end of a run."""
    _expected.update(stamps or {})
    if stamps is None:
        _expected.clear()


def is_expected(path: str | Path) -> bool:
    """Whether the run in this process has checked a file."""
    return str(path) in _expected


def refuse_changed(path: str | Path) -> None:
    """Raise a UserError if a file changed after its check."""
    expected = _expected.get(str(path))
    if expected is not None and stamp_of(path) != expected:
        raise UserError(f"{path} was changed or replaced after it was checked. Run the command again.")


def sha256_of(*paths: str | Path) -> str:
    """Hexadecimal SHA-256 of the content of one file or several; cached for unchanged files."""
    return _hash(tuple((str(path), *stamp_of(path)) for path in paths))


@lru_cache(maxsize=10_000)
def _hash(files: Sequence[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
