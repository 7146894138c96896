"""``run outcome``: does lesion volume tell children with an adverse outcome from the others? Needs no drawn lesion."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.folds import patient_of
from ..data.layout import site_of
from ..evaluation.statistics import auc, auc_difference
from ..io.files import write_atomically
from ..runtime.errors import UserError, choose
from ..runtime.text import csv_table

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["write_outcome"]

logger = logging.getLogger(__name__)

REFERENCE = "low_z_ml"  # the challenge's baseline as a volume: what a mask has to beat


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

    No value of a single child is written.

    Args:
        segmented: JSON that `hie-bundle segment --json` printed, or the ``manifest.csv`` of its shards.
        outcomes: table of the children, ``.csv`` or ``.xlsx``.
        id_column: of that table: case ids or patient ids.
        outcome_column: of that table; children without a value are excluded.
        adverse: values of that column that mean an adverse outcome.
        output_file: CSV file of the results; None: no file.
        volumes: columns of ``segmented`` to try; None: whole lesion, share of the brain, and every region's volume.

    Raises:
        UserError: when a file, a column or a child with an outcome is missing.
    """
    if not (segmented and outcomes and id_column and outcome_column and adverse):
        raise UserError(
            "Name tables and columns: --segmented FILE --outcomes FILE --id_column NAME --outcome_column NAME "
            "--adverse [1]."
        )
    table = _joined(_read(segmented), _read(outcomes, dtype=str), str(id_column), str(outcome_column), adverse)
    regions = [name for name in table.columns if name.startswith("region_") and name.endswith("_ml")]
    names = list(volumes or ["lesion_ml", "lesion_fraction", *regions])
    for name in [REFERENCE, *names]:
        choose({str(column): column for column in table.columns}, name, "column")
    sites = sorted(set(table["site"]))
    rows = []
    for site in ["all", *sites] if len(sites) > 1 else ["all"]:
        for name in [REFERENCE, *names]:
            known = table[name].notna() & table[REFERENCE].notna() & (True if site == "all" else table["site"] == site)
            part = table[known]
            bad = part["adverse"].to_numpy(bool)
            figures = [*auc(part[name], bad), *auc_difference(part[name], part[REFERENCE], bad)]
            named = dict(zip(("auc", "low", "high", "gain", "gain_low", "gain_high"), figures, strict=True))
            rows.append({"site": site, "volume": name, "children": len(part), "adverse": int(bad.sum()), **named})
    print(f"AUC for {outcome_column} = {', '.join(map(str, adverse))}; gain: over the volume of ZADC < -2")
    for row in rows:
        area, gain = ("{:.3f} [{:.3f}, {:.3f}]".format(*(row[n] for n in of)) for of in (
            ("auc", "low", "high"), ("gain", "gain_low", "gain_high")))  # fmt: skip
        head = f"{row['site']:<8} {row['volume']:<32} {row['adverse']:>4} of {row['children']:<4}"
        print(f"{head} {area:<24} {'' if row['volume'] == REFERENCE else gain}".rstrip())
    if output_file:
        write_atomically(Path(output_file), csv_table(rows))


def _read(file: str | Path, **options: Any) -> DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise UserError("run outcome needs pandas, and openpyxl for .xlsx: pip install pandas openpyxl") from error
    try:
        if (ending := Path(file).suffix.lower()) == ".json":
            return pandas.DataFrame(json.loads(Path(file).read_text(encoding="utf-8"))["cases"])
        return (pandas.read_excel if ending == ".xlsx" else pandas.read_csv)(file, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{file} cannot be read as a table ({type(error).__name__}: {error}).") from error


def _joined(cases: DataFrame, children: DataFrame, id_column: str, outcome_column: str, adverse: Any) -> DataFrame:
    """A row a child with a mask and an outcome: its first scan, ``adverse`` and ``site``."""
    columns = {str(column): column for column in children.columns}
    ids, told = (children[choose(columns, name, "column")] for name in (id_column, outcome_column))
    known = told.notna() & ids.notna()
    outcome = dict(zip(ids[known].map(_text), told[known].map(_text), strict=True))
    cases = cases[cases["error"].isna()] if "error" in cases else cases
    cases = cases.sort_values("case").reset_index(drop=True)
    by_case = cases["case"].astype(str)
    child = by_case.where(by_case.isin(list(outcome)), by_case.map(patient_of))
    scans = cases.assign(child=child)[child.isin(list(outcome))]
    first = scans.drop_duplicates("child")
    logger.info(
        "%d children with a mask and an outcome; %d scans without an outcome, %d later scans of a child excluded.",
        len(first), len(cases) - len(scans), len(scans) - len(first),
    )  # fmt: skip
    if first.empty:
        raise UserError(
            f"No case has an id of the column {id_column}: cases are named like {cases['case'].iloc[0]}, children like "
            f"{next(iter(outcome), '-')}."
        )
    bad = {_text(value) for value in adverse}
    site = first["site"] if "site" in first else first["case"].map(site_of)
    return first.assign(adverse=first["child"].map(outcome).isin(bad), site=site.fillna("unknown"))


def _text(value: Any) -> str:
    """A cell of a table as it is typed: 1, 1.0 and "1" are the same."""
    text = str(value).strip()
    return text.removesuffix(".0")
