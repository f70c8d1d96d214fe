"""Colour drift: one affine map per frame under which matched pixels have one colour.

A generated clip changes exposure and tint from frame to frame. With observed colours s in frame i and t in frame j of one point,
corrections N (3, 4) minimise `sum c^2 e^2 / (c^2 + e^2)`, e = |N_i [s, 1] - N_j [t, 1]|, over all matches at once, by iteratively
reweighted least squares. The three output channels share one matrix of 4 F unknowns. Uniform darkening would also make colours alike: the
corrections are held at a mean of the identity while solving, and the maps they invert have it exactly in the end.

May import: what `utils.registration` may.
Start: `estimate_color_maps` here.
"""

import functools
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import torch

from utils.device.accelerator import accelerator, or_on_cpu
from utils.matching.contract import MatchSet
from utils.registration.colour.reference import Sums, pair_sums
from utils.runtime import in_threads
from utils.types import Array

_SCALES = (0.3, 0.15, 0.08, 0.05, 0.03, 0.02, 0.02)  # Geman-McClure scale of each reweighting step, of colours 0..1


_RIDGE = 5e-4  # hold at the identity, relative to the data of a frame; decides where a frame has one colour only


_CLIPPED = (3 / 255, 252 / 255)  # beyond them a channel may be clipped, which no affine map undoes


_MAX_PER_PAIR = 1000


_MIN_MATCHES = 30  # of a frame, below them it keeps its colours


def estimate_color_maps(images: Array, matches: list[MatchSet], errors: list[Array], limit: float) -> Array:
    """(F, 3, 4) maps M whose mean over the matched frames is the identity: frame i shows the colour c as `M_i [c, 1]`, sRGB 0..1.

    Args:
        images: (F, H, W, 3) uint8.
        matches: of pairs of frame indices.
        errors: per match set, distance (M,) of matched points after the solve, in depths.
        limit: matches with a larger one are left out.
    """
    frames = len(images)
    smooth = [cv2.blur(image, (3, 3)) for image in images]  # a match is a fraction of a pixel off
    pairs = in_threads(lambda m, e: _colors(smooth, m, e < limit), matches, errors)
    seen = np.zeros(frames, int)
    for m, (s, _) in zip(matches, pairs, strict=True):
        seen[[m.source, m.target]] += len(s)
    maps = np.tile(np.eye(4), (frames, 1, 1))
    known = seen >= _MIN_MATCHES
    if not known.any():
        return maps[:, :3]
    corrections = np.zeros((frames, 4, 3))
    sums = _sums_of(matches, pairs)
    for scale in _SCALES:
        corrections = _solve(matches, sums(corrections, scale), frames)
    deviation = np.swapaxes(corrections[known], 1, 2)
    deviation[:, :, 3] -= 0.5 * deviation[:, :, :3].sum(2)  # colours were centred
    inverse = np.tile(np.eye(4), (len(deviation), 1, 1))
    inverse[:, :3] += deviation
    maps[known] = np.linalg.inv(inverse)
    maps[known] = maps[known] @ np.linalg.inv(maps[known].mean(0))
    return maps[:, :3]


def corrected(colors: Array, color_map: Array) -> Array:
    """Colours (N, 3) uint8 of a frame as the consistent world has them, given the frame's map (3, 4)."""
    if not len(colors):
        return colors
    inverse = np.linalg.inv(color_map[:, :3])
    plain: Array = cv2.transform(colors[:, None], np.column_stack([inverse, -255 * inverse @ color_map[:, 3]]))
    return plain[:, 0]


def _colors(images: list[Array], match: MatchSet, good: Array) -> tuple[Array, Array]:
    """Colours (M, 4) of both ends, about 0.5 and with a 1 appended, of the matches that are good and not clipped."""
    rows = np.flatnonzero(good)
    rows = rows[:: max(1, len(rows) // _MAX_PER_PAIR)]
    ends = []
    for frame, pixels in ((match.source, match.source_px[rows]), (match.target, match.target_px[rows])):
        if not len(rows):
            return np.zeros((0, 4)), np.zeros((0, 4))
        x, y = (pixels[:, k].astype(np.float64) - 0.5 for k in (0, 1))
        ends.append(_sample(images[frame], x, y) / 255)
    inside = np.all([(c > _CLIPPED[0]) & (c < _CLIPPED[1]) for c in ends], axis=(0, 2))
    s, t = (np.concatenate([c[inside] - 0.5, np.ones((inside.sum(), 1))], 1) for c in ends)
    return s, t


def _sample(image: Array, x: Array, y: Array) -> Array:
    """(M, 3) bilinear colours of (H, W, 3) uint8 at (M,) array coordinates; beyond the border those of the border."""
    h, w = image.shape[:2]
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across, down = (x - column)[:, None], (y - row)[:, None]
    left, right = np.clip(column, 0, w - 1), np.clip(column + 1, 0, w - 1)
    above, below = np.clip(row, 0, h - 1), np.clip(row + 1, 0, h - 1)
    top = image[above, left] * (1 - across) + image[above, right] * across
    bottom = image[below, left] * (1 - across) + image[below, right] * across
    return top * (1 - down) + bottom * down


def _sums_of(matches: list[MatchSet], pairs: list[tuple[Array, Array]]) -> Callable[[Array, float], Iterable[Sums]]:
    """What gives the sums of all pairs for corrections and a scale: on the GPU all pairs at once, where there is one."""
    device = accelerator()
    if device is None or not sum(len(s) for s, _ in pairs):
        return lambda current, scale: pair_sums(matches, pairs, current, scale)
    from utils.registration.colour.batched import DeviceSums

    together = functools.cache(lambda: DeviceSums(np.array([(m.source, m.target) for m in matches]), pairs, device))
    return lambda current, scale: or_on_cpu(
        lambda: list(together()(current, scale)), lambda: list(pair_sums(matches, pairs, current, scale)), "colour drift"
    )


def _solve(matches: list[MatchSet], sums: Iterable[Sums], frames: int) -> Array:
    """One reweighting step: deviations (F, 4, 3) of the corrections from the identity."""
    matrix, right = np.zeros((frames, frames, 4, 4)), np.zeros((frames, 4, 3))
    source, target = np.array([(m.source, m.target) for m in matches]).T
    ss, tt, st, ts, sd, td, weights = (np.stack(part) for part in zip(*sums, strict=True))
    for rows, columns, blocks in ((source, source, ss), (target, target, tt), (source, target, -st), (target, source, -ts)):
        np.add.at(matrix, (rows, columns), blocks)
    np.add.at(right, source, -sd)
    np.add.at(right, target, td)
    total = float(weights.sum())
    per_frame = max(2 * total / frames, 1e-9)
    dense = matrix.transpose(0, 2, 1, 3).reshape(4 * frames, 4 * frames)
    dense = dense + _RIDGE * per_frame * np.eye(4 * frames) + per_frame / frames * np.kron(np.ones((frames, frames)), np.eye(4))
    # by torch: NumPy's threads waited for each other, half a second for 324 unknowns on 16 cores
    solved = torch.linalg.solve(torch.from_numpy(dense), torch.from_numpy(right.reshape(4 * frames, 3)))
    return solved.numpy().reshape(frames, 4, 3)
