"""Forward displacement fields in torch: interpolation on the (u, v, inverse depth) lattice of `LatticeFields`, and its Jacobian.

Symbols: a point p = (X, Y, Z) in camera space, lattice coordinates (a, b, c) along the nodes' axes (u, v, inverse depth), displacement
delta(p) in camera space. Solving for p given p + delta(p) is `utils.deformation.inverse`.
"""

import numpy as np
import torch
from torch import Tensor, nn

from utils.types import Array, CameraSet, LatticeFields

NEAR_FRACTION = 1e-3
"""Points nearer than this fraction of the lattice's nearest depth (or behind the camera) are projected as if they were that far away:
their coordinates clamp to the lattice border, and nothing divides by zero."""


class LatticeField(nn.Module):
    """The fields of all frames, with the intrinsics that give a point its lattice coordinates.

    Buffers: `nodes` (F, nz, nv, nu, 3) scene units; `inv_depth_range` (F, 2); `K` (F, 3, 3) px; `size` (2,) = (h, w) px.
    """

    nodes: Tensor
    inv_depth_range: Tensor
    K: Tensor
    size: Tensor

    def __init__(self, nodes: Tensor, inv_depth_range: Tensor, K: Tensor, size: Tensor):
        super().__init__()
        self.register_buffer("nodes", nodes)
        self.register_buffer("inv_depth_range", inv_depth_range)
        self.register_buffer("K", K)
        self.register_buffer("size", size)

    @classmethod
    def from_fields(cls, fields: LatticeFields, cameras: CameraSet, dtype: torch.dtype = torch.float32) -> "LatticeField":
        """The fields of an alignment and the cameras they belong to, at the resolution they were solved at."""
        return cls(
            nodes=torch.as_tensor(fields.nodes).to(dtype),
            inv_depth_range=torch.as_tensor(fields.inv_depth_range).to(dtype),
            K=torch.as_tensor(cameras.K).to(dtype),
            size=torch.tensor(cameras.size),
        )

    def __len__(self) -> int:
        return len(self.nodes)

    def displacement(self, points: Tensor, frame_index: int) -> Tensor:
        """(N, 3) displacement at camera-space points (N, 3); differentiable with respect to the points."""
        return self._evaluate(points, frame_index)[0]

    @torch.no_grad()
    def displacement_and_jacobian(self, points: Tensor, frame_index: int) -> tuple[Tensor, Tensor]:
        """(N, 3) displacement and (N, 3, 3) Jacobian, rows = components of the displacement, columns = d/dX, d/dY, d/dZ.

        The field is piecewise smooth: on a cell border the Jacobian is that of the upper cell; along a clamped coordinate it is zero.
        """
        value, slopes, coordinates_jacobian = self._evaluate(points, frame_index)
        jacobian = slopes @ coordinates_jacobian
        z = points[:, 2]
        in_front = z > float(NEAR_FRACTION / self.inv_depth_range[frame_index, 1])
        jacobian[:, :, 2] += torch.where(in_front, 1.0 / z, 0.0)[:, None] * value
        return value, jacobian

    def affine_coordinates(self, frame_index: int) -> Array:
        """(7,) float64 a, b, c as affine functions of X/Z, Y/Z, 1/Z (slope, offset each), then the nearest Z: what a kernel needs."""
        K, (far_step, near) = self.K[frame_index].double().cpu(), self.inv_depth_range[frame_index].double().cpu().tolist()
        nz, nv, nu = self.nodes.shape[1:4]
        h, w = self.size.tolist()
        u_scale, v_scale, c_scale = (nu - 1) / w, (nv - 1) / h, (nz - 1) / (near - far_step)
        affine = [K[0, 0] * u_scale, K[0, 2] * u_scale, K[1, 1] * v_scale, K[1, 2] * v_scale, c_scale, -far_step * c_scale]
        return np.array([*map(float, affine), NEAR_FRACTION / near])

    def _evaluate(self, points: Tensor, frame_index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Displacement (N, 3), slopes d delta / d(a, b, c) at fixed Z (N, 3, 3), and d(a, b, c) / d(X, Y, Z) (N, 3, 3)."""
        coordinates, jacobian = self._coordinates(points, frame_index)
        far, near = self.inv_depth_range[frame_index]
        layers = far + (near - far) * torch.linspace(0, 1, self.nodes.shape[1], dtype=far.dtype, device=far.device)
        nodes = self.nodes[frame_index] * layers[:, None, None, None]
        counts = torch.tensor([nodes.shape[2], nodes.shape[1], nodes.shape[0]])
        last = (counts - 1).to(points)
        clamped = coordinates.clamp(min=torch.zeros_like(last), max=last)
        low = clamped.detach().floor().clamp(max=(last - 1).clamp(min=0))
        weight = clamped - low
        corners = self._corners(nodes, low.long(), counts)
        value, slopes = _trilinear(corners, weight)
        inside = (coordinates > 0) & (coordinates < last)
        depth = points[:, 2].clamp(min=float(NEAR_FRACTION / near))
        return value * depth[:, None], slopes * inside[:, None, :] * depth.detach()[:, None, None], jacobian

    def _coordinates(self, points: Tensor, frame_index: int) -> tuple[Tensor, Tensor]:
        """Unclamped lattice coordinates (N, 3) = (a, b, c) and their detached Jacobian (N, 3, 3)."""
        K, (near, far_step) = self.K[frame_index], self.inv_depth_range[frame_index].flip(0)
        nz, nv, nu = self.nodes.shape[1:4]
        h, w = self.size.tolist()
        u_scale, v_scale, c_scale = (nu - 1) / w, (nv - 1) / h, (nz - 1) / (near - far_step)
        x, y, z = points.unbind(-1)
        z = z.clamp(min=float(NEAR_FRACTION / near))
        inv_z = 1.0 / z
        a = (K[0, 0] * x * inv_z + K[0, 2]) * u_scale
        b = (K[1, 1] * y * inv_z + K[1, 2]) * v_scale
        c = (inv_z - far_step) * c_scale
        with torch.no_grad():
            jacobian = points.new_zeros(len(points), 3, 3)
            jacobian[:, 0, 0] = K[0, 0] * u_scale * inv_z
            jacobian[:, 0, 2] = -K[0, 0] * u_scale * x * inv_z**2
            jacobian[:, 1, 1] = K[1, 1] * v_scale * inv_z
            jacobian[:, 1, 2] = -K[1, 1] * v_scale * y * inv_z**2
            jacobian[:, 2, 2] = -c_scale * inv_z**2
        return torch.stack([a, b, c], -1), jacobian

    def _corners(self, nodes: Tensor, low: Tensor, counts: Tensor) -> Tensor:
        """(N, 2, 2, 2, 3) node values around each point, axes (c, b, a); an axis with one node repeats it."""
        nu, nv, nz = counts.tolist()
        high = torch.minimum(low + 1, counts.to(low.device) - 1)
        a = torch.stack([low[:, 0], high[:, 0]], -1)
        b = torch.stack([low[:, 1], high[:, 1]], -1) * nu
        c = torch.stack([low[:, 2], high[:, 2]], -1) * (nu * nv)
        index = c[:, :, None, None] + b[:, None, :, None] + a[:, None, None, :]
        return nodes.reshape(nz * nv * nu, 3).index_select(0, index.reshape(-1)).reshape(*index.shape, 3)


def _trilinear(corners: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Value (N, 3) and slopes (N, 3, 3) along (a, b, c) of corners (N, 2, 2, 2, 3), axes (c, b, a), at weights (N, 3) = (a, b, c)."""
    a, b, c = (weight[:, axis].reshape(-1, 1, 1, 1) for axis in range(3))
    slope_a = corners[:, :, :, 1] - corners[:, :, :, 0]
    value = corners[:, :, :, 0] + slope_a * a
    slope_b = value[:, :, 1] - value[:, :, 0]
    b, c = b[:, 0], c[:, 0, 0]
    slope_a = slope_a[:, :, 0] + (slope_a[:, :, 1] - slope_a[:, :, 0]) * b
    value = value[:, :, 0] + slope_b * b
    slope_c = value[:, 1] - value[:, 0]
    slope_a = slope_a[:, 0] + (slope_a[:, 1] - slope_a[:, 0]) * c
    slope_b = slope_b[:, 0] + (slope_b[:, 1] - slope_b[:, 0]) * c
    return value[:, 0] + slope_c * c, torch.stack([slope_a, slope_b, slope_c], -1)
