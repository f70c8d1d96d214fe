"""Frames that took no part in an alignment: pose, deformation and colour from the aligned frames beside them in time.

Such frames supervise too or, if they are held out, measure how well the alignment generalises to frames it has not seen.
"""

from dataclasses import replace

import numpy as np
import torch

from utils.cameras import se3
from utils.cameras.blending import Neighbours, neighbours_in_time
from utils.cameras.projection import project, transform, unproject
from utils.deformation.lattice.reference import LatticeField
from utils.types import Alignment, Array, CameraSet, LatticeFields, Scene

_BESIDE = 0.1
"""Share of a picture's width: so far beside its view, a known frame counts half of what one counts that sees the place."""
_LEAST = 0.02


def with_frames_between(scene: Scene, alignment: Alignment, wanted: Array | None = None, clips: Array | None = None) -> Alignment:
    """The alignment with these frames too, sorted by frame id; those that it has aligned keep what they have.

    What is blended of the pose is the correction that alignment made to the estimated pose, as a twist in the camera's own space: the
    estimate already follows the motion between two aligned frames. Frames that the alignment left out are no neighbours, and what they
    have is replaced: nothing says that it fits. A frame of a clip of which nothing is aligned stays where stage 0 put it, undeformed.

    Args:
        scene: all frames.
        alignment: of some of them.
        wanted: (W,) ids of frames to add; without it all of the scene.
        clips: (F,) clip of each frame of the scene; without it all are of one.
    """
    clips = np.zeros(len(scene), int) if clips is None else clips
    ids = np.union1d(alignment.cameras.frame_ids, np.arange(len(scene)) if wanted is None else wanted).astype(np.int64)
    sound = np.flatnonzero(alignment.aligned)
    own = alignment.cameras.frame_ids[sound]
    rows, around = np.searchsorted(ids, own), neighbours_in_time(own, ids, clips[own], clips[ids])
    twists = se3.log(torch.from_numpy(alignment.cameras.w2c @ np.linalg.inv(alignment.original_w2c))).numpy()[sound]
    moved = around.blend(twists) * around.found[:, None]
    w2c = se3.exp(torch.from_numpy(moved)).numpy() @ scene.cameras.w2c[ids]
    w2c[rows] = alignment.cameras.w2c[sound]
    K = scene.cameras.resized(alignment.cameras.size).K[ids]
    K[rows] = alignment.cameras.K[sound]
    cameras = CameraSet(c2w=se3.inverse(torch.from_numpy(w2c)).numpy(), K=K, size=alignment.cameras.size, frame_ids=ids)
    original = scene.cameras.w2c[ids]
    original[rows] = alignment.original_w2c[sound]
    known = LatticeFields(nodes=alignment.fields.nodes[sound], inv_depth_range=alignment.fields.inv_depth_range[sound])
    others = np.setdiff1d(np.arange(len(ids)), rows)
    blended = blended_fields(known, alignment.cameras.select(sound), around.select(others), cameras.select(others))
    fields = LatticeFields(
        nodes=np.empty((len(ids), *known.nodes.shape[1:]), known.nodes.dtype),
        inv_depth_range=np.empty((len(ids), 2), known.inv_depth_range.dtype),
    )
    fields.nodes[rows], fields.inv_depth_range[rows] = known.nodes, known.inv_depth_range
    fields.nodes[others], fields.inv_depth_range[others] = blended.nodes, blended.inv_depth_range
    aligned = around.found & ~np.isin(ids, alignment.cameras.frame_ids[~alignment.aligned])
    colors = None
    if alignment.color_maps is not None:
        colors = np.where(around.found[:, None, None], around.blend(alignment.color_maps[sound]), np.eye(3, 4)).astype(np.float32)
        colors[rows] = alignment.color_maps[sound]
    return replace(alignment, cameras=cameras, fields=fields, original_w2c=original, aligned=aligned, color_maps=colors)


def blended_fields(fields: LatticeFields, cameras: CameraSet, around: Neighbours, wanted: CameraSet) -> LatticeFields:
    """Fields of W wanted frames whose displacement at a place of the world is blended from what the known frames have at this place.

    On the way round a thing it is the place that is the same from frame to frame, not the pixel, and the direction in the world, not in
    the camera. A known frame that does not see the place, whose field goes on there as at its border, counts little beside one that does.
    No displacement where nothing was found.

    Args:
        fields: of the known frames.
        cameras: theirs.
        around: the known frames around each wanted one.
        wanted: cameras of the wanted frames.
    """
    bounds = around.blend(fields.inv_depth_range)
    known = LatticeField.from_fields(fields, cameras, torch.float64)
    nodes = np.zeros((len(wanted), *fields.nodes.shape[1:]), fields.nodes.dtype)
    for frame in np.flatnonzero(around.found).tolist():
        places = transform(wanted.c2w[frame], node_positions(wanted, frame, bounds[frame], fields.nodes.shape[1:4]))
        moved, total = np.zeros_like(places), np.zeros((len(places), 1))
        for row, share in ((around.low[frame], 1 - around.weight[frame]), (around.high[frame], around.weight[frame])):
            seen = transform(cameras.w2c[row], places)
            weight = share * knowledge(seen, cameras, row)[:, None]
            moved += weight * (known.displacement(torch.from_numpy(seen), int(row)).numpy() @ cameras.c2w[row, :3, :3].T)
            total += weight
        nodes[frame] = (moved / total @ wanted.c2w[frame, :3, :3]).reshape(nodes.shape[1:])
    return LatticeFields(nodes=nodes, inv_depth_range=bounds)


def node_positions(cameras: CameraSet, frame: int, bounds: Array, counts: tuple[int, ...]) -> Array:
    """(nz * nv * nu, 3) camera-space positions of a frame's nodes; bounds (2,) in inverse depth, counts nz, nv, nu."""
    (nz, nv, nu), (h, w) = counts, cameras.size
    inverse = np.linspace(bounds[0], bounds[1], nz)
    z, y, x = np.meshgrid(1 / inverse, np.linspace(0, h, nv), np.linspace(0, w, nu), indexing="ij")
    return unproject(x.ravel(), y.ravel(), z.ravel(), cameras.K[frame])


def knowledge(points: Array, cameras: CameraSet, frame: int) -> Array:
    """(N,) what a frame's field counts at camera-space points (N, 3): 1 in its view, less the farther beside it, hardly behind it."""
    (x, y, z), (h, w) = project(points, cameras.K[frame]), cameras.size
    aside = np.hypot(np.maximum(np.maximum(-x, x - w), 0), np.maximum(np.maximum(-y, y - h), 0)) / (_BESIDE * w)
    counted: Array = np.where(z > 0, np.maximum(1 / (1 + np.nan_to_num(aside, nan=np.inf) ** 2), _LEAST), _LEAST)
    return counted
