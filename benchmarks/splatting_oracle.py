"""Alignments made from the truth of a synthetic world: what splatting could reach, were the alignment perfect.

`true` undoes the deformation of every frame: only noise of the depth, and what a lattice cannot follow, is left. `true_mean` undoes it but
for the mean over the frames that see a point: the best that frames can tell, since no method sees a deformation that they all share.
"""

from dataclasses import replace

import numpy as np

from utils.cameras.projection import project, transform, unproject
from utils.deformation.lattice.numba import zero_fields
from utils.deformation.lattice_fit import fit_lattice
from utils.registration.result import Registration
from utils.registration.sequential import unaligned
from utils.synthetic.world import SyntheticWorld
from utils.types import Array, Scene

LATTICE = (40, 24, 8)
SAMPLES = 6000
"""Pixels of a frame that its field is fitted to."""


def true_registration(world: SyntheticWorld, scene: Scene, *, keep_mean: bool) -> Registration:
    """True poses, and the fields that take predicted points to true ones; with `keep_mean` to where the frames show them on average."""
    fields = zero_fields(scene.depth, scene.valid, LATTICE)
    nodes = np.empty_like(fields.nodes)
    rng = np.random.default_rng(0)
    h, w = world.config.size
    # Without the noise of the depth: a lattice this fine would follow it, fold, and have no inverse to render through.
    noiseless = world.noiseless_depth
    for frame in range(len(world)):
        index = np.flatnonzero(world.valid[frame] & scene.valid[frame])
        index = rng.choice(index, min(SAMPLES, len(index)), replace=False)
        pixels = np.stack([index % w + 0.5, index // w + 0.5], 1)
        depth = noiseless[frame].ravel()[index].astype(np.float64)
        truth = world.canonical[frame].reshape(-1, 3)[index].astype(np.float64)
        if keep_mean:
            truth = truth + mean_displacement(world, truth, world.object_id[frame].ravel()[index])
        predicted = unproject(pixels[:, 0], pixels[:, 1], depth, scene.cameras.K[frame])
        displacement = transform(world.cameras.w2c[frame], truth) - predicted
        nodes[frame] = fit_lattice(pixels, depth, displacement, (h, w), fields.inv_depth_range[frame], LATTICE)[0]
    cameras = replace(scene.cameras, c2w=world.cameras.c2w)
    return replace(unaligned(scene), cameras=cameras, fields=replace(fields, nodes=nodes))


def mean_displacement(world: SyntheticWorld, points: Array, object_id: Array) -> Array:
    """(N, 3) by how much the frames that see these true points (N, 3) show them displaced, on average; occlusion is not looked at."""
    total, count = np.zeros_like(points), np.zeros((len(points), 1))
    h, w = world.config.size
    for frame in range(len(world)):
        shown = world.deform(frame, points, object_id)
        x, y, z = project(transform(world.cameras.w2c[frame], shown), world.cameras.K[frame])
        seen = ((z > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h))[:, None]
        total += np.where(seen, shown - points, 0)
        count += seen
    return total / np.maximum(count, 1)
