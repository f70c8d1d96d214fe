"""Round-trip error of an inverse warp: camera point -> canonical by the forward field -> back, against where it started."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.deformation.inverse import InverseWarp
from utils.deformation.lattice.reference import LatticeField
from utils.types import CameraSet, Scene


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """|q - p| / depth over the random surface points of one view.

    Attributes:
        frame_id: the view's index in results.npz.
        mean: mean error.
        median: median error.
        p99: 99th percentile.
        unsolved: share of points whose inversion left a residual above 1e-4.
    """

    frame_id: int
    mean: float
    median: float
    p99: float
    unsolved: float


def surface_points(scene: Scene, position: int, count: int, rng: np.random.Generator) -> Tensor:
    """(n, 3) camera-space points of one frame: random places inside random valid pixels, at that pixel's depth. n <= count."""
    rows, columns = np.nonzero(scene.valid[position])
    chosen = rng.choice(len(rows), size=min(count, len(rows)), replace=False)
    depth = scene.depth[position][rows[chosen], columns[chosen]].astype(np.float64)
    x = columns[chosen] + rng.random(len(chosen))
    y = rows[chosen] + rng.random(len(chosen))
    K = scene.cameras.K[position]
    points = np.stack([(x - K[0, 2]) / K[0, 0] * depth, (y - K[1, 2]) / K[1, 1] * depth, depth], -1)
    return torch.from_numpy(points)


def round_trip(warp: InverseWarp, field: LatticeField, cameras: CameraSet, frame_index: int, points: Tensor) -> RoundTrip:
    """Error of the inverse warp at camera-space points (N, 3) of one view.

    Args:
        warp: the inverse under test.
        field: the forward fields it inverts.
        cameras: the aligned cameras, in the order of the fields.
        frame_index: the view's position.
        points: camera space.
    """
    points = points.to(field.nodes.dtype)
    c2w = torch.from_numpy(cameras.c2w[frame_index]).to(points)
    with torch.no_grad():
        canonical = (points + field.displacement(points, frame_index)) @ c2w[:3, :3].T + c2w[:3, 3]
        returned = warp.to_camera(canonical, frame_index, c2w)
        displaced = returned + field.displacement(returned, frame_index)
        residual = (displaced - points - field.displacement(points, frame_index)).norm(dim=-1) / points[:, 2]
        error = (returned - points).norm(dim=-1) / points[:, 2]
    return RoundTrip(
        frame_id=int(cameras.frame_ids[frame_index]),
        mean=float(error.mean()),
        median=float(error.median()),
        p99=float(error.quantile(0.99)),
        unsolved=float((residual > 1e-4).float().mean()),
    )
