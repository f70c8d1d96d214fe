"""Reprojection error of held-out matches: pairs of frames and blocks of pixels that the solve did not use.

The flow of held-out matches starts from the geometry before alignment, so where the images are ambiguous the figure favours the state
before and never the result. Reprojection is through both deformations: a pixel is lifted by its own frame and seen by the other one.
"""

from typing import Any

import numpy as np

from configs.stage1_align import MatchingConfig
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.matching.contract import MatchSet
from utils.types import Array

_BLOCK = 16  # pixels of the edge of the blocks that are kept out, wider than the window of the flow
_MAX_GAPS = 4
_LONGEST = 24  # frames


def held_blocks(size: tuple[int, int], share: float) -> Array:
    """(H, W) bool: pixels of the blocks kept out of the solve, spread evenly; about `share` of all."""
    if share <= 0:
        return np.zeros(size, bool)
    rows, columns = (np.arange(n) // _BLOCK for n in size)
    every = max(round(1 / share), 1)
    step = next((s for s in range(every // 2 + 1, every) if np.gcd(s, every) == 1), 1)  # neighbouring rows do not line up
    kept: Array = (columns[None] + step * rows[:, None]) % every == 0
    return kept


def heldout_pairs(overlap: Array, frames: Array, used: set[tuple[int, int]], config: MatchingConfig, count: int) -> list[tuple[int, int]]:
    """At most `count` pairs (i, j), i < j, of frame indices whose distance is none that is matched, evenly over distances and time.

    Args:
        overlap: (F, F) share of the view, see `pairs.overlaps`.
        frames: indices of the frames that are aligned.
        used: pairs of the solve, in either order.
        config: its gaps are left out, like pairs that overlap too little.
        count: how many are wanted.
    """
    if count < 1 or len(frames) < 3:
        return []
    gaps = np.array([g for g in range(2, int(frames[-1] - frames[0]) + 1) if g not in config.gaps], int)
    if not len(gaps):
        return []
    longest = max(min(_LONGEST, (2 * len(frames)) // 3), gaps[0])  # the outermost pairs see too little in common
    wanted = np.geomspace(gaps[0], longest, _MAX_GAPS)
    here, by_gap = set(frames.tolist()), []
    for gap in np.unique([gaps[np.argmin(abs(gaps - w))] for w in wanted]):
        pairs = [(int(i), int(i + gap)) for i in frames if i + gap in here]
        by_gap.append([p for p in pairs if not {p, p[::-1]} & used and overlap[p] >= config.min_overlap])
    chosen: list[tuple[int, int]] = []
    for left, pairs in zip(range(len(by_gap), 0, -1), sorted(by_gap, key=len), strict=True):
        share = min((count - len(chosen)) // left, len(pairs))
        chosen += [pairs[int((k + 0.5) * len(pairs) / share)] for k in range(share)]
    return sorted(chosen)


def reprojection(geometry: AlignedGeometry, match: MatchSet) -> tuple[Array, Array]:
    """Distance in pixels (M,) between where the source's pixels fall in the target and their matches, and relative depth error (M,)."""
    seen = geometry.project(match.target, geometry.lift(match.source, match.source_px, match.source_depth))
    far = float(np.hypot(*geometry.cameras.size))  # behind the camera: as wrong as can be
    pixels = np.nan_to_num(np.hypot(seen[:, 0] - match.target_px[:, 0], seen[:, 1] - match.target_px[:, 1]), nan=far)
    depth = np.nan_to_num(np.abs(seen[:, 2] - match.target_depth) / match.target_depth, nan=1.0)
    return np.minimum(pixels, far), depth


def measure_heldout(matches: list[MatchSet], before: AlignedGeometry, after: AlignedGeometry, blocks: Array) -> dict[str, Any]:
    """Reprojection of held-out matches before and after alignment, for `report.json`; empty if there is no match.

    Args:
        matches: of pairs that took no part.
        before: the scene as it came.
        after: as aligned.
        blocks: (H, W) bool, pixels that took no part in any pair.
    """
    matches = [m for m in matches if len(m)]
    if not matches:
        return {}
    ids = after.cameras.frame_ids
    errors = [[np.stack(reprojection(geometry, m)) for m in matches] for geometry in (before, after)]
    held = [blocks[tuple(m.source_px[:, ::-1].astype(int).T)] for m in matches]
    everything = [np.concatenate(e, 1) for e in errors]
    result: dict[str, Any] = {"pairs": _statistics(everything[0], everything[1])}
    if any(h.any() for h in held):
        mask = np.concatenate(held)
        result["pairs_and_pixels"] = _statistics(everything[0][:, mask], everything[1][:, mask])
    result["by_pair"] = [
        {"source": int(ids[m.source]), "target": int(ids[m.target]), **_statistics(b, a)}
        for m, b, a in zip(matches, errors[0], errors[1], strict=True)
    ]
    return result


def heldout_words(measured: dict[str, Any]) -> str:
    """One line about the result of `measure_heldout`."""
    parts = measured.get("pairs_and_pixels") or measured["pairs"]
    what = "pairs and pixels" if "pairs_and_pixels" in measured else "pairs"
    return (
        f"on {len(measured['by_pair'])} {what} kept out of the solve, flow and geometry differ by {parts['after_px']:.2f} px (before "
        f"{parts['before_px']:.2f}), depth by {100 * parts['after_depth']:.2f} % (before {100 * parts['before_depth']:.2f})"
    )


def _statistics(before: Array, after: Array) -> dict[str, float]:
    """Median and 90th percentile of pixel errors and median of depth errors; `before` and `after` are (2, M): pixels, depth."""
    statistics: dict[str, float] = {"matches": before.shape[1]}
    for name, (pixels, depth) in (("before", before), ("after", after)):
        median, p90 = np.percentile(pixels, [50, 90])
        statistics |= {f"{name}_px": float(median), f"{name}_px_p90": float(p90), f"{name}_depth": float(np.median(depth))}
    return statistics
