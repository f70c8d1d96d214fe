"""Points in cubes whose size follows what is seen of them, on the CPU: integer keys, sorted."""

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from utils.points.voxels import mean_by_key, voxel_keys
from utils.types import Array

LEVEL_KEY = 0x1E3779B97F4A7C15
"""Times the level, mixed into the key: cubes of different levels never meet."""
LEVELS_PER_OCTAVE = 2
_COARSEST = 1.0
"""Largest edge of a cube that is tried, at distance 1."""
PLACE, PATCH = 24.0, 3.0
"""Edges, in pixels, of the cubes in which views are counted and of those they are counted by."""
NEAREST = 1e-3
"""Distances count as at least this share of the median one."""


def merged(points: Array, colors: Array, centers: Array, made_by: Array, pixel: float, budget: int) -> tuple[Array, Array]:
    """Mean points (M, 3) and colours (M, 3) float64 at the scale with as many cubes as the budget allows.

    Args:
        points: (N, 3), more than the budget.
        colors: (N, 3) 0..255.
        centers: (F, 3) of the cameras.
        made_by: (N,) whose frame each point is of.
        pixel: edge of a pixel at distance 1.
        budget: most cubes.
    """
    points, colors = points.astype(np.float64), colors.astype(np.float64)
    nearest, _ = cKDTree(centers).query(points, workers=-1)
    own = np.linalg.norm(points - centers[made_by], axis=1)
    nearest, own = (np.maximum(distance, NEAREST * np.median(own)) for distance in (nearest, own))
    level, edge = _level(splat_sizes(points, nearest, own, pixel))
    scale = chosen_scale(lambda scale: _distinct(_cells(points, edge * scale, level)), pixel, budget)
    return mean_by_key(_cells(points, edge * scale, level), points, colors)


def splat_sizes(points: Array, nearest: Array, own: Array, pixel: float) -> Array:
    """(N,) relative size of the splats at each point, such that a budget of them renders all frames best.

    Splats of density r per area show a surface of p pixels per area to n views with a squared error of about n p (p / r). For a given
    number of splats that is least for r ~ p sqrt(n), so sizes go with d n^(-1/4), d being the distance of the nearest frame that *sees*
    the place. Cameras that stand beside a wall and look along it do not count; as many points a place as there are views of it do.

    Args:
        points: (N, 3).
        nearest: (N,) distance to the nearest camera, whatever it sees: only how large the places are that are looked at.
        own: (N,) distance to the camera of the point's own frame.
        pixel: edge of a pixel at distance 1.
    """
    octave = np.floor(np.log2(nearest))
    place = _groups(_cells(points, PLACE * pixel * 2.0**octave, octave))
    seen_from = np.full(place.max() + 1, np.inf)
    np.minimum.at(seen_from, place, own)
    # Cubes of a few pixels of the nearest view, each within one place: points of one cube count as one observation.
    patch = _groups(_cells(points, (PATCH * pixel * _level(seen_from)[1])[place], place.astype(np.float64)))
    place_of = np.empty(patch.max() + 1, np.int64)
    place_of[patch] = place
    views = np.bincount(place) / np.bincount(place_of)
    return (seen_from * views**-0.25)[place]


def chosen_scale(count: Callable[[float], int], pixel: float, budget: int) -> float:
    """The scale at which cubes number close to, and not above, the budget.

    Args:
        count: occupied cubes at a scale.
        pixel: edge of a pixel at distance 1.
        budget: most cubes.
    """
    low, high, middle = 1e-5, _COARSEST, 2 * pixel
    for _ in range(14):
        occupied = count(middle)
        low, high = (middle, high) if occupied > budget else (low, middle)
        if 0.97 * budget <= occupied <= budget:
            break
        # On a surface the number of occupied cubes falls with the square of their edge, more slowly for cubes below the points' spacing:
        # longer steps until there are few enough. Bisection where a step leaves the bracket.
        middle *= (occupied / (0.985 * budget)) ** (1.0 if high == _COARSEST else 0.5)
        middle = middle if low < middle < high else float(np.sqrt(low * high))
    return high


def _level(size: Array) -> tuple[Array, Array]:
    """Number of the step on a logarithmic ladder below each size, and the size of that step."""
    level = np.floor(np.log2(size) * LEVELS_PER_OCTAVE)
    return level, 2.0 ** (level / LEVELS_PER_OCTAVE)


def _groups(keys: Array) -> Array:
    """(N,) number of each key, without gaps."""
    return np.unique(keys, return_inverse=True)[1]


def _distinct(values: Array) -> int:
    """How many different values there are."""
    values = np.sort(values)
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


def _cells(points: Array, edge: Array, level: Array) -> Array:
    """(N,) int64 cell of each point, for cubes of edge (N,), apart for different levels (N,)."""
    keys = voxel_keys(points / edge[:, None], 1.0)
    with np.errstate(over="ignore"):
        return keys ^ (level.astype(np.int64) * np.int64(LEVEL_KEY))
