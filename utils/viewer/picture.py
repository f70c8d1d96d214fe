"""What the page shows for one view: colour, depth, normals or alpha."""

from typing import Literal, get_args

import numpy as np
import torch

from utils.report import pictures
from utils.splatting.render import SplatView, depth_image, rgb_image
from utils.types import Array
from utils.viewer.pose import ViewPose

Mode = Literal["rgb", "depth", "normal", "alpha"]
MODES: tuple[Mode, ...] = get_args(Mode)


def picture(view: SplatView, pose: ViewPose, size: tuple[int, int], mode: Mode, white: bool) -> tuple[Array, Array]:
    """(h, w, 3) uint8 to show, and (h, w) float32 camera z in scene units for hiding symbols, infinite where nothing is."""
    K = pose.intrinsics(size)
    output = view.render(pose.c2w, K, size)
    depth = depth_image(output)
    behind = np.where(depth > 0, depth, np.inf).astype(np.float32)
    if mode == "depth":
        return pictures.colorize_depth(depth, *pictures.depth_range(depth)), behind
    if mode == "alpha":
        grey = (output.alpha.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=-1), behind
    if mode == "normal":
        normal = normals_of_depth(depth, K) if output.normal is None else output.normal.cpu().numpy()
        return pictures.colorize_normals(normal), behind
    return rgb_image(output, white), behind


def normals_of_depth(depth: Array, K: Array) -> Array:
    """(h, w, 3) camera-space unit normals that face the camera, from neighbouring depths; 0 where a neighbour is unknown.

    3DGS has no normals of its own: these are of the surface its depth describes.
    """
    h, w = depth.shape
    x, y = np.meshgrid((np.arange(w) + 0.5 - K[0, 2]) / K[0, 0], (np.arange(h) + 0.5 - K[1, 2]) / K[1, 1])
    points = np.stack([x * depth, y * depth, depth], axis=-1)
    normal = np.cross(points[2:, 1:-1] - points[:-2, 1:-1], points[1:-1, 2:] - points[1:-1, :-2])
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    known = (depth[2:, 1:-1] > 0) & (depth[:-2, 1:-1] > 0) & (depth[1:-1, 2:] > 0) & (depth[1:-1, :-2] > 0)
    out = np.zeros((h, w, 3))
    out[1:-1, 1:-1] = np.where(known[..., None] & (length > 0), normal / np.maximum(length, 1e-12), 0)
    return out
