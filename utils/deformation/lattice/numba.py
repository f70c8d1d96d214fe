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


@njit(inline="always")
def cell_coordinate(value, count):  # type: ignore[no-untyped-def]
    """Lower node and fraction of a lattice coordinate, clamped to `count` nodes."""
    value = min(max(value, 0.0), count - 1.0)
    lower = max(min(int(value), count - 2), 0)
    return lower, value - lower


@njit(inline="always")
def _displacement(nodes, low, inv_span, width, height, x, y, z):  # type: ignore[no-untyped-def]
    """Displacement at pixel (x, y) and depth z from `nodes` (nz, nv, nu, 3), see `LatticeFields`."""
    nz, nv, nu = nodes.shape[0], nodes.shape[1], nodes.shape[2]
    a, fa = cell_coordinate(x / width * (nu - 1), nu)
    b, fb = cell_coordinate(y / height * (nv - 1), nv)
    c, fc = cell_coordinate((1.0 / z - low) * inv_span * (nz - 1), nz)
    a1, b1, c1 = min(a + 1, nu - 1), min(b + 1, nv - 1), min(c + 1, nz - 1)
    w00, w01, w10, w11 = (1 - fb) * (1 - fa), (1 - fb) * fa, fb * (1 - fa), fb * fa
    dx = dy = dz = 0.0
    step = 1.0 / (inv_span * max(nz - 1, 1))
    for k in range(2):
        layer = nodes[c1 if k else c]
        w = (fc if k else 1 - fc) * z * (low + (c1 if k else c) * step)
        dx += w * (w00 * layer[b, a, 0] + w01 * layer[b, a1, 0] + w10 * layer[b1, a, 0] + w11 * layer[b1, a1, 0])
        dy += w * (w00 * layer[b, a, 1] + w01 * layer[b, a1, 1] + w10 * layer[b1, a, 1] + w11 * layer[b1, a1, 1])
        dz += w * (w00 * layer[b, a, 2] + w01 * layer[b, a1, 2] + w10 * layer[b1, a, 2] + w11 * layer[b1, a1, 2])
    return dx, dy, dz


@njit(nogil=True, cache=True)
def forward_kernel(points, intrinsics, size, c2w, nodes, inv_depth):  # type: ignore[no-untyped-def]
    """Canonical positions (N, 3) of camera-space points (N, 3); NaN where z is not positive.

    Args:
        points: (N, 3) camera space, before alignment.
        intrinsics: (4,) fx, fy, cx, cy in pixels.
        size: (h, w).
        c2w: (4, 4).
        nodes: (nz, nv, nu, 3).
        inv_depth: (2,) lattice bounds.
    """
    out = np.empty((len(points), 3), np.float32)
    fx, fy, cx, cy = intrinsics
    inv_span = 1.0 / (inv_depth[1] - inv_depth[0])
    for m in range(len(points)):
        px, py, pz = float(points[m, 0]), float(points[m, 1]), float(points[m, 2])
        if not pz > NEAREST:
            out[m] = np.nan
            continue
        dx, dy, dz = _displacement(nodes, inv_depth[0], inv_span, size[1], size[0], fx * px / pz + cx, fy * py / pz + cy, pz)
        px, py, pz = px + dx, py + dy, pz + dz
        for r in range(3):
            out[m, r] = c2w[r, 0] * px + c2w[r, 1] * py + c2w[r, 2] * pz + c2w[r, 3]
    return out


@njit(nogil=True, cache=True)
def project_kernel(points, intrinsics, size, w2c, nodes, inv_depth, steps):  # type: ignore[no-untyped-def]
    """Pixel x, y and original depth z (N, 3) of canonical points (N, 3): the inverse of `forward_kernel`, then projection.

    The fixed point `p <- w2c X - delta(p)` contracts because displacements vary slowly; `steps` of 1 suit a prediction that is refined
    later, 3 reach 1e-4 of a displacement. NaN where the point is not in front of the camera.
    """
    out = np.empty((len(points), 3), np.float32)
    fx, fy, cx, cy = intrinsics
    inv_span = 1.0 / (inv_depth[1] - inv_depth[0])
    for m in range(len(points)):
        wx, wy, wz = float(points[m, 0]), float(points[m, 1]), float(points[m, 2])
        qx = w2c[0, 0] * wx + w2c[0, 1] * wy + w2c[0, 2] * wz + w2c[0, 3]
        qy = w2c[1, 0] * wx + w2c[1, 1] * wy + w2c[1, 2] * wz + w2c[1, 3]
        qz = w2c[2, 0] * wx + w2c[2, 1] * wy + w2c[2, 2] * wz + w2c[2, 3]
        px, py, pz = qx, qy, qz
        for _ in range(steps):
            if not pz > NEAREST:
                break
            dx, dy, dz = _displacement(nodes, inv_depth[0], inv_span, size[1], size[0], fx * px / pz + cx, fy * py / pz + cy, pz)
            px, py, pz = qx - dx, qy - dy, qz - dz
        if not pz > NEAREST:
            out[m] = np.nan
            continue
        out[m, 0], out[m, 1], out[m, 2] = fx * px / pz + cx, fy * py / pz + cy, pz
    return out


@njit(nogil=True, cache=True)
def predict_kernel(depth, intrinsics, nodes, inv_depth, relative, other_intrinsics, other_nodes, other_inv_depth, out):  # type: ignore[no-untyped-def]
    """Pixel x, y in another frame of each pixel of a depth image: `forward_kernel`, then one step of `project_kernel`, in one pass.

    Both frames have the size of the image. One step predicts to a fraction of a pixel; what uses it finds the rest. Fields of which all
    nodes are zero cost nothing.

    Args:
        depth: (H, W), not positive where unknown.
        intrinsics: (4,) fx, fy, cx, cy in pixels, of the frame of the depth image.
        nodes: (nz, nv, nu, 3) of that frame.
        inv_depth: (2,) lattice bounds of that frame.
        relative: (4, 4) from that camera's space to the other's.
        other_intrinsics: (4,) of the other frame.
        other_nodes: (nz, nv, nu, 3) of the other frame.
        other_inv_depth: (2,) of the other frame.
        out: (H, W, 2) float32, receives the result; NaN where depth is unknown or the point is not in front of the other camera.
    """
    h, w = depth.shape
    fx, fy, cx, cy = intrinsics
    gx, gy, ox, oy = other_intrinsics
    inv_span, other_span = 1.0 / (inv_depth[1] - inv_depth[0]), 1.0 / (other_inv_depth[1] - other_inv_depth[0])
    moves, other_moves = np.any(nodes != 0), np.any(other_nodes != 0)
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
            qx = relative[0, 0] * px + relative[0, 1] * py + relative[0, 2] * pz + relative[0, 3]
            qy = relative[1, 0] * px + relative[1, 1] * py + relative[1, 2] * pz + relative[1, 3]
            qz = relative[2, 0] * px + relative[2, 1] * py + relative[2, 2] * pz + relative[2, 3]
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
