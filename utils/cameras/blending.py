"""Frames that took no part in an alignment: pose, deformation and colour blended from the aligned frames beside them in time.

Such frames supervise too, or show, if they are held out, how well what was found carries over to frames that nobody looked at.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from utils.cameras import se3
from utils.types import Alignment, Array, CameraSet, LatticeFields, Scene


@dataclass(frozen=True)
class Neighbours:
    """The known frames around each of W wanted frames.

    Attributes:
        low: (W,) row of the known frame at or before it, or of the first one after it.
        high: (W,) row of the known frame at or after it, or of the last one before it.
        weight: (W,) share of `high`, 0..1.
        found: (W,) bool, there is a known frame in the same clip.
    """

    low: Array
    high: Array
    weight: Array
    found: Array

    def blend(self, values: Array) -> Array:
        """Values (F, ...) of the known frames at the wanted ones, linear in between; meaningless where nothing was found."""
        weight = self.weight.reshape(-1, *([1] * (values.ndim - 1)))
        return ((1 - weight) * values[self.low] + weight * values[self.high]).astype(values.dtype)


def neighbours_in_time(known: Array, wanted: Array, known_clip: Array | None = None, wanted_clip: Array | None = None) -> Neighbours:
    """The frames around each wanted one; frames of different clips are no neighbours.

    Args:
        known: (F,) ascending frame ids.
        wanted: (W,) frame ids.
        known_clip: (F,) clip of each known frame; without it all are of one clip.
        wanted_clip: (W,).
    """
    known_clip = np.zeros(len(known), int) if known_clip is None else known_clip
    wanted_clip = np.zeros(len(wanted), int) if wanted_clip is None else wanted_clip
    low, high = np.zeros(len(wanted), int), np.zeros(len(wanted), int)
    weight, found = np.zeros(len(wanted)), np.zeros(len(wanted), bool)
    for clip in np.unique(wanted_clip):
        at, rows = np.flatnonzero(wanted_clip == clip), np.flatnonzero(known_clip == clip)
        if not len(rows):
            continue
        place = np.interp(wanted[at], known[rows], np.arange(len(rows)))
        below = np.minimum(place.astype(int), max(len(rows) - 2, 0))
        low[at], high[at] = rows[below], rows[np.minimum(below + 1, len(rows) - 1)]
        weight[at], found[at] = place - below, True
    return Neighbours(low, high, weight, found)


def blended(values: Array, known: Array, wanted: Array) -> Array:
    """Values (F, ...) of the frame ids `known` (ascending), linear in between, and those of the nearest frame beyond the ends."""
    return neighbours_in_time(known, wanted).blend(values)


def with_frames_between(scene: Scene, alignment: Alignment, wanted: Array | None = None, clips: Array | None = None) -> Alignment:
    """The alignment with these frames too, sorted by frame id; those that it has already keep what they have.

    What is blended of the pose is the correction that alignment made to the estimated pose, as a twist in the camera's own space: the
    estimate already follows the motion between two aligned frames. Frames that the alignment left out are no neighbours: what they have
    is not known to fit. A frame of a clip of which nothing is aligned stays where stage 0 put it and is not deformed.

    Args:
        scene: all frames.
        alignment: of some of them.
        wanted: (W,) ids of frames to add; without it all of the scene.
        clips: (F,) clip of each frame of the scene; without it all are of one.
    """
    own, clips = alignment.cameras.frame_ids, np.zeros(len(scene), int) if clips is None else clips
    ids = np.union1d(own, np.arange(len(scene)) if wanted is None else wanted).astype(np.int64)
    rows = np.searchsorted(ids, own)
    sound = np.flatnonzero(alignment.aligned)
    around = neighbours_in_time(own[sound], ids, clips[own[sound]], clips[ids])
    twists = se3.log(torch.from_numpy(alignment.cameras.w2c @ np.linalg.inv(alignment.original_w2c))).numpy()[sound]
    moved = around.blend(twists) * around.found[:, None]
    w2c = se3.exp(torch.from_numpy(moved)).numpy() @ scene.cameras.w2c[ids]
    w2c[rows] = alignment.cameras.w2c
    K = scene.cameras.resized(alignment.cameras.size).K[ids]
    K[rows] = alignment.cameras.K
    original = scene.cameras.w2c[ids]
    original[rows] = alignment.original_w2c
    aligned = around.found.copy()
    aligned[rows] = alignment.aligned
    fields = blended_fields(
        LatticeFields(nodes=alignment.fields.nodes[sound], inv_depth_range=alignment.fields.inv_depth_range[sound]), around
    )
    fields.nodes[rows], fields.inv_depth_range[rows] = alignment.fields.nodes, alignment.fields.inv_depth_range
    colors = None
    if alignment.color_maps is not None:
        colors = np.where(around.found[:, None, None], around.blend(alignment.color_maps[sound]), np.eye(3, 4)).astype(np.float32)
        colors[rows] = alignment.color_maps
    return replace(
        alignment,
        cameras=CameraSet(c2w=se3.inverse(torch.from_numpy(w2c)).numpy(), K=K, size=alignment.cameras.size, frame_ids=ids),
        fields=fields,
        original_w2c=original,
        aligned=aligned,
        color_maps=colors,
    )


def blended_fields(fields: LatticeFields, around: Neighbours) -> LatticeFields:
    """The displacement of the known frames, blended at the wanted ones' lattices; none where nothing was found.

    The bounds are blended, and each neighbour's displacement is read at the depth of the new layers: layers of the same number lie at
    different depths where bounds differ.
    """
    bounds = around.blend(fields.inv_depth_range)
    low, high = (_at_layers(fields, row, bounds) for row in (around.low, around.high))
    weight = (around.weight * around.found).reshape(-1, 1, 1, 1, 1)
    nodes = ((1 - weight) * low + weight * high) * around.found.reshape(-1, 1, 1, 1, 1)
    return LatticeFields(nodes=nodes.astype(fields.nodes.dtype), inv_depth_range=bounds)


def _at_layers(fields: LatticeFields, rows: Array, bounds: Array) -> Array:
    """(W, nz, nv, nu, 3) nodes of the frames `rows` (W,) at the layers of lattices with other bounds (W, 2)."""
    layers = fields.nodes.shape[1]
    own = fields.inv_depth_range[rows]
    inverse = bounds[:, :1] + np.linspace(0, 1, layers) * (bounds[:, 1:] - bounds[:, :1])
    place = np.clip((inverse - own[:, :1]) / (own[:, 1:] - own[:, :1]) * (layers - 1), 0, layers - 1)
    below = np.minimum(place.astype(int), max(layers - 2, 0))
    share = (place - below)[:, :, None, None, None]
    above = np.minimum(below + 1, layers - 1)
    nodes: Array = (1 - share) * fields.nodes[rows[:, None], below] + share * fields.nodes[rows[:, None], above]
    return nodes
