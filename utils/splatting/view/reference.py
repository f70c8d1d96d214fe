"""Canonical splats as one camera sees them: posed, deformed or not, activated, coloured.

A splat at X goes to y = c2w^-1 X and on to q = inverse deformation of y; its rotation is turned by the pose and by the local rotation of
the deformation. The rasteriser then works in camera space, so the pose's gradient passes through both maps.
"""

import torch
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat, quat_multiply
from utils.deformation.inverse import LocalWarp, camera_from_world
from utils.device.triton_support import triton_ready
from utils.splatting.sh import evaluate_sh
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
        from utils.splatting.view import triton as gaussians_triton

        return gaussians_triton.view_gaussians(splats, c2w, local, active_degree=active_degree, turn=turn, higher=higher, quat=quat)
    if splats.means.device.type == "cpu" and splats.means.dtype == torch.float32 and quat is None:
        from utils.splatting.view import numba as gaussians_numba

        return gaussians_numba.view_gaussians(splats, c2w, local, active_degree=active_degree, turn=turn, higher=higher)
    sh = splats.sh if higher is None else torch.cat([splats.sh, higher], 1)
    quats = quat_multiply(matrix_to_quat(c2w[:3, :3].T) if quat is None else quat, splats.quats)
    rotation = local.rotation_quaternions if turn else None
    return CameraGaussians(
        means=local(camera_from_world(splats.means, c2w)),
        quats=quats if rotation is None else quat_multiply(rotation, quats),
        scales=splats.log_scales.exp(),
        opacities=splats.logit_opacities.sigmoid(),
        colors=evaluate_sh(sh, splats.means.detach() - c2w[:3, 3].detach(), active_degree),
    )


def rigid(splats: Splats, c2w: Tensor) -> LocalWarp:
    """The identity in place of a deformation, for rendering the canonical world."""
    if splats.means.is_cuda and splats.means.dtype == torch.float32 and triton_ready():
        from utils.splatting.view import triton as gaussians_triton

        y = gaussians_triton.camera_from_world(splats.means, c2w)
    else:
        y = camera_from_world(splats.means.detach(), c2w.detach())
    return LocalWarp(y0=y, q0=y, jacobian=None, residual=torch.zeros_like(y[:, 0]))


def near_plane(means: Tensor, cameras: CameraSet) -> float:
    """Nearest depth to draw: a hundredth of the median distance of the splats from the middle of the cameras."""
    middle = torch.from_numpy(cameras.centers.mean(0)).to(means)
    return float(NEAR_IN_MEDIAN_DISTANCES * (means.detach() - middle).norm(dim=-1).median())


def apply_appearance(rgb: Tensor, alpha: Tensor, matrix: Tensor) -> Tensor:
    """(H, W, 3) premultiplied colours seen through the colour map (3, 4) of a frame."""
    return rgb @ matrix[:, :3].T + alpha[..., None] * matrix[:, 3]
