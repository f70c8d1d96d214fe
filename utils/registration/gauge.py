"""Gauge of the alignment: the displacement common to all frames, which no match observes, is set to the mean of the given geometries.

One deformation of space applied to every frame changes no distance between matches (a gauge freedom, as the choice of the coordinate frame
in bundle adjustment: Triggs et al. 2000, section 9). The solver leaves it where its regularisation makes the fields smallest: over whole
view frustums, hidden parts included, relative to depth. Here it is set from observations: a point of the world is put at the weighted mean
of the places where the frames in whose view it lies put it before alignment. Errors of frames are correlated only while they are close in
time, so the mean over a clip is nearer to the truth than one frame; a frame with close neighbours in time weighs less (`Votes.weight`).

Much of a frame's error is a motion of the whole frame, from its pose and the scale of its depth. Such motions are estimated from points
that frames share and subtracted before the mean is taken; else the world would bend where the set of frames in view changes.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, lsmr
from scipy.spatial import cKDTree

from utils.cameras.projection import unproject
from utils.deformation.aligned_geometry import AlignedGeometry
from utils.deformation.lattice.numba import resampled
from utils.deformation.lattice_fit import fit_lattice
from utils.runtime import in_threads
from utils.types import Array, LatticeFields

VOTERS = 32  # frames whose displacements are averaged at every point
PROBES = 125  # points sampled from each frame at which displacements are averaged
SAMPLES = 1500  # pixels of each frame that its field is fitted to
NEIGHBOURS = 16  # nearest probes averaged at a pixel: the same for every frame that shows the place, so that frames stay consistent
CORRELATION_FRAMES = 8.0  # distance in frames at which the correlation of their errors has fallen to 1/e
MOTION_RIDGE = 0.3  # Tikhonov weight of the frames' motions, relative to that of the probes
_STEPS = 2  # of the projection into a frame
_NEAR_WHAT_IS_SEEN = 0.5  # relative distance from a frame's depth within which it votes on a point, hidden or not
_SHARE_OF_VOTES = 0.5  # share of the usual number of votes below which a point's mean is not used
_LEAST = 50  # usable pixels below which a frame takes no part
_MOTION_PARTS = 7  # translation, rotation and scale about the frame's camera


def common_displacement(
    geometry: AlignedGeometry, usable: Array, frames: Array, lattice: tuple[int, int, int], clips: Array | None = None
) -> LatticeFields:
    """What the fields of all frames have in common, as a field of each frame in its camera space; zero where too little is seen.

    Args:
        geometry: the aligned frames.
        usable: (F, H, W) bool, pixels that show the world.
        frames: indices of the frames that are aligned.
        lattice: nodes nu, nv, nz that are fitted to a frame.
        clips: (F,) clip that each frame is from: errors are alike only within a clip. None: all are of one.
    """
    nodes = geometry.fields.nodes
    fits = np.zeros((len(nodes), *lattice[::-1], 3), np.float32)
    probes = _probes(geometry, usable, frames)
    if len(probes.points):
        votes = _votes(geometry, probes)
        if clips is not None:
            votes = replace(votes, clip=clips[votes.frame])
        mean = votes.mean(votes.moved - motions(votes))
        believed = _in_many_views(votes.count, probes.owner)
        tree, mean = cKDTree(probes.points[believed]), mean[believed]

        def fit(frame: int) -> None:
            places, depth = _sample(geometry, usable, frame, SAMPLES, seed=frame)
            near = tree.query(geometry.lift(frame, places, depth), min(NEIGHBOURS, len(mean)))[1].reshape(len(places), -1)
            camera = mean[near].mean(1) @ geometry.cameras.c2w[frame, :3, :3]
            bounds = geometry.fields.inv_depth_range[frame]
            fits[frame] = fit_lattice(places, depth, camera, geometry.cameras.size, bounds, lattice)[0]

        in_threads(fit, np.unique(probes.owner).tolist())
    fields = LatticeFields(nodes=fits, inv_depth_range=geometry.fields.inv_depth_range)
    return resampled(fields, (nodes.shape[3], nodes.shape[2], nodes.shape[1]))


@dataclass(frozen=True)
class _Probes:
    """Points of the canonical world, sampled from the frames, at which the frames' displacements are averaged.

    Attributes:
        points: (P, 3) canonical, as the frame that they are taken from puts them.
        camera: (P, 3) there, in its camera space.
        owner: (P,) this frame.
    """

    points: Array
    camera: Array
    owner: Array


@dataclass(frozen=True)
class Votes:
    """Votes: V displacements, each of one frame at one probe.

    Attributes:
        probe: (V,).
        frame: (V,).
        moved: (V, 3) how far the frame has moved the point, world axes.
        arm: (V, 3) from the frame's camera to where the point was given, world axes.
        count: (P,) votes on a probe, one at least.
        clip: (V,) clip that the frame is from; None: all are of one.
    """

    probe: Array
    frame: Array
    moved: Array
    arm: Array
    count: Array
    clip: Array | None = None

    @cached_property
    def weight(self) -> Array:
        """(V,) weight of each vote among those on its probe; 1 for a single vote.

        Weights of the best linear unbiased mean where errors are correlated by rho = exp(-gap / `CORRELATION_FRAMES`) (row sums of the
        inverse covariance of a first-order autoregressive process): 1 / (1 + rho) at an end of the stretch, the sum of this over both
        neighbours less 1 within it.
        """
        order = np.lexsort((self.frame, self.probe))
        gap = np.diff(self.frame[order]).astype(float)
        gap[np.diff(self.probe[order]) != 0] = np.inf  # another probe: as if far apart
        if self.clip is not None:
            gap[np.diff(self.clip[order]) != 0] = np.inf
        beside = np.r_[1.0, 1 / (1 + np.exp(-gap / CORRELATION_FRAMES)), 1.0]
        weight = np.empty(len(order))
        weight[order] = beside[:-1] + beside[1:] - 1
        return weight

    def mean(self, values: Array) -> Array:
        """(P, 3) weighted mean over the votes on each probe of values (V, 3)."""
        total = np.stack([np.bincount(self.probe, column * self.weight, len(self.count)) for column in values.T], 1)
        return total / np.bincount(self.probe, self.weight, len(self.count))[:, None]


def _probes(geometry: AlignedGeometry, usable: Array, frames: Array) -> _Probes:
    points, camera, owner = [np.empty((0, 3))], [np.empty((0, 3))], [np.empty(0, int)]
    for frame in frames.tolist():
        places, depth = _sample(geometry, usable, frame, PROBES, seed=frame)
        camera.append(unproject(places[:, 0], places[:, 1], depth, geometry.cameras.K[frame]))
        points.append(geometry.forward(frame, camera[-1]))
        owner.append(np.full(len(places), frame))
    return _Probes(np.concatenate(points), np.concatenate(camera), np.concatenate(owner))


def _sample(geometry: AlignedGeometry, usable: Array, frame: int, count: int, seed: int) -> tuple[Array, Array]:
    """(N, 2) pixels x, y of a frame that are drawn at random, and their depth (N,); none if there are too few."""
    rows = np.flatnonzero(usable[frame].ravel())
    if len(rows) < _LEAST:
        return np.zeros((0, 2)), np.zeros(0)
    rows = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    width = usable.shape[2]
    places = np.stack([rows % width + 0.5, rows // width + 0.5], 1)
    return places, geometry.scene.depth[frame].ravel()[rows].astype(np.float64)


def _votes(geometry: AlignedGeometry, probes: _Probes) -> Votes:
    """Every probe is voted on by its own frame, and by those of `VOTERS` frames spread over the clip that have it in view.

    They need not see it: what is hidden moves much like what hides it, and to leave out frames leaves the mean to those close in time,
    which are wrong alike.
    """
    given, (h, w) = geometry.scene.cameras, geometry.cameras.size

    def vote(frame: int, rows: Array, camera: Array) -> tuple[Array, Array, Array, Array]:
        arm = camera @ given.c2w[frame, :3, :3].T
        return rows, np.full(len(rows), frame), probes.points[rows] - arm - given.c2w[frame, :3, 3], arm

    def own(frame: int) -> tuple[Array, Array, Array, Array]:
        rows = np.flatnonzero(probes.owner == frame)
        return vote(frame, rows, probes.camera[rows])

    def other(frame: int) -> tuple[Array, Array, Array, Array]:
        x, y, z = geometry.project(frame, probes.points, _STEPS).astype(np.float64).T
        with np.errstate(invalid="ignore"):
            rows = np.flatnonzero((x >= 0) & (y >= 0) & (x < w) & (y < h) & (z > 0) & (probes.owner != frame))
        pixel = y[rows].astype(int), x[rows].astype(int)
        seen = geometry.scene.depth[frame][pixel]
        rows = rows[np.abs(z[rows] - seen) < _NEAR_WHAT_IS_SEEN * seen]
        return vote(frame, rows, unproject(x[rows], y[rows], z[rows], given.K[frame]))

    owners = np.unique(probes.owner)
    voters = owners[np.unique(np.linspace(0, len(owners) - 1, min(VOTERS, len(owners))).round().astype(int))]
    parts = [*in_threads(own, owners.tolist()), *in_threads(other, voters.tolist())]
    probe, frame, moved, arm = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Votes(probe, frame, moved, arm, np.bincount(probe, minlength=len(probes.points)))


def motions(votes: Votes) -> Array:
    """(V, 3) the part of what a vote says that is a motion of its whole frame: translation, rotation and scale about its camera.

    Least squares: minimises over the motions m_f and the common displacement c_p of the probes, the sum over votes of
    weight |moved - m_f - c_p|^2 + ridge |m_f|^2, both relative to the distance of the probe. For given motions c_p is the weighted mean,
    so it is eliminated; each frame's motions are scaled such that the ridge is the identity.
    """
    distance = np.bincount(votes.probe, np.linalg.norm(votes.arm, axis=1), len(votes.count)) / votes.count
    root = np.sqrt(votes.weight)[:, None]
    scale = root / np.maximum(distance, 1e-12)[votes.probe, None]
    parts = _motion_parts(votes.arm) * scale[..., None]
    frames, frame, count = np.unique(votes.frame, return_inverse=True, return_counts=True)
    for own in np.split(np.argsort(frame, kind="stable"), np.cumsum(count)[:-1]):
        parts[own] = np.linalg.qr(parts[own].reshape(-1, _MOTION_PARTS))[0].reshape(-1, 3, _MOTION_PARTS)
    columns = np.repeat(frame[:, None] * _MOTION_PARTS + np.arange(_MOTION_PARTS), 3, 0)
    starts = np.arange(len(columns) + 1) * _MOTION_PARTS
    motion = csr_array((parts.ravel(), columns.ravel(), starts), (len(columns), len(frames) * _MOTION_PARTS))

    def less_mean(values: Array) -> Array:
        values = values.reshape(-1, 3)
        return (values - root * votes.mean(values / root)[votes.probe]).ravel()

    system = LinearOperator(motion.shape, matvec=lambda m: less_mean(motion @ m), rmatvec=lambda r: motion.T @ less_mean(r))
    solution = lsmr(system, less_mean(votes.moved * scale), damp=np.sqrt(MOTION_RIDGE), atol=1e-4, btol=1e-4, maxiter=100)[0]
    return (motion @ solution).reshape(-1, 3) / scale


def _motion_parts(arm: Array) -> Array:
    """(V, 3, 7) how points at `arm` (V, 3) from a camera move with its translation, small rotation and scale."""
    parts = np.zeros((len(arm), 3, _MOTION_PARTS))
    parts[:, :, :3] = np.eye(3)
    for axis, (before, after) in enumerate(((2, 1), (0, 2), (1, 0))):  # e_axis x arm
        parts[:, before, 3 + axis], parts[:, after, 3 + axis] = arm[:, after], -arm[:, before]
    parts[:, :, 6] = arm
    return parts


def _in_many_views(count: Array, owner: Array) -> Array:
    """(P,) bool, probes that enough frames have in view, by what is usual in their frame."""
    usual = {frame: np.median(count[owner == frame]) for frame in np.unique(owner).tolist()}
    enough: Array = count > _SHARE_OF_VOTES * np.array([usual[frame] for frame in owner.tolist()])
    return enough
