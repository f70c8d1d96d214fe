"""Whether displacement fields generalise: the reprojection error of held-out frames under fields interpolated from their neighbours.

A held-out frame has matches with aligned frames that no solve has used. Where the fields describe a deformation that is smooth in time,
the field interpolated from the aligned neighbours lowers the error of these matches; where they have fitted noise or something that a
single frame shows, it raises the error. Fields are then scaled by the strength in 0..1 with the least held-out error, so that a world
built with them is not worse than one built without. The strength is one number per held-out frame; nothing else of that frame is used.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.between import with_frames_between
from utils.matching.contract import MatchSet
from utils.registration.heldout import reprojection
from utils.registration.result import Registration, to_alignment
from utils.reporting import number_ranges
from utils.runtime import in_threads
from utils.types import Array, CanonicalCloud, LatticeFields, Scene

STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)
NEAR_GAPS = (1, 2, 4)
"""Aligned frames that a held-out one is matched with: so many steps before and after it."""
_CAP_PX = 3.0
"""Errors are clamped to this: larger ones are wrong matches, whatever the strength."""
_WORTH = 0.97
"""A weaker field must bring the error below this share of what the full one leaves; else there is no evidence against it."""


@dataclass(frozen=True)
class CarryOver:
    """How well the fields explain H held-out frames.

    Attributes:
        frame_ids: (H,).
        matches: (H,) their number.
        errors_px: (H, len(STRENGTHS)) mean distance between matches and where fields of these strengths put them, NaN without matches.
        strength: (H,) the best of `STRENGTHS`.
    """

    frame_ids: Array
    matches: Array
    errors_px: Array
    strength: Array

    def at(self, frame_ids: Array, clips: Array, own_clips: Array) -> Array:
        """(F,) strength for frames of these ids, linear in time between held-out frames of their clip; 1 in clips without.

        Args:
            frame_ids: (F,).
            clips: (F,) their clips.
            own_clips: (H,) clips of the held-out frames.
        """
        strength = np.ones(len(frame_ids))
        for clip in np.unique(clips):
            known = (own_clips == clip) & np.isfinite(self.errors_px[:, 0])
            if known.any():
                rows = clips == clip
                strength[rows] = np.interp(frame_ids[rows], self.frame_ids[known], self.strength[known])
        return strength

    def report(self) -> dict[str, Any]:
        """For `report.json`."""
        return {
            "frames": self.frame_ids.tolist(),
            "matches": self.matches.tolist(),
            "rigid_px": [_plain(v) for v in self.errors_px[:, -1]],
            "carried_px": [_plain(v) for v in self.errors_px[:, 0]],
            "strength": self.strength.tolist(),
        }

    def words(self) -> str:
        """One line; empty without matches."""
        known = np.isfinite(self.errors_px[:, 0])
        if not known.any():
            return ""
        rigid, carried = (float(np.median(self.errors_px[known, column])) for column in (-1, 0))
        words = (
            f"{int(known.sum())} frames kept out are {rigid:.2f} px off without deformation, {carried:.2f} with that of their neighbours"
        )
        weak = known & (self.strength < 1)
        if not weak.any():
            return words
        return f"{words}; fields do not carry over around {number_ranges(self.frame_ids[weak].tolist())} and are weakened there"


def pairs_with_neighbours(aligned: Array, heldout: Array, clips: Array) -> list[tuple[int, int]]:
    """Pairs (held-out, aligned frame) of the same clip: the nearest aligned frames and some farther on.

    Args:
        aligned: (F,) bool, frames in the order of time.
        heldout: (F,) bool.
        clips: (F,) clip of each.
    """
    pairs = []
    for row in np.flatnonzero(heldout).tolist():
        others = np.flatnonzero(aligned & ~heldout & (clips == clips[row]))
        after = int(np.searchsorted(others, row))
        for gap in NEAR_GAPS:
            pairs += [(row, int(others[at])) for at in (after - gap, after + gap - 1) if 0 <= at < len(others)]
    return pairs


def with_held_out(everything: Scene, result: Registration, heldout: Array, clips: Array) -> tuple[Scene, Registration]:
    """The frames of a registration and those held out, the latter with poses and fields of the aligned frames beside them.

    Args:
        everything: all frames.
        result: of some of them.
        heldout: (H,) ids.
        clips: (F,) clip of every frame.
    """
    nothing, colors = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    cloud = CanonicalCloud(points=nothing, colors=colors, frame=np.zeros(0, int), pixel=np.zeros(0, int))
    alignment = to_alignment(everything.select(result.cameras.frame_ids), result, cloud)
    every = with_frames_between(everything, alignment, heldout, clips)
    whole = replace(result, cameras=every.cameras, fields=every.fields, aligned=every.aligned)
    return everything.select(every.cameras.frame_ids), whole


def measure_carry_over(scene: Scene, result: Registration, heldout: Array, matches: list[MatchSet]) -> CarryOver:
    """Errors of the held-out frames for fields of several strengths.

    Args:
        scene: frames of the alignment and held-out ones.
        result: their poses and fields, those of held-out frames carried over, see `with_held_out`.
        heldout: (F,) bool.
        matches: of pairs (held-out, aligned frame), rows of `scene`.
    """
    rows = np.flatnonzero(heldout)
    turned = {row: [_turned(m) for m in matches if m.source == row and len(m)] for row in rows.tolist()}
    errors = np.full((len(rows), len(STRENGTHS)), np.nan)
    for column, strength in enumerate(STRENGTHS):
        geometry = AlignedGeometry(scene, result.cameras, scaled(result.fields, np.full(len(scene), strength)))

        def error(row: int, geometry: AlignedGeometry = geometry) -> float:
            pixels = [reprojection(geometry, m)[0] for m in turned[row]]
            return float(np.minimum(np.concatenate(pixels), _CAP_PX).mean()) if pixels else float("nan")

        errors[:, column] = in_threads(error, rows.tolist())
    best = np.array([_best(e) for e in errors])
    ids: Array = result.cameras.frame_ids[rows]
    return CarryOver(ids, np.array([sum(map(len, turned[row])) for row in rows.tolist()]), errors, best)


def scaled(fields: LatticeFields, strength: Array) -> LatticeFields:
    """Fields with the displacement of each frame times its strength (F,)."""
    nodes = fields.nodes * strength.astype(fields.nodes.dtype)[:, None, None, None, None]
    return LatticeFields(nodes=nodes, inv_depth_range=fields.inv_depth_range)


def _best(errors: Array) -> float:
    """The strength with the least error (len(STRENGTHS),); the full one unless another is clearly better."""
    if not np.isfinite(errors[0]):
        return 1.0
    least = int(np.argmin(errors))
    return STRENGTHS[least] if errors[least] < _WORTH * errors[0] else 1.0


def _turned(match: MatchSet) -> MatchSet:
    """The same matches from the aligned frame to the held-out one: of the latter only the pixels count, not its depth."""
    return MatchSet(match.target, match.source, match.target_px, match.source_px, match.target_depth, match.source_depth)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
