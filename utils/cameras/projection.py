"""Pinhole projection on the host (numpy). Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5)."""

import numpy as np

from utils.types import Array


def pixel_centers(size: tuple[int, int]) -> tuple[Array, Array]:
    """X and y of every pixel centre, each (h, w) float32."""
    h, w = size
    x = np.broadcast_to(np.arange(w, dtype=np.float32) + 0.5, (h, w))
    y = np.broadcast_to(np.arange(h, dtype=np.float32)[:, None] + 0.5, (h, w))
    return x, y


def unproject(x: Array, y: Array, depth: Array, K: Array) -> Array:
    """Camera-space points (..., 3) of pixel coordinates (...) at camera z `depth` (...)."""
    return np.stack([(x - K[0, 2]) / K[0, 0] * depth, (y - K[1, 2]) / K[1, 1] * depth, depth], -1)


def unproject_depth(depth: Array, K: Array) -> Array:
    """Camera-space points (h, w, 3) of a depth image (h, w)."""
    x, y = pixel_centers((depth.shape[0], depth.shape[1]))
    return unproject(x, y, depth, K).astype(np.float32)


def project(points: Array, K: Array) -> tuple[Array, Array, Array]:
    """Pixel x, y and depth z, each (...), of camera-space points (..., 3); x and y are NaN where z <= 0."""
    z = points[..., 2]
    safe = np.where(z > 0, z, np.nan)
    return K[0, 0] * points[..., 0] / safe + K[0, 2], K[1, 1] * points[..., 1] / safe + K[1, 2], z


def transform(matrix: Array, points: Array) -> Array:
    """(4, 4) applied to (..., 3) points."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def invert_rigid(matrix: Array) -> Array:
    """Inverse of (..., 4, 4) rigid transforms."""
    rotation = np.swapaxes(matrix[..., :3, :3], -1, -2)
    out = np.zeros_like(matrix)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, matrix[..., :3, 3])
    out[..., 3, 3] = 1.0
    return out


def to_4x4(matrix: Array) -> Array:
    """(N, 3, 4) or (N, 4, 4) rigid transforms as (N, 4, 4) float64."""
    out = np.tile(np.eye(4), (len(matrix), 1, 1))
    out[:, :3] = matrix[:, :3]
    return out


def orthonormalized(matrix: Array) -> Array:
    """(..., 4, 4) with the nearest rotation (SVD) in place of a slightly non-orthonormal one."""
    u, _, vt = np.linalg.svd(matrix[..., :3, :3])
    sign = np.sign(np.linalg.det(u @ vt))
    u[..., :, 2] *= sign[..., None]
    out = matrix.copy()
    out[..., :3, :3] = u @ vt
    return out
