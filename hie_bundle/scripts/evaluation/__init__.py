"""What a prediction is worth: metrics, their registration, calibration, statistics, baselines and peers."""

from functools import partial

from ..moved import lookup

__getattr__ = partial(lookup, "evaluation")  # CaseEvaluation, as configs of 0.9.1 name it
