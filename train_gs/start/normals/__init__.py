"""Normals of small neighbourhoods: `reference` by LAPACK on the CPU, `batched` in closed form on a device.

May import: what `train_gs` may.
Start: `smallest_axes`, which chooses.
"""

import torch
from torch import Tensor

from train_gs.start.normals import reference
from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array


def smallest_axes(points: Array, neighbors: Array) -> Tensor:
    """(N, 3) float64 unit directions in which the neighbourhoods (N, k), rows of points (M, 3) float64, are thinnest; sign is free."""
    on_cpu = lambda: torch.from_numpy(reference.smallest_axes(points, neighbors))  # noqa: E731
    device = accelerator()
    if device is None:
        return on_cpu()
    from train_gs.start.normals import batched

    return or_on_cpu(
        lambda: batched.smallest_axes(torch.from_numpy(points), torch.from_numpy(neighbors), device), on_cpu, "initial normals"
    )
