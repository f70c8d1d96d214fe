"""Structural similarity of two images in plain torch, in the dtype of its inputs; differentiable in both images."""

import math
from typing import Any

import torch
from torch import Tensor

RADIUS = 5
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Stabilisers of Wang et al. 2004 for images in 0..1."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of two (H, W, 3) images in 0..1, at most 1, differentiable in both.

    Wang et al. 2004: Gaussian window of 11 taps, sigma 1.5 pixels, per channel, zeros beyond the border.
    """
    x, y = a.permute(2, 0, 1), b.permute(2, 0, 1)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = gaussian_blur(torch.stack([x, y, x * x, y * y, x * y])).unbind(0)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    numerator = (2 * product + C1) * (2 * (mean_xy - product) + C2)
    denominator = (squares + C1) * (mean_xx + mean_yy - squares + C2)
    return (numerator / denominator).mean()


def gaussian_blur(images: Tensor) -> Tensor:
    """The window's weighted mean at every pixel of (..., H, W), zeros beyond the border."""
    return _Blur.apply(images)


class _Blur(torch.autograd.Function):
    """Separable blur; with a symmetric window and zeros outside it is a symmetric matrix, hence its own adjoint."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return _multiply_band(_multiply_band(images, -1), -2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return gaussian_blur(grad_outputs[0])


def _multiply_band(images: Tensor, dim: int) -> Tensor:
    """Product with the symmetric banded matrix of the window along one axis, diagonal by diagonal.

    On a CPU this is 5 to 8 times faster than a dense matrix product and far more than that against conv2d, which has no fast path for
    one channel.
    """
    centre, *sides = window()
    length = images.shape[dim]
    out = images * centre
    for offset, tap in enumerate(sides, start=1):
        if offset < length:
            overlap = length - offset
            out.narrow(dim, offset, overlap).add_(images.narrow(dim, 0, overlap), alpha=tap)
            out.narrow(dim, 0, overlap).add_(images.narrow(dim, offset, overlap), alpha=tap)
    return out


def window() -> list[float]:
    """The window's taps from its centre outwards; they sum to 1 over both sides."""
    taps = [math.exp(-0.5 * (offset / SIGMA) ** 2) for offset in range(RADIUS + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    return [tap / total for tap in taps]
