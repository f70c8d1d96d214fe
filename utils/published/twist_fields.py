"""Deformation of one frame as a twist per camera-space point, `q = exp(xi(p)) p`, learned by gradient descent.

Two parametrisations with one interface: a hash grid with a small network (the published method's), and a lattice over (u, v, inverse
depth). Points are in units (see `configs.icp`); twists are [omega, v] in radians and units.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from configs.icp import TwistFieldConfig
from utils.errors import MissingDependencyError
from utils.published.hashgrid import HashGridEncoding
from utils.published.hashgrid.levels import make_levels
from utils.third_party import available
from utils.types import Array

_MARGIN = 0.01  # of the box's extent, added on each side
_NODE_STEP = 0.1  # of Adam's step, for lattice nodes: a whole one moves each by more than the surface terms can hold in place


@dataclass(frozen=True)
class FrameBox:
    """What a field needs to know of its frame, in units.

    Attributes:
        low: (3,) least camera-space coordinates of the frame's points.
        high: (3,) greatest.
        K: (3, 3) intrinsics in pixels of `size`.
        size: (h, w).
        inv_depth: (2,) range of 1/z.
    """

    low: Array
    high: Array
    K: Array
    size: tuple[int, int]
    inv_depth: Array

    @classmethod
    def around(cls, points: Array, K: Array, size: tuple[int, int], inv_depth: Array) -> "FrameBox":
        """The box of points (N, 3), with a margin of 1 %."""
        low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
        margin = _MARGIN * np.maximum(high - low, 1e-6)
        return cls(low - margin, high + margin, K, size, inv_depth)


class HashGridTwists(nn.Module):
    """Twist of a point from its place in the frame's bounding box; translations scale with the box."""

    low: Tensor
    extent: Tensor

    def __init__(self, box: FrameBox, config: TwistFieldConfig, device: torch.device):
        super().__init__()
        self.register_buffer("low", torch.as_tensor(box.low, dtype=torch.float32))
        self.register_buffer("extent", torch.as_tensor(box.high - box.low, dtype=torch.float32))
        self.network = _network(config, device)
        self.to(device)

    def forward(self, points: Tensor) -> Tensor:
        """(N, 6) twists at camera-space points (N, 3); points outside of the box take the value at its surface."""
        unit = ((points - self.low) / self.extent).clamp(0, 1)
        values = self.network(unit).float()
        return torch.cat([values[:, :3], values[:, 3:6] * self.extent], -1)


class LatticeTwists(nn.Module):
    """Trilinear interpolation of shifts at the nodes of a lattice over (u, v, inverse depth); rotations stay zero.

    With rotations Adam removes less: turning and shifting about a far centre nearly cancel, and both then wander along the surface.
    """

    K: Tensor

    def __init__(self, box: FrameBox, config: TwistFieldConfig, device: torch.device):
        super().__init__()
        nu, nv, nz = config.lattice
        self.nodes = nn.Parameter(torch.zeros(1, 3, nz, nv, nu))
        self.register_buffer("K", torch.as_tensor(box.K, dtype=torch.float32))
        self._size, self._inv_depth = box.size, (float(box.inv_depth[0]), float(box.inv_depth[1]))
        self.to(device)

    def forward(self, points: Tensor) -> Tensor:
        """(N, 6) twists at camera-space points (N, 3) before the camera; points outside of the lattice take the value at its border."""
        (h, w), (far, near) = self._size, self._inv_depth
        inverse = 1 / points[:, 2].clamp(min=0.1 / near)
        u = (self.K[0, 0] * points[:, 0] * inverse + self.K[0, 2]) / w
        v = (self.K[1, 1] * points[:, 1] * inverse + self.K[1, 2]) / h
        grid = torch.stack([u, v, (inverse - far) / (near - far)], -1) * 2 - 1
        sampled = nn.functional.grid_sample(self.nodes, grid[None, None, None], align_corners=True, padding_mode="border")
        shift = _NODE_STEP * sampled[0, :, 0, 0].T
        return torch.cat([torch.zeros_like(shift), shift], -1)


def make_field(kind: str, box: FrameBox, config: TwistFieldConfig, device: torch.device) -> nn.Module:
    """A field that starts (almost) without deformation: `hashgrid` or `lattice`."""
    return (HashGridTwists if kind == "hashgrid" else LatticeTwists)(box, config, device)


def resolve_backend(config: TwistFieldConfig, device: torch.device, note: Callable[[str], None]) -> str:
    """The backend that `auto` stands for on a device; says so where tiny-cuda-nn would have been used.

    Raises:
        MissingDependencyError: a backend was named that cannot run here.
    """
    installed = available("tinycudann", "tinycudann_bindings/*.so")
    if config.backend == "tcnn" and not (installed and device.type == "cuda"):
        raise MissingDependencyError(
            "hash-grid backend 'tcnn' needs a CUDA device and the package tinycudann", "install it, or use backend auto"
        )
    if config.backend == "numba" and device.type != "cpu":
        raise MissingDependencyError("hash-grid backend 'numba' runs on the CPU only", "use backend auto, torch or tcnn")
    if config.backend != "auto":
        return config.backend
    if device.type == "cpu":
        return "numba"
    if not installed:
        note("hash grid: tiny-cuda-nn is not installed, the slower torch encoding is used")
    return "tcnn" if installed else "torch"


def _network(config: TwistFieldConfig, device: torch.device) -> nn.Module:
    """Encoding and network, (N, 3) in 0..1 -> (N, 6)."""
    backend = resolve_backend(config, device, lambda _: None)
    if backend == "tcnn":
        return _tiny_cuda_network(config)
    generator = torch.Generator().manual_seed(config.seed)
    levels = make_levels(config.levels, config.log2_table_size, config.min_resolution, config.max_resolution)
    encoding = HashGridEncoding(levels, generator, "numba" if backend == "numba" else "torch")
    widths = [encoding.output_dim, *([config.neurons] * config.hidden_layers)]
    layers: list[nn.Module] = [encoding]
    for before, after in itertools.pairwise(widths):
        layers += [_linear(before, after, generator), nn.ReLU()]
    return nn.Sequential(*layers, _linear(widths[-1], 6, generator))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer without bias, Xavier-uniform, so that features of zero give a twist of zero."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    return layer


def _tiny_cuda_network(config: TwistFieldConfig) -> nn.Module:
    """The same network in tiny-cuda-nn (half precision)."""
    import tinycudann

    growth = (config.max_resolution / config.min_resolution) ** (1 / max(config.levels - 1, 1))
    encoding = {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": 2,
        "log2_hashmap_size": config.log2_table_size,
        "base_resolution": config.min_resolution,
        "per_level_scale": growth,
        "interpolation": "Linear",
    }
    network = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": config.neurons,
        "n_hidden_layers": config.hidden_layers,
    }
    module: nn.Module = tinycudann.NetworkWithInputEncoding(3, 6, encoding, network, seed=config.seed)
    return module
