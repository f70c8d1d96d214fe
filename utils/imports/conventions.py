"""Whether given cameras fit what the frames show, and if not, by which other convention they do.

Programs write poses as camera-to-world or world-to-camera, with camera axes of OpenCV, OpenGL or others, some in left-handed worlds, and
intrinsics of another size. A camera that is read in the wrong convention looks like any other. Matches tell: a pixel of one frame lies in
another on the half-line that its ray draws there, from the point at infinity to the epipole.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from utils.cameras.projection import invert_rigid
from utils.imports.sightings import Sightings
from utils.types import Array

# A match agrees with cameras within so many pixels of the working size.
AGREES_PX = 2.0
# Another convention is taken where so many matches agree with it, and so many times as many as with the one given.
_ENOUGH, _CLEARLY = 0.5, 1.8
# Of the many rare ones some fits any poses a little (0.66 of the matches, with quaternions read in the wrong order): they need more. The
# common ones are camera-to-world and world-to-camera, with axes of OpenCV or OpenGL.
_COMMON, _ENOUGH_FOR_RARE = 4, 0.85
# Conventions whose fit (0 to 1) differs by less are as good as each other.
_AS_GOOD = 0.03
# Matches that tell: they move by so many pixels; number needed, and number looked at.
_MOVES_PX, _LEAST, _MOST = 4.0, 60, 3000
# Focal lengths that are tried, times the one given; another one is taken if it lets so many more matches agree, and so many of all.
_FOCALS = np.exp(np.linspace(-0.92, 0.92, 93))
_FOCAL_GAIN, _FOCAL_SURE, _SAME_FOCAL = 0.12, 0.7, 0.06


@dataclass(frozen=True)
class Convention:
    """How poses were meant: `w2c = axes @ (w2c as read, or its inverse) @ world`.

    Attributes:
        inverse: camera-to-world and world-to-camera were taken for each other.
        axes: (3, 3) signed permutation, OpenCV's camera axes from those of the file.
        mirrored: the file's world is left-handed.
    """

    inverse: bool
    axes: Array
    mirrored: bool

    def applied(self, w2c: Array) -> Array:
        """(N, 4, 4) world-to-camera poses as they were meant; rigid."""
        left, right = np.eye(4), np.eye(4)
        left[:3, :3] = self.axes
        right[2, 2] = -1.0 if self.mirrored else 1.0
        return left @ (invert_rigid(w2c) if self.inverse else w2c) @ right

    @property
    def text(self) -> str:
        """What was wrong, in words."""
        found = []
        if self.inverse:
            found.append("camera-to-world and world-to-camera are exchanged")
        if self.mirrored:
            found.append("the world is left-handed")
        letters = [("+" if self.axes[i].sum() > 0 else "-") + "xyz"[int(np.abs(self.axes[i]).argmax())] for i in range(3)]
        if letters == ["+x", "-y", "-z"]:
            found.append("camera axes are OpenGL's where OpenCV's are expected, or the reverse")
        elif letters != ["+x", "+y", "+z"] and not (self.mirrored and letters == ["+x", "+y", "-z"]):
            found.append(f"the camera's right, down and forward are {', '.join(letters)}")
        return " and ".join(found) or "as they were read"


@dataclass(frozen=True)
class Verdict:
    """What matches say of given cameras.

    Attributes:
        matches: how many were looked at; with none, nothing can be said.
        given: share of them that agrees with the cameras as read.
        found: and with the convention and focal length below.
        convention: by which most agree, the one given unless another is clearly better.
        focal: times the focal length given.
    """

    matches: int
    given: float
    found: float
    convention: Convention
    focal: float

    @property
    def known(self) -> bool:
        """Enough matches to tell."""
        return self.matches >= _LEAST


AS_READ = Convention(False, np.eye(3), False)


def conventions() -> list[Convention]:
    """All 96 of them, the one given first, common ones before rare ones."""
    every = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            axes = np.zeros((3, 3))
            axes[range(3), order] = signs
            every += [Convention(inverse, axes, bool(np.linalg.det(axes) < 0)) for inverse in (False, True)]

    def rarity(convention: Convention) -> tuple[float, bool]:
        flipped = np.array_equal(convention.axes, np.diag([1.0, -1.0, -1.0]))
        return (0.5 if flipped else float(np.abs(convention.axes - np.eye(3)).sum())) + 3.0 * convention.mirrored, convention.inverse

    return sorted(every, key=rarity)


def off_by(sightings: Sightings, w2c: Array, K: Array) -> Array:
    """(M,) pixels in the second frame between a match and the half-line on which its pixel of the first may lie.

    Args:
        sightings: the matches.
        w2c: (N, 4, 4) of all frames.
        K: (3, 3) of all frames.
    """
    relative = w2c[sightings.second] @ invert_rigid(w2c[sightings.first])
    rays = np.column_stack([(sightings.first_px - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones(len(sightings))])
    far = np.einsum("ij,mjk,mk->mi", K, relative[:, :3, :3], rays)
    step = relative[:, :3, 3] @ K.T
    front = far[:, 2] > 1e-3
    z = np.where(front, far[:, 2], 1.0)
    start = far[:, :2] / z[:, None]
    along = step[:, :2] * z[:, None] - far[:, :2] * step[:, 2:]  # p(w) = start + along * w / (z * (z + w * step_z))
    length = np.linalg.norm(along, axis=1)
    unit = along / np.maximum(length, 1e-12)[:, None]
    offset = sightings.second_px - start
    place = (offset * unit).sum(1)
    farthest = np.where(step[:, 2] > 1e-12, length / np.maximum(z * step[:, 2], 1e-12), np.inf)
    nearest = np.clip(place, 0, farthest)
    off = np.linalg.norm(offset - nearest[:, None] * unit, axis=1)
    return np.where(front, off, np.inf)


def judge(sightings: Sightings, w2c: Array, K: Array, *, focal_known: bool = True) -> Verdict:
    """The convention and focal length that the matches speak for.

    Args:
        sightings: matches between the frames.
        w2c: (N, 4, 4) as read.
        K: (3, 3) in pixels of the matches.
        focal_known: the focal length was given; else it is whatever fits best.
    """
    moving = np.flatnonzero(np.linalg.norm(sightings.second_px - sightings.first_px, axis=1) > _MOVES_PX)
    some = sightings.only(moving[np.linspace(0, len(moving) - 1, min(len(moving), _MOST)).astype(int)] if len(moving) else moving)
    if len(some) < _LEAST:
        return Verdict(len(some), 0.0, 0.0, AS_READ, 1.0)
    few = some.only(np.arange(0, len(some), max(1, len(some) // 600)))

    def share(of: Sightings, convention: Convention, focal: float) -> float:
        return float((off_by(of, convention.applied(w2c), _zoomed(K, focal)) < AGREES_PX).mean())

    given = share(some, AS_READ, 1.0)
    options = conventions()
    # An unknown focal length may hide the right convention: it is tried at three.
    focals = (1.0,) if focal_known else (0.7, 1.0, 1.5)
    scores = np.array([max(_fit(few, option, w2c, _zoomed(K, focal)) for focal in focals) for option in options])
    # Where depth hardly differs, a mirrored world fits about as well: of those that do, the most common.
    best = options[int(np.flatnonzero(scores > scores.max() - _AS_GOOD)[0])]
    at = [share(few, best, focal) for focal in focals]
    of_best = share(some, best, focals[int(np.argmax(at))])
    own_focal, own = _best_focal(some, w2c, K)
    enough = _ENOUGH if any(best is option for option in options[:_COMMON]) else _ENOUGH_FOR_RARE
    if not (of_best > enough and of_best > _CLEARLY * max(given, own if own > _FOCAL_SURE else 0.0)):
        best = AS_READ
    focal, found = (own_focal, own) if best is AS_READ else _best_focal(some, best.applied(w2c), K)
    at_given = share(some, best, 1.0)
    better = found > max(at_given + _FOCAL_GAIN, _FOCAL_SURE) and abs(np.log(focal)) > _SAME_FOCAL
    if focal_known and not better:
        focal, found = 1.0, at_given
    return Verdict(len(some), given, found, best, focal)


def _fit(sightings: Sightings, convention: Convention, w2c: Array, K: Array) -> float:
    """How well matches agree, 0 to 1: what lies off a little counts less than what lies far off."""
    return 1 - float(np.minimum(off_by(sightings, convention.applied(w2c), K) / AGREES_PX, 1).mean())


def _best_focal(sightings: Sightings, w2c: Array, K: Array) -> tuple[float, float]:
    """The factor of the focal length with which most matches agree, the middle of those nearly as good, and their share."""
    shares = np.array([(off_by(sightings, w2c, _zoomed(K, focal)) < 0.5 * AGREES_PX).mean() for focal in _FOCALS])
    good = np.flatnonzero(shares > shares.max() - 0.02)
    focal = float(np.exp(np.log(_FOCALS[good]).mean()))
    return focal, float((off_by(sightings, w2c, _zoomed(K, focal)) < AGREES_PX).mean())


def _zoomed(K: Array, factor: float) -> Array:
    zoomed = K.copy()
    zoomed[[0, 1], [0, 1]] *= factor
    return zoomed
