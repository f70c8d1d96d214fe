"""Alignment of inconsistent frames into one canonical space; used by stages 1 and 2, no disk access.

May import: `utils.matching`, `utils.deformation`, `utils.splatting`, `utils.scene`, `utils.points` and below.
Start: `sequential.align_sequential` (stage 1), `joint.align_jointly` (stage 2), `solver` (the least-squares problem).
"""

from utils.deformation.aligned_geometry import AlignedGeometry, forward_points
from utils.matching.contract import MATCHERS, Matcher, MatchSet
from utils.registration.cloud import build_cloud, usable_pixels
from utils.registration.joint import align_jointly
from utils.registration.result import Diagnostics, Registration
from utils.registration.sequential import align_sequential

__all__ = [
    "MATCHERS",
    "AlignedGeometry",
    "Diagnostics",
    "MatchSet",
    "Matcher",
    "Registration",
    "align_jointly",
    "align_sequential",
    "build_cloud",
    "forward_points",
    "usable_pixels",
]
