"""The cubes of `reference` in batched torch on a device: counting them a dozen times sorts millions of keys."""

import numpy as np
import torch
from torch import Tensor

from train_gs.start.cells.reference import LEVEL_KEY, LEVELS_PER_OCTAVE, NEAREST, PATCH, PLACE, chosen_scale
from utils.types import Array

_BITS = 21  # per axis in one int64 key
_SAMPLED = 10_000  # points that the middle is taken of


def merged(
    points: Array, colors: Array, centers: Array, made_by: Array, pixel: float, budget: int, device: torch.device
) -> tuple[Array, Array]:
    """As `reference.merged`; what goes to the device goes there once, as it is stored."""
    places, shown, eyes, maker = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (points, colors, centers, made_by))
    places = places.double()
    nearest, own = distances(places, eyes, maker)
    least = NEAREST * own.median()
    level, edge = _level(splat_sizes(places, torch.maximum(nearest, least), torch.maximum(own, least), pixel))
    scale = chosen_scale(lambda scale: _distinct(_cells(places, edge * scale, level)), pixel, budget)
    _, group, members = torch.unique(_cells(places, edge * scale, level), return_inverse=True, return_counts=True)
    both = torch.cat([places, shown.double()], 1)
    mean: Array = (both.new_zeros(len(members), 6).index_add_(0, group, both) / members[:, None]).cpu().numpy()
    return np.ascontiguousarray(mean[:, :3]), np.ascontiguousarray(mean[:, 3:])


def distances(points: Tensor, centers: Tensor, made_by: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) distance of each point (N, 3) to the nearest camera and to that at position `made_by` (N,), whose frame it is of.

    A few dozen cameras are looked at one after the other.
    """
    squared = points.new_full((len(points),), float("inf"))
    for center in centers:
        squared = torch.minimum(squared, (points - center).square_().sum(1))
    return squared.sqrt_(), (points - centers[made_by]).square_().sum(1).sqrt_()


def splat_sizes(points: Tensor, nearest: Tensor, own: Tensor, pixel: float) -> Tensor:
    """(N,) as `reference.splat_sizes`."""
    octave = nearest.log2().floor()
    place = _groups(_cells(points, PLACE * pixel * 2.0**octave, octave))
    seen_from = own.new_full((int(place.max()) + 1,), float("inf")).scatter_reduce_(0, place, own, "amin")
    patch = _groups(_cells(points, (PATCH * pixel * _level(seen_from)[1])[place], place))
    place_of = place.new_empty(int(patch.max()) + 1)
    place_of[patch] = place
    views = place.bincount() / place_of.bincount()
    return (seen_from * views.to(own) ** -0.25)[place]


def _level(size: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the step on a logarithmic ladder below each size, and the size of that step."""
    level = (size.log2() * LEVELS_PER_OCTAVE).floor()
    return level, 2.0 ** (level / LEVELS_PER_OCTAVE)


def _groups(keys: Tensor) -> Tensor:
    return torch.unique(keys, return_inverse=True)[1]


def _distinct(keys: Tensor) -> int:
    keys = keys.sort().values
    return 1 + int((keys[1:] != keys[:-1]).sum())


def _cells(points: Tensor, edge: Tensor, level: Tensor) -> Tensor:
    """(N,) one number per cube of edge (N,); points of different levels (N,) never share one."""
    cells = (points / edge[:, None]).floor()
    middle = cells[:: max(1, len(cells) // _SAMPLED)].median(0).values
    half = 1 << (_BITS - 1)
    x, y, z = ((cells - middle).clamp(-half, half - 1).long() + half).unbind(1)
    return ((x << 2 * _BITS) | (y << _BITS) | z) ^ (level.long() * LEVEL_KEY)  # wraps around
