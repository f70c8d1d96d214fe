"""Dense depth of images whose cameras are known, in the cameras' own units: flow between neighbours, triangulated along the poses.

Nothing is known of the depth at first. Neighbours in time, seen through the rotation alone, give a rough depth; with it, wider and more
precise neighbours are chosen and matched through the current depth. Then all frames complete it together, see `depth_completion`.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.device.accelerator import accelerator
from utils.errors import GeometryError
from utils.sfm.backend import choose_neighbours
from utils.sfm.depth_completion import LAST_STRENGTH, PosedClip, complete_depth, depth_and_confidence
from utils.sfm.depth_filling import edge_couplings, fill_and_smooth
from utils.sfm.flow_depth import RayDepth, frame_threads, match_through_depth, triangulate
from utils.types import Array, Reporter, StepReport

# Frames on either side that give the first, rough depth.
_FIRST_REACH = 2
# Smoothing of inverse depth, from rough to fine: two rounds on the neighbours in time, three on the chosen ones.
_FIRST_STRENGTHS = (1e3, 200.0)
_STRENGTHS = (60.0, 15.0, LAST_STRENGTH)
# Points of the rough depth that measure the angle between two views.
_PROBES = 400
# A frame of which less is measured has no usable depth.
_LEAST_MEASURED = 0.02
# What is farther than this multiple of the 99th percentile of the measured depth is put there, as least certain: sky.
_SHELL = 1.5


def depth_along_poses(images: Array, w2c: Array, K: Array, refs: Array, report: Reporter) -> tuple[Array, Array]:
    """Depth and confidence of some frames of a posed clip.

    Args:
        images: (T, H, W, 3) uint8, in the order of the clip.
        w2c: (T, 4, 4), NaN where a frame has no pose.
        K: (3, 3) pixels of (H, W), shared by all frames.
        refs: (R,) positions of the frames that get depth; all have poses.
        report: progress.

    Returns:
        (R, H, W) float32 depth, everywhere positive, and (R, H, W) float32 confidence, 1 (a guess) upwards.

    Raises:
        GeometryError: a frame matches none of its neighbours, or the cameras do not move.
    """
    grays = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
    results: list[_RefDepth] = []
    with frame_threads() as pool:
        for row, result in enumerate(pool.map(lambda ref: _one_frame(images, grays, w2c, K, int(ref)), refs)):
            results.append(result)
            report.step(StepReport("depth along the given poses", row, len(refs)))
        clip = PosedClip(grays=grays, w2c=w2c, K=np.repeat(K[None], len(w2c), 0), refs=refs, sparse=[np.zeros((0, 3))] * len(refs))
        neighbours, couplings = [f.neighbours for f in results], [f.couplings for f in results]
        inverse, rays = complete_depth(
            clip, list(images[refs]), neighbours, [f.ray for f in results], [f.inverse for f in results], couplings, pool, accelerator()
        )
    return _finished(np.maximum(np.stack(inverse), 0), rays, w2c[refs], K)


@dataclass(frozen=True)
class _RefDepth:
    """Filled inverse depth (H, W), the last triangulation, the frames that it is from, and couplings of one frame."""

    inverse: Array
    ray: RayDepth
    neighbours: list[int]
    couplings: tuple[Array, Array]


def _one_frame(images: Array, grays: Array, w2c: Array, K: Array, ref: int) -> _RefDepth:
    couplings = edge_couplings(images[ref])
    posed = np.flatnonzero(np.isfinite(w2c[:, 0, 0]))
    at = int(np.searchsorted(posed, ref))
    near = [int(k) for k in posed[max(0, at - _FIRST_REACH) : at + _FIRST_REACH + 1] if k != ref]
    inverse = np.zeros(grays.shape[1:], np.float32)  # infinitely far: the first match sees the rotation only
    for strength in _FIRST_STRENGTHS:
        inverse, ray = _round(grays, w2c, K, ref, near, inverse, couplings, strength)
    measured = (ray.weight > 0) & (ray.inverse > 0)
    if measured.mean() < _LEAST_MEASURED:
        raise GeometryError(
            f"frame {ref} of the clip shows no parallax along the given poses ({measured.mean():.1%} of its pixels)",
            "check that poses and frames belong together, by name and in camera axes, and that the camera moves",
        )
    y, x = np.nonzero(measured)
    some = np.linspace(0, len(x) - 1, min(_PROBES, len(x))).astype(int)
    probes = np.column_stack([x[some] + 0.5, y[some] + 0.5, ray.inverse[y[some], x[some]]])
    clip = PosedClip(grays=grays, w2c=w2c, K=np.repeat(K[None], len(w2c), 0), refs=np.array([ref]), sparse=[probes])
    chosen = choose_neighbours(clip, 0) or near
    for strength in _STRENGTHS:
        inverse, ray = _round(grays, w2c, K, ref, chosen, inverse, couplings, strength)
    return _RefDepth(inverse, ray, chosen, couplings)


def _round(
    grays: Array, w2c: Array, K: Array, ref: int, others: list[int], inverse: Array, couplings: tuple[Array, Array], strength: float
) -> tuple[Array, RayDepth]:
    """Matches through the current inverse depth, triangulates, fills and smooths."""
    relative = w2c[others] @ invert_rigid(w2c[ref])
    rotations, translations = np.ascontiguousarray(relative[:, :3, :3]), np.ascontiguousarray(relative[:, :3, 3])
    matched = [
        match_through_depth(grays[ref], grays[k], inverse, (R, t), K) for k, R, t in zip(others, rotations, translations, strict=True)
    ]
    ray = triangulate(np.stack([m for m, _ in matched]), np.stack([t for _, t in matched]), rotations, translations, K)
    weight = np.where(ray.far, 1.0, ray.weight).astype(np.float32)
    value = np.where(ray.far, np.maximum(ray.inverse, 0), ray.inverse).astype(np.float32)
    return np.maximum(fill_and_smooth(value, weight, couplings, strength)[0], 0), ray


def _finished(inverse: Array, rays: list[RayDepth], w2c: Array, K: Array) -> tuple[Array, Array]:
    """Depth with a far shell in place of infinity, and confidence from the triangulation and from the other frames' agreement."""
    measured = np.stack([(ray.weight > 0) & ~ray.far for ray in rays])
    if not measured.any():
        raise GeometryError("no pixel of the clip shows parallax along the given poses", "check that the camera moves")
    nearest = max(float(np.percentile(inverse[measured], 1.0)) / _SHELL, 1e-9)
    return depth_and_confidence(inverse, measured, np.stack([np.minimum(ray.weight, 4.0) for ray in rays]), nearest, w2c, K)
