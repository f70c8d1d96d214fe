"""The weight-free geometry backend: structure from motion, then depth from flow along its poses. Runs on any CPU.

Result: cameras that share one focal length, depth with every pixel filled, confidence 1 (a guess) upwards. The scene is scaled so
that its median depth is 3 units.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.backends.depth_refine import edge_couplings, fill_and_smooth
from utils.backends.flow_depth import RayDepth, agreement, match_through_depth, triangulate
from utils.backends.geometry import ClipFrames
from utils.backends.sfm_poses import SparseModel, map_frames, place_between
from utils.geometry.projection import invert_rigid
from utils.types import Array, CameraSet, Reporter, Scene, StepReport

# Depth of the middle of the scene, in scene units; arbitrary, but the same for every clip.
MEDIAN_DEPTH = 3.0
# Triangulation angles (degrees) of the neighbours looked for, on either side in time: small ones match best, wide ones measure best.
_ANGLES_DEG = (1.5, 3.0, 6.0, 10.0)
# Smoothing of inverse depth after each round; the first only has to start the second well.
_STRENGTHS = (60.0, 15.0, 4.0)
# The far shell lies at this multiple of the 99th percentile of the measured depth.
_SHELL = 1.5


@dataclass(frozen=True, kw_only=True)
class PosedClip:
    """Grey images and cameras on the working grid.

    Attributes:
        grays: (T, H, W) uint8.
        w2c: (T, 4, 4), NaN where a frame has no pose.
        K: (3, 3) pixels of (H, W), shared.
        refs: (R,) int64 positions of the frames that get depth.
        sparse: for each ref, (M, 3) column, row and 1/z of the sparse points it sees.
    """

    grays: Array
    w2c: Array
    K: Array
    refs: Array
    sparse: list[Array]


@dataclass(frozen=True, kw_only=True)
class SfmGeometry:
    """Structure from motion and flow depth; see the module.

    Attributes:
        seed: makes mapping repeatable.
    """

    seed: int = 0

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """Cameras, depth and confidence of the chosen frames that could be registered.

        Raises:
            GeometryError: the camera stands still or only turns, or too few frames match.
        """
        report.note(f"poses: mapping {len(frames.chosen)} frames")
        model = map_frames(frames.images[frames.chosen], seed=self.seed, report=report)
        report.note(
            f"poses: {len(model.frames)} of {len(frames.chosen)} frames, {len(model.points)} points, reprojection"
            f" {model.error_px:.2f} px, focal {model.focal / max(frames.images.shape[1:3]):.2f} x longest side"
        )
        clip = _posed_clip(frames, model)
        inverse, rays = _depth_rounds(clip, frames, report)
        return _to_scene(frames, model, clip, inverse, rays)


def _posed_clip(frames: ClipFrames, model: SparseModel) -> PosedClip:
    (height, width), size = frames.images.shape[1:3], frames.size
    scale = np.array([size[1] / width, size[0] / height])
    grays = np.stack(
        [cv2.cvtColor(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for image in frames.images]
    )
    refs = frames.chosen[model.frames]
    w2c = np.full((len(frames.images), 4, 4), np.nan)
    w2c[refs] = model.w2c
    w2c = place_between(frames.images, w2c, refs, model)
    sparse = []
    for row in range(len(refs)):
        mine = model.seen_by == row
        camera = model.points[model.seen_point[mine]] @ model.w2c[row, :3, :3].T + model.w2c[row, :3, 3]
        front = camera[:, 2] > 0
        sparse.append(np.column_stack([model.seen_at[mine][front] * scale, 1 / camera[front, 2]]))
    return PosedClip(grays=grays, w2c=w2c, K=np.diag([*scale, 1.0]) @ model.K, refs=refs, sparse=sparse)


def choose_neighbours(clip: PosedClip, row: int) -> list[int]:
    """Frames from which to triangulate ref `row`: for each wanted angle the best frame before and after it in the clip."""
    ref = int(clip.refs[row])
    posed = np.flatnonzero(np.isfinite(clip.w2c[:, 0, 0]))
    points = _sparse_world(clip, row)
    centers = invert_rigid(clip.w2c[posed])[:, :3, 3]
    rays = points[None] - centers[:, None]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    own = rays[int(np.flatnonzero(posed == ref)[0])]
    angle = np.degrees(np.median(np.arccos(np.clip((rays * own).sum(-1), -1, 1)), axis=1))
    overlap = np.array([_share_inside(clip, frame, points) for frame in posed])
    chosen: list[int] = []
    for wanted in _ANGLES_DEG:
        for side in (posed < ref, posed > ref):
            allowed = side & (overlap > 0.5) & (angle > 0.3) & ~np.isin(posed, chosen)
            if allowed.any():
                cost = np.where(allowed, np.abs(np.log(np.maximum(angle, 1e-3) / wanted)), np.inf)
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
    K = clip.K
    camera = np.column_stack([(x - K[0, 2]) / K[0, 0] * depth, (y - K[1, 2]) / K[1, 1] * depth, depth])
    c2w = invert_rigid(clip.w2c[clip.refs[row]])
    return camera @ c2w[:3, :3].T + c2w[:3, 3]


def _share_inside(clip: PosedClip, frame: int, points: Array) -> float:
    camera = points @ clip.w2c[frame, :3, :3].T + clip.w2c[frame, :3, 3]
    front = camera[:, 2] > 1e-6
    pixel = (camera[front] / camera[front, 2:]) @ clip.K.T
    height, width = clip.grays.shape[1:]
    inside = (pixel[:, 0] > 0) & (pixel[:, 0] < width) & (pixel[:, 1] > 0) & (pixel[:, 1] < height)
    return float(inside.sum()) / max(len(points), 1)


def _depth_rounds(clip: PosedClip, frames: ClipFrames, report: Reporter) -> tuple[list[Array], list[RayDepth]]:
    """Filled inverse depth and the raw triangulation of every ref."""
    inverse, rays = [], []
    for row, ref in enumerate(clip.refs):
        image = cv2.resize(frames.images[ref], (frames.size[1], frames.size[0]), interpolation=cv2.INTER_AREA)
        filled, ray = _one_depth(clip, row, image)
        inverse.append(filled)
        rays.append(ray)
        report.step(StepReport("depth", row, len(clip.refs)))
    return inverse, rays


def _one_depth(clip: PosedClip, row: int, image: Array) -> tuple[Array, RayDepth]:
    ref = int(clip.refs[row])
    neighbours = choose_neighbours(clip, row)
    poses = [clip.w2c[k] @ invert_rigid(clip.w2c[ref]) for k in neighbours]
    rotations, translations = np.stack([p[:3, :3] for p in poses]), np.stack([p[:3, 3] for p in poses])
    couplings = edge_couplings(image)
    anchors, anchor_weight = _anchor_images(clip, row)
    inverse, _ = fill_and_smooth(anchors, anchor_weight, couplings, 1e5)
    for strength in _STRENGTHS:
        found = [
            match_through_depth(clip.grays[ref], clip.grays[k], inverse, (p[:3, :3], p[:3, 3]), clip.K)
            for k, p in zip(neighbours, poses, strict=True)
        ]
        ray = triangulate(np.stack([m for m, _ in found]), np.stack([t for _, t in found]), rotations, translations, clip.K)
        weight = np.where(ray.far, 1.0, ray.weight).astype(np.float32)
        value = np.where(ray.far, np.maximum(ray.inverse, 0), ray.inverse)
        total = weight + anchor_weight
        value = (value * weight + anchors * anchor_weight) / np.maximum(total, 1e-12)
        inverse, _ = fill_and_smooth(value.astype(np.float32), total, couplings, strength)
    return inverse, ray


def _anchor_images(clip: PosedClip, row: int) -> tuple[Array, Array]:
    """Sparse inverse depth and its weight on the grid, (H, W) float32 each."""
    anchors, weight = np.zeros(clip.grays.shape[1:], np.float32), np.zeros(clip.grays.shape[1:], np.float32)
    x, y, inverse = clip.sparse[row].T
    inside = (x >= 0) & (y >= 0) & (x < anchors.shape[1]) & (y < anchors.shape[0])
    at = (y[inside].astype(int), x[inside].astype(int))
    anchors[at], weight[at] = inverse[inside], 1.0
    return anchors, weight


def _to_scene(frames: ClipFrames, model: SparseModel, clip: PosedClip, inverse: list[Array], rays: list[RayDepth]) -> Scene:
    """Depth with its far shell, confidence from agreement between the frames, and the scale of the scene."""
    measured = np.stack([(ray.weight > 0) & ~ray.far for ray in rays])
    stacked = np.stack(inverse)
    near = np.maximum(np.percentile(stacked[measured], 1.0) / _SHELL, 1e-9)
    shell = stacked <= near
    depth = (1 / np.maximum(stacked, near)).astype(np.float32)
    support = agreement(depth, clip.w2c[clip.refs], clip.K)
    own = np.stack([np.minimum(ray.weight, 4.0) for ray in rays])
    confidence = 1.0 + np.where(measured, own, 0.05) * (0.25 + support)
    confidence[shell] = 1.0
    scale = MEDIAN_DEPTH / float(np.median(depth))
    c2w = invert_rigid(clip.w2c[clip.refs])
    c2w[:, :3, 3] *= scale
    images = np.stack([cv2.resize(frames.images[r], (frames.size[1], frames.size[0]), interpolation=cv2.INTER_AREA) for r in clip.refs])
    cameras = CameraSet(c2w=c2w, K=np.repeat(clip.K[None], len(c2w), 0), size=frames.size, frame_ids=model.frames.astype(np.int64))
    return Scene(cameras=cameras, images=images, depth=depth * np.float32(scale), confidence=confidence.astype(np.float32))
