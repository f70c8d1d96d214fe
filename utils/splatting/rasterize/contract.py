"""What a rasteriser is, the constants that all of them share, and how to get one by name.

A rasteriser sees Gaussians that are already in the camera's space: deformation and pose are applied upstream, where autograd
takes the gradients of the means and quaternions further.

Shared rules, so that backends agree to rounding: a Gaussian whose centre is not beyond `near` is not drawn; contributions
with alpha below `ALPHA_MIN` are dropped and alpha is clamped to `ALPHA_MAX`; Gaussians are blended in order of their centre's
depth; a pixel takes no more once its transmittance is at most `TRANSMITTANCE_STOP`.
"""

import importlib.util
from typing import Literal, Protocol

import torch
from torch import Tensor

from utils.device.triton_support import triton_ready
from utils.errors import ConfigError
from utils.registry import Registry
from utils.types import CameraGaussians, RenderOutput

SplatMode = Literal["3dgs", "2dgs"]

ALPHA_MIN = 1 / 255
"""One grey level: less is not visible. It also bounds a Gaussian's extent on screen (Kerbl et al. 2023)."""

ALPHA_MAX = 0.999
"""Keeps 1 - alpha away from 0, where the gradient of what lies behind would be 0 / 0."""

TRANSMITTANCE_STOP = 1e-4

EPS2D = 0.3
"""Added to the variances of a projected 3D Gaussian, pixels squared: nothing is thinner than about a pixel."""

FRUSTUM_MARGIN = 0.3
"""EWA's linearisation is taken at a point at most this share of the half field of view outside of the image."""

LOW_PASS = 2.0
"""Inverse variance, 1 / pixels squared, of the disc under which a surfel never shrinks (Huang et al. 2024, eq. 11)."""

EDGE_ON = 1e-6
"""Surfels whose projected axes are parallel to within this (relative) are seen edge-on and not drawn."""

RAY_MIN = 1e-6
"""A ray meets a surfel's plane in front of the camera where centre depth / hit depth is above this."""

NEAR = 0.01


class Rasterizer(Protocol):
    """Draws Gaussians, differentiably in all of their attributes; the intrinsics get no gradient.

    `render` takes Gaussians of N >= 0 rows in camera space, `K` (3, 3) in pixels of `size` = (h, w), and `near`, the smallest
    camera z that is drawn, in scene units (callers scale it with the scene). Mode "3dgs" returns rgb, alpha and depth (of the
    Gaussians' centres); mode "2dgs" also normals and distortion, the latter in scene units squared:
    `sum over pairs i < j of w_i w_j (z_i - z_j)^2`.
    """

    name: str

    def render(self, gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = NEAR) -> RenderOutput:
        """One view on black."""
        ...


RASTERIZERS = Registry(
    "rasterizer",
    numba="utils.splatting.rasterize.numba:NumbaRasterizer",
    torch="utils.splatting.rasterize.reference:TorchRasterizer",
    gsplat="utils.splatting.rasterize.gsplat:GsplatRasterizer",
    triton="utils.splatting.rasterize.triton:TritonRasterizer",
)


def choose_rasterizer(name: str, device: str) -> tuple[str, torch.device, str]:
    """Concrete name, device and why, for a name or `auto` and for cpu, cuda or `auto`.

    On CUDA, gsplat is taken where it comes compiled; where it would first have to be built, the Triton kernels, which are as fast.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ConfigError("device is cuda, but torch sees no CUDA device", "use --config.device cpu or auto")
    if name != "auto":
        on_gpu = cuda and device != "cpu" and name in ("gsplat", "triton", "torch")
        return name, torch.device("cuda" if on_gpu else "cpu"), f"rasterizer {name} as asked"
    if not cuda or device == "cpu":
        return "numba", torch.device("cpu"), "rasterizer numba: no CUDA in use"
    if importlib.util.find_spec("gsplat") and importlib.util.find_spec("gsplat.csrc"):
        return "gsplat", torch.device("cuda"), "rasterizer gsplat: compiled for CUDA"
    if triton_ready():
        return "triton", torch.device("cuda"), "rasterizer triton: CUDA is available, gsplat is not compiled"
    return "numba", torch.device("cpu"), "rasterizer numba on the CPU: neither a compiled gsplat nor Triton is installed"


def load_rasterizer(name: str, device: torch.device | str) -> Rasterizer:
    """The rasteriser of this name (or `auto`), ready for tensors on `device`.

    Raises:
        UnknownBackendError: no such name.
        MissingDependencyError: its package or device is not there, or it cannot draw on `device`.
    """
    if name == "auto":
        name = choose_rasterizer(name, torch.device(device).type)[0]
    return RASTERIZERS.load(name)(torch.device(device))
