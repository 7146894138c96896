"""Handlers, finite steps, resident cases, logs and tracking for MONAI's engine."""
