"""Image matches of the published method: which earlier frames, and matched pixels as rows of points."""

import numpy as np

from configs.icp import IcpConfig
from utils.matching.contract import MatchSet
from utils.published.model import CanonicalModel
from utils.types import Array


def reference_frames(frame: int, config: IcpConfig) -> list[int]:
    """Earlier frames that `frame` is matched with: all, or as many as `match_references`."""
    count = config.match_references
    if frame <= count:
        return list(range(frame))
    if config.match_sampling == "strided":
        chosen = {k * frame // count for k in range(count - 1)} | {frame - 1}
        return sorted(chosen)
    recent = count // 2
    rest = frame - recent
    strided = {k * rest // (count - recent) for k in range(count - recent)}
    return sorted(strided | set(range(rest, frame)))


def matched_rows(
    matches: list[MatchSet], own_row: Array, model: CanonicalModel, width: int, config: IcpConfig, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Rows of the frame's points and of the model's that show the same: pairs of pixels that are both still there.

    Args:
        matches: from the frame (source) to frames in the model.
        own_row: (H * W,) row of each pixel among the frame's points, -1 if none.
        model: the model.
        width: W.
        config: number of matches drawn per pair.
        rng: draws them.
    """
    own, other = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for match in matches:
        pick = np.arange(len(match))
        if len(match) > config.match_samples:
            pick = np.sort(rng.choice(len(match), config.match_samples, replace=False))
        source, target = (np.floor(px[pick]).astype(np.int64) @ np.array([1, width]) for px in (match.source_px, match.target_px))
        rows, partners = own_row[source], model.row_of_pixel[match.target, target]
        both = (rows >= 0) & (partners >= 0)
        own.append(rows[both])
        other.append(partners[both])
    return np.concatenate(own), np.concatenate(other)
