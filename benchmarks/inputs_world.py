"""The place that the inputs of `benchmarks/inputs.py` show: the inside of a box with pictures on its walls, seen along an arc.

Rendered exactly, quickly and without any of this program's own scenes, so that a data set's right answer is known to the last digit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

HALF = np.array([2.0, 1.5, 3.0])
_TEXTURE = 512


@dataclass(frozen=True)
class Cube:
    """Frames of the box and their truth.

    Attributes:
        images: (F, h, w, 3) uint8.
        depth: (F, h, w) float32 camera z.
        c2w: (F, 4, 4) OpenCV axes.
        K: (3, 3), pixel centres at +0.5.
    """

    images: np.ndarray
    depth: np.ndarray
    c2w: np.ndarray
    K: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]


def make_cube(
    frames: int = 40,
    size: tuple[int, int] = (144, 192),
    seed: int = 0,
    start: float = -0.5,
    span: float = 1.0,
    lens: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Cube:
    """The box of a seed along an arc from `start` over `span` (1 is the whole arc).

    Args:
        frames: how many.
        size: (h, w).
        seed: of the pictures on the walls.
        start: where the arc begins.
        span: and how much of it there is.
        lens: x / z and y / z (M, 2) that pixels (M, 2) see; None: a pinhole of 0.9 widths.
    """
    rng = np.random.default_rng(seed)
    walls = [_wall(rng) for _ in range(6)]
    K = np.array([[0.9 * size[1], 0, size[1] / 2], [0, 0.9 * size[1], size[0] / 2], [0, 0, 1.0]])
    poses = np.stack([_pose(start + span * i / max(frames - 1, 1)) for i in range(frames)])
    local = _rays(K, size, lens)
    seen = [_view(pose, local, size, walls) for pose in poses]
    return Cube(np.stack([image for image, _ in seen]), np.stack([depth for _, depth in seen]), poses, K)


def _wall(rng: np.random.Generator) -> np.ndarray:
    """A wall's picture: patches of many sizes, with fine detail on them."""
    wall = np.full((_TEXTURE, _TEXTURE, 3), rng.uniform(90, 160, 3), np.float32)
    for side in np.geomspace(180, 10, 120):
        y, x = rng.integers(0, _TEXTURE, 2)
        colour = np.clip(rng.uniform(20, 235) + rng.uniform(-35, 35, 3), 0, 255)
        half = int(side * rng.uniform(0.3, 0.6)) + 2
        if rng.random() < 0.5:
            cv2.circle(wall, (int(x), int(y)), half, colour.tolist(), -1)
        else:
            cv2.rectangle(wall, (int(x) - half, int(y) - half // 2), (int(x) + half, int(y) + half // 2), colour.tolist(), -1)
    grain = cv2.GaussianBlur(rng.standard_normal((_TEXTURE, _TEXTURE)).astype(np.float32), (0, 0), 1.5)
    return np.clip(cv2.GaussianBlur(wall, (0, 0), 0.8) + 18 * grain[..., None], 0, 255).astype(np.uint8)


def _pose(t: float) -> np.ndarray:
    """c2w at a share of the arc, -0.5 .. 0.5: sideways, a little forward, turning as it goes."""
    centre = np.array([2.0 * t, 0.15 * np.sin(5 * t), -1.6 + 0.5 * t * t])
    forward = np.array([-0.8 * t, 0.1 + 0.4 * t, HALF[2]]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre
    return pose


def _rays(K: np.ndarray, size: tuple[int, int], lens: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    """(2h, 2w, 3) what four points of each pixel see, z = 1."""
    y, x = (np.mgrid[: 2 * size[0], : 2 * size[1]] + 0.5) / 2
    if lens is None:
        return np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones(x.shape)], -1)
    seen = lens(np.stack([x, y], -1).reshape(-1, 2)).reshape(*x.shape, 2)
    return np.concatenate([seen, np.ones((*x.shape, 1))], -1)


def _view(c2w: np.ndarray, local: np.ndarray, size: tuple[int, int], walls: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Image and depth of one pose; each pixel is the mean of its four rays."""
    height, width = size
    x = np.zeros((2 * height, 2 * width))
    rays = local @ c2w[:3, :3].T
    with np.errstate(divide="ignore"):
        reach = (np.sign(rays) * HALF - c2w[:3, 3]) / rays
    axis = reach.argmin(-1)
    distance = np.take_along_axis(reach, axis[..., None], -1)[..., 0]
    points = c2w[:3, 3] + rays * distance[..., None]
    image = np.zeros((*x.shape, 3), np.uint8)
    for wall in range(6):
        along = wall // 2
        mine = (axis == along) & ((rays[..., along] > 0) == bool(wall % 2))
        if mine.any():
            u, v = (k for k in range(3) if k != along)
            at = [((points[..., k] / HALF[k] * 0.5 + 0.5) * (_TEXTURE - 1)).astype(np.float32) for k in (u, v)]
            image[mine] = cv2.remap(walls[wall], at[0], at[1], cv2.INTER_LINEAR)[mine]
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return small, distance.reshape(height, 2, width, 2).mean((1, 3)).astype(np.float32)
