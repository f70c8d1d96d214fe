"""The inverse deformation as one small network for all views: a twist at every camera-space point, from its place and the view.

The published way. It is approximate where `fixed_point` is exact, but smooth everywhere, also where the forward field folds. Differences
from the published network: places are normalised by each view's own frustum (not one view's box for all, and nothing is clamped), and
sines of the place stand in for a hash grid, whose finest levels store noise.
"""

import copy
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from utils.cameras import se3
from utils.deformation.inverse import InverseWarp, LocalWarp
from utils.deformation.lattice.reference import NEAR_FRACTION
from utils.errors import CorruptArtifactError

_TYPICAL_TWIST = 0.01
"""The network's outputs are of the order of 1, deformations of a hundredth (radians and depths): steps of the optimiser then fit."""


class NetworkInverseWarp(InverseWarp):
    """q = exp(xi(y, i)) y, xi = [omega, v * depth of y] from a multilayer perceptron.

    Buffers: `K` (F, 3, 3) px, `size` (2,) = (h, w) px, `inv_depth_range` (F, 2).

    Args:
        K: intrinsics of the views.
        size: image size they are for.
        inv_depth_range: per view, normalises 1/z.
        octaves: sines of the place up to 2^(octaves - 1) half waves across the frustum.
        code: length of a view's learned code.
        neurons: width of the hidden layers.
        layers: hidden layers.
    """

    K: Tensor
    size: Tensor
    inv_depth_range: Tensor

    def __init__(self, K: Tensor, size: Tensor, inv_depth_range: Tensor, *, octaves: int, code: int, neurons: int, layers: int):
        super().__init__()
        self.register_buffer("K", K.float())
        self.register_buffer("size", size)
        self.register_buffer("inv_depth_range", inv_depth_range.float())
        self._shape = {"octaves": octaves, "code": code, "neurons": neurons, "layers": layers, "frames": len(K)}
        self.codes = nn.Parameter(0.01 * torch.randn(len(K), code, generator=torch.Generator().manual_seed(0)))
        widths = [3 + 6 * octaves + code, *([neurons] * layers)]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
        last = nn.Linear(neurons, 6)
        nn.init.normal_(last.weight, std=1e-2)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*hidden, last)

    def twist(self, y: Tensor, view: int) -> Tensor:
        """(N, 6) [omega, v / depth] at rigidly transformed points y (N, 3) of a view; differentiable."""
        place = self._place(y, view)
        waves = place[:, None] * (math.pi * 2.0 ** torch.arange(self._shape["octaves"], device=y.device))[:, None]
        code = self.codes[view].expand(len(y), -1)
        return _TYPICAL_TWIST * self.layers(torch.cat([place, waves.sin().flatten(1), waves.cos().flatten(1), code], 1))

    def apply_twist(self, y: Tensor, twist: Tensor) -> Tensor:
        """(N, 3) points moved by twists (N, 6) as `twist` gives them."""
        scaled = torch.cat([twist[:, :3], twist[:, 3:] * y[:, 2:].abs()], 1)
        motion = se3.exp(scaled)
        return (motion[:, :3, :3] @ y[:, :, None])[:, :, 0] + motion[:, :3, 3]

    def _place(self, y: Tensor, view: int) -> Tensor:
        """(N, 3) image position and inverse depth, -1..1 across the view's frustum."""
        far, near = self.inv_depth_range[view]
        inverse = 1.0 / torch.maximum(y[:, 2], NEAR_FRACTION / near)
        K, (h, w) = self.K[view], self.size
        u, v = (K[0, 0] * y[:, 0] * inverse + K[0, 2]) / w, (K[1, 1] * y[:, 1] * inverse + K[1, 2]) / h
        place = torch.stack([u, v, (inverse - far) / (near - far)], -1)
        return (2 * place - 1).clamp(-1.5, 1.5)

    def linearize(self, y: Tensor, frame_index: int) -> LocalWarp:
        """Value and exact Jacobian of the network at y; its `residual` is not known here and is zero."""
        with torch.enable_grad():
            y = y.detach().to(self.K).requires_grad_()
            q = self.apply_twist(y, self.twist(y, frame_index))
            rows = [torch.autograd.grad(q[:, k].sum(), y, retain_graph=k < 2)[0] for k in range(3)]
        y = y.detach()
        return LocalWarp(y0=y, q0=q.detach(), jacobian=torch.stack(rows, 1), residual=torch.zeros_like(y[:, 0]))

    def select(self, views: list[int]) -> "NetworkInverseWarp":
        """The inverse of these views alone, in this order."""
        result = copy.deepcopy(self)
        result.K, result.inv_depth_range = self.K[views], self.inv_depth_range[views]
        result.codes = nn.Parameter(self.codes.detach()[views], requires_grad=self.codes.requires_grad)
        result._shape = {**self._shape, "frames": len(views)}
        return result

    def config(self) -> dict[str, Any]:
        """The method's name and the network's shape."""
        return {"method": "network", **self._shape}


def network_from_state(config: dict[str, Any], state: dict[str, Tensor]) -> NetworkInverseWarp:
    """The warp that `config()` and `state_dict()` describe.

    Raises:
        CorruptArtifactError: tensors or settings are missing or do not fit.
    """
    try:
        shape = {name: int(config[name]) for name in ("octaves", "code", "neurons", "layers")}
        warp = NetworkInverseWarp(state["K"], state["size"], state["inv_depth_range"], **shape)
        warp.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise CorruptArtifactError(f"inverse_local.pt does not hold the network: {error}", "re-run train_inverse_deformation") from error
    return warp.requires_grad_(False)
