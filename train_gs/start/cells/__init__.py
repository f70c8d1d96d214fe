"""Copies of surfaces merged into the points that splats start from: `reference` on the CPU, `batched` on a device.

May import: what `train_gs` may.
Start: `merged`, which chooses.
"""

from train_gs.start.cells import reference
from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array


def merged(points: Array, colors: Array, centers: Array, made_by: Array, pixel: float, budget: int) -> tuple[Array, Array]:
    """`reference.merged`, on a device if there is one, and on the CPU if that runs out of memory."""
    given = points, colors, centers, made_by, pixel, budget
    device = accelerator()
    if device is None:
        return reference.merged(*given)
    from train_gs.start.cells import batched

    return or_on_cpu(lambda: batched.merged(*given, device), lambda: reference.merged(*given), "initial splats")
