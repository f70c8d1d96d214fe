"""Loss terms of one rendered view; each returns a scalar without its weight."""

import torch
from torch import Tensor

from utils.types import RenderOutput

_SOLID = 0.5
"""Opacity from which a pixel's depth and normal mean something."""


def normal_consistency(output: RenderOutput, K: Tensor) -> Tensor:
    """Mean of 1 - n_render . n_depth over solid pixels (Huang et al. 2024, eq. 14); 0 without any."""
    assert output.normal is not None
    normal, solid = depth_normals(output.expected_depth(), output.alpha.detach() > _SOLID, K)
    rendered = torch.nn.functional.normalize(output.normal, dim=-1)
    disagreement = (1.0 - (rendered * normal).sum(-1)) * solid
    return disagreement.sum() / solid.sum().clamp(min=1)


def depth_normals(depth: Tensor, solid: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals (H, W, 3) of a depth image (H, W), facing the camera, and where they are defined (H, W) bool.

    A normal is the cross product of the central differences of the unprojected depth; the pixel and its four neighbours must be solid.
    """
    h, w = depth.shape
    x = (torch.arange(w, device=depth.device, dtype=depth.dtype) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(h, device=depth.device, dtype=depth.dtype) + 0.5 - K[1, 2]) / K[1, 1]
    points = torch.stack([x.expand(h, w) * depth, y[:, None].expand(h, w) * depth, depth], -1)
    along_x = points[1:-1, 2:] - points[1:-1, :-2]
    along_y = points[2:, 1:-1] - points[:-2, 1:-1]
    inner = torch.nn.functional.normalize(torch.linalg.cross(along_y, along_x), dim=-1)
    defined = solid[1:-1, 1:-1] & solid[1:-1, 2:] & solid[1:-1, :-2] & solid[2:, 1:-1] & solid[:-2, 1:-1]
    pad = (1, 1, 1, 1)
    normals = torch.nn.functional.pad(inner.permute(2, 0, 1), pad).permute(1, 2, 0)
    return normals, torch.nn.functional.pad(defined, pad)


def distortion(output: RenderOutput, median_depth: float) -> Tensor:
    """Mean depth distortion in squared median depths."""
    assert output.distortion is not None
    return output.distortion.mean() / median_depth**2
