"""Files written whole or not at all, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there two processes that want one lock are not told apart
    fcntl = None  # type: ignore[assignment]


__all__ = [
    "atomic_path", "clean", "seen_from", "sha256_of", "take_lock", "try_writing", "whole_folder", "write_atomically",
    "write_json",
]  # fmt: skip

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, with its extension, that takes its name when the block ends without an error.

    Args:
        path: the file to be; its folder is made if needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:  # of a full disk the system does not say which file was written
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def try_writing(folder: str | Path, remedy: str = "nothing was started") -> None:
    """Stop before anything is computed that could not be written; the folder is made if needed.

    Args:
        folder: of results.
        remedy: what else to say.

    Raises:
        UserError: when no file can be written there.
    """
    probe = Path(folder) / f".{uuid.uuid4().hex[:8]}.probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}); {remedy}.") from error


def clean(folder: Path) -> None:
    """Remove what :func:`atomic_path` left in a folder when its process was killed. Nobody else may work there."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path, left: str) -> Iterator[Path]:
    """A folder beside ``path`` that takes its name when the block ends without an error.

    After a :class:`UserError` ``path`` has the files with the extension ``left`` alone (the pictures to see why), if
    there are any; its message names ``path`` for the temporary folder.

    Args:
        path: must not be there yet, but for what a refusal left.
        left: extension, with its dot.

    Raises:
        UserError: when it is.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(one.suffix != left for one in folder.iterdir())):
        raise UserError(f"{folder} is there already; name another folder for the results.")
    work = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
    work.mkdir(parents=True)

    def take_place() -> None:
        if folder.exists():  # what an earlier refusal left
            shutil.rmtree(folder)
        work.rename(folder)

    try:
        try:
            yield work
        except UserError as error:
            for one in work.iterdir():
                if one.suffix != left:
                    one.unlink()
            if any(work.iterdir()):
                take_place()
            raise UserError(str(error).replace(str(work), str(folder))) from error
        take_place()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a text or bytes, replacing what was there at once.

    The text becomes UTF-8; what UTF-8 has no bytes for, such as parts of file names in other encodings, is written as
    ``\\udcff``, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def seen_from(path: str | Path, folder: str | Path) -> str:
    """Name a path for a file in ``folder``: relative, if it is there or in a sibling folder, else the name alone."""
    path, folder = Path(path).absolute(), Path(folder).absolute()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else path.name


def write_json(path: str | Path, data: Any, indent: int | None = None) -> None:
    """Write ``data`` as JSON, replacing what was there at once."""
    write_atomically(path, json.dumps(data, indent=indent, ensure_ascii=False) + "\n")


def take_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file, which lasts until all who have inherited it have closed it.

    Returns:
        False if another process has it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sha256_of(*paths: str | Path) -> str:
    """SHA-256 of a file's content, or of several files' one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
