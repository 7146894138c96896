"""Reports: tables and a summary on disk, pictures of cases, plots, and the HTML page."""

from .page import provenance, write_report
from .pictures import PRED_COLOUR, TRUTH_COLOUR, CaseSlices, SliceView
from .plots import read_curves
from .tables import comparison_table, read_rows, readers_sentence, summarise, verdict, volume_agreement, write_results

__all__ = [
    "PRED_COLOUR", "TRUTH_COLOUR", "CaseSlices", "SliceView", "comparison_table", "provenance", "read_curves",
    "read_rows", "readers_sentence", "summarise", "verdict", "volume_agreement", "write_report", "write_results",
]  # fmt: skip
