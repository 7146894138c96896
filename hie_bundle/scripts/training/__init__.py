"""What training adds to MONAI's engine: handlers, finite steps, logs, tracking."""
