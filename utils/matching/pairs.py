"""Which pairs of frames are matched: fixed gaps, and revisits found by overlap."""

import numpy as np

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.types import Array

OTHER_CLIPS = 4
"""Frames of other clips that a frame is paired with, one of each clip."""
_GRID = (9, 16)  # rows, columns of the probes whose visibility measures overlap


def overlaps(geometry: AlignedGeometry, frames: Array) -> Array:
    """(F, F) share of a probe grid of frame i that falls into frame j's image, the smaller of both directions.

    Rows and columns outside `frames` (indices) are zero. Occlusion is ignored.
    """
    scene = geometry.scene
    h, w = scene.cameras.size
    rows = ((np.arange(_GRID[0]) + 0.5) / _GRID[0] * h).astype(int)
    columns = ((np.arange(_GRID[1]) + 0.5) / _GRID[1] * w).astype(int)
    pixels = np.stack(np.meshgrid(columns + 0.5, rows + 0.5), -1).reshape(-1, 2)
    share = np.zeros((len(scene), len(scene)))
    w2c, K = geometry.cameras.w2c, geometry.cameras.K
    for i in frames:
        depth = scene.depth[i][np.ix_(rows, columns)].ravel()
        known = np.isfinite(depth) & (depth > 0)
        points = geometry.lift(i, pixels[known], depth[known]).astype(np.float64)
        p = (points @ w2c[frames, :3, :3].transpose(0, 2, 1) + w2c[frames, None, :3, 3]) @ K[frames].transpose(0, 2, 1)
        front = p[..., 2] > 0
        z = np.where(front, p[..., 2], 1.0)
        x, y = p[..., 0] / z, p[..., 1] / z
        share[i, frames] = np.sum(front & (x > 0) & (x < w) & (y > 0) & (y < h), 1) / (_GRID[0] * _GRID[1])
    return np.minimum(share, share.T)


def choose_pairs(overlap: Array, frames: Array, config: MatchingConfig, clips: Array | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of frame indices in order of i and j.

    Gaps count positions in `frames`, so that a frame left out does not break the chain. A gap is used while it is shorter than the
    sequence by more than one frame: the outermost pair alone sees too little to be worth its wrong matches. Neighbours always pair.
    Of several clips each is a sequence of its own, and every frame pairs with those of other clips that share most of its view.

    Args:
        overlap: (F, F) share of the view that two frames have in common.
        frames: (N,) indices of the frames to pair.
        config: gaps, revisits and the least overlap.
        clips: (F,) clip of each frame, which follow each other; None: all are of one.
    """
    own = np.zeros(len(frames), int) if clips is None else clips[frames]
    pairs: set[tuple[int, int]] = set()
    for clip in np.unique(own):
        pairs |= _within(np.flatnonzero(own == clip), overlap, frames, config)
    for a in range(len(frames)):
        pairs |= {(min(a, b), max(a, b)) for b in _in_other_clips(a, overlap[frames[a], frames], own)}
    named = ((int(frames[a]), int(frames[b]), own[a] == own[b]) for a, b in pairs)
    return sorted((i, j) for i, j, same in named if overlap[i, j] >= config.min_overlap or (same and abs(i - j) == 1))


def _within(places: Array, overlap: Array, frames: Array, config: MatchingConfig) -> set[tuple[int, int]]:
    """Pairs of positions in `frames` within one clip, which has these (consecutive) `places`."""
    count, first = len(places), int(places[0])
    pairs = {(a, a + 1) for a in range(count - 1)}
    gaps = [g for g in config.gaps if g < max(count - 1, 2)]
    pairs |= {(a, a + g) for g in gaps for a in range(count - g)}
    longest = max(gaps, default=1)
    for a in range(count):
        far = [b for b in range(count) if abs(a - b) > longest]
        best = sorted(far, key=lambda b: (-overlap[frames[first + a], frames[first + b]], b))[: config.revisits_per_frame]
        pairs |= {(min(a, b), max(a, b)) for b in best}
    return {(first + a, first + b) for a, b in pairs}


def _in_other_clips(frame: int, overlap: Array, clips: Array) -> list[int]:
    """Positions of the frames of other clips that share most with a frame, one of each clip, by its overlaps (N,)."""
    best: dict[int, int] = {}
    for other in np.argsort(-overlap, kind="stable").tolist():
        if clips[other] != clips[frame]:
            best.setdefault(int(clips[other]), other)
    return list(best.values())[:OTHER_CLIPS]
