"""Joins geometry that was estimated for overlapping pieces of a long clip, each piece in a world and a scale of its own.

Neighbouring pieces see some frames twice. Each such frame gives, in both worlds, its camera and the same surface points, pixel by
pixel; a similarity transform between the worlds follows in closed form (Umeyama, PAMI 1991), made robust by reweighting.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.cameras.projection import orthonormalized, unproject_depth
from utils.errors import GeometryError
from utils.types import Array

# Points of the overlap that enter the fit: more add time, not accuracy.
_MAX_POINTS = 20_000
# Residuals are shares of the depth. Geman-McClure scale from lenient to strict; the last is what two good depth maps differ by.
_SCALES = (0.3, 0.1, 0.05, 0.03, 0.03, 0.03)
# All cameras of an overlap together weigh as much as this share of its points: they fix the pose where the depth is poor.
_CAMERA_SHARE = 0.3
# A fit is trusted if at least this share of the points agrees within `_AGREE` of their depth.
_AGREE = 0.1
_MIN_AGREEING = 0.25


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Geometry of consecutive frames in one world.

    Attributes:
        start: position of the first frame in the clip.
        c2w: (n, 4, 4) float64.
        K: (n, 3, 3) float64, pixels of (H, W).
        depth: (n, H, W) float32, <= 0 where unknown.
        confidence: (n, H, W) float32; its lowest value 1 marks sky.
    """

    start: int
    c2w: Array
    K: Array
    depth: Array
    confidence: Array

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def stop(self) -> int:
        """Position after the last frame."""
        return self.start + len(self)


@dataclass(frozen=True)
class Similarity:
    """`p_to = scale * rotation @ p_from + translation`.

    Attributes:
        scale: positive.
        rotation: (3, 3).
        translation: (3,).
        agreeing: share of the points that agree within 10 % of their depth after the fit.
        residual: median distance of the points after the fit, as a share of their depth.
    """

    scale: float
    rotation: Array
    translation: Array
    agreeing: float = 1.0
    residual: float = 0.0

    def after(self, first: "Similarity") -> "Similarity":
        """The transform that applies `first`, then this one; the quality is this one's."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * self.rotation @ first.translation + self.translation,
            self.agreeing,
            self.residual,
        )

    def moved(self, chunk: Chunk) -> Chunk:
        """The chunk in the transform's target world."""
        c2w = chunk.c2w.copy()
        c2w[:, :3, :3] = self.rotation @ chunk.c2w[:, :3, :3]
        c2w[:, :3, 3] = self.scale * chunk.c2w[:, :3, 3] @ self.rotation.T + self.translation
        return Chunk(start=chunk.start, c2w=c2w, K=chunk.K, depth=chunk.depth * np.float32(self.scale), confidence=chunk.confidence)


def chunk_ranges(count: int, longest: int, overlap: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) that cover 0..count, of equal length <= `longest`, neighbours sharing at least `overlap`.

    Evenly spread rather than cut off at the end: a short last piece would see too little to be placed well.
    """
    if count <= longest:
        return [(0, count)]
    overlap = min(overlap, longest - 1)
    pieces = -(-(count - overlap) // (longest - overlap))
    starts = np.round(np.linspace(0, count - longest, pieces)).astype(int)
    return [(int(s), int(s) + longest) for s in starts]


def join_chunks(chunks: list[Chunk]) -> tuple[Chunk, list[Similarity]]:
    """All frames in the world of the first chunk, and the fit of every further one onto its predecessor.

    In an overlap the first half of the frames is taken from the earlier chunk, the rest from the later: depth maps are never averaged,
    since a mean of two surfaces is no surface.

    Raises:
        GeometryError: two neighbours do not fit onto each other.
    """
    placed, fits = [chunks[0]], []
    to_first = Similarity(1.0, np.eye(3), np.zeros(3))
    for before, chunk in pairwise(chunks):
        fit = fit_overlap(before, chunk)
        if fit.agreeing < _MIN_AGREEING:
            raise GeometryError(
                f"frames {chunk.start} to {before.stop - 1}, estimated twice, agree on only {fit.agreeing:.0%} of their points",
                "use fewer frames, or let more frames fit into one piece: a smaller resolution or more free memory",
            )
        to_first = to_first.after(fit)
        fits.append(fit)
        placed.append(to_first.moved(chunk))
    cuts = [chunks[0].start, *((b.start + a.stop + 1) // 2 for a, b in pairwise(placed)), chunks[-1].stop]
    rows = [slice(lo - c.start, hi - c.start) for c, lo, hi in zip(placed, cuts, cuts[1:], strict=False)]

    def gathered(name: str) -> Array:
        return np.concatenate([getattr(c, name)[r] for c, r in zip(placed, rows, strict=True)])

    joined = Chunk(start=chunks[0].start, c2w=gathered("c2w"), K=gathered("K"), depth=gathered("depth"), confidence=gathered("confidence"))
    return joined, fits


def fit_overlap(to: Chunk, chunk: Chunk) -> Similarity:
    """The similarity that carries `chunk` into the world of `to`, from the frames that both hold.

    Raises:
        GeometryError: they share no frame, or no surface in the frames they share.
    """
    first, last = max(to.start, chunk.start), min(to.stop, chunk.stop)
    if last <= first:
        raise GeometryError("two pieces of the clip share no frame", "raise the overlap")
    a, b = slice(first - to.start, last - to.start), slice(first - chunk.start, last - chunk.start)
    target, source, reach, weight = _shared_points(to, a, chunk, b)
    if len(target) < 16:
        raise GeometryError(
            f"frames {first} to {last - 1}, estimated twice, share no surface with a known depth", "choose frames that show more than sky"
        )
    poses = to.c2w[a], chunk.c2w[b]
    fit = _first_guess(*poses, target, source, reach, weight)
    return fit_similarity(target, source, reach, weight, poses, fit)


def _shared_points(to: Chunk, a: slice, chunk: Chunk, b: slice) -> tuple[Array, Array, Array, Array]:
    """World points (M, 3) of both, depth in `to` (M,), and weight (M,) with mean 1 from the smaller confidence."""
    h, w = to.depth.shape[1:]
    frames = a.stop - a.start
    step = max(1, round(np.sqrt(frames * h * w / _MAX_POINTS)))
    grid = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    confidence = np.minimum(to.confidence[a], chunk.confidence[b])[grid]
    valid = (to.depth[a][grid] > 0) & (chunk.depth[b][grid] > 0) & (confidence > confidence.min())
    if not valid.any():  # constant confidence says nothing about sky
        valid = (to.depth[a][grid] > 0) & (chunk.depth[b][grid] > 0)
    points = []
    for part, rows in ((to, a), (chunk, b)):
        camera = np.stack([unproject_depth(d, k) for d, k in zip(part.depth[rows], part.K[rows], strict=True)])[grid].astype(np.float64)
        c2w = part.c2w[rows]
        points.append((np.einsum("fij,fyxj->fyxi", c2w[:, :3, :3], camera) + c2w[:, None, None, :3, 3])[valid])
    weight = confidence[valid].astype(np.float64)
    weight = np.minimum(weight, np.median(weight) * 4)  # exp() confidences: a few must not decide alone
    return points[0], points[1], to.depth[a][grid][valid].astype(np.float64), weight / max(weight.mean(), 1e-12)


def _first_guess(to_pose: Array, pose: Array, target: Array, source: Array, reach: Array, weight: Array) -> Similarity:
    """A start that a minority of wrong depths or poses cannot spoil: medians of scale and translation, mean rotation."""
    relative = to_pose[:, :3, :3] @ np.swapaxes(pose[:, :3, :3], 1, 2)
    spread = np.linalg.norm(relative[:, None] - relative[None], axis=(2, 3)).sum(axis=1)
    rotation = relative[spread.argmin()]  # the medoid: outvotes single wrong poses
    centred = [np.linalg.norm(p - np.median(p, axis=0), axis=1) for p in (target, source)]
    scale = float(np.median(centred[0]) / max(float(np.median(centred[1])), 1e-12))
    return Similarity(scale, rotation, np.median(target - scale * source @ rotation.T, axis=0))


def fit_similarity(target: Array, source: Array, reach: Array, weight: Array, poses: tuple[Array, Array], fit: Similarity) -> Similarity:
    """Iteratively reweighted Umeyama fit of `source` onto `target`.

    A camera enters as four points: its centre and the tips of its axes, one median depth long, so that its rotation counts too.

    Args:
        target: (M, 3) points in the world that is kept.
        source: (M, 3) the same points in the other world.
        reach: (M,) depth of the points, in units of the target.
        weight: (M,) prior weight.
        poses: (n, 4, 4) cameras in the target's and in the source's world.
        fit: where to start.
    """
    length = float(np.median(reach))
    for scale in _SCALES:
        # The source's axes need the source's unit of length: the target's, seen through the current scale.
        to_tips, tips = _axis_tips(poses[0], length), _axis_tips(poses[1], length / fit.scale)
        to_all, all_ = np.concatenate([target, to_tips]), np.concatenate([source, tips])
        depth = np.concatenate([reach, np.full(len(tips), length)])
        error = np.linalg.norm(to_all - _apply(fit, all_), axis=1) / depth
        robust = (scale**2 / (scale**2 + error**2)) ** 2
        prior = np.concatenate([weight, np.full(len(tips), _CAMERA_SHARE * weight.sum() / len(tips))])
        # Relative errors: a far point's absolute error counts for less.
        fit = umeyama(to_all, all_, prior * robust / depth**2)
    error = np.linalg.norm(target - _apply(fit, source), axis=1) / reach
    return Similarity(fit.scale, fit.rotation, fit.translation, float(np.mean(error < _AGREE)), float(np.median(error)))


def _axis_tips(c2w: Array, length: float) -> Array:
    """(4n, 3) the camera centres and the tips of their axes."""
    centers = c2w[:, :3, 3]
    tips = centers[:, None] + length * np.swapaxes(c2w[:, :3, :3], 1, 2)
    return np.concatenate([centers, tips.reshape(-1, 3)])


def _apply(fit: Similarity, points: Array) -> Array:
    return fit.scale * points @ fit.rotation.T + fit.translation


def umeyama(target: Array, source: Array, weight: Array) -> Similarity:
    """The similarity that minimises `sum_i w_i |target_i - (s R source_i + t)|^2` (Umeyama, PAMI 1991, eqs. 38 to 42, weighted).

    Args:
        target: (M, 3).
        source: (M, 3).
        weight: (M,) non-negative.
    """
    w = weight / weight.sum()
    mean_target, mean_source = w @ target, w @ source
    p, q = target - mean_target, source - mean_source
    covariance = (w[:, None] * p).T @ q
    matrix = np.eye(4)
    matrix[:3, :3] = covariance
    rotation = orthonormalized(matrix[None])[0, :3, :3]
    variance = float(w @ (q**2).sum(axis=1))
    scale = float(np.trace(rotation.T @ covariance) / max(variance, 1e-300))
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)
