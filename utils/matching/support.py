"""Match and pair selection for an alignment, and the weight of each match from the confidence of its depth."""

import numpy as np

from utils.matching.contract import MatchSet
from utils.types import Array, Scene

_MIN_PAIR_SHARE = 0.02  # share of a pair's samples that must match for the pair to count


_MIN_FRAME_SHARE = 0.1  # the same for the best pair of a frame: two unrelated textures match on about 5 %


_TRUST_RANGE = 4.0


def supported_matches(matches: list[MatchSet], samples: float) -> list[MatchSet]:
    """The pairs worth using: enough of the `samples` pixels tried match, and both frames have a pair that matches well."""
    best: dict[int, int] = {}
    for match in matches:
        for frame in (match.source, match.target):
            best[frame] = max(best.get(frame, 0), len(match))
    return [m for m in matches if len(m) >= _MIN_PAIR_SHARE * samples and min(best[m.source], best[m.target]) >= _MIN_FRAME_SHARE * samples]


def match_trust(scene: Scene, matches: list[MatchSet], power: float) -> Array | None:
    """(M,) how much each match counts: the confidence of its two pixels over the scene's median, to a power; None: all the same.

    The factor stays within what a confidence without a unit can be believed, and the mean is 1, so that regularisers keep their weight.
    """
    if power <= 0 or not matches:
        return None
    confidence = [
        np.minimum(scene.confidence[(m.source, *_pixel(m.source_px))], scene.confidence[(m.target, *_pixel(m.target_px))]) for m in matches
    ]
    relative = np.concatenate(confidence) / float(np.median(scene.confidence[scene.valid]))
    trust = np.clip(relative, 1 / _TRUST_RANGE, _TRUST_RANGE) ** power
    return trust / trust.mean()


def _pixel(places: Array) -> tuple[Array, Array]:
    """Row and column of the pixels that hold places (M, 2)."""
    x, y = np.floor(places).astype(np.int64).T
    return y, x
