"""Displacements given at pixels -> the displacement lattice that later stages read (`utils.types.LatticeFields`)."""

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import cg, splu

from utils.types import Array

_SMOOTHNESS = 7e-5  # weight of differences of neighbouring nodes per point and node: only nodes without points feel it
_TOLERANCE = 1e-5
_STEPS = 300
_DIRECT = 1000  # most nodes that are solved for by factors: faster there than steps


def fit_lattice(
    pixels: Array, depth: Array, displacement: Array, size: tuple[int, int], inv_depth: Array, lattice: tuple[int, int, int]
) -> tuple[Array, Array]:
    """Nodes (nz, nv, nu, 3) float32 of least squared misfit, and the misfit (N,) at the pixels.

    Args:
        pixels: (N, 2) x and y.
        depth: (N,) camera z.
        displacement: (N, 3) camera space.
        size: (h, w).
        inv_depth: (2,) bounds of the lattice in 1/z.
        lattice: nodes nu, nv, nz.
    """
    weights = _interpolation(pixels, depth, size, inv_depth, lattice)
    per_node = max(len(pixels), 1) / weights.shape[1]
    left = (weights.T @ weights + _SMOOTHNESS * per_node * _differences(lattice)).tocsr()
    right = weights.T @ displacement.astype(np.float64)
    if left.shape[0] <= _DIRECT:
        nodes = splu(left.tocsc()).solve(right)
    else:
        scale = diags_array(1.0 / np.maximum(left.diagonal(), 1e-12))
        nodes = np.stack([cg(left, column, rtol=_TOLERANCE, maxiter=_STEPS, M=scale)[0] for column in right.T], 1)
    nu, nv, nz = lattice
    return nodes.reshape(nz, nv, nu, 3).astype(np.float32), np.linalg.norm(weights @ nodes - displacement, axis=1)


def _interpolation(pixels: Array, depth: Array, size: tuple[int, int], inv_depth: Array, lattice: tuple[int, int, int]) -> csr_array:
    """(N, nodes) weights of `LatticeFields`."""
    nu, nv, nz = lattice
    share = np.stack([pixels[:, 0] / size[1], pixels[:, 1] / size[0], (1 / depth - inv_depth[0]) / (inv_depth[1] - inv_depth[0])], 1)
    counts = np.array(lattice)
    position = np.clip(share.astype(np.float64), 0, 1) * (counts - 1)
    low = np.minimum(position.astype(int), counts - 2)
    fraction = position - low
    columns, values = [], []
    for corner in range(8):
        bits = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
        node = low + bits
        columns.append(node[:, 0] + nu * (node[:, 1] + nv * node[:, 2]))
        layer = inv_depth[0] + (inv_depth[1] - inv_depth[0]) * node[:, 2] / (nz - 1)
        values.append(np.where(bits, fraction, 1 - fraction).prod(1) * depth * layer)
    rows = np.tile(np.arange(len(pixels)), 8)
    return coo_array((np.concatenate(values), (rows, np.concatenate(columns))), shape=(len(pixels), nu * nv * nz)).tocsr()


def _differences(lattice: tuple[int, int, int]) -> csr_array:
    """(nodes, nodes) sum of squared differences of neighbouring nodes, plus a trace of their squares."""
    nu, nv, nz = lattice
    chains = []
    for count in lattice:
        step = diags_array([-np.ones(count - 1), np.ones(count - 1)], offsets=[0, 1], shape=(count - 1, count))
        chains.append(step.T @ step)
    along_u, along_v, along_z = chains
    eye = [eye_array(n) for n in (nu, nv, nz)]
    whole = kron(eye[2], kron(eye[1], along_u)) + kron(eye[2], kron(along_v, eye[0])) + kron(along_z, kron(eye[1], eye[0]))
    return (whole + 1e-6 * eye_array(nu * nv * nz)).tocsr()
