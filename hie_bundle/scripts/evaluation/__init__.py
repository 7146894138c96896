"""Evaluation of predictions: metrics, their registration, calibration, statistics and baselines."""

from functools import partial

from ..moved import lookup

__getattr__ = partial(lookup, "evaluation")  # CaseEvaluation, as configs of 0.9.1 name it
