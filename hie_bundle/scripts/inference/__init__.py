"""From weights to a mask: inferers, ZADC evidence, plausibility, OpenVINO, the Python API."""
