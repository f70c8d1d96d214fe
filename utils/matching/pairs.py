"""Which pairs of frames are matched: fixed gaps, and revisits found by overlap."""

import numpy as np

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.types import Array

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


def choose_pairs(overlap: Array, frames: Array, config: MatchingConfig) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of frame indices in order of i and j.

    Gaps count positions in `frames`, so that a frame left out does not break the chain. A gap is used while it is shorter than the
    sequence by more than one frame: the outermost pair alone sees too little to be worth its wrong matches. Neighbours always pair.
    """
    count = len(frames)
    pairs = {(a, a + 1) for a in range(count - 1)}
    gaps = [g for g in config.gaps if g < max(count - 1, 2)]
    pairs |= {(a, a + g) for g in gaps for a in range(count - g)}
    longest = max(gaps, default=1)
    for a in range(count):
        far = [b for b in range(count) if abs(a - b) > longest]
        best = sorted(far, key=lambda b: (-overlap[frames[a], frames[b]], b))[: config.revisits_per_frame]
        pairs |= {(min(a, b), max(a, b)) for b in best}
    named = ((int(frames[a]), int(frames[b])) for a, b in pairs)
    return sorted((i, j) for i, j in named if overlap[i, j] >= config.min_overlap or abs(i - j) == 1)
