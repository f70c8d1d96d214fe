"""Splats that cannot be mistaken for their mirror image: above is red, left is green, near is blue; and cameras that look at them."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from utils.splatting.checkpoint import TrainedScene
from utils.splatting.sh import C0
from utils.types import CameraSet, Splats

SIZE = (96, 128)


def known_splats(count: int = 3000, degree: int = 3) -> Splats:
    """A wall at z = 2.6..3.4 that is red above and green on the left, and a blue ball at z = 1.5; x right, y down, z forward."""
    g = np.random.default_rng(5)
    ball = count // 5
    wall = np.stack([g.uniform(-2, 2, count), g.uniform(-1.5, 1.5, count), g.uniform(2.6, 3.4, count)], axis=1)
    means = wall.copy()
    means[:ball] = [0.1, 0.15, 1.5] + 0.12 * g.normal(size=(ball, 3))
    rgb = np.stack([np.where(wall[:, 1] < 0, 0.85, 0.1), np.where(wall[:, 0] < 0, 0.85, 0.1), np.full(count, 0.1)], axis=1)
    rgb[:ball] = [0.05, 0.1, 0.9]
    sh = np.zeros((count, (degree + 1) ** 2, 3))
    sh[:, 0] = (rgb - 0.5) / C0
    sh[:, 1:] = 0.06 * g.normal(size=sh[:, 1:].shape)
    log_scales = np.log(0.05) + 0.5 * g.normal(size=(count, 3))
    quats = g.normal(size=(count, 4))
    parts = (means, quats, log_scales, g.uniform(-1, 4, count), sh)
    return Splats(*(torch.from_numpy(p).float() for p in parts))


def known_cameras(size: tuple[int, int] = SIZE) -> CameraSet:
    """Straight ahead, from the right and from above; up is -y."""
    h, w = size
    c2w = np.tile(np.eye(4), (3, 1, 1))
    c2w[1, :3, :3] = Rotation.from_euler("y", -20, degrees=True).as_matrix()
    c2w[1, :3, 3] = [0.9, 0.05, 0.1]
    c2w[2, :3, :3] = Rotation.from_euler("x", -15, degrees=True).as_matrix()
    c2w[2, :3, 3] = [-0.1, -0.7, 0]
    K = np.tile(np.array([[0.8 * w, 0, w / 2], [0, 0.8 * w, h / 2], [0, 0, 1.0]]), (3, 1, 1))
    return CameraSet(c2w=c2w, K=K, size=size, frame_ids=np.arange(3))


def known_scene(renderer: str = "3dgs", degree: int = 3) -> TrainedScene:
    """The splats and cameras as a training would leave them."""
    return TrainedScene(
        splats=known_splats(degree=degree),
        cameras=known_cameras(),
        heldout=np.zeros(3, bool),
        renderer=renderer,
        appearance=torch.eye(3, 4).repeat(3, 1, 1),
    )
