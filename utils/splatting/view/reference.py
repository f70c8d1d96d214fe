"""Canonical splats in one camera's space: pose, inverse deformation, activations and view-dependent colour.

A splat at X goes to y = c2w^-1 X and on to q = inverse deformation of y; its rotation is turned by the pose and by the local rotation of
the deformation. The rasteriser then works in camera space, so the pose's gradient passes through both maps.
"""

import torch
from torch import Tensor

from utils.cameras.rotations import matrix_to_quat, quat_multiply
from utils.deformation.inverse import LocalWarp, camera_from_world
from utils.splatting.sh import evaluate_sh
from utils.types import CameraGaussians, Splats


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
