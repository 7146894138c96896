"""``run outcome``: AUC of lesion volumes for an adverse outcome; needs no labels."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..data.folds import patient_of
from ..data.layout import site_of
from ..evaluation.statistics import auc, auc_difference
from ..io.files import write_atomically
from ..runtime.errors import UserError, choose
from ..runtime.text import csv_table

logger = logging.getLogger(__name__)

REFERENCE = "low_z_ml"  # volume of the challenge's baseline, for comparison


def write_outcome(
    segmented: str | Path | None,
    outcomes: str | Path | None,
    id_column: str | None,
    outcome_column: str | None,
    adverse: Sequence[Any],
    output_file: str | Path | None = None,
    volumes: Sequence[str] | None = None,
) -> None:
    """Print the AUC of lesion volumes and of low Z for an outcome, for all children and by hospital.

    Results contain no values of individual children.

    Args:
        segmented: JSON from `hie-bundle segment --json`, or the ``manifest.csv`` of its shards.
        outcomes: table of the children, ``.csv`` or ``.xlsx``.
        id_column: column of ``outcomes`` with case ids or patient ids.
        outcome_column: column of ``outcomes`` with the outcome; children without a value are excluded.
        adverse: values of ``outcome_column`` that mean an adverse outcome.
        output_file: CSV file of the results; None for no file.
        volumes: columns of ``segmented`` to evaluate; None for whole lesion, share of the brain, and every region's
            volume.

    Raises:
        UserError: a file or column is missing, or no case id matches.
    """
    if not (segmented and outcomes and id_column and outcome_column and adverse):
        raise UserError(
            "Name tables and columns: --segmented FILE --outcomes FILE --id_column NAME --outcome_column NAME "
            "--adverse [1]."
        )
    table = _joined(_read(segmented), _read(outcomes), str(id_column), str(outcome_column), adverse)
    columns = dict.fromkeys(name for row in table for name in row)
    regions = [name for name in columns if name.startswith("region_") and name.endswith("_ml")]
    names = [REFERENCE, *(volumes or ["lesion_ml", "lesion_fraction", *regions])]
    for name in names:
        choose(columns, name, "column")
    sites = sorted({row["site"] for row in table})
    rows: list[dict[str, Any]] = []
    for site in ["all", *sites] if len(sites) > 1 else ["all"]:
        members = [row for row in table if site in ("all", row["site"])]
        for name in names:
            values = [[_number(row.get(name)), _number(row.get(REFERENCE)), row["adverse"]] for row in members]
            known = np.array(values, float)[np.isfinite(values).all(axis=1)]
            bad = known[:, 2] > 0
            figures = [*auc(known[:, 0], bad), *auc_difference(known[:, 0], known[:, 1], bad)]
            named = dict(zip(("auc", "low", "high", "gain", "gain_low", "gain_high"), figures, strict=True))
            rows.append({"site": site, "volume": name, "children": len(known), "adverse": int(bad.sum()), **named})
    print(f"AUC for {outcome_column} = {', '.join(map(str, adverse))}; gain: over the volume of ZADC < -2")
    for row in rows:
        area, gain = ("{:.3f} [{:.3f}, {:.3f}]".format(*(row[n] for n in of)) for of in (
            ("auc", "low", "high"), ("gain", "gain_low", "gain_high")))  # fmt: skip
        head = f"{row['site']:<8} {row['volume']:<32} {row['adverse']:>4} of {row['children']:<4}"
        print(f"{head} {area:<24} {'' if row['volume'] == REFERENCE else gain}".rstrip())
    if output_file:
        write_atomically(Path(output_file), csv_table(rows))


def _read(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a table by column name; the first line has the names."""
    try:
        if (ending := Path(file).suffix.lower()) == ".json":
            return list(json.loads(Path(file).read_text(encoding="utf-8"))["cases"])
        if ending != ".xlsx":
            with Path(file).open(newline="", encoding="utf-8-sig") as stream:
                return list(csv.DictReader(stream))
        import openpyxl

        lines = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
        header = [str(name) for name in next(lines)]
        return [dict(zip(header, line, strict=True)) for line in lines]
    except ModuleNotFoundError as error:
        raise UserError("run outcome needs openpyxl for .xlsx: pip install openpyxl") from error
    except (OSError, ValueError, KeyError, TypeError, StopIteration, BadZipFile) as error:
        raise UserError(f"{file} cannot be read as a table ({type(error).__name__}: {error}).") from error


def _joined(
    cases: Sequence[Mapping[str, Any]], children: Sequence[Mapping[str, Any]], id_column: str, outcome_column: str,
    adverse: Sequence[Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per child with a mask and an outcome: the first scan, ``adverse`` and ``site``."""
    for name in (id_column, outcome_column):
        choose(dict.fromkeys(children[0] if children else ()), name, "column")
    bad = {_text(value) for value in adverse}
    known = [(_text(child[id_column]), _text(child[outcome_column])) for child in children]
    outcome = {child: value for child, value in known if child and value}
    first: dict[str, dict[str, Any]] = {}
    scans = sorted((case for case in cases if not case.get("error")), key=lambda case: str(case["case"]))
    for case in scans:
        name = str(case["case"])
        child = name if name in outcome else patient_of(name)
        if child in outcome and child not in first:
            site = case.get("site") or site_of(name) or "unknown"
            first[child] = {**case, "adverse": outcome[child] in bad, "site": site}
    excluded = len(scans) - len(first)
    logger.info("%d children; %d later scans and scans without an outcome are excluded.", len(first), excluded)
    if not first:
        named = f"cases are named like {scans[0]['case'] if scans else '-'}, children like {next(iter(outcome), '-')}"
        raise UserError(f"No case id matches the column {id_column}: {named}.")
    return list(first.values())


def _number(value: Any) -> float:
    """Value of a cell; NaN if empty."""
    return math.nan if value in (None, "") else float(value)


def _text(value: Any) -> str:
    """Text of a cell; 1, 1.0 and "1" give the same text."""
    return "" if value is None else str(value).strip().removesuffix(".0")
