"""Bias of the alignment's gradient that is due to noise in depth (errors in variables), to be subtracted from it.

The distance e of a match contains the noise of both its depths, n_i r_i - n_j r_j along the unit rays r. A field that contracts space
along the rays makes e smaller without aligning any surface, the more so the noisier a region is: a solution by plain least squares
shrinks (attenuation by errors in variables; Fuller, Measurement Error Models, 1987). In the gradient the cause is that
nodes are weighted at noisy depths: a weight a(s + n) differs from a(s) by n da/ds, and its product with e does not vanish on average,

    E[n da/ds w e | e] = w da/ds (r . e) d_i^2 / (d_i^2 + (r_i . r_j)^2 d_j^2) r,

for noise in proportion to the distances d, with e taken along the ray and w the matrix of weights. That is summed here, for every end, to
be subtracted. How large the noise is at all is measured by `measure_noise`.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from utils.cameras.projection import unproject
from utils.matching.contract import MatchSet
from utils.runtime import in_threads
from utils.types import Array, CameraSet

_CELLS = (8, 6)  # across and down: within a cell a smooth field moves all points alike, so what scatters there is noise
_DEPTHS = 6  # depth bins of the noise model: noise of triangulation grows with depth, that of a network need not
_LEAST = 200  # matches needed in a bin


@dataclass(frozen=True)
class DepthNoise:
    """Standard deviation of depth along the rays, by depth.

    Attributes:
        depths: (B,) increasing.
        shares: (B,) of the depth.
    """

    depths: Array
    shares: Array

    def at(self, depth: Array) -> Array:
        """The standard deviation at depths of any shape, as a share of depth; linear in between, constant beyond."""
        shares: Array = np.interp(depth, self.depths, self.shares)
        return shares


def measure_noise(matches: list[MatchSet], cameras: CameraSet, sigma: float) -> DepthNoise:
    """How much depth scatters along the rays between neighbouring frames, beyond the error of the matches.

    Errors that a frame's field can take out are smooth over the image: the median of each cell is taken off before. Neighbours in time are
    used, between which drift is small. Median absolute deviation, so that wrong matches and moving things do not count.

    Args:
        matches: of any pairs.
        cameras: as given, before any alignment.
        sigma: error of a match in depths, as `SolverConfig.match_sigma`.
    """
    sets = [m for m in matches if len(m)]
    if not sets:
        return DepthNoise(np.ones(1), np.zeros(1))
    nearest = min(abs(m.target - m.source) for m in sets)
    parts = in_threads(lambda m: _scatter(m, cameras), [m for m in sets if abs(m.target - m.source) <= nearest])
    depth, scatter = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(depth)
    bins = [b for b in np.array_split(order, max(1, min(_DEPTHS, len(order) // _LEAST))) if len(b)]
    deviation = np.array([1.4826 * np.median(scatter[b]) for b in bins])
    # Of a match the noise of both depths is seen, and its own error.
    shares = np.sqrt(np.maximum(deviation**2 - sigma**2, 0.0) / 2)
    return DepthNoise(np.array([np.median(depth[b]) for b in bins]), shares)


def _scatter(match: MatchSet, cameras: CameraSet) -> tuple[Array, Array]:
    """Depth (M,) of the matches of a pair, and how far apart (M,) their ends are along the rays, less the median of each cell."""
    ends = []
    for frame, pixels, depth in (
        (match.source, match.source_px, match.source_depth),
        (match.target, match.target_px, match.target_depth),
    ):
        points = unproject(pixels[:, 0], pixels[:, 1], depth.astype(np.float64), cameras.K[frame])
        ends.append(points @ cameras.c2w[frame, :3, :3].T + cameras.c2w[frame, :3, 3])
    arm = ends[0] - cameras.c2w[match.source, :3, 3]
    distance = np.linalg.norm(arm, axis=1)
    along = ((ends[0] - ends[1]) * arm).sum(1) / np.maximum(distance, 1e-12) ** 2
    h, w = cameras.size
    across, down = _CELLS
    cell = (match.source_px[:, 0] / w * across).astype(int) + across * (match.source_px[:, 1] / h * down).astype(int)
    return match.source_depth.astype(np.float64), np.abs(along - _median_of_group(along, cell))


def _median_of_group(values: Array, group: Array) -> Array:
    """(M,) for each of the values (M,) the median of those of its group (M,)."""
    order = np.lexsort((values, group))
    first = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    count = np.diff(np.r_[first, len(order)])
    ordered = values[order]
    middle = 0.5 * (ordered[first + (count - 1) // 2] + ordered[first + count // 2])
    medians = np.empty_like(values)
    medians[order] = np.repeat(middle, count)
    return medians


@njit(nogil=True, fastmath=True, cache=True)
def add_noise_gradient(  # type: ignore[no-untyped-def]
    part, begin, stop, frames, base, weights, rates, relative, weight, difference, known, count, stride_y, stride_z, out
):
    """Adds the gradient that is due to noise to one accumulator.

    Args:
        part: the accumulator.
        begin: first match.
        stop: match to stop before.
        frames: (M, 2) frame of each end, -1 for fixed ends, whose noise counts like that of the other end.
        base: (M, 2) lowest of the eight nodes.
        weights: (M, 2, 4) fractions across and down; the other two are not read.
        rates: (M, 2, 2) change of the near and far weight per distance along the ray.
        relative: (M, 2, 3) ends relative to their camera centres.
        weight: (M, 6) of the matches: symmetric matrices xx, xy, xz, yy, yz, zz.
        difference: (M, 3) distance between the ends.
        known: (M,) size of the noise of both ends together, if the distance is no measure of it; else empty.
        count: nodes per frame.
        stride_y: from a node to the one below.
        stride_z: to the one in the next layer.
        out: (parts, F*N, 3).
    """
    for m in range(begin, stop):
        dot = relative[m, 0, 0] * relative[m, 1, 0] + relative[m, 0, 1] * relative[m, 1, 1] + relative[m, 0, 2] * relative[m, 1, 2]
        fixed = frames[m, 1] < 0
        for end in range(2):
            frame = frames[m, end]
            if frame < 0:
                continue
            r0, r1, r2 = relative[m, end, 0], relative[m, end, 1], relative[m, end, 2]
            own = r0 * r0 + r1 * r1 + r2 * r2
            # d_j^2 (r_i . r_j)^2 = dot^2 / d_i^2
            share = 0.5 if fixed else own * own / (own * own + dot * dot)
            along = r0 * difference[m, 0] + r1 * difference[m, 1] + r2 * difference[m, 2]
            squared = known[m] ** 2 if len(known) > 0 else along * along / own
            push = squared * share / np.sqrt(own)
            t0 = push * (weight[m, 0] * r0 + weight[m, 1] * r1 + weight[m, 2] * r2)
            t1 = push * (weight[m, 1] * r0 + weight[m, 3] * r1 + weight[m, 4] * r2)
            t2 = push * (weight[m, 2] * r0 + weight[m, 4] * r1 + weight[m, 5] * r2)
            start = frame * count + base[m, end]
            fx, fy = weights[m, end, 0], weights[m, end, 1]
            for corner in range(8):
                rate = rates[m, end, corner >> 2] * (fx if corner & 1 else 1 - fx) * (fy if corner & 2 else 1 - fy)
                node = start + (corner & 1) + (stride_y if corner & 2 else 0) + (stride_z if corner & 4 else 0)
                out[part, node, 0] += rate * t0
                out[part, node, 1] += rate * t1
                out[part, node, 2] += rate * t2
