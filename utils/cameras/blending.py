"""Frames between the aligned ones: their pose, deformation and colour blended from the aligned neighbours, so that they supervise too."""

from dataclasses import replace

import numpy as np
import torch

from utils.cameras import se3
from utils.types import Alignment, Array, CameraSet, LatticeFields, Scene


def with_frames_between(scene: Scene, alignment: Alignment) -> Alignment:
    """The alignment with every frame of the scene, sorted by frame id; aligned frames keep what they have.

    What is blended of the pose is the correction that alignment made to the estimated pose, as a twist in the camera's own space: the
    estimate already follows the motion between two aligned frames.

    Args:
        scene: all frames.
        alignment: of some of them.
    """
    known, every = alignment.cameras.frame_ids, np.arange(len(scene))
    twists = se3.log(torch.from_numpy(alignment.cameras.w2c @ np.linalg.inv(alignment.original_w2c))).numpy()
    w2c = se3.exp(torch.from_numpy(blended(twists, known, every))).numpy() @ scene.cameras.w2c
    w2c[known] = alignment.cameras.w2c
    K = scene.cameras.resized(alignment.cameras.size).K.copy()
    K[known] = alignment.cameras.K
    original = scene.cameras.w2c.copy()
    original[known] = alignment.original_w2c
    aligned = np.ones(len(scene), bool)
    aligned[known] = alignment.aligned
    fields = LatticeFields(
        nodes=blended(alignment.fields.nodes, known, every), inv_depth_range=blended(alignment.fields.inv_depth_range, known, every)
    )
    return replace(
        alignment,
        cameras=CameraSet(c2w=se3.inverse(torch.from_numpy(w2c)).numpy(), K=K, size=alignment.cameras.size, frame_ids=every),
        fields=fields,
        original_w2c=original,
        aligned=aligned,
        color_maps=None if alignment.color_maps is None else blended(alignment.color_maps, known, every),
    )


def blended(values: Array, known: Array, wanted: Array) -> Array:
    """Values (F, ...) of the frame ids `known` (ascending), linear in between, and those of the nearest frame beyond the ends."""
    place = np.interp(wanted, known, np.arange(len(known)))
    low = np.minimum(place.astype(int), max(len(known) - 2, 0))
    weight = (place - low).reshape(-1, *([1] * (values.ndim - 1)))
    high = np.minimum(low + 1, len(known) - 1)
    return ((1 - weight) * values[low] + weight * values[high]).astype(values.dtype)
