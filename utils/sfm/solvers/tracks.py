"""Points that several frames see: the observations, which of them fit the cameras, and from how far apart they are seen."""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from utils.types import Array


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Observations of points; those of point p are `first[p]` up to `first[p + 1]`.

    Attributes:
        first: (P + 1,) int64.
        frame: (M,) int64 row of the frame that sees the point.
        at: (M, 2) pixel where.
    """

    first: Array
    frame: Array
    at: Array

    @property
    def point(self) -> Array:
        """(M,) point of each observation."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Cameras and points.

    Attributes:
        w2c: (F, 4, 4).
        K: (3, 3), shared.
        points: (P, 3) in the world.
    """

    w2c: Array
    K: Array
    points: Array

    def seen(self, tracks: Tracks) -> Array:
        """(M, 3) the points in the frames that see them."""
        w2c = self.w2c[tracks.frame]
        return np.einsum("mij,mj->mi", w2c[:, :3, :3], self.points[tracks.point]) + w2c[:, :3, 3]


def chosen(tracks: Tracks, placed: Placed, points: Array, observations: Array | None = None) -> tuple[Tracks, Placed]:
    """Both with the chosen points (P,) bool, and of these the chosen observations (M,) bool."""
    keep = points[tracks.point]
    if observations is not None:
        keep &= observations
    counts = np.bincount(tracks.point[keep], minlength=len(points))[points]
    kept = Tracks(first=np.r_[0, np.cumsum(counts)], frame=tracks.frame[keep], at=tracks.at[keep])
    return kept, replace(placed, points=placed.points[points])


def without(tracks: Tracks, placed: Placed, wrong: Array) -> tuple[Tracks, Placed]:
    """Both without the wrong observations (M,) bool and without the points that fewer than two are left of."""
    count = np.bincount(tracks.point[~wrong], minlength=len(placed.points))
    return chosen(tracks, placed, count > 1, ~wrong)


def plane_errors(tracks: Tracks, placed: Placed) -> Array:
    """(M,) distance between where points fall and where they are seen, in the plane at depth 1; infinite behind the camera."""
    seen, K = placed.seen(tracks), placed.K
    front = seen[:, 2] > 1e-9
    z = np.where(front, seen[:, 2], 1)[:, None]
    error = np.linalg.norm(seen[:, :2] / z - (tracks.at - K[:2, 2]) / np.array([K[0, 0], K[1, 1]]), axis=1)
    return np.where(front, error, np.inf)


def angle_errors(tracks: Tracks, placed: Placed) -> Array:
    """(M,) angle in degrees between the direction of points and that in which they are seen."""
    K = placed.K
    rays = np.column_stack([(tracks.at - K[:2, 2]) / np.array([K[0, 0], K[1, 1]]), np.ones(len(tracks.at))])
    seen = placed.seen(tracks)
    cosine = (rays * seen).sum(1) / np.maximum(np.linalg.norm(rays, axis=1) * np.linalg.norm(seen, axis=1), 1e-300)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def without_narrow(tracks: Tracks, placed: Placed, least_deg: float) -> tuple[Tracks, Placed]:
    """Both without points that no two frames see from directions so far (degrees) apart."""
    centers = -np.einsum("fji,fj->fi", placed.w2c[:, :3, :3], placed.w2c[:, :3, 3])
    rays = placed.points[tracks.point] - centers[tracks.frame]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-300)
    wide = _wide(rays, tracks.first, np.cos(np.radians(least_deg)))
    return chosen(tracks, placed, wide)


@njit(nogil=True, cache=True)
def _wide(rays: Array, first: Array, most_cosine: float) -> Array:
    """(P,) whether two of each point's unit rays (M, 3) are so far apart."""
    wide = np.zeros(len(first) - 1, np.bool_)
    for p in range(len(first) - 1):
        for i in range(first[p], first[p + 1]):
            for j in range(i + 1, first[p + 1]):
                # angles above 90 degrees count as their complement to 180, as rays that meet head-on triangulate no better
                if abs(rays[i, 0] * rays[j, 0] + rays[i, 1] * rays[j, 1] + rays[i, 2] * rays[j, 2]) <= most_cosine:
                    wide[p] = True
                    break
            if wide[p]:
                break
    return wide
