"""The weight-free geometry backend: structure from motion, then depth from flow along its poses. Runs on any CPU.

Result: cameras that share one focal length, depth with every pixel filled, confidence 1 (a guess) upwards. The scene is scaled so
that its median depth is 3 units.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from utils.cameras.projection import invert_rigid
from utils.device.accelerator import accelerator
from utils.device.threads import quick_to_switch
from utils.geometry_backend import ClipFrames, SparseModel
from utils.sfm.clip_cameras import intrinsics_between
from utils.sfm.depth_completion import (
    LAST_STRENGTH,
    PosedClip,
    complete_depth,
    depth_and_confidence,
    observations,
    relative_poses,
    reprojected_layers,
    sparse_layer,
)
from utils.sfm.depth_filling import edge_couplings, fill_and_smooth, fill_layers, planarity
from utils.sfm.flow_depth import Measured, RayDepth, frame_threads, match_through_depth, triangulate
from utils.sfm.flow_depth_batched import BatchedFlowDepth
from utils.sfm.mapping import (
    Features,
    UnmatchedError,
    by_point,
    check_parallax,
    focal_prior,
    focal_text,
    hosted,
    map_frames,
    of_one_place,
    place_between,
    restricted,
    settle_focal,
    zoom_of,
)
from utils.sfm.plane_sweep import shrink_mask
from utils.sfm.rehearsal import rehearsing
from utils.sfm.solvers.dense_bundle_adjustment import Matches, adjust, join, picked
from utils.types import NULL_REPORTER, Array, CameraSet, Reporter, Scene, StepReport

# Depth of the middle of the scene, in scene units; arbitrary, but the same for every clip.
MEDIAN_DEPTH = 3.0
# Triangulation angles (degrees) of the neighbours looked for, on either side in time: small ones match best, wide ones measure best.
_ANGLES_DEG = (1.5, 3.0, 6.0, 10.0, 16.0)
# Percentile of the sparse points' angles that is compared with them.
_NEARER_PERCENTILE = 75
# What a neighbour costs that comes k times later than the first one with enough angle, in log k: generated frames far apart in time
# contradict each other even where the camera has come back.
_LATE_COST = 0.5
# Smoothing of inverse depth after each round; the first only has to start the second well.
_FIRST_STRENGTH = 1e5
_STRENGTHS = (60.0, 15.0, LAST_STRENGTH)
# Weight that a pixel needs to be reprojected into other frames between the rounds.
_REPROJECTED_LEAST = 0.1
# Points of each frame that enter bundle adjustment: more add time, not accuracy.
_BUNDLE_POINTS = 150
# The far shell lies at this multiple of the 99th percentile of the measured depth.
_SHELL = 1.5
# And at most at this multiple of the median depth: beyond, depth is noise and only harms what scales with it.
_FARTHEST = 10.0


@dataclass(frozen=True, kw_only=True)
class SfmGeometry:
    """Structure from motion and flow depth; see the module.

    Attributes:
        seed: makes mapping repeatable.
        features: what frames are recognised by, see `mapping.map_frames`.
    """

    seed: int = 0
    features: Features = "sift"

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """Cameras, depth and confidence of the chosen frames that could be registered.

        Raises:
            GeometryError: the camera stands still or only turns, or too few frames match.
        """
        with contextlib.nullcontext() if frames.mapped is not None else rehearsing(depth_of), quick_to_switch():
            model = self._mapped(frames, report)
        clips = None if frames.clips is None else frames.clips[frames.chosen]
        model = of_one_place(model, clips, [frames.names[position] for position in frames.chosen], report)
        report.note(
            f"poses: {len(model.frames)} of {len(frames.chosen)} frames, {len(model.points)} points, reprojection"
            f" {model.error_px:.2f} px, focal {focal_text(model, frames.images.shape[1:3])} x longest side"
        )
        clip = _posed_clip(frames, model)
        clip, depth, confidence = depth_of(clip, frames, report)
        return _to_scene(frames, model, clip, depth, confidence)

    def _mapped(self, frames: ClipFrames, report: Reporter) -> SparseModel:
        """Poses of the chosen frames; those in between are mapped with them where the chosen ones alone do not match."""
        if frames.mapped is not None and len(frames.mapped.frames) == len(frames.chosen):
            check_parallax(frames.mapped)
            return frames.mapped
        report.note(f"poses: mapping {len(frames.chosen)} frames")
        size, everything, keep = frames.images.shape[1:3], len(frames.images) > len(frames.chosen), frames.keep
        some = None if keep is None else keep[frames.chosen], None if frames.clips is None else frames.clips[frames.chosen]
        mapped = partial(map_frames, seed=self.seed, report=report, features=self.features)
        try:
            model = mapped(frames.images[frames.chosen], keep=some[0], clips=some[1])
        except UnmatchedError:
            if not everything:
                raise
            report.note(f"poses: too few match each other, mapping all {len(frames.images)} frames around them")
            model = settle_focal(mapped(frames.images, keep=keep, clips=frames.clips), size, report, frames.clips)
            check_parallax(model)
            return restricted(model, frames.images, frames.chosen)
        model = settle_focal(model, size, report, some[1])
        check_parallax(model)
        return model


def _posed_clip(frames: ClipFrames, model: SparseModel) -> PosedClip:
    (height, width), size = frames.images.shape[1:3], frames.size
    scale = np.array([size[1] / width, size[0] / height])
    grays = np.stack([cv2.cvtColor(frames.picture(position), cv2.COLOR_RGB2GRAY) for position in range(len(frames.images))])
    refs = frames.chosen[model.frames]
    w2c = np.full((len(frames.images), 4, 4), np.nan)
    w2c[refs] = model.w2c
    K = intrinsics_between(refs, model.K, len(frames.images), frames.clips)
    w2c = place_between(frames.images, w2c, K, refs, model)
    sparse = []
    for row in range(len(refs)):
        mine = model.seen_by == row
        camera = model.points[model.seen_point[mine]] @ model.w2c[row, :3, :3].T + model.w2c[row, :3, 3]
        front = camera[:, 2] > 0
        sparse.append(np.column_stack([model.seen_at[mine][front] * scale, 1 / camera[front, 2]]))
    keep = frames.keep
    if keep is not None:
        keep = np.stack([shrink_mask(mask, size[::-1]) for mask in keep])
    matches, inverse = hosted(by_point(model))
    matches = replace(
        matches,
        host=refs[matches.host],
        target=refs[matches.target],
        host_px=matches.host_px * scale,
        target_px=matches.target_px * scale,
    )
    tracks = matches, inverse
    zoom = zoom_of(model, frames.clips)
    return PosedClip(grays=grays, w2c=w2c, K=np.diag([*scale, 1.0]) @ K, refs=refs, sparse=sparse, tracks=tracks, keep=keep, zoom=zoom)


def choose_neighbours(clip: PosedClip, row: int) -> list[int]:
    """Frames from which to triangulate ref `row`: for each wanted angle the best frame before and after it in the clip.

    Angles are those of the nearer points: seen past far buildings, the ground in front would otherwise be looked at from so far
    away that it is not recognised. At either end of the clip the one side that is left gives as many frames as two.
    """
    ref = int(clip.refs[row])
    posed = np.flatnonzero(np.isfinite(clip.w2c[:, 0, 0]))
    points = _sparse_world(clip, row)
    offsets = points[None] - invert_rigid(clip.w2c[posed])[:, None, :3, 3]
    distance = np.linalg.norm(offsets, axis=-1)
    rays = offsets / distance[..., None]
    own = int(np.flatnonzero(posed == ref)[0])
    angle = np.degrees(np.percentile(np.arccos(np.clip((rays * rays[own]).sum(-1), -1, 1)), _NEARER_PERCENTILE, axis=1))
    grown = clip.K[ref, 0, 0] / clip.K[posed, 0, 0]
    zoom = np.abs(np.log(np.median(distance / distance[own], axis=1) * grown))
    overlap = _shares_inside(clip, posed, points)
    gap = np.abs(posed - ref)
    sides = [side for side in (posed < ref, posed > ref) if side.any()]
    wanted_angles = _ANGLES_DEG if len(sides) == 2 else tuple(a * k for a in _ANGLES_DEG for k in (1.0, 1.4))
    # The first frame on each side shows what soon leaves the view, and little motion to find it by.
    chosen = [int(posed[np.where(side, gap, len(clip.w2c)).argmin()]) for side in sides if angle[side].max() > 0.3]
    for wanted in wanted_angles:
        for side in sides:
            allowed = side & (overlap > 0.5) & (angle > 0.3) & ~np.isin(posed, chosen)
            if allowed.any():
                enough = side & (angle > 0.7 * wanted)
                soonest = gap[enough].min() if enough.any() else gap.max()
                late = _LATE_COST * np.log(np.maximum(gap / soonest, 1))
                cost = np.where(allowed, np.abs(np.log(np.maximum(angle, 1e-3) / wanted)) + zoom + late, np.inf)
                if cost.min() < np.log(2.5) or len(chosen) < 2:
                    chosen.append(int(posed[cost.argmin()]))
    if not chosen:
        widest = np.argsort(-angle * (overlap > 0.3))
        chosen = [int(posed[i]) for i in widest[:4] if posed[i] != ref]
    return chosen


def _sparse_world(clip: PosedClip, row: int) -> Array:
    """World points (M, 3) of the sparse points that a ref sees."""
    x, y, inverse = clip.sparse[row].T
    depth = 1 / inverse
    K = clip.K[clip.refs[row]]
    camera = np.column_stack([(x - K[0, 2]) / K[0, 0] * depth, (y - K[1, 2]) / K[1, 1] * depth, depth])
    c2w = invert_rigid(clip.w2c[clip.refs[row]])
    return camera @ c2w[:3, :3].T + c2w[:3, 3]


def _shares_inside(clip: PosedClip, posed: Array, points: Array) -> Array:
    """(N,) share of the world points (M, 3) that each of the frames (N,) has in its picture."""
    w2c = clip.w2c[posed]
    camera = points @ w2c[:, :3, :3].transpose(0, 2, 1) + w2c[:, None, :3, 3]
    front = camera[..., 2] > 1e-6
    K = clip.K[posed]
    x, y = (K[:, i, i, None] * camera[..., i] / np.where(front, camera[..., 2], 1) + K[:, i, 2, None] for i in (0, 1))
    height, width = clip.grays.shape[1:]
    inside = front & (x > 0) & (x < width) & (y > 0) & (y < height)
    return inside.sum(1) / max(len(points), 1)


def _depth_rounds(clip: PosedClip, frames: ClipFrames, report: Reporter) -> tuple[PosedClip, list[Array], list[RayDepth]]:
    """Refined cameras, filled inverse depth and the raw triangulation of every ref.

    Every round matches through the current depth and triangulates; between rounds the dense matches refine poses and focal length. At
    the end outliers of the flow lose their weight, and depth is filled from the rest (`depth_completion`).
    """
    rows = range(len(clip.refs))
    reprojected: Sequence[tuple[Array, Array] | None] = [None for _ in rows]
    results: list[_Round] = []
    device = accelerator()
    batched = None if device is None else BatchedFlowDepth(clip.grays, clip.keep, device)
    with frame_threads() as pool:
        images = list(pool.map(lambda ref: frames.picture(int(ref)), clip.refs))
        couplings = list(pool.map(edge_couplings, images))
        neighbours = list(pool.map(partial(choose_neighbours, clip), rows))
        revisits, revisited = far_matches(clip, neighbours)
        inverse = list(pool.map(lambda row: fill_and_smooth(*sparse_layer(clip, row), couplings[row], _FIRST_STRENGTH)[0], rows))
        for number, strength in enumerate(_STRENGTHS):
            measures = measuring(clip, neighbours, inverse, batched)
            improve = partial(_improve, clip, strength=strength)
            results = []
            for row, result in enumerate(pool.map(improve, rows, neighbours, measures, couplings, reprojected)):
                results.append(result)
                report.step(StepReport("depth", number * len(rows) + row, len(_STRENGTHS) * len(rows)))
            inverse = [result.inverse for result in results]
            if number + 1 < len(_STRENGTHS):
                reprojected = reprojected_layers(clip, [result.ray for result in results], _REPROJECTED_LEAST, pool, device)
                samples = [*(r.sample for r in results), revisits]
                clip = _refine_cameras(clip, samples, [*(r.sample_inverse for r in results), revisited], report)
        batched = None  # and its memory
        inverse, rays = complete_depth(clip, images, neighbours, [result.ray for result in results], inverse, couplings, pool, device)
    return clip, inverse, rays


def far_matches(clip: PosedClip, neighbours: list[list[int]]) -> tuple[Matches, Array]:
    """Sparse points seen again by frames that dense matching does not join, and their 1/z: they keep loops closed.

    Dense matches join each frame with its neighbours in time only. Without the sparse ones a small error of the focal length opens an
    orbit by as much for every step.

    Args:
        clip: with its tracks.
        neighbours: of every ref, positions in the clip.
    """
    matches, inverse = clip.tracks
    reach = np.zeros(len(clip.w2c), int)
    for own, ref in zip(neighbours, clip.refs, strict=True):
        reach[ref] = max((abs(k - int(ref)) for k in own), default=0)
    far = np.abs(matches.host - matches.target) > np.maximum(reach[matches.host], reach[matches.target])
    wanted = np.zeros(len(inverse), bool)
    wanted[matches.point[far]] = True
    return picked(matches, wanted), inverse[wanted]


@dataclass(frozen=True)
class _Round:
    """Result of one round for one ref: filled 1/z, its triangulation, and matches for bundle adjustment with their 1/z."""

    inverse: Array
    ray: RayDepth
    sample: Matches
    sample_inverse: Array


def _improve(
    clip: PosedClip,
    row: int,
    neighbours: list[int],
    measure: Callable[[], Measured],
    couplings: tuple[Array, Array],
    reprojected: tuple[Array, Array] | None,
    *,
    strength: float,
) -> _Round:
    """One round for one ref: measure and fill its depth."""
    known = measure()
    filled = fill_layers(*observations(clip, row, known.ray, reprojected), couplings, strength)
    return _Round(filled, known.ray, *_sample_matches(clip, row, neighbours, known))


def measuring(
    clip: PosedClip, neighbours: list[list[int]], inverse: list[Array], batched: BatchedFlowDepth | None
) -> Iterator[Callable[[], Measured]]:
    """For every ref the call that matches it through its current 1/z and triangulates; on a GPU that is done as they are asked for."""
    if batched is None:
        yield from (partial(_measure, clip, row, neighbours[row], inverse[row]) for row in range(len(inverse)))
        return
    for measured in batched.measure_all(clip, neighbours, inverse, _sampled_pixels(inverse[0].shape)):
        yield partial(_given, measured)


def _given(measured: Measured) -> Measured:
    return measured


def _measure(clip: PosedClip, row: int, neighbours: list[int], inverse: Array) -> Measured:
    matches, valid = _match(clip, row, neighbours, inverse)
    y, x = _sampled_pixels(inverse.shape)
    return Measured(
        triangulate(matches, valid, *relative_poses(clip, row, neighbours), clip.K[clip.refs[row]]), matches[:, y, x], valid[:, y, x]
    )


def _match(clip: PosedClip, row: int, neighbours: list[int], inverse: Array) -> tuple[Array, Array]:
    """Matches (V, H, W, 2) of a ref in its neighbours and which of them are valid (V, H, W)."""
    rotations, translations = relative_poses(clip, row, neighbours)
    reference = clip.grays[clip.refs[row]]
    matched = [
        match_through_depth(reference, clip.grays[k], inverse, (R, t), clip.K[clip.refs[row]])
        for k, R, t in zip(neighbours, rotations, translations, strict=True)
    ]
    matches, valid = np.stack([match for match, _ in matched]), np.stack([valid for _, valid in matched])
    if clip.keep is not None:
        there = [
            cv2.remap(clip.keep[k].astype(np.uint8), match[..., 0] - 0.5, match[..., 1] - 0.5, cv2.INTER_NEAREST) > 0
            for k, match in zip(neighbours, matches, strict=True)
        ]
        valid &= clip.keep[clip.refs[row]] & np.stack(there)
    return matches, valid


def _sampled_pixels(size: tuple[int, ...]) -> tuple[Array, Array]:
    """Rows and columns (G,) of the pixels of an image (H, W) that may enter bundle adjustment: one for each cell of a grid."""
    height, width = size
    step = max(2, round((height * width / _BUNDLE_POINTS) ** 0.5))
    y, x = (grid.ravel() for grid in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    return y, x


def _sample_matches(clip: PosedClip, row: int, neighbours: list[int], measured: Measured) -> tuple[Matches, Array]:
    """Matches of the well measured ones among the sampled pixels, and their inverse depth."""
    ray = measured.ray
    y, x = _sampled_pixels(ray.inverse.shape)
    good = (ray.views[y, x] >= 3) & (ray.inverse[y, x] > 0) & (ray.weight[y, x] > 0)
    y, x, there = y[good], x[good], measured.matches[:, good]
    point, view = np.nonzero(measured.valid[:, good].T)
    sample = Matches(
        host=np.full(len(point), clip.refs[row], np.int64),
        target=np.array(neighbours, np.int64)[view],
        point=point.astype(np.int64),
        host_px=np.column_stack([x + 0.5, y + 0.5])[point],
        target_px=there[view, point].astype(np.float64),
    )
    return sample, ray.inverse[y, x]


def _refine_cameras(clip: PosedClip, samples: list[Matches], starts: list[Array], report: Reporter) -> PosedClip:
    """The clip with poses and focal length from bundle adjustment on the dense matches."""
    # In pixels of x the longest side is as wide as the image, or as high times the pixels' aspect.
    height, width = clip.grays.shape[1:]
    longest = max(width, height * clip.K[0, 0, 0] / clip.K[0, 1, 1])
    prior = replace(focal_prior(longest, len(clip.refs)), zoom=clip.zoom)
    if not sum(len(sample.point) for sample in samples):
        report.note("poses: no pixel is seen by three frames, the cameras stay as mapped")
        return clip
    bundle = adjust(clip.w2c, clip.K, join(samples), np.concatenate(starts), focal=prior)
    report.note(
        f"poses: dense matches off by {bundle.before_px:.2f} px before, {bundle.after_px:.2f} px after refinement;"
        f" focal {np.median(bundle.K[:, 0, 0] / clip.K[:, 0, 0]):.3f} x"
    )
    return replace(clip, w2c=bundle.w2c, K=bundle.K)


def depth_of(clip: PosedClip, frames: ClipFrames, report: Reporter = NULL_REPORTER) -> tuple[PosedClip, Array, Array]:
    """Refined cameras, and depth with its far shell and confidence from agreement between the frames, (R, H, W) float32 each."""
    clip, inverse, rays = _depth_rounds(clip, frames, report)
    return clip, *_with_shell(clip, inverse, rays)


def _with_shell(clip: PosedClip, inverse: list[Array], rays: list[RayDepth]) -> tuple[Array, Array]:
    """Depth, where nothing shows parallax that of a far shell, and confidence from agreement between the frames, (R, H, W) float32 each."""
    measured = np.stack([(ray.weight > 0) & ~ray.far for ray in rays])
    stacked = np.stack(inverse)
    lowest, median = np.percentile(stacked[measured] if measured.any() else stacked, (1.0, 50.0))
    with frame_threads() as pool:
        own = np.stack(list(pool.map(lambda ray: 2 * ray.weight / (ray.weight + 0.5), rays)))
        smooth = np.stack(list(pool.map(planarity, inverse)))
    farthest = max(lowest / _SHELL, median / _FARTHEST)
    return depth_and_confidence(stacked, measured, own, farthest, clip.w2c[clip.refs], clip.K[clip.refs], smooth)


def _to_scene(frames: ClipFrames, model: SparseModel, clip: PosedClip, depth: Array, confidence: Array) -> Scene:
    """The scene, scaled to a median depth of three units."""
    scale = MEDIAN_DEPTH / float(np.median(depth))
    c2w = invert_rigid(clip.w2c[clip.refs])
    c2w[:, :3, 3] *= scale
    images = np.stack([frames.picture(int(ref)) for ref in clip.refs])
    cameras = CameraSet(c2w=c2w, K=clip.K[clip.refs], size=frames.size, frame_ids=model.frames.astype(np.int64))
    return Scene(cameras=cameras, images=images, depth=depth * np.float32(scale), confidence=confidence)
