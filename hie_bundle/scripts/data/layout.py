"""Layout of a dataset: folders and file names of BONBID-HIE, stacked files, and other cohorts."""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.volumes import extension_of
from ..runtime.errors import DatasetError
from ..runtime.text import is_printable

SPLITS = ("train", "val", "test")
MANIFEST = "preprocessing.json"  # in a folder that preprocessing wrote

_EXTENSION = r"\.(?:mha|nii|nii\.gz)"
_VOLUME = re.compile(rf"[^.].*{_EXTENSION}$", re.IGNORECASE | re.DOTALL)
_NAMES = {  # folder and name of a case's files in BONBID-HIE
    "adc": ("1ADC_ss", "{}-ADC_ss"),
    "zadc": ("2Z_ADC", "Zmap_{}-ADC_smooth2mm_clipped10"),
    "label": ("3LABEL", "{}_lesion"),
}
_PATTERNS = {
    **{part: re.compile(name.format("(.+)") + _EXTENSION, re.IGNORECASE) for part, (_, name) in _NAMES.items()},
    "stacked": re.compile(r"(.+)\.nii(?:\.gz)?", re.IGNORECASE),
}
_SPLIT_FOLDER = re.compile(r"(?:BONBID\d*[-_])?(train|val|test)(?:ing|idation)?", re.IGNORECASE)
_SITES = ("MGH", "BCH")  # folders of part II, below 1ADC_ss and 2Z_ADC
_BONBID_CASE = re.compile(r"(?P<patient>(?P<site>[A-Z]+)NICU_\d+)(?!\d)", re.IGNORECASE)  # BCHNICU_010-VISIT_01
_BONBID_FOLDER = re.compile(r"BONBID\d*[-_](train|val|test)", re.IGNORECASE)
_NAMED_AS_IMAGES = ("labels", "final", "labelsTr")  # labels named like their images; MONAI Label writes labels/final
LABEL_FOLDERS = (_NAMES["label"][0], *_NAMED_AS_IMAGES)
_IGNORED_FOLDERS = ("__MACOSX", "original")  # macOS archives; MONAI Label's unreviewed predictions


@dataclass(frozen=True)
class Case:
    """One scan: its files, None where not found."""

    case: str  # case id, e.g. MGHNICU_010-VISIT_01
    split: str | None = None  # train, val or test by folder name; None without splits
    adc: Path | None = None
    zadc: Path | None = None
    stacked: Path | None = None  # both maps in one 4D file, instead of adc and zadc
    label: Path | None = None
    duplicates: tuple[Path, ...] = ()  # further files of the same part

    @property
    def has_maps(self) -> bool:
        """Whether at least one map was found."""
        return bool(self.adc or self.zadc or self.stacked)

    @property
    def site(self) -> str | None:
        """See :func:`site_of`."""
        return site_of(self.case)

    def item(self, labels: bool = True, zadc: bool = True) -> dict[str, Any]:
        """MONAI data item of the case, with the expected paths of missing files for error messages.

        If ``zadc`` is false, a missing ZADC map is omitted.
        """
        parts = [part for part in ("adc", "zadc") if part == "adc" or zadc or self.zadc]
        image = str(self.stacked) if self.stacked else [str(self._expected(part)) for part in parts]
        item = {"image": image, "case": self.case} | ({"site": self.site} if self.site else {})
        return item | ({"label": str(self._expected("label"))} if labels else {})

    def _expected(self, part: str) -> Path:
        if found := getattr(self, part):
            return Path(found)
        near = next(path for path in (self.stacked, self.adc, self.zadc, self.label) if path)
        folder, name = _NAMES[part]
        others = {other for other, _ in _NAMES.values()}
        *above, parent, site = ("", "", *near.parent.parts)  # part II has a folder of the hospital below the maps'
        folders = [folder if one in others else one for one in (parent, site)]
        return Path(*above, *folders, f"{name.format(self.case)}{extension_of(near)}")


def find_cases(dataset_dir: str | Path) -> list[Case]:
    """Find the cases anywhere below a folder by file name, incomplete ones included; sorted by split and id.

    The names are ``<case>-ADC_ss``, ``Zmap_<case>-ADC_smooth2mm_clipped10`` and ``<case>_lesion`` with ``.mha``,
    ``.nii`` or ``.nii.gz``; any other ``<case>.nii.gz`` is a stacked file (or a label, in a folder ``labels``). Part II
    of BONBID-HIE has no splits: a patient of both parts keeps the split of part I, and a scan in both counts once.

    Raises:
        DatasetError: a file name has control characters, which break messages and tables, or is not UTF-8, which
            crashes ITK.
    """
    root = Path(dataset_dir).absolute()
    found: dict[tuple[str | None, str], dict[str, list[Path]]] = {}
    visited: set[Path] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _IGNORED_FOLDERS)
        split = _split_of(here, root)
        for path in (here / name for name in sorted(files)):
            if _VOLUME.match(path.name) and not is_printable(name := str(path.relative_to(root))):
                raise DatasetError(
                    f"The name {name!a} has a control character, or bytes that are not UTF-8. Rename it."
                )
            part, case = part_of(path)
            if part:
                found.setdefault((split, case), {}).setdefault(part, []).append(path)
    side = {patient: split for split, case in found if split and (patient := _bonbid_patient(case))}
    for split, case in list(found):
        if split is None and (there := side.get(_bonbid_patient(case))):
            stray = found.pop((None, case))
            known = found.setdefault((there, case), stray)
            part_2 = all(path.parent.name in _SITES for paths in stray.values() for path in paths)
            if known is not stray and not (part_2 and {"adc", "zadc"} <= stray.keys()):  # else part II's copy
                for part, paths in stray.items():
                    known.setdefault(part, []).extend(paths)
    cases = []
    for (split, case), parts in found.items():
        first = {part: paths[0] for part, paths in parts.items()}
        duplicates = [path for paths in parts.values() for path in paths[1:]]
        if "stacked" in first and "adc" in first:
            duplicates.append(first.pop("stacked"))
        cases.append(Case(case, split, duplicates=tuple(duplicates), **first))
    order: list[str | None] = [*SPLITS, None]
    return sorted(cases, key=lambda case: (order.index(case.split), case.case))


def site_of(case: str) -> str | None:
    """Hospital (``MGH``, ``BCH``) in a BONBID-HIE case id; None for other ids."""
    match = _BONBID_CASE.match(case)
    return match["site"].upper() if match else None


def _bonbid_patient(case: str) -> str:
    match = _BONBID_CASE.match(case)
    return match["patient"].upper() if match else ""


def part_of(path: Path) -> tuple[str | None, str]:
    """Part (``adc``, ``zadc``, ``label``, ``stacked``) and case id from a file name; (None, "") for other names."""
    if path.name.startswith("."):
        return None, ""
    for part, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(path.name):
            if part == "stacked" and path.parent.name in _NAMED_AS_IMAGES:
                part = "label"
            return part, match[1]
    return None, ""


def _split_of(folder: Path, root: Path) -> str | None:
    for name in reversed(folder.relative_to(root).parts):
        if match := _SPLIT_FOLDER.fullmatch(name):
            return match[1].lower()
    match = _BONBID_FOLDER.fullmatch(root.name)
    return match[1].lower() if match else None


def file_name(case: str) -> str:
    """Encode a case id as the beginning of a file name; different ids give different names.

    Letters of all scripts, digits, ``_-+=,@~ ()[]`` and dots (except a leading one) are kept. Other characters are
    percent-encoded as in URLs (``a/b`` gives ``a%2Fb``, ``.hidden`` gives ``%2Ehidden``).
    """
    quoted = "".join(
        c if c.isalnum() or c in "_-.+=,@~ ()[]" else urllib.parse.quote(c, safe="", errors="surrogateescape")
        for c in case
    )
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def case_of_file_name(name: str) -> str:
    """Inverse of :func:`file_name`."""
    return urllib.parse.unquote(name, errors="surrogateescape")


def filesystem_key(name: str) -> str:
    """Key for names on file systems that ignore case or Unicode form (Unicode 3.13, canonical caseless match)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def output_name(metadata: Mapping[str, Any], saver: Any = None) -> dict[str, str]:
    """``{"subject": case id}`` from the file name, as ``output_name_formatter`` of MONAI's ``SaveImage``."""
    path = Path(str(metadata.get("filename_or_obj", "case")))
    case = part_of(path)[1] or path.name.split(".")[0]
    return {"subject": case}


def item_files(item: Mapping[str, Any]) -> dict[str, str]:
    """The files of a MONAI data item by part: ``adc`` and ``zadc``, or ``stacked``; ``label`` if present.

    A single image file counts as ``stacked``, since only its content shows whether it is an ADC map.
    """
    image = item["image"]
    paths = [str(image)] if isinstance(image, (str, Path)) else list(map(str, image))
    if len(paths) not in (1, 2):
        raise DatasetError(f"{', '.join(paths)}: {len(paths)} channels, expected two: ADC and ZADC.")
    files = dict(zip(("adc", "zadc") if len(paths) == 2 else ("stacked",), paths, strict=True))
    if item.get("label"):
        files["label"] = str(item["label"])
    return files


def first_file(item: Case | Mapping[str, Any]) -> str:
    """The ADC map or the stacked file of a case."""
    return next(iter(item_files(item.item() if isinstance(item, Case) else item).values()))


def case_of(item: Mapping[str, Any]) -> str:
    """The item's case id, by default from its image's file name."""
    return str(item["case"] if "case" in item else output_name({"filename_or_obj": first_file(item)})["subject"])


def as_native(item: Mapping[str, Any]) -> dict[str, Any]:
    """The item with its native files, the sources of preprocessing, if it has them."""
    if "native_image" not in item:
        return dict(item)
    return {key.removeprefix("native_"): value for key, value in item.items() if key not in ("image", "label")}
