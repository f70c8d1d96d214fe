"""A tiny analytic scene for alignment tests: the inside of a textured box, seen along an arc, with depth and poses that disagree."""

from dataclasses import dataclass

import numpy as np
import torch

from utils.cameras import se3
from utils.cameras.projection import pixel_centers, project, transform, unproject, unproject_depth
from utils.types import Array, CameraSet, Scene

HALF = np.array([2.0, 1.5, 3.0])


@dataclass(frozen=True)
class BoxWorld:
    """Truth and prediction.

    Attributes:
        true: cameras.
        true_depth: (F, H, W).
        scene: what alignment is given: warped depth, drifting poses.
    """

    true: CameraSet
    true_depth: Array
    scene: Scene

    def consistency(self, points: Array, gaps: tuple[int, ...] = (1, 2, 4)) -> float:
        """Median distance between the reconstructed positions (F, H, W, 3) of pixels that see the same true point."""
        distances = []
        frames = len(points)
        for i, j in ((i, i + g) for g in gaps for i in range(frames - g)):
            world = transform(self.true.c2w[i], unproject_depth(self.true_depth[i], self.true.K[i])).reshape(-1, 3)
            x, y, z = project(transform(self.true.w2c[j], world), self.true.K[j])
            h, w = self.true.size
            inside = (z > 0) & (x > 1) & (y > 1) & (x < w - 2) & (y < h - 2)
            x, y, z, own = x[inside] - 0.5, y[inside] - 0.5, z[inside], points[i].reshape(-1, 3)[inside]
            a, b = x.astype(int), y.astype(int)
            fx, fy = (x - a)[:, None], (y - b)[:, None]
            p = points[j]
            there = (1 - fy) * ((1 - fx) * p[b, a] + fx * p[b, a + 1]) + fy * ((1 - fx) * p[b + 1, a] + fx * p[b + 1, a + 1])
            seen = np.abs(self.true_depth[j][b, a] - z) < 0.02 * z
            distances.append(np.linalg.norm(own - there, axis=1)[seen])
        return float(np.median(np.concatenate(distances)))


def _depth(c2w: Array, K: Array, size: tuple[int, int]) -> Array:
    """Camera z of the box wall behind every pixel."""
    x, y = pixel_centers(size)
    rays = unproject(x, y, np.ones(size), K) @ c2w[:3, :3].T
    with np.errstate(divide="ignore"):
        return ((np.sign(rays) * HALF - c2w[:3, 3]) / rays).min(-1)


def _texture(points: Array, rng: np.random.Generator) -> Array:
    """Colours 0..255 (..., 3) of world points: many waves of random direction, so nothing repeats."""
    color = np.zeros((*points.shape[:-1], 3))
    for scale in np.geomspace(2.5, 25, 24):
        direction = rng.standard_normal(3)
        phase = points @ (direction / np.linalg.norm(direction) * scale) + rng.uniform(0, 6)
        color += np.sin(phase)[..., None] * rng.uniform(-1, 1, 3)
    return np.clip(128 + 28 * color, 0, 255)


def box_images(c2w: Array, size: tuple[int, int], seed: int = 5) -> Array:
    """(F, H, W, 3) uint8 of the box seen by cameras (F, 4, 4) whose focal length is 0.9 of the width."""
    h, w = size
    K = np.array([[0.9 * w, 0, w / 2], [0, 0.9 * w, h / 2], [0, 0, 1.0]])
    world = [transform(pose, unproject_depth(_depth(pose, K, size), K)) for pose in c2w]
    return np.stack([_texture(points, np.random.default_rng(seed)).astype(np.uint8) for points in world])


def make_box_world(frames: int = 6, size: tuple[int, int] = (72, 128), warp: float = 0.01, seed: int = 0) -> BoxWorld:
    """A world of `frames` frames whose depth is off by about `warp` of itself, smoothly and differently per frame."""
    h, w = size
    K = np.array([[0.9 * w, 0, w / 2], [0, 0.9 * w, h / 2], [0, 0, 1.0]])
    steps = np.linspace(-1, 1, frames)
    twists = np.stack([0.05 * steps, 0.25 * steps, 0 * steps, 0.5 * steps, 0.1 * steps**2, -0.3 + 0.3 * steps], 1)
    c2w = se3.exp(torch.from_numpy(twists)).numpy()
    rng = np.random.default_rng(seed)
    texture_seed = int(rng.integers(1 << 30))
    depth = np.stack([_depth(pose, K, size) for pose in c2w])
    images, predicted = [], []
    x, y = pixel_centers(size)
    for pose, d in zip(c2w, depth, strict=True):
        world = transform(pose, unproject_depth(d, K))
        images.append(_texture(world, np.random.default_rng(texture_seed)).astype(np.uint8))
        phase = rng.uniform(0, 6, 4)
        wave = np.sin(3 * x / w + phase[0]) * np.sin(2 * y / h + phase[1]) + 0.5 * np.sin(5 * x / w + phase[2])
        predicted.append(d * (1 + warp * wave))
    drift = torch.from_numpy(rng.standard_normal((frames, 6)) * warp * 0.3)
    cameras = CameraSet(c2w=c2w, K=np.tile(K, (frames, 1, 1)), size=size, frame_ids=np.arange(frames))
    shaken = CameraSet(c2w=se3.exp(drift).numpy() @ c2w, K=cameras.K, size=size, frame_ids=np.arange(frames))
    scene = Scene(
        cameras=shaken,
        images=np.stack(images),
        depth=np.stack(predicted).astype(np.float32),
        confidence=np.ones((frames, h, w), np.float32),
    )
    return BoxWorld(cameras, depth, scene)
