"""Canonical splats as one camera sees them: chooses the implementation; `reference` defines what is computed.

May import: what `utils.splatting` may.
Start: `reference`.
"""

import torch
from torch import Tensor

from utils.deformation.inverse import LocalWarp, camera_from_world
from utils.device.triton_support import triton_ready
from utils.splatting.view import numba, reference
from utils.types import CameraGaussians, CameraSet, Splats

NEAR_IN_MEDIAN_DISTANCES = 0.01


def view_gaussians(
    splats: Splats,
    c2w: Tensor,
    local: LocalWarp,
    *,
    active_degree: int,
    turn: bool,
    higher: Tensor | None = None,
    quat: Tensor | None = None,
) -> CameraGaussians:
    """What the rasteriser draws for one view.

    Args:
        splats: canonical.
        c2w: (4, 4) pose of the view.
        local: the view's inverse deformation near the splats.
        active_degree: highest band of the colours.
        turn: whether the deformation's local rotation also turns the splats.
        higher: (N, B - 1, 3) bands above 0, if `splats.sh` holds only the base colour.
        quat: (4,) of the world-to-camera rotation, if it is known already.
    """
    if splats.means.is_cuda and splats.means.dtype == torch.float32 and triton_ready():
        from utils.splatting.view import triton

        return triton.view_gaussians(splats, c2w, local, active_degree=active_degree, turn=turn, higher=higher, quat=quat)
    if splats.means.device.type == "cpu" and splats.means.dtype == torch.float32 and quat is None:
        return numba.view_gaussians(splats, c2w, local, active_degree=active_degree, turn=turn, higher=higher)
    return reference.view_gaussians(splats, c2w, local, active_degree=active_degree, turn=turn, higher=higher, quat=quat)


def rigid(splats: Splats, c2w: Tensor) -> LocalWarp:
    """The identity in place of a deformation, for rendering the canonical world."""
    if splats.means.is_cuda and splats.means.dtype == torch.float32 and triton_ready():
        from utils.splatting.view import triton

        y = triton.camera_from_world(splats.means, c2w)
    else:
        y = camera_from_world(splats.means.detach(), c2w.detach())
    return LocalWarp(y0=y, q0=y, jacobian=None, residual=torch.zeros_like(y[:, 0]))


def near_plane(means: Tensor, cameras: CameraSet) -> float:
    """Nearest depth to draw where a checkpoint does not tell: a hundredth of the splats' median distance from the middle of the cameras."""
    middle = torch.from_numpy(cameras.centers.mean(0)).to(means)
    return float(NEAR_IN_MEDIAN_DISTANCES * (means.detach() - middle).norm(dim=-1).median())


def apply_appearance(rgb: Tensor, alpha: Tensor, matrix: Tensor) -> Tensor:
    """(H, W, 3) premultiplied colours seen through the colour map (3, 4) of a frame."""
    return rgb @ matrix[:, :3].T + alpha[..., None] * matrix[:, 3]
