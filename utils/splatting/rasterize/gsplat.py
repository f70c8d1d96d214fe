"""gsplat on CUDA: the only file that knows its arguments (written for gsplat 1.5.3).

Two differences to the other backends, both below what training resolves: gsplat leaves out the Gaussian that would take a pixel's
transmittance below the stop (we blend it), and its surfels have the depth of their centre (ours that of the ray's hit).
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from utils.errors import MissingDependencyError
from utils.splatting.rasterize.contract import EPS2D, NEAR, SplatMode
from utils.types import CameraGaussians, RenderOutput


class GsplatRasterizer:
    """Draws on a CUDA device, see `Rasterizer`; gsplat compiles its kernels at the first call, which needs nvcc."""

    name = "gsplat"

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise MissingDependencyError(
                f"rasterizer 'gsplat' draws on a CUDA device, not on {device}", "choose the rasterizer 'numba', or --device cuda"
            )
        if not torch.cuda.is_available():
            raise MissingDependencyError(
                "rasterizer 'gsplat' needs a CUDA device and there is none (torch.cuda.is_available() is False)",
                "choose the rasterizer 'numba', or install a CUDA build of torch",
            )
        try:
            self._gsplat = importlib.import_module("gsplat")
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "rasterizer 'gsplat' needs the package 'gsplat', which is not installed",
                "choose the rasterizer 'triton', or pip install -e '.[gsplat]' in this program's folder, which needs nvcc",
            ) from error

    def render(self, gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = NEAR) -> RenderOutput:
        """One view on black, see `Rasterizer`."""
        if len(gaussians) == 0:
            return _black(gaussians, size, mode)
        view: dict[str, Any] = {
            "viewmats": torch.eye(4, dtype=gaussians.means.dtype, device=gaussians.means.device)[None],
            "Ks": K[None].to(gaussians.means),
            "height": size[0],
            "width": size[1],
            "near_plane": near,
            "eps2d": EPS2D,
            "packed": False,
        }
        return self._render_gaussians(gaussians, view) if mode == "3dgs" else self._render_surfels(gaussians, view)

    def _render_gaussians(self, gaussians: CameraGaussians, view: dict[str, Any]) -> RenderOutput:
        images, alpha, _ = self._gsplat.rasterization(
            gaussians.means,
            gaussians.quats,
            gaussians.scales,
            gaussians.opacities,
            gaussians.colors,
            render_mode="RGB+D",
            **view,
        )
        return RenderOutput(rgb=images[0, ..., :3], alpha=alpha[0, ..., 0], depth=images[0, ..., 3])

    def _render_surfels(self, gaussians: CameraGaussians, view: dict[str, Any]) -> RenderOutput:
        """Draws z and z squared as colours: gsplat's own distortion is of another kind (absolute, not squared, differences)."""
        z = gaussians.means[:, 2:]
        # Depths are drawn relative to a typical one: distortion is a difference of sums of squares and would cancel.
        origin = z.detach().median()
        offset = z - origin
        # Eight channels because that is what the kernel is built for; gsplat would fill up with uninitialised memory.
        channels = torch.cat([gaussians.colors, offset, offset**2, torch.zeros_like(gaussians.colors)], dim=1)
        images, alpha, normals, *_ = self._gsplat.rasterization_2dgs(
            gaussians.means,
            gaussians.quats,
            gaussians.scales,
            gaussians.opacities,
            channels[None],  # of the one view: gsplat 1.5.3 does not add this axis for surfels itself
            render_mode="RGB",
            **view,
        )
        total, first, second = alpha[0, ..., 0], images[0, ..., 3], images[0, ..., 4]
        return RenderOutput(
            rgb=images[0, ..., :3],
            alpha=total,
            depth=first + origin * total,
            normal=normals[0],
            distortion=(total * second - first**2).clamp(min=0),
        )


def _black(gaussians: CameraGaussians, size: tuple[int, int], mode: SplatMode) -> RenderOutput:
    """Nothing to draw; gsplat's kernels do not take empty inputs. Still attached to the graph, so that a loss has a gradient."""
    zero = gaussians.means.sum() * 0 + gaussians.colors.sum() * 0
    image, plane = zero.expand(*size, 3), zero.expand(size)
    if mode == "3dgs":
        return RenderOutput(rgb=image, alpha=plane, depth=plane)
    return RenderOutput(rgb=image, alpha=plane, depth=plane, normal=image, distortion=plane)
