"""Reference rasteriser: alpha compositing of every Gaussian at every pixel in plain torch, in the dtype of its inputs.

O(h w N) time and memory, gradients by autograd. In float64 it is the oracle that the other backends are tested against.
"""

import torch
from torch import Tensor

from utils.splatting.rasterize.contract import (
    ALPHA_MAX,
    ALPHA_MIN,
    EDGE_ON,
    EPS2D,
    FRUSTUM_MARGIN,
    LOW_PASS,
    NEAR,
    RAY_MIN,
    TRANSMITTANCE_STOP,
    SplatMode,
)
from utils.types import CameraGaussians, RenderOutput


class TorchRasterizer:
    """Dense reference for small scenes; float32 or float64, any device."""

    name = "torch"

    def __init__(self, device: torch.device):
        self.device = device

    def render(self, gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = NEAR) -> RenderOutput:
        """One view on black, see `Rasterizer`."""
        z = gaussians.means[:, 2].detach()
        order = torch.argsort(z, stable=True)
        order = order[z[order] > near]
        ordered = CameraGaussians(
            gaussians.means[order],
            gaussians.quats[order],
            gaussians.scales[order],
            gaussians.opacities[order],
            gaussians.colors[order],
        )
        if mode == "3dgs":
            return _render_gaussians(ordered, K, size)
        return _render_surfels(ordered, K, size, near)


def _render_gaussians(gaussians: CameraGaussians, K: Tensor, size: tuple[int, int]) -> RenderOutput:
    """EWA splatting (Zwicker et al. 2001) of Gaussians in depth order."""
    x, y, z = gaussians.means.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    # The perspective map is linearised at the centre, but not far outside of the image, where the linear model explodes.
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * size[1] / fx, FRUSTUM_MARGIN * 0.5 * size[0] / fy
    ratio_x = torch.clamp(x / z, -cx / fx - margin_x, (size[1] - cx) / fx + margin_x)
    ratio_y = torch.clamp(y / z, -cy / fy - margin_y, (size[0] - cy) / fy + margin_y)
    axes = quats_to_rotations(gaussians.quats) * gaussians.scales[:, None, :]
    row_x = (fx / z)[:, None] * (axes[:, 0] - ratio_x[:, None] * axes[:, 2])
    row_y = (fy / z)[:, None] * (axes[:, 1] - ratio_y[:, None] * axes[:, 2])
    variance_x = (row_x * row_x).sum(-1) + EPS2D
    variance_y = (row_y * row_y).sum(-1) + EPS2D
    covariance = (row_x * row_y).sum(-1)
    determinant = variance_x * variance_y - covariance**2

    pixel_x, pixel_y = _pixel_centres(size, z)
    dx, dy = pixel_x - (fx * x / z + cx), pixel_y - (fy * y / z + cy)
    quadratic = (variance_y * dx * dx + variance_x * dy * dy - 2 * covariance * dx * dy) / determinant
    weight = _blend_weights(gaussians.opacities * torch.exp(-0.5 * quadratic))
    return RenderOutput(rgb=(weight @ gaussians.colors).view(*size, 3), alpha=weight.sum(1).view(size), depth=(weight @ z).view(size))


def _render_surfels(gaussians: CameraGaussians, K: Tensor, size: tuple[int, int], near: float) -> RenderOutput:
    """Ray-disc intersections (Huang et al. 2024, section 4.2) of surfels in depth order.

    With P (2, 2) the pixel offsets per unit of the disc's coordinates at its centre, w its depth slopes over the centre's depth
    and h = P^-1 (pixel - centre), the ray of a pixel meets the plane at (u, v) = h / (1 - w . h) and depth z / (1 - w . h).
    """
    x, y, z = gaussians.means.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    rotation = quats_to_rotations(gaussians.quats)
    axes = rotation[:, :, :2] * gaussians.scales[:, None, :2]
    row_x = (fx / z)[:, None] * (axes[:, 0] - (x / z)[:, None] * axes[:, 2])
    row_y = (fy / z)[:, None] * (axes[:, 1] - (y / z)[:, None] * axes[:, 2])
    slope = axes[:, 2] / z[:, None]
    determinant = row_x[:, 0] * row_y[:, 1] - row_x[:, 1] * row_y[:, 0]
    drawn = determinant.abs() > EDGE_ON * ((row_x * row_x).sum(-1) + (row_y * row_y).sum(-1))
    determinant = torch.where(drawn, determinant, torch.ones_like(determinant))

    pixel_x, pixel_y = _pixel_centres(size, z)
    dx, dy = pixel_x - (fx * x / z + cx), pixel_y - (fy * y / z + cy)
    h_u = (row_y[:, 1] * dx - row_x[:, 1] * dy) / determinant
    h_v = (row_x[:, 0] * dy - row_y[:, 0] * dx) / determinant
    denominator = 1 - slope[:, 0] * h_u - slope[:, 1] * h_v
    hits = denominator > RAY_MIN
    denominator = torch.where(hits, denominator, torch.ones_like(denominator))
    u, v = h_u / denominator, h_v / denominator
    on_disc, low_pass = u * u + v * v, LOW_PASS * (dx * dx + dy * dy)
    hits = hits & (on_disc <= low_pass)
    quadratic = torch.where(hits, on_disc, low_pass)
    depth = torch.where(hits, z / denominator, z.expand_as(denominator))
    alpha = torch.where(drawn & (depth >= near), gaussians.opacities * torch.exp(-0.5 * quadratic), 0.0)

    weight = _blend_weights(alpha)
    facing = -torch.sign((rotation[:, :, 2] * gaussians.means).sum(-1, keepdim=True))
    total, first, second = weight.sum(1), (weight * depth).sum(1), (weight * depth**2).sum(1)
    return RenderOutput(
        rgb=(weight @ gaussians.colors).view(*size, 3),
        alpha=total.view(size),
        depth=first.view(size),
        normal=(weight @ (rotation[:, :, 2] * facing)).view(*size, 3),
        distortion=(total * second - first**2).view(size),
    )


def _pixel_centres(size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """The x and y of all pixel centres in row-major order, (h * w, 1) each."""
    rows, columns = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.reshape(-1, 1), y.reshape(-1, 1)


def _blend_weights(alpha: Tensor) -> Tensor:
    """(P, N) share of each Gaussian, in depth order along the second axis, in each pixel."""
    alpha = alpha.clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, 0.0)
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], dim=1), dim=1)[:, : alpha.shape[1]]
    return torch.where(passed > TRANSMITTANCE_STOP, passed * alpha, 0.0)


def quats_to_rotations(quats: Tensor) -> Tensor:
    """(N, 3, 3) rotations of (N, 4) wxyz quaternions, which are normalised first."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True).clamp(min=1e-12)).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).view(-1, 3, 3)
