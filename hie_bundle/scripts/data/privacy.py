"""Pseudonyms of cases in all results: keyed hashes, irreversible without the key."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..runtime.errors import DatasetError
from ..runtime.redaction import replace_in_kept_messages
from .folds import patient_of
from .layout import item_files

LEAST_KEY = 16  # bytes; case ids can be guessed, so the key must be long


def pseudonyms(
    cases: Iterable[str], key_file: str | Path, files: Iterable[str | Path] = (), output_dir: str | Path | None = None
) -> dict[str, str]:
    """Pseudonym by case id: ``case-`` and the first 12 hexadecimal digits of HMAC-SHA256 (RFC 2104) of the id.

    If the id contains patient and visit (:func:`.patient_of`), the pseudonym is the patient's hash, ``_ses-`` and 8
    digits of the case's hash, so that scans of one patient stay in one fold.

    Args:
        cases: case ids.
        key_file: the secret, at least 16 bytes without surrounding white space; created, readable by the owner only,
            if missing.
        files: files of the cases; their folders are removed from stored messages.
        output_dir: folder of the results, which may be shared; it must not contain the key.

    Raises:
        DatasetError: the key cannot be read or created, is too short, readable by others, or inside ``output_dir``.
    """
    key = _key(key_file, output_dir)

    def digits(name: str) -> str:
        return hmac.new(key, name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()

    patients = {case: patient_of(case) for case in cases}
    names = {
        case: f"case-{digits(patient)[:12]}" + (f"_ses-{digits(case)[:8]}" if patient != case else "")
        for case, patient in patients.items()
    }
    replace_in_kept_messages(names, files)
    return names


def pseudonymised(items: Sequence[Mapping[str, Any]], key_file: str | Path) -> list[dict[str, Any]]:
    """The items with pseudonyms as ids, sorted by pseudonym, since the original order could identify cases."""
    files = [file for item in items for file in item_files(item).values()]
    names = pseudonyms([str(item["case"]) for item in items], key_file, files)
    renamed = [{**item, "case": names[str(item["case"])], "original_id": str(item["case"])} for item in items]
    return sorted(renamed, key=lambda item: item["case"])


def original_id(item: Mapping[str, Any]) -> str:
    """The case id in the file names."""
    return str(item.get("original_id", item["case"]))


def refuse_key_in(folder: str | Path, key_file: Any) -> None:
    """Raise a DatasetError for a key file (None: no key) in a folder of results, which users share."""
    if key_file is not None and Path(folder).resolve() in Path(str(key_file)).resolve().parents:
        raise DatasetError(f"The key file {key_file} of --anonymise_ids is inside the results in {folder}; move it.")


def _key(key_file: Any, output_dir: str | Path | None) -> bytes:
    if not isinstance(key_file, str | os.PathLike) or str(key_file).lower() in ("", "true", "false", "none"):
        raise DatasetError(
            f"--anonymise_ids needs the path of a key file, not {key_file!r}; a missing file is created."
        )
    path, the_file = Path(key_file), f"The key file {key_file} of --anonymise_ids"
    if output_dir is not None:
        refuse_key_in(output_dir, path)
    try:
        if not path.exists():
            _make(path)
        if not path.is_file():  # reading a device may not end
            raise DatasetError(f"{the_file} is not a regular file.")
        key, mode = path.read_bytes().strip(), path.stat().st_mode
    except OSError as error:
        raise DatasetError(f"{the_file} cannot be read or created ({error.strerror}).") from error
    if os.name == "posix" and mode & 0o077:
        raise DatasetError(f"{the_file} can be read by others: chmod 600 {path}.")
    if len(key) < LEAST_KEY:
        raise DatasetError(f"{the_file} has {len(key)} bytes; it needs at least {LEAST_KEY}.")
    return key


def _make(path: Path) -> None:
    """Create the key atomically, readable by the owner only; one of several processes succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
    try:
        with suppress(FileExistsError):
            os.link(file.name, path)
    finally:
        Path(file.name).unlink()
