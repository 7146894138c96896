"""Geometry of masks: brain, connected components, distances, surfaces, spacing, slices."""
