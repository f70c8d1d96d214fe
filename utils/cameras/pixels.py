"""Pixel coordinates on a device. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5)."""

import torch
from torch import Tensor


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """(H, W, 2) x, y of the pixel centres, at +0.5."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32), torch.arange(width, device=device, dtype=torch.float32), indexing="ij"
    )
    return torch.stack([x, y], -1) + 0.5
