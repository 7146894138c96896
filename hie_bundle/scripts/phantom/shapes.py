"""Further shapes of injury, for families of settings: each ranks the tissue by where the injury strikes first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .anatomy import FloatArray, RandomField, Tissue, tube

SHAPES = (
    "spots", "patches", "cortical", "laminar", "boxes", "tracts", "satellites", "cells", "wanderers", "shell",
)  # fmt: skip


def shape_score(
    kind: str, rng: np.random.Generator, points_mm: FloatArray, tissue: Tissue, volume_mm3: float
) -> FloatArray:
    """Score of every point (N,), higher where the injury comes first; -inf where it never comes.

    Args:
        kind: spots (many small ones in white and deep matter), patches (of a random field), cortical (some gyri),
            laminar (a thin layer under the surface), boxes (with corners), tracts (along the corticospinal tract and
            the corpus callosum), satellites (one focus with small ones around it), cells (irregular polyhedra),
            wanderers (crooked strands) or shell (around the ventricles).
        rng: source of randomness.
        points_mm: canonical positions (3, N).
        tissue: anatomy at these points.
        volume_mm3: of the injury; a small one is not divided into more parts than can be seen.
    """
    most = max(1, int(volume_mm3 / 60))  # parts
    parenchyma = (tissue.csf < 0.5) & (tissue.brain_depth_mm > 1)
    cerebral = parenchyma & (tissue.cerebrum_depth_mm > 0.5)
    candidates = np.flatnonzero(cerebral)
    roughness = RandomField(rng, float(rng.uniform(2.5, 5)))(points_mm)[0]

    def places(count: int, among: NDArray[np.intp] = candidates) -> NDArray[np.floating]:
        return points_mm[:, rng.choice(among if len(among) else candidates, count)].T

    def norm(offset: FloatArray, power: float) -> FloatArray:
        return (np.abs(offset) ** np.float32(power)).sum(0) ** np.float32(1 / power)

    allowed = cerebral
    if kind in ("spots", "satellites", "boxes"):
        score = np.full(points_mm.shape[1], -np.inf, dtype=np.float32)
        centres = places(min(most, int(rng.integers(3, 25) if kind == "spots" else rng.integers(2, 8))))
        if kind == "satellites":
            centres[1:] = centres[0] + rng.normal(0, 11, centres[1:].shape)
        for number, centre in enumerate(centres):
            scale = np.exp(rng.normal(0, 0.35)) * (2.0 if kind == "satellites" and number == 0 else 1.0)
            turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
            radii = (scale * rng.uniform(0.6, 1.6, 3)).astype(np.float32)
            offset = (turn @ (points_mm - centre[:, None].astype(np.float32))) / (10 * radii[:, None])
            np.maximum(score, -norm(offset, 6.0 if kind == "boxes" else 2.0), out=score)
        score = score + np.float32(0.02 if kind == "boxes" else 0.06) * roughness
    elif kind == "patches":
        score = RandomField(rng, float(rng.uniform(5, 12)))(points_mm)[0] + np.float32(0.2) * roughness
        focus = places(1)[0][:, None].astype(np.float32)
        score = score - np.float32(rng.uniform(0.01, 0.05)) * np.sqrt(np.square(points_mm - focus).sum(0))
    elif kind in ("cortical", "laminar"):
        depth = np.float32(rng.uniform(1.5, 3.5) if kind == "cortical" else rng.uniform(4, 7))
        layer = np.abs(tissue.cerebrum_depth_mm - depth)
        focus = places(1)[0][:, None].astype(np.float32)
        distance = np.sqrt(np.square(points_mm - focus).sum(0))
        score = -layer * np.float32(0.35 if kind == "cortical" else 0.8) - np.float32(0.06) * distance + 0.4 * roughness
        if kind == "cortical":
            score = score - np.float32(3) * tissue.white
    elif kind == "tracts":
        side = np.float32(rng.choice([-1.0, 1.0]))
        mirrored = np.stack([np.abs(points_mm[0]), points_mm[1], points_mm[2]])
        r = float(rng.uniform(1, 3))
        down = tube(mirrored, ((22, -8, 34, r), (21, -10, 14, r), (16, -9, -4, r), (8, -8, -16, r), (5, -6, -28, r)))
        arch = 15 - np.float32(0.009) * (points_mm[1] + 4) ** 2
        across = r - np.abs(points_mm[2] - arch) - np.maximum(np.abs(points_mm[0]) - 14, 0)
        weight = np.float32(rng.uniform(-8, 8))
        score = np.maximum(down, across + weight) + np.float32(rng.uniform(0, 4)) * (np.sign(points_mm[0]) == side)
        score = score + np.float32(0.8) * roughness
        allowed = parenchyma
    elif kind == "cells":
        seeds = places(int(rng.integers(150, 600))).astype(np.float32)
        distance, cell = cKDTree(seeds).query(points_mm.T + 0.4 * roughness[:, None], workers=1)
        focus = places(min(most, int(rng.integers(1, 5)))).astype(np.float32)
        apart = np.sqrt(np.square(seeds[:, None] - focus[None]).sum(-1)).min(1) + rng.normal(0, 5, len(seeds))
        score = (-apart[cell] - 0.05 * distance).astype(np.float32)
    elif kind == "wanderers":
        score = np.full(points_mm.shape[1], -np.inf, dtype=np.float32)
        for start in places(min(most, int(rng.integers(1, 5)))):
            steps = np.cumsum(rng.normal(0, 1, (10, 3)), 0)
            way = start + 5 * steps / np.maximum(np.linalg.norm(np.gradient(steps, axis=0), axis=1, keepdims=True), 0.5)
            nodes = tuple((float(x), float(y), float(z), float(rng.uniform(0.5, 2.5))) for x, y, z in way)
            np.maximum(score, tube(points_mm, nodes), out=score)
        score = score + np.float32(0.4) * roughness
    else:
        field = RandomField(rng, 10.0)(points_mm)[0]
        centre = np.array([[0.0], [-6.0], [11.0]], np.float32)
        radius = np.sqrt(np.square((points_mm - centre) / np.array([[17.0], [34.0], [15.0]], np.float32)).sum(0))
        score = -np.abs(radius - 1) + np.float32(0.3) * field + np.float32(0.1) * roughness
    return np.where(allowed, score, -np.inf).astype(np.float32)
