"""The displacement that all frames have in common, which no match can see, brought to the mean of what the frames show.

Moving every frame's points by one and the same deformation of space changes no distance between matches, so the solver leaves the world
where its regularisation holds the fields smallest: over whole view frustums, hidden parts too, and relative to depth. Here it is set by
what is seen: a point of the world comes to lie at the mean of the places where the frames that see it put it, as they were given. The
errors of the frames are alike only while they are close in time, so the mean over a clip is nearer to the truth than any frame.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from utils.geometry.projection import transform, unproject
from utils.registration.geometry import AlignedGeometry
from utils.registration.icp.lattice_fit import fit_lattice
from utils.registration.lattice import resampled
from utils.runtime import cpu_count
from utils.types import Array, LatticeFields

VOTERS = 32  # frames that are asked about every point
SAMPLES = 1500  # points of each frame
_STEPS = 2  # of the projection into a frame
_SAME_SURFACE = 0.05  # a frame sees a point if its depth there differs by less, relative to the depth
_SHARE_OF_VOTES = 0.5  # points that no more frames see than this share of a frame's median show these frames rather than the mean
_LEAST = 50  # points below which a frame's share of the mean cannot be told


def common_displacement(geometry: AlignedGeometry, usable: Array, frames: Array, lattice: tuple[int, int, int]) -> LatticeFields:
    """What the fields of all frames have in common, as a field of each frame in its camera space; zero where too little is seen.

    Args:
        geometry: the aligned frames.
        usable: (F, H, W) bool, pixels whose depth is believed.
        frames: indices of the frames that are aligned.
        lattice: nodes nu, nv, nz that are fitted to a frame; few, since what frames have in common is smooth and their depth is noisy.
    """
    voters = np.unique(frames[np.linspace(0, len(frames) - 1, min(VOTERS, len(frames))).round().astype(int)])
    pixels = [_sample(usable[frame], frame) for frame in frames.tolist()]
    owner = np.repeat(frames, [len(places) for places in pixels])
    depth = np.concatenate([geometry.scene.depth[f][_at(p)] for f, p in zip(frames, pixels, strict=True)]).astype(np.float64)
    mean, votes = _mean_displacement(geometry, usable, np.concatenate(pixels), depth, owner, voters)
    nodes = geometry.fields.nodes
    fits = np.zeros((len(nodes), *lattice[::-1], 3), np.float32)

    def fit(frame: int, places: Array) -> None:
        if len(places) == 0:
            return
        own = np.flatnonzero(owner == frame)
        many = votes[own] > _SHARE_OF_VOTES * np.median(votes[own])
        own, places = own[many], places[many]
        camera = mean[own] @ geometry.cameras.c2w[frame, :3, :3]
        bounds = geometry.fields.inv_depth_range[frame]
        fits[frame] = fit_lattice(places, depth[own], camera, geometry.cameras.size, bounds, lattice)[0]

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(fit, frames.tolist(), pixels))
    fields = LatticeFields(nodes=fits, inv_depth_range=geometry.fields.inv_depth_range)
    return resampled(fields, (nodes.shape[3], nodes.shape[2], nodes.shape[1]))


def _sample(usable: Array, seed: int) -> Array:
    """(N, 2) pixels x, y of an image (H, W), drawn at random; none if there are too few."""
    rows = np.flatnonzero(usable.ravel())
    if len(rows) < _LEAST:
        return np.zeros((0, 2))
    rows = np.random.default_rng(seed).choice(rows, min(SAMPLES, len(rows)), replace=False)
    return np.stack([rows % usable.shape[1] + 0.5, rows // usable.shape[1] + 0.5], 1)


def _at(places: Array) -> tuple[Array, Array]:
    """Row and column of the pixels that hold places (N, 2)."""
    x, y = places.astype(int).T
    return y, x


def _mean_displacement(
    geometry: AlignedGeometry, usable: Array, pixels: Array, depth: Array, owner: Array, voters: Array
) -> tuple[Array, Array]:
    """How far the frames that see points of the world have moved them on average (N, 3), world axes, and how many these are (N,).

    Args:
        geometry: the aligned frames.
        usable: (F, H, W) bool.
        pixels: (N, 2) of the points in the frames they are taken from.
        depth: (N,) there.
        owner: (N,) these frames.
        voters: the other frames that are asked.
    """
    given, (h, w) = geometry.scene.cameras, geometry.cameras.size
    points, total = np.empty((len(owner), 3)), np.empty((len(owner), 3))
    for frame in np.unique(owner):
        own = owner == frame
        camera = unproject(pixels[own, 0], pixels[own, 1], depth[own], given.K[frame])
        points[own] = geometry.forward(frame, np.ascontiguousarray(camera))
        total[own] = points[own] - transform(given.c2w[frame], camera)

    def vote(voter: int) -> tuple[Array, Array]:
        x, y, z = geometry.project(voter, points, _STEPS).astype(np.float64).T
        with np.errstate(invalid="ignore"):
            sees = np.flatnonzero((x >= 0) & (y >= 0) & (x < w) & (y < h) & (z > 0) & (owner != voter))
        places, z = np.stack([x[sees], y[sees]], 1), z[sees]
        seen = geometry.scene.depth[voter][_at(places)]
        kept = usable[voter][_at(places)] & (np.abs(z - seen) < _SAME_SURFACE * seen)
        sees, places, z = sees[kept], places[kept], z[kept]
        there = unproject(places[:, 0], places[:, 1], z, given.K[voter])
        return sees, points[sees] - transform(given.c2w[voter], there)

    votes = np.ones(len(points))
    with ThreadPoolExecutor(cpu_count()) as pool:
        for sees, moved in pool.map(vote, voters.tolist()):
            total[sees] += moved
            votes[sees] += 1
    return total / votes[:, None], votes
