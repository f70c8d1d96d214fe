"""Structural similarity in one GPU kernel each way: 121 taps a pixel from the L1 cache cost less than launching the separable passes."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
_C1 = tl.constexpr(0.01**2)
_C2 = tl.constexpr(0.03**2)
_SIGMA2 = tl.constexpr(2 * 1.5**2)
_NORM = tl.constexpr(0.26601172486179436)  # 1 / sum of exp(-k^2 / (2 sigma^2)) over 11 taps, as `_tap` gives them


@triton.jit
def _tap(k):
    """Weight of a tap k = -5..5 of the Gaussian window."""
    return tl.exp(-(k * k).to(tl.float32) / _SIGMA2) * _NORM


@triton.jit
def _place(num, width, BLOCK: tl.constexpr):
    """Element, column and row of (H, W, 3) values."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return element, (element // 3) % width, element // (3 * width), element < num


@triton.jit(do_not_specialize=["num", "height", "width"])
def _forward(a, b, similarity, d_mean, d_square, d_product, num, height, width, BLOCK: tl.constexpr):
    """Similarity of every value, and its derivatives with respect to the blurred a, a^2 and a b."""
    element, column, row, mask = _place(num, width, BLOCK)
    x, y = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    xx, yy, xy = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(-5, 6):
        for j in tl.static_range(-5, 6):
            inside = mask & (row + i >= 0) & (row + i < height) & (column + j >= 0) & (column + j < width)
            at = element + (i * width + j) * 3
            p, q = tl.load(a + at, inside, 0.0), tl.load(b + at, inside, 0.0)
            w = _tap(tl.full([BLOCK], 0, tl.int32) + i) * _tap(tl.full([BLOCK], j, tl.int32))
            x += w * p
            y += w * q
            xx += w * p * p
            yy += w * q * q
            xy += w * p * q
    n1, n2 = 2 * x * y + _C1, 2 * (xy - x * y) + _C2
    m1, m2 = x * x + y * y + _C1, xx + yy - x * x - y * y + _C2
    value = n1 * n2 / (m1 * m2)
    tl.store(similarity + element, value, mask)
    tl.store(d_mean + element, 2 * y * (n2 - n1) / (m1 * m2) - value * 2 * x * (1 / m1 - 1 / m2), mask)
    tl.store(d_square + element, -value / m2, mask)
    tl.store(d_product + element, 2 * n1 / (m1 * m2), mask)


@triton.jit(do_not_specialize=["num", "height", "width"])
def _backward(a, b, d_mean, d_square, d_product, scale, gradient, num, height, width, BLOCK: tl.constexpr):
    """Gradient of `scale` times the sum of similarities with respect to a: the window is its own adjoint."""
    element, column, row, mask = _place(num, width, BLOCK)
    m, s, p = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(-5, 6):
        for j in tl.static_range(-5, 6):
            inside = mask & (row + i >= 0) & (row + i < height) & (column + j >= 0) & (column + j < width)
            at = element + (i * width + j) * 3
            w = _tap(tl.full([BLOCK], 0, tl.int32) + i) * _tap(tl.full([BLOCK], j, tl.int32))
            m += w * tl.load(d_mean + at, inside, 0.0)
            s += w * tl.load(d_square + at, inside, 0.0)
            p += w * tl.load(d_product + at, inside, 0.0)
    value = m + 2 * s * tl.load(a + element, mask, 0.0) + p * tl.load(b + element, mask, 0.0)
    tl.store(gradient + element, tl.load(scale) * value, mask)


class _Similarity(torch.autograd.Function):
    """Mean similarity of (H, W, 3) images a and b; differentiable in a."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        maps = [torch.empty_like(a) for _ in range(4)]
        _forward[(triton.cdiv(a.numel(), BLOCK),)](a, b, *maps, a.numel(), a.shape[0], a.shape[1], BLOCK=BLOCK)
        ctx.save_for_backward(a, b, *maps[1:])
        return maps[0].mean()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        a, b, *maps = ctx.saved_tensors
        gradient = torch.empty_like(a)
        scale = (incoming / a.numel()).reshape(1).contiguous()
        _backward[(triton.cdiv(a.numel(), BLOCK),)](a, b, *maps, scale, gradient, a.numel(), a.shape[0], a.shape[1], BLOCK=BLOCK)
        return gradient, None


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """The same as `utils.splatting.ssim.reference.ssim`, for float32 on the GPU and a fixed b."""
    return _Similarity.apply(a, b)
