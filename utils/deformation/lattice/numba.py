"""Displacement lattices over (u, v, inverse depth): evaluation, inversion and resampling.

The compiled twin of the definition in `utils.types.LatticeFields`. Kernels work on one frame, release the interpreter lock and run on
one core, so that callers thread over frames or pairs.
"""

import numpy as np
from numba import njit
from scipy.ndimage import zoom

from utils.types import Array, LatticeFields

NEAREST = 1e-6  # depths below are behind the camera or on its plane
_FARTHEST, _NEAREST = 8.0, 4.0  # lattices reach this many times farther, and nearer, than the median depths of the frames


@njit(cache=True)
def cell_coordinate(value, count):  # type: ignore[no-untyped-def]
    """Lower node and fraction of a lattice coordinate, clamped to `count` nodes."""
    value = min(max(value, 0.0), count - 1.0)
    lower = max(min(int(value), count - 2), 0)
    return lower, value - lower


@njit(cache=True)
def _displacement(nodes, low, inv_span, width, height, x, y, z):  # type: ignore[no-untyped-def]
    """Displacement at pixel (x, y) and depth z from `nodes` (nz, nv, nu, 3), see `LatticeFields`."""
    nz, nv, nu = nodes.shape[0], nodes.shape[1], nodes.shape[2]
    a, fa = cell_coordinate(x / width * (nu - 1), nu)
    b, fb = cell_coordinate(y / height * (nv - 1), nv)
    c, fc = cell_coordinate((1.0 / z - low) * inv_span * (nz - 1), nz)
    a1, b1, c1 = min(a + 1, nu - 1), min(b + 1, nv - 1), min(c + 1, nz - 1)
    dx = dy = dz = 0.0
    step = 1.0 / (inv_span * max(nz - 1, 1))
    for corner in range(8):
        i, j, k = c1 if corner & 4 else c, b1 if corner & 2 else b, a1 if corner & 1 else a
        w = (fa if corner & 1 else 1 - fa) * (fb if corner & 2 else 1 - fb) * (fc if corner & 4 else 1 - fc) * z * (low + i * step)
        dx += w * nodes[i, j, k, 0]
        dy += w * nodes[i, j, k, 1]
        dz += w * nodes[i, j, k, 2]
    return dx, dy, dz


@njit(cache=True)
def _move(matrix, x, y, z):  # type: ignore[no-untyped-def]
    """Point (x, y, z) through a rigid motion (4, 4)."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3],
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3],
    )


@njit(nogil=True, cache=True)
def forward_kernel(points, intrinsics, size, c2w, nodes, inv_depth, out):  # type: ignore[no-untyped-def]
    """Canonical positions of camera-space points; NaN where z is not positive.

    Args:
        points: (N, 3) float64, camera space, before alignment.
        intrinsics: (4,) fx, fy, cx, cy in pixels.
        size: (h, w).
        c2w: (4, 4).
        nodes: (nz, nv, nu, 3).
        inv_depth: (2,) lattice bounds.
        out: (N, 3) float32, receives the result.
    """
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    inv_span = 1.0 / (inv_depth[1] - inv_depth[0])
    for m in range(len(points)):
        px, py, pz = points[m, 0], points[m, 1], points[m, 2]
        if pz > NEAREST:
            dx, dy, dz = _displacement(nodes, inv_depth[0], inv_span, size[1], size[0], fx * px / pz + cx, fy * py / pz + cy, pz)
            out[m, 0], out[m, 1], out[m, 2] = _move(c2w, px + dx, py + dy, pz + dz)
        else:
            out[m, 0] = out[m, 1] = out[m, 2] = np.nan


@njit(nogil=True, cache=True)
def project_kernel(points, intrinsics, size, w2c, nodes, inv_depth, steps, out):  # type: ignore[no-untyped-def]
    """Pixel x, y and original depth z of canonical points: the inverse of `forward_kernel`, then projection.

    The fixed point `p <- w2c X - delta(p)` contracts because displacements vary slowly; `steps` of 1 suit a prediction that is refined
    later, 3 reach 1e-4 of a displacement. NaN where the point is not in front of the camera.

    Args:
        points: (N, 3) float64, canonical.
        intrinsics: (4,) fx, fy, cx, cy in pixels.
        size: (h, w).
        w2c: (4, 4).
        nodes: (nz, nv, nu, 3).
        inv_depth: (2,) lattice bounds.
        steps: of the fixed point.
        out: (N, 3) float32, receives the result.
    """
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    inv_span = 1.0 / (inv_depth[1] - inv_depth[0])
    for m in range(len(points)):
        qx, qy, qz = _move(w2c, points[m, 0], points[m, 1], points[m, 2])
        px, py, pz = qx, qy, qz
        for _ in range(steps):
            if not pz > NEAREST:
                break
            dx, dy, dz = _displacement(nodes, inv_depth[0], inv_span, size[1], size[0], fx * px / pz + cx, fy * py / pz + cy, pz)
            px, py, pz = qx - dx, qy - dy, qz - dz
        if pz > NEAREST:
            out[m, 0], out[m, 1], out[m, 2] = fx * px / pz + cx, fy * py / pz + cy, pz
        else:
            out[m, 0] = out[m, 1] = out[m, 2] = np.nan


@njit(nogil=True, cache=True)
def predict_kernel(depth, intrinsics, nodes, inv_depth, relative, other_intrinsics, other_nodes, other_inv_depth, moves, other_moves, out):  # type: ignore[no-untyped-def]
    """Pixel x, y in another frame of each pixel of a depth image: `forward_kernel`, then one step of `project_kernel`, in one pass.

    Both frames have the size of the image. One step predicts to a fraction of a pixel; what uses it finds the rest.

    Args:
        depth: (H, W), not positive where unknown.
        intrinsics: (4,) fx, fy, cx, cy in pixels, of the frame of the depth image.
        nodes: (nz, nv, nu, 3) of that frame.
        inv_depth: (2,) lattice bounds of that frame.
        relative: (4, 4) from that camera's space to the other's.
        other_intrinsics: (4,) of the other frame.
        other_nodes: (nz, nv, nu, 3) of the other frame.
        other_inv_depth: (2,) of the other frame.
        moves: whether any node of that frame is not zero; a field without any costs nothing.
        other_moves: the same of the other frame.
        out: (H, W, 2) float32, receives the result; NaN where depth is unknown or the point is not in front of the other camera.
    """
    h, w = depth.shape
    fx, fy, cx, cy = intrinsics[0], intrinsics[1], intrinsics[2], intrinsics[3]
    gx, gy, ox, oy = other_intrinsics[0], other_intrinsics[1], other_intrinsics[2], other_intrinsics[3]
    inv_span, other_span = 1.0 / (inv_depth[1] - inv_depth[0]), 1.0 / (other_inv_depth[1] - other_inv_depth[0])
    for i in range(h):
        for j in range(w):
            pz = float(depth[i, j])
            out[i, j, 0] = out[i, j, 1] = np.nan
            if not pz > NEAREST:
                continue
            px, py = (j + 0.5 - cx) / fx * pz, (i + 0.5 - cy) / fy * pz
            if moves:
                dx, dy, dz = _displacement(nodes, inv_depth[0], inv_span, w, h, j + 0.5, i + 0.5, pz)
                px, py, pz = px + dx, py + dy, pz + dz
            qx, qy, qz = _move(relative, px, py, pz)
            if other_moves and qz > NEAREST:
                dx, dy, dz = _displacement(other_nodes, other_inv_depth[0], other_span, w, h, gx * qx / qz + ox, gy * qy / qz + oy, qz)
                qx, qy, qz = qx - dx, qy - dy, qz - dz
            if qz > NEAREST:
                out[i, j, 0], out[i, j, 1] = gx * qx / qz + ox, gy * qy / qz + oy


def zero_fields(depth: Array, valid: Array, lattice: tuple[int, int, int]) -> LatticeFields:
    """Fields without displacement whose inverse-depth bounds span the valid depths of the clip.

    The bounds are the same for all frames, so that a node stands for the same depth in neighbouring frames. Depths far from the medians
    of the frames do not widen them: single wrong depths would leave all others in one layer of cells.

    Args:
        depth: (F, H, W).
        valid: (F, H, W) bool.
        lattice: nodes across (nu), down (nv) and along inverse depth (nz).
    """
    nu, nv, nz = lattice
    samples = [1.0 / values[mask][::7].astype(np.float64) for values, mask in zip(depth, valid, strict=True)]
    samples = [inverse for inverse in samples if len(inverse)]  # a seventh of the pixels is enough for quantiles
    low, high = 0.5, 1.0
    if samples:
        low, high = np.quantile(np.concatenate(samples), [0.005, 0.995])
        medians = [float(np.median(inverse)) for inverse in samples]
        low, high = max(low, min(medians) / _FARTHEST), min(high, max(medians) * _NEAREST)
    margin = max(0.02 * (high - low), 0.05 * high)  # keeps a fronto-parallel scene from a lattice of zero depth
    bounds = np.tile([max(low - margin, 0.2 * low), high + margin], (len(depth), 1))
    return LatticeFields(nodes=np.zeros((len(depth), nz, nv, nu, 3), np.float32), inv_depth_range=bounds)


def resampled(fields: LatticeFields, lattice: tuple[int, int, int]) -> LatticeFields:
    """The same displacements on another number of nodes (nu, nv, nz)."""
    target = lattice[::-1]
    if fields.nodes.shape[1:4] == target:
        return fields
    factors = (1, *(t / s for t, s in zip(target, fields.nodes.shape[1:4], strict=True)), 1)
    per_depth = zoom(fields.nodes * layers(fields.inv_depth_range, fields.nodes.shape[1]), factors, order=1)
    nodes = (per_depth / layers(fields.inv_depth_range, lattice[2])).astype(np.float32)
    return LatticeFields(nodes=nodes, inv_depth_range=fields.inv_depth_range)


def layers(bounds: Array, count: int) -> Array:
    """(F, count, 1, 1, 1) inverse depth of the node layers between bounds (F, 2)."""
    low, high = bounds[:, :1], bounds[:, 1:]
    return (low + (high - low) * np.linspace(0, 1, count))[:, :, None, None, None]
