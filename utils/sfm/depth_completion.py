"""From triangulated to complete depth: outliers of the flow lose their weight, then every pixel is filled from the rest.

Flow gives a value even where it cannot know. Values weigh less where they scatter within their neighbourhood, and where plane sweeps over
the same frames contradict them; the rest is reprojected between the frames and filled along image edges.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from utils.device.accelerator import or_on_cpu
from utils.sfm.depth_filling import fill_robust, scatter_weight
from utils.sfm.flow_depth import RayDepth, agreement, frame_threads, reproject_depth, zoomed_relative
from utils.sfm.plane_sweep import downweight_contradicted, sweep
from utils.sfm.plane_sweep_batched import View, sweep_all
from utils.sfm.reprojection_batched import reproject_all
from utils.sfm.solvers.dense_bundle_adjustment import NO_MATCHES, Matches, Zoom
from utils.types import Array

# Smoothing of the inverse depth that is handed on.
LAST_STRENGTH = 4.0
# Weight of a reprojected value for each frame that it comes from, and the weight that a pixel needs to be reprojected.
_REPROJECTED, _LEAST_WEIGHT = 0.02, 0.03
# Sweeps of other frames that must reach a pixel for their median to count instead of its own frame's sweep.
_SWEEPS = 3
# Weight of a sparse point beside measured depth: more, and single points show as dots in far depth.
_SPARSE = 0.05


@dataclass(frozen=True, kw_only=True)
class PosedClip:
    """Grey images and cameras on the working grid.

    Attributes:
        grays: (T, H, W) uint8.
        w2c: (T, 4, 4), NaN where a frame has no pose.
        K: (T, 3, 3) pixels of (H, W), all of one principal point.
        refs: (R,) int64 positions of the frames that get depth.
        sparse: for each ref, (M, 3) column, row and 1/z of the sparse points it sees.
        tracks: matches of the sparse points in pixels of (H, W), and the (P,) 1/z of these points in their hosts.
        keep: (T, H, W) bool, pixels that may be matched; None: all.
        zoom: how focal lengths change from frame to frame; None: all frames share one.
    """

    grays: Array
    w2c: Array
    K: Array
    refs: Array
    sparse: list[Array]
    tracks: tuple[Matches, Array] = field(default_factory=lambda: (NO_MATCHES, np.zeros(0)))
    keep: Array | None = None
    zoom: Zoom | None = None


def complete_depth(
    clip: PosedClip,
    images: list[Array],
    neighbours: list[list[int]],
    rays: list[RayDepth],
    inverse: list[Array],
    couplings: list[tuple[Array, Array]],
    pool: ThreadPoolExecutor,
    device: torch.device | None,
) -> tuple[list[Array], list[RayDepth]]:
    """The final inverse depth (H, W) of every ref, every pixel filled, and the rays with outliers down-weighted.

    Args:
        clip: R refs among T frames.
        images: R images (H, W, 3) uint8 of the refs.
        neighbours: for each ref the frames that it was matched with.
        rays: triangulation of these matches for each ref.
        inverse: (H, W) current 1/z of each ref, of which only the range is used.
        couplings: of each ref, see `depth_filling.edge_couplings`.
        pool: takes one ref at a time.
        device: where planes are swept and depth is reprojected; None: on the pool.
    """
    rows = range(len(rays))
    smooth_rays = list(pool.map(_downweight_scattered, rays))
    checked = _downweight_swept(clip, images, neighbours, smooth_rays, inverse, pool, device)
    reprojected = reprojected_layers(clip, checked, _LEAST_WEIGHT, pool, device)

    def filled(row: int) -> Array:
        return fill_robust(*observations(clip, row, checked[row], reprojected[row]), couplings[row], LAST_STRENGTH)

    return list(pool.map(filled, rows)), smooth_rays


def reprojected_layers(
    clip: PosedClip, rays: list[RayDepth], least: float, pool: ThreadPoolExecutor, device: torch.device | None
) -> list[tuple[Array, Array]]:
    """For every ref inverse depth reprojected from the others' pixels of more than the `least` weight, and from how many frames."""
    inverse = np.stack([ray.inverse for ray in rays])
    valid = np.stack([(ray.weight > least) & (ray.views >= 3) for ray in rays])
    return _reprojected(clip, inverse, valid, pool, device)


def _reprojected(
    clip: PosedClip, inverse: Array, valid: Array, pool: ThreadPoolExecutor, device: torch.device | None
) -> list[tuple[Array, Array]]:
    """For every ref what `reproject_depth` makes of all refs' inverse depth and valid pixels (R, H, W)."""
    given = inverse, valid, clip.w2c[clip.refs], clip.K[clip.refs]

    def on_threads() -> list[tuple[Array, Array]]:
        return list(pool.map(partial(reproject_depth, *given), range(len(inverse))))

    return on_threads() if device is None else or_on_cpu(partial(reproject_all, *given, device), on_threads, "reprojected depth")


def observations(clip: PosedClip, row: int, ray: RayDepth, reprojected: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Observations of a ref's inverse depth and their weights, (L, H, W) float32 each: triangulated, sparse and reprojected values."""
    sparse, sparse_weight = sparse_layer(clip, row)
    values = [np.where(ray.far, np.maximum(ray.inverse, 0), ray.inverse), sparse]
    weights = [np.where(ray.far, np.float32(1), ray.weight), _SPARSE * sparse_weight]
    if reprojected is not None:
        values.append(reprojected[0])
        weights.append(_REPROJECTED * reprojected[1])
    return np.stack(values), np.stack(weights)


def sparse_layer(clip: PosedClip, row: int) -> tuple[Array, Array]:
    """Sparse inverse depth and its weight on the grid, (H, W) float32 each."""
    _, h, w = clip.grays.shape
    sparse, weight = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    x, y, inverse = clip.sparse[row].T
    inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
    at = (y[inside].astype(int), x[inside].astype(int))
    sparse[at], weight[at] = inverse[inside], 1.0
    return sparse, weight


def relative_poses(clip: PosedClip, row: int, neighbours: list[int]) -> tuple[Array, Array]:
    """Rotations (V, 3, 3) and translations (V, 3), neighbour camera from ref camera, to be used with the ref's K; see `zoomed_relative`."""
    ref = clip.refs[row]
    return zoomed_relative(clip.w2c[neighbours], clip.K[neighbours], clip.w2c[ref], clip.K[ref])


def _downweight_scattered(ray: RayDepth) -> RayDepth:
    """The triangulation with little weight where its values scatter. Only at the end: between rounds this loses thin structures."""
    return replace(ray, weight=ray.weight * scatter_weight(ray.inverse, ray.weight))


def _downweight_swept(
    clip: PosedClip,
    images: list[Array],
    neighbours: list[list[int]],
    rays: list[RayDepth],
    inverse: list[Array],
    pool: ThreadPoolExecutor,
    device: torch.device | None,
) -> list[RayDepth]:
    """The triangulations with little weight where plane sweeps over the same neighbours contradict them."""
    rows = range(len(rays))
    poses = [relative_poses(clip, row, neighbours[row]) for row in rows]
    K = clip.K[clip.refs]

    def swept_of(row: int) -> tuple[Array, float]:
        shown = [int(clip.refs[row]), *neighbours[row]]
        keep = None if clip.keep is None else clip.keep[shown]
        return sweep(images[row], clip.grays[shown], poses[row], K[row], inverse[row], keep)

    def on_threads() -> list[tuple[Array, float]]:
        return list(pool.map(swept_of, rows))

    def on_device(device: torch.device) -> list[tuple[Array, float]]:
        views = [View(int(ref), *view) for ref, *view in zip(clip.refs, images, neighbours, poses, K, inverse, strict=True)]
        return sweep_all(views, clip.grays, clip.keep, device, pool)

    found = on_threads() if device is None else or_on_cpu(partial(on_device, device), on_threads, "plane sweeps")
    swept, spacings = zip(*found, strict=True)
    stacked = np.stack(swept)
    # what masks hide may have moved in the frames that show it
    valid = np.isfinite(stacked) if clip.keep is None else np.isfinite(stacked) & clip.keep[clip.refs]
    others = _reprojected(clip, stacked, valid, pool, device)

    def checked(row: int) -> RayDepth:
        ray, (median, count) = rays[row], others[row]
        consensus = np.where(count >= _SWEEPS, median, swept[row])
        return replace(ray, weight=downweight_contradicted(ray.inverse, ray.weight, consensus, spacings[row]))

    return list(pool.map(checked, rows))


def depth_and_confidence(
    inverse: Array, measured: Array, strength: Array, farthest: float, w2c: Array, K: Array, flat: Array | float = 1.0
) -> tuple[Array, Array]:
    """Depth with a far shell in place of infinity, and confidence (1 and more) from the triangulation and from other frames' agreement.

    Args:
        inverse: (R, H, W) filled inverse depth.
        measured: (R, H, W) bool, pixels that were triangulated.
        strength: (R, H, W) confidence of the triangulation.
        farthest: inverse depth of the shell; what lies beyond it is put there, at the lowest confidence.
        w2c: (R, 4, 4).
        K: (3, 3), or (R, 3, 3).
        flat: (R, H, W) factor on the confidence.
    """
    depth = (1 / np.maximum(inverse, farthest)).astype(np.float32)
    support = agreement(depth, w2c, K)
    flat = np.broadcast_to(np.asarray(flat, np.float32), depth.shape)

    def of(row: int) -> Array:
        sure = 1.0 + np.where(measured[row], strength[row], 0.05) * (0.25 + support[row]) * flat[row]
        # What another frame confirms counts as measured, however weak; a guess stays below.
        sure += np.float32(0.1) * (measured[row] & (support[row] > 0))
        return np.where(inverse[row] <= farthest, 1.0, sure).astype(np.float32)

    with frame_threads() as pool:
        return depth, np.stack(list(pool.map(of, range(len(depth)))))
