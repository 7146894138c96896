"""Python hooks of the bundle. The configs name what they use, as ``scripts.<module>.<name>``."""
