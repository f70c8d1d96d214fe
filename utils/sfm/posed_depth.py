"""Dense depth of images whose cameras are known, in the cameras' own units: flow between neighbours, triangulated along the poses.

Nothing is known of the depth at first. Neighbours in time, seen through the rotation alone, give a rough depth; with it, wider and more
precise neighbours are chosen and matched through the current depth. Then all frames complete it together, see `depth_completion`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from utils.device.accelerator import accelerator
from utils.errors import GeometryError
from utils.sfm.backend import choose_neighbours, measuring
from utils.sfm.depth_completion import LAST_STRENGTH, PosedClip, complete_depth, depth_and_confidence
from utils.sfm.depth_filling import edge_couplings, fill_and_smooth
from utils.sfm.flow_depth import Measured, RayDepth, frame_threads
from utils.sfm.flow_depth_batched import BatchedFlowDepth
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
    clip = PosedClip(grays=grays, w2c=w2c, K=np.repeat(K[None], len(w2c), 0), refs=refs, sparse=[np.zeros((0, 3))] * len(refs))
    device = accelerator()
    batched = None if device is None else BatchedFlowDepth(grays, None, device)
    rounds = _Rounds(batched, report, len(refs) * (len(_FIRST_STRENGTHS) + len(_STRENGTHS)))
    with frame_threads() as pool:
        couplings = list(pool.map(edge_couplings, images[refs]))
        near = _nearest_posed(clip)
        inverse = [np.zeros(grays.shape[1:], np.float32)] * len(refs)  # infinitely far: the first match sees the rotation only
        for strength in _FIRST_STRENGTHS:
            inverse, rays = rounds.run(clip, near, inverse, couplings, strength, pool)
        probed = replace(clip, sparse=list(map(_probes, refs, rays)))
        chosen = pool.map(partial(choose_neighbours, probed), range(len(refs)))
        neighbours = [own or others for own, others in zip(chosen, near, strict=True)]
        for strength in _STRENGTHS:
            inverse, rays = rounds.run(clip, neighbours, inverse, couplings, strength, pool)
        inverse, rays = complete_depth(clip, list(images[refs]), neighbours, rays, inverse, couplings, pool, device)
    return _finished(np.maximum(np.stack(inverse), 0), rays, w2c[refs], K)


def _nearest_posed(clip: PosedClip) -> list[list[int]]:
    """For every ref the frames beside it in time that have poses."""
    posed = np.flatnonzero(np.isfinite(clip.w2c[:, 0, 0]))
    at = np.searchsorted(posed, clip.refs)
    return [
        [int(k) for k in posed[max(0, i - _FIRST_REACH) : i + _FIRST_REACH + 1] if k != ref] for i, ref in zip(at, clip.refs, strict=True)
    ]


def _probes(ref: int, ray: RayDepth) -> Array:
    """(M, 3) column, row and 1/z of some measured pixels; raises `GeometryError` if there are next to none."""
    measured = (ray.weight > 0) & (ray.inverse > 0)
    if measured.mean() < _LEAST_MEASURED:
        raise GeometryError(
            f"frame {ref} of the clip shows no parallax along the given poses ({measured.mean():.1%} of its pixels)",
            "check that poses and frames belong together, by name and in camera axes, and that the camera moves",
        )
    y, x = np.nonzero(measured)
    some = np.linspace(0, len(x) - 1, min(_PROBES, len(x))).astype(int)
    return np.column_stack([x[some] + 0.5, y[some] + 0.5, ray.inverse[y[some], x[some]]])


@dataclass
class _Rounds:
    """Rounds of matching through the current inverse depth, triangulating, filling and smoothing.

    Attributes:
        batched: measures on a GPU; None: the pool does.
        report: progress.
        total: refs times rounds.
        done: refs so far.
    """

    batched: BatchedFlowDepth | None
    report: Reporter
    total: int
    done: int = 0

    def run(
        self,
        clip: PosedClip,
        neighbours: list[list[int]],
        inverse: list[Array],
        couplings: list[tuple[Array, Array]],
        strength: float,
        pool: ThreadPoolExecutor,
    ) -> tuple[list[Array], list[RayDepth]]:
        """Inverse depth (H, W) >= 0 of every ref and its triangulation after one more round."""
        found: list[tuple[Array, RayDepth]] = []
        for result in pool.map(partial(_filled, strength=strength), measuring(clip, neighbours, inverse, self.batched), couplings):
            found.append(result)
            self.report.step(StepReport("depth along the given poses", self.done, self.total))
            self.done += 1
        return [depth for depth, _ in found], [ray for _, ray in found]


def _filled(measure: Callable[[], Measured], couplings: tuple[Array, Array], *, strength: float) -> tuple[Array, RayDepth]:
    ray = measure().ray
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
