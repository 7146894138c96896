"""Results for people: tables and a summary on disk, pictures of cases, plots, and the page that shows them all."""

from .page import provenance, render_page, write_report
from .pictures import PRED_COLOUR, TRUTH_COLOUR, SliceView, case_views, render_case
from .plots import read_curves
from .tables import (
    comparison_table,
    read_rows,
    readers_sentence,
    summarise,
    verdict,
    volume_agreement,
    write_csv,
    write_results,
)

__all__ = [
    "PRED_COLOUR",
    "TRUTH_COLOUR",
    "SliceView",
    "case_views",
    "comparison_table",
    "provenance",
    "read_curves",
    "read_rows",
    "readers_sentence",
    "render_case",
    "render_page",
    "summarise",
    "verdict",
    "volume_agreement",
    "write_csv",
    "write_report",
    "write_results",
]
