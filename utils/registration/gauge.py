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
LATTICE = (12, 7, 4)  # what the frames have in common is smooth; a finer lattice follows depth noise
_STEPS = 2  # of the projection into a frame
_SAME_SURFACE = 0.05  # a frame sees a point if its depth there differs by less, relative to the depth
_LEAST = 50  # points below which a frame's share of the mean cannot be told


def common_displacement(geometry: AlignedGeometry, usable: Array, frames: Array) -> LatticeFields:
    """What the fields of all frames have in common, as a field of each frame in its camera space; zero where too little is seen.

    Args:
        geometry: the aligned frames.
        usable: (F, H, W) bool, pixels whose depth is believed.
        frames: indices of the frames that are aligned.
    """
    nodes = geometry.fields.nodes
    voters = np.unique(frames[np.linspace(0, len(frames) - 1, min(VOTERS, len(frames))).round().astype(int)])
    fits = np.zeros((len(nodes), *LATTICE[::-1], 3), np.float32)

    def fit(frame: int) -> None:
        rows = np.flatnonzero(usable[frame].ravel())
        if len(rows) < _LEAST:
            return
        rows = np.random.default_rng(frame).choice(rows, min(SAMPLES, len(rows)), replace=False)
        pixels, depth, mean = _mean_displacement(geometry, usable, frame, rows, voters)
        camera = mean @ geometry.cameras.c2w[frame, :3, :3]
        bounds = geometry.fields.inv_depth_range[frame]
        fits[frame] = fit_lattice(pixels, depth, camera, geometry.cameras.size, bounds, LATTICE)[0]

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(fit, frames.tolist()))
    fields = LatticeFields(nodes=fits, inv_depth_range=geometry.fields.inv_depth_range)
    return resampled(fields, (nodes.shape[3], nodes.shape[2], nodes.shape[1]))


def _mean_displacement(geometry: AlignedGeometry, usable: Array, frame: int, rows: Array, voters: Array) -> tuple[Array, Array, Array]:
    """Pixels (N, 2) and depth (N,) of a frame, and how far the frames that see these points have moved them on average (N, 3)."""
    scene, (h, w) = geometry.scene, geometry.cameras.size
    pixels = np.stack([rows % w + 0.5, rows // w + 0.5], 1)
    depth = scene.depth[frame].ravel()[rows].astype(np.float64)
    own = unproject(pixels[:, 0], pixels[:, 1], depth, scene.cameras.K[frame])
    points = geometry.forward(frame, np.ascontiguousarray(own)).astype(np.float64)
    total, votes = points - transform(scene.cameras.c2w[frame], own), np.ones(len(points))
    for voter in voters:
        if voter == frame:
            continue
        x, y, z = geometry.project(voter, points, _STEPS).astype(np.float64).T
        with np.errstate(invalid="ignore"):
            inside = (x >= 0) & (y >= 0) & (x < w) & (y < h) & (z > 0)
        column, row = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
        seen = scene.depth[voter][row, column]
        sees = inside & usable[voter][row, column]
        sees[sees] = np.abs(z[sees] - seen[sees]) < _SAME_SURFACE * seen[sees]
        there = unproject(x[sees], y[sees], z[sees], scene.cameras.K[voter])
        total[sees] += points[sees] - transform(scene.cameras.c2w[voter], there)
        votes[sees] += 1
    return pixels, depth, total / votes[:, None]
