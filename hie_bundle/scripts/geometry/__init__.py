"""Arrays in millimetres: brain, connected components, distances, surfaces, spacing, slices."""
