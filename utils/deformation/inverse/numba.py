"""CPU kernel of the fixed-point inverse: the whole search of one point stays in registers.

Same algorithm and symbols as `reference`, which is its oracle; 20 times faster on two cores than the batched torch form, because nothing
but the result is written to memory.
"""

import math

import numba
import numpy as np
from torch import Tensor, from_numpy

from utils.deformation.inverse import reference
from utils.deformation.inverse.contract import LocalWarp
from utils.deformation.lattice.numba_points import field
from utils.deformation.lattice.reference import LatticeField
from utils.device.threads import ranges, run_chunks


def solve(lattice: LatticeField, frame_index: int, y: Tensor) -> LocalWarp:
    """The local warp at points y (N, 3) on the CPU, float32 or float64."""
    points = y.contiguous().numpy()
    solved, residual = np.empty_like(points), np.empty_like(points[:, 0])
    jacobian = np.empty((len(points), 3, 3), points.dtype)
    nodes, camera = lattice.nodes[frame_index].numpy(), lattice.affine_coordinates(frame_index)
    run_chunks(invert_lattice, ranges(len(points)), nodes, camera, points, reference.settings(), solved, jacobian, residual)
    return LocalWarp(y, from_numpy(solved), from_numpy(jacobian), from_numpy(residual))


@numba.njit(cache=True)
def _error(y, q, delta, error):
    """Fills error = q + delta - y; returns its norm."""
    total = 0.0
    for k in range(3):
        error[k] = q[k] + delta[k] - y[k]
        total += error[k] * error[k]
    return math.sqrt(total)


@numba.njit(cache=True)
def _invert(slope, least_determinant, out):
    """Fills out (3, 3) = (I + slope)^-1, the determinant kept away from zero."""
    m00, m01, m02 = 1.0 + slope[0, 0], slope[0, 1], slope[0, 2]
    m10, m11, m12 = slope[1, 0], 1.0 + slope[1, 1], slope[1, 2]
    m20, m21, m22 = slope[2, 0], slope[2, 1], 1.0 + slope[2, 2]
    c00, c01, c02 = m11 * m22 - m12 * m21, m12 * m20 - m10 * m22, m10 * m21 - m11 * m20
    determinant = m00 * c00 + m01 * c01 + m02 * c02
    if abs(determinant) < least_determinant:
        determinant = -least_determinant if determinant < 0 else least_determinant
    scale = 1.0 / determinant
    out[0, 0], out[0, 1], out[0, 2] = c00 * scale, (m02 * m21 - m01 * m22) * scale, (m01 * m12 - m02 * m11) * scale
    out[1, 0], out[1, 1], out[1, 2] = c01 * scale, (m00 * m22 - m02 * m20) * scale, (m02 * m10 - m00 * m12) * scale
    out[2, 0], out[2, 1], out[2, 2] = c02 * scale, (m01 * m20 - m00 * m21) * scale, (m00 * m11 - m01 * m10) * scale


@numba.njit(cache=True)
def _newton_step(inverse, error, length, size, q, trial):
    """Fills trial = q - size * step, the step at most four times as long as the error."""
    step = np.empty(3)
    squared = 0.0
    for k in range(3):
        step[k] = inverse[k, 0] * error[0] + inverse[k, 1] * error[1] + inverse[k, 2] * error[2]
        squared += step[k] * step[k]
    shrink = size * min(1.0, 4.0 * length / max(math.sqrt(squared), 1e-30))
    for k in range(3):
        trial[k] = q[k] - shrink * step[k]


@numba.njit(cache=True, nogil=True)
def invert_lattice(first, last, nodes, camera, points, settings, solved, jacobian, residual):
    """Solves q + delta(q) = y for the rows y of `points` (N, 3) from `first` to before `last`.

    Args:
        first: first row.
        last: row to stop before.
        nodes: (nz, nv, nu, 3) one frame's lattice.
        camera: (7,) see `lattice.numba_points.field`.
        points: (N, 3).
        settings: (fixed-point steps, Newton steps, tolerance relative to |y|, least determinant).
        solved: (N, 3) output q.
        jacobian: (N, 3, 3) output dq/dy.
        residual: (N,) output |q + delta(q) - y| / |y|.
    """
    fixed_point_steps, newton_steps, tolerance, least_determinant = settings
    y, q, trial, delta, error = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    trial_error, slope, inverse = np.empty(3), np.empty((3, 3)), np.empty((3, 3))
    for row in range(first, last):
        squared = 0.0
        for k in range(3):
            y[k] = points[row, k]
            q[k] = y[k]
            squared += y[k] * y[k]
        scale = max(math.sqrt(squared), 1e-30)
        field(nodes, camera, q, delta, slope)
        length = _error(y, q, delta, error)
        for _ in range(fixed_point_steps):
            if length <= tolerance * scale:
                break
            for k in range(3):
                q[k] = y[k] - delta[k]
            field(nodes, camera, q, delta, slope)
            length = _error(y, q, delta, error)
        _invert(slope, least_determinant, inverse)
        size = 1.0
        for _ in range(newton_steps):
            if length <= tolerance * scale:
                break
            _newton_step(inverse, error, length, size, q, trial)
            field(nodes, camera, trial, delta, slope)
            trial_length = _error(y, trial, delta, trial_error)
            if trial_length < length:
                for k in range(3):  # slices compile ten times as long
                    q[k], error[k] = trial[k], trial_error[k]
                length, size = trial_length, 1.0
                _invert(slope, least_determinant, inverse)
            else:
                size *= 0.5
        for k in range(3):
            solved[row, k] = q[k]
            for j in range(3):
                jacobian[row, k, j] = inverse[k, j]
        residual[row] = length / scale
