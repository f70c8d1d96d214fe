"""Inverse deformation, from canonical space into one frame's camera: q with `c2w_i @ (q + delta_i(q)) = X`, by fixed point and Newton.

With y = c2w^-1 X the equation is q + delta(q) = y. Its solution as a function of y has the derivative A = (I + d delta/dq)^-1 (implicit
function theorem), so the search for q needs no autograd: `LocalWarp` holds q0, y0 and A of every point, and `q0 + A (y - y0)` has the exact
value and the exact gradient with respect to the points and the pose at y0, and is a first-order prediction nearby. Splatting keeps one
`LocalWarp` per view and renews it only now and then.

`contract` says what every inverse gives; the search is `reference` (batched torch), `numba` (CPU) and `triton` (GPU).
May import: what `utils.deformation` may.
Start: `inverse_of_alignment`, `contract.LocalWarp`, `reference.solve`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.deformation.inverse import numba, reference
from utils.deformation.inverse.contract import IdentityInverseWarp, InverseWarp, LocalWarp, camera_from_world
from utils.deformation.lattice.reference import LatticeField
from utils.device.triton_support import triton_ready
from utils.types import Alignment

__all__ = ["FixedPointInverseWarp", "IdentityInverseWarp", "InverseWarp", "LocalWarp", "camera_from_world", "inverse_of_alignment"]


class FixedPointInverseWarp(InverseWarp):
    """Direct inversion of the forward lattice: q_{k+1} = y - delta(q_k), Newton steps for the points where that does not contract."""

    def __init__(self, field: LatticeField):
        super().__init__()
        self.field = field
        self._cameras: Tensor | None = None

    @torch.no_grad()
    def linearize(self, y: Tensor, frame_index: int) -> LocalWarp:
        """Solves q + delta(q) = y for each point; residuals that stay large are reported, not hidden."""
        y = y.detach()
        if y.device.type == "cpu":
            return numba.solve(self.field, frame_index, y)
        if y.device.type == "cuda" and y.dtype == torch.float32 and triton_ready():
            from utils.deformation.inverse import triton

            nodes, camera = self.field.nodes[frame_index], self.coordinates(y.device)[frame_index]
            return LocalWarp(y, *triton.invert_lattice(nodes, camera, y, reference.settings()))
        return reference.solve(self.field, frame_index, y)

    def coordinates(self, device: torch.device) -> Tensor:
        """(F, 8) float32 coordinate maps of the frames, see `LatticeField.affine_coordinates`, kept on the device."""
        if self._cameras is None or self._cameras.device != device:
            # One more column: rows of 32 bytes are aligned alike, so that one compiled kernel serves all frames.
            cameras = np.stack([np.append(self.field.affine_coordinates(frame), 0.0) for frame in range(len(self.field))])
            self._cameras = torch.from_numpy(cameras).to(device, torch.float32)
        return self._cameras

    def select(self, views: list[int]) -> "FixedPointInverseWarp":
        """The inverse of these views alone, in this order."""
        field = self.field
        return FixedPointInverseWarp(LatticeField(field.nodes[views], field.inv_depth_range[views], field.K[views], field.size))

    def config(self) -> dict[str, Any]:
        """The method's name and the lattice's shape."""
        return {"method": "fixed_point", "nodes": list(self.field.nodes.shape)}


def inverse_of_alignment(alignment: Alignment, dtype: torch.dtype = torch.float32) -> FixedPointInverseWarp:
    """The direct inverse of an alignment's forward fields; frame_index is the camera's position in the alignment."""
    return FixedPointInverseWarp(LatticeField.from_fields(alignment.fields, alignment.cameras, dtype))
