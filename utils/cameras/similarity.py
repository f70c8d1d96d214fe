"""Similarity transforms between two sets of points that belong together."""

from dataclasses import dataclass

import numpy as np

from utils.errors import GeometryError
from utils.types import Array

_POINTS = 40_000
_ROUNDS = 4


@dataclass(frozen=True)
class Similarity:
    """The map x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Array
    translation: Array

    def apply(self, points: Array) -> Array:
        """Points (..., 3) mapped."""
        return self.scale * points @ self.rotation.T + self.translation

    def camera_before(self, c2w: Array) -> Array:
        """The camera (4, 4) that sees unmapped points as `c2w` (4, 4) sees mapped ones."""
        pose = c2w.copy()
        pose[:3, :3] = self.rotation.T @ c2w[:3, :3]
        pose[:3, 3] = self.rotation.T @ (c2w[:3, 3] - self.translation) / self.scale
        return pose


def fit_similarity(source: Array, target: Array, weight: Array) -> Similarity:
    """The similarity that takes source (N, 3) to target (N, 3) with the least weighted squares (Umeyama 1991).

    Raises:
        GeometryError: the source points coincide, or fewer than three have a weight.
    """
    if np.count_nonzero(weight > 0) < 3:
        raise GeometryError(f"{np.count_nonzero(weight > 0)} points for a similarity", "give at least three valid points")
    share = (weight / weight.sum())[:, None]
    mean_source, mean_target = (share * source).sum(0), (share * target).sum(0)
    a, b = source - mean_source, target - mean_target
    variance = (share * a**2).sum()
    if variance <= 0:
        raise GeometryError("the points of a similarity coincide", "check that the reconstruction is not constant")
    u, singular, vt = np.linalg.svd((share * b).T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / variance)
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)


def fit_points(source: Array, target: Array, depth: Array) -> Similarity:
    """The similarity from reconstructed points to true ones.

    Weighted by 1/depth^2 (errors grow with depth) and reweighted by a Cauchy kernel on the relative error, so that mixed depths
    at edges do not pull. Of many points a fixed random choice is used.

    Args:
        source: (N, 3) reconstructed.
        target: (N, 3) true.
        depth: (N,) of the points, in the target's units.

    Raises:
        GeometryError: too few points, or coinciding ones.
    """
    if len(source) > _POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(source), _POINTS, replace=False))
        source, target, depth = source[chosen], target[chosen], depth[chosen]
    source, target = source.astype(np.float64), target.astype(np.float64)
    base = 1.0 / depth.astype(np.float64) ** 2
    fit = fit_similarity(source, target, base)
    for _ in range(_ROUNDS):
        squared = ((fit.apply(source) - target) ** 2).sum(1) * base
        fit = fit_similarity(source, target, base / (1.0 + squared / (4.0 * np.median(squared) + 1e-18)))
    return fit
