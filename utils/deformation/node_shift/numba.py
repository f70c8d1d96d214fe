"""`reference` on the CPU: eight corners at a time, one sum of gradients per thread."""

import numba
import numpy as np
import torch
from torch import Tensor

from utils.deformation.lattice.numba_points import clamp
from utils.device.threads import ranges, run_chunks


def shift(change: Tensor, points: Tensor, jacobian: Tensor, camera: Tensor) -> Tensor:
    """As `reference.shift`."""
    result = torch.empty_like(points)
    nodes = change.detach().reshape(-1, 3).contiguous().numpy()
    arrays = (camera.numpy(), points.numpy(), jacobian.numpy())
    run_chunks(_shift_points, ranges(len(points)), nodes, tuple(change.shape[:3]), *arrays, result.numpy())
    return result


def shift_vjp(counts: tuple[int, int, int], points: Tensor, jacobian: Tensor, camera: Tensor, gradient: Tensor) -> Tensor:
    """As `reference.shift_vjp`."""
    chunks = ranges(len(points))
    sums = np.zeros((max(1, len(chunks)), int(np.prod(counts)), 3), points.numpy().dtype)
    jobs = [(*chunk, sums[i]) for i, chunk in enumerate(chunks)]
    arrays = (camera.numpy(), points.numpy(), jacobian.numpy(), gradient.contiguous().numpy())
    run_chunks(_shift_points_vjp, jobs, counts, *arrays)
    return torch.from_numpy(sums.sum(0)).reshape(*counts, 3)


@numba.njit(cache=True)
def _corner_weights(camera, points, row, counts, index, weight):
    """Fills the flat node indices and weights of the 8 corners around points[row] (N, 3); counts = (nz, nv, nu)."""
    nz, nv, nu = counts
    z = max(points[row, 2], camera[6])
    inv_z = 1.0 / z
    a0, wa, _ = clamp(camera[0] * points[row, 0] * inv_z + camera[1], nu)
    b0, wb, _ = clamp(camera[2] * points[row, 1] * inv_z + camera[3], nv)
    c0, wc, _ = clamp(camera[4] * inv_z + camera[5], nz)
    for corner in range(8):
        da, db, dc = corner & 1, (corner >> 1) & 1, corner >> 2
        index[corner] = (min(c0 + dc, nz - 1) * nv + min(b0 + db, nv - 1)) * nu + min(a0 + da, nu - 1)
        layer = z * (min(c0 + dc, nz - 1) - camera[5]) / camera[4]
        weight[corner] = (wa if da else 1.0 - wa) * (wb if db else 1.0 - wb) * (wc if dc else 1.0 - wc) * layer


@numba.njit(cache=True, nogil=True)
def _shift_points(first, last, change, counts, camera, points, jacobian, shift):
    """Fills shift = -A delta'(q) for rows q of `points` (N, 3): how the inverse moves when the nodes change by `change` (nodes, 3).

    A (N, 3, 3) is dq/dy. See `utils.deformation.node_shift`.
    """
    index, weight, moved = np.empty(8, np.int64), np.empty(8), np.empty(3)
    for row in range(first, last):
        _corner_weights(camera, points, row, counts, index, weight)
        moved[0] = moved[1] = moved[2] = 0.0
        for corner in range(8):
            for k in range(3):
                moved[k] += weight[corner] * change[index[corner], k]
        for k in range(3):
            shift[row, k] = -(jacobian[row, k, 0] * moved[0] + jacobian[row, k, 1] * moved[1] + jacobian[row, k, 2] * moved[2])


@numba.njit(cache=True, nogil=True)
def _shift_points_vjp(first, last, sums, counts, camera, points, jacobian, gradient):
    """Adds the gradient of `_shift_points` with respect to the nodes' change to `sums` (nodes, 3), the chunk's own."""
    index, weight = np.empty(8, np.int64), np.empty(8)
    for row in range(first, last):
        if gradient[row, 0] == 0.0 and gradient[row, 1] == 0.0 and gradient[row, 2] == 0.0:
            continue
        _corner_weights(camera, points, row, counts, index, weight)
        for k in range(3):
            back = 0.0
            for j in range(3):
                back -= jacobian[row, j, k] * gradient[row, j]
            for corner in range(8):
                sums[index[corner], k] += weight[corner] * back
