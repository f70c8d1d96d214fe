"""Nearest neighbours of every point of a cloud: `reference` by a tree on the CPU, `batched` by blocks of near points on a device.

May import: what `train_gs` may.
Start: `nearest`, which chooses.
"""

from train_gs.start.neighbours import reference
from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array


def nearest(points: Array, count: int) -> tuple[Array, Array]:
    """(N, count) distances to the nearest of the points (N, 3) float64, itself first, and (N, count) their rows."""
    device = accelerator()
    if device is None:
        return reference.nearest(points, count)
    from train_gs.start.neighbours import batched

    return or_on_cpu(lambda: batched.nearest(points, count, device), lambda: reference.nearest(points, count), "neighbours of points")
