"""Other names for cases, in everything that is written: a keyed hash, which nobody without the key leads back."""

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
from ..runtime.redaction import _replaced
from .patients import patient_of

__all__ = [
    "own_name",
    "pseudonymised",
    "pseudonyms",
]

LEAST_KEY = 16  # bytes; ids of cases can be guessed, so the key must not be


def pseudonyms(cases: Iterable[str], key_file: str | Path) -> dict[str, str]:
    """Another id for each case: ``case-`` and the first 12 hexadecimal digits of HMAC-SHA256 (RFC 2104) of its own.

    Of a case whose name tells the patient from the visit (:func:`.patient_of`) they are the patient's,
    and ``_ses-`` with 8 digits of the case follows: scans of one patient stay known as such, in folds for one.

    Args:
        cases: ids.
        key_file: the secret, 16 bytes or more, white space at its ends left out; made if it is not there, for its
            owner alone.

    Raises:
        DatasetError: the file cannot be read or made, or is too short.
    """
    key = _key(Path(key_file))

    def digits(name: str) -> str:
        return hmac.new(key, name.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()

    patients = {case: patient_of(case) for case in cases}
    names = {
        case: f"case-{digits(patient)[:12]}" + (f"_ses-{digits(case)[:8]}" if patient != case else "")
        for case, patient in patients.items()
    }
    _replaced.update(names)
    return names


def pseudonymised(items: Sequence[Mapping[str, Any]], key_file: str | Path) -> list[dict[str, Any]]:
    """The items under other case ids (:func:`pseudonyms`).

    Args:
        items: MONAI data items with ``case``.
        key_file: see there.

    Returns:
        The items, in the order of their new ids, which tells nothing either; the old id is kept in ``own_name``.

    Raises:
        DatasetError: the file cannot be read or made, or is too short.
    """
    names = pseudonyms([str(item["case"]) for item in items], key_file)
    renamed = [{**item, "case": names[str(item["case"])], "own_name": str(item["case"])} for item in items]
    return sorted(renamed, key=lambda item: item["case"])


def own_name(item: Mapping[str, Any]) -> str:
    """The id that a case has in its files."""
    return str(item.get("own_name", item["case"]))


def _key(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise DatasetError(f"The key of --anonymise_ids, {os.fspath(path)}: {error.strerror}.") from error
    if len(key) < LEAST_KEY:
        raise DatasetError(f"The key of --anonymise_ids in {path} has {len(key)} bytes; {LEAST_KEY} are the least.")
    return key


def _make(path: Path) -> None:
    """Of several processes that make it at once, one does; nobody sees a part of it, or may read it but its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
    try:
        with suppress(FileExistsError):
            os.link(file.name, path)
    finally:
        Path(file.name).unlink()
