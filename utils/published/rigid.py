"""Rigid coloured ICP of one frame against the model, coarse to fine."""

import numpy as np
import torch

from configs.icp import IcpConfig
from utils.cameras import se3
from utils.points.surface import color_gradients, fit_normals, make_tree, nearest
from utils.points.voxels import voxel_mean
from utils.published import terms
from utils.published.stopping import EarlyStopping
from utils.types import Array

_GEOMETRIC_SHARE = 0.968  # of the loss, the rest is photometric (Park et al., ICCV 2017)
_PATIENCE, _MIN_ITERS = 10, 20
_MIN_DELTA = 1e-8  # squared units: a change of the typical residual by a hundredth of a millimetre in a room


def align_rigid(source: Array, source_intensity: Array, model: Array, model_intensity: Array, config: IcpConfig) -> Array:
    """(4, 4) float64 motion, to be applied from the left, that brings source points (N, 3) onto the model (M, 3).

    Both clouds are averaged over voxels of each pass's radius. A pass ends early when its loss has stopped to fall, and changes nothing
    if fewer than 3 points have a neighbour.
    """
    motion = np.eye(4)
    for radius, iterations in zip(config.rigid_radii, config.rigid_iters, strict=True):
        points, shade = voxel_mean(source, source_intensity, radius)
        reference, reference_shade = voxel_mean(model, model_intensity, radius)
        points = points @ motion[:3, :3].T + motion[:3, 3]
        motion = _pass(points, shade[:, 0], reference, reference_shade[:, 0], radius, iterations, config) @ motion
    return motion


def _pass(
    points: Array, shade: Array, reference: Array, reference_shade: Array, radius: float, iterations: int, config: IcpConfig
) -> Array:
    """(4, 4) motion found at one radius."""
    tree = make_tree(reference)
    normals = fit_normals(tree, reference, config.normal_neighbors)
    gradients = color_gradients(tree, reference_shade, reference, normals, reference_shade, config.color_neighbors)
    share = _GEOMETRIC_SHARE if config.color_weight > 0 else 1.0
    to_tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a, np.float32))  # noqa: E731
    p, s, q, t, n, g = (to_tensor(a) for a in (points, shade, reference, reference_shade, normals, gradients))
    twist = torch.zeros(6, requires_grad=True)
    adam = torch.optim.Adam([twist], lr=config.lr)
    stopping = EarlyStopping(_PATIENCE, _MIN_ITERS, _MIN_DELTA)
    for _ in range(iterations):
        moved = se3.apply(se3.exp(twist), p)
        correspondences = nearest(tree, moved.detach().numpy(), radius)
        if len(correspondences[0]) < 3:
            break
        rows, partners = (torch.from_numpy(index) for index in correspondences)
        delta = moved[rows] - q[partners]
        loss = share * terms.point_to_plane(delta, n[partners])
        loss = loss + (1 - share) * terms.color(delta, n[partners], g[partners], t[partners], s[rows], None)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if stopping.update({"loss": float(loss.detach())}):
            break
    return se3.exp(twist.detach().double()).numpy()
