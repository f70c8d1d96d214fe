"""Mean absolute difference and structural similarity of two images on the CPU, in one pass each way over rows, on torch's threads.

Rows of different channels are independent but for the window, so chunks of rows are what threads share. Sums are taken row by row and
then over rows in their order: any number of threads gives the same bits.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from utils.device.threads import ranges, run_chunks
from utils.splatting.rasterize.numba_projection import F32, JIT, ONE, TWO, ZERO
from utils.splatting.ssim.reference import C1, C2, RADIUS, window
from utils.types import Array

_C1, _C2 = F32(C1), F32(C2)
_T0, _T1, _T2, _T3, _T4, _T5 = (F32(tap) for tap in window())


@njit(**JIT)
def _tap(offset):
    """Weight of a row that is `offset` rows away."""
    if offset == 0:
        return _T0
    if offset == 1:
        return _T1
    if offset == 2:
        return _T2
    if offset == 3:
        return _T3
    return _T4 if offset == 4 else _T5


# One output per loop: with more, the compiler cannot prove that the arrays do not overlap, and gives up on vector instructions.


@njit(**JIT)
def _add(out, tap, a):
    for i in range(a.shape[0]):
        out[i] += tap * a[i]


@njit(**JIT)
def _add_product(out, tap, a, b):
    for i in range(a.shape[0]):
        out[i] += tap * a[i] * b[i]


@njit(**JIT)
def _blur_row(padded, out):
    """The window along a row that has RADIUS zeros at both ends."""
    for i in range(out.shape[0]):
        out[i] = (
            _T0 * padded[i + 5]
            + _T1 * (padded[i + 4] + padded[i + 6])
            + _T2 * (padded[i + 3] + padded[i + 7])
            + _T3 * (padded[i + 2] + padded[i + 8])
            + _T4 * (padded[i + 1] + padded[i + 9])
            + _T5 * (padded[i] + padded[i + 10])
        )


@njit(**JIT)
def _terms(x, y, xx, yy, xy):
    """Both numerators and the inverses of both denominators, from the blurred a, b, a^2, b^2 and a b."""
    product, squares = x * y, x * x + y * y
    return TWO * product + _C1, TWO * (xy - product) + _C2, ONE / (squares + _C1), ONE / (xx + yy - squares + _C2)


@njit(**JIT)
def _value_and_by_square(x, y, xx, yy, xy, out):
    """Sum of the similarities of a row; their derivatives by the blurred a^2."""
    total = ZERO
    for i in range(out.shape[0]):
        n1, n2, over1, over2 = _terms(x[i], y[i], xx[i], yy[i], xy[i])
        value = n1 * n2 * over1 * over2
        total += value
        out[i] = -value * over2
    return total


@njit(**JIT)
def _by_mean(x, y, xx, yy, xy, out):
    """Derivatives by the blurred a."""
    for i in range(out.shape[0]):
        n1, n2, over1, over2 = _terms(x[i], y[i], xx[i], yy[i], xy[i])
        both = over1 * over2
        out[i] = TWO * both * (y[i] * (n2 - n1) - n1 * n2 * x[i] * (over1 - over2))


@njit(**JIT)
def _by_product(x, y, xx, yy, xy, out):
    """Derivatives by the blurred a b."""
    for i in range(out.shape[0]):
        n1, _, over1, over2 = _terms(x[i], y[i], xx[i], yy[i], xy[i])
        out[i] = TWO * n1 * over1 * over2


@njit(**JIT)
def _absolute(a, b):
    total = ZERO
    for i in range(a.shape[0]):
        total += abs(a[i] - b[i])
    return total


@njit(**JIT)
def compare_rows(begin, end, a, b, derivatives, sums):
    """Rows begin..end of all channels' rows: fills `derivatives` (3, C, H, W) by mean, square and product, and `sums` (C * H, 2)."""
    height, width = a.shape[1], a.shape[2]
    padded, blurred = np.zeros((5, width + 2 * RADIUS), np.float32), np.empty((5, width), np.float32)
    for line in range(begin, end):
        channel = line // height
        row = line - channel * height
        padded[:] = ZERO
        for other in range(max(row - RADIUS, 0), min(row + RADIUS + 1, height)):
            tap, x, y = _tap(abs(other - row)), a[channel, other], b[channel, other]
            _add(padded[0, RADIUS : RADIUS + width], tap, x)
            _add(padded[1, RADIUS : RADIUS + width], tap, y)
            _add_product(padded[2, RADIUS : RADIUS + width], tap, x, x)
            _add_product(padded[3, RADIUS : RADIUS + width], tap, y, y)
            _add_product(padded[4, RADIUS : RADIUS + width], tap, x, y)
        for k in range(5):
            _blur_row(padded[k], blurred[k])
        x, y, xx, yy, xy = blurred[0], blurred[1], blurred[2], blurred[3], blurred[4]
        _by_mean(x, y, xx, yy, xy, derivatives[0, channel, row])
        sums[line, 1] = _value_and_by_square(x, y, xx, yy, xy, derivatives[1, channel, row])
        _by_product(x, y, xx, yy, xy, derivatives[2, channel, row])
        sums[line, 0] = _absolute(a[channel, row], b[channel, row])


@njit(**JIT)
def _gradient_row(a, b, mean, square, product, absolute, similarity, out):
    for i in range(out.shape[0]):
        difference = a[i] - b[i]
        sign = absolute if difference > ZERO else (-absolute if difference < ZERO else ZERO)
        out[i] = sign + similarity * (mean[i] + TWO * a[i] * square[i] + b[i] * product[i])


@njit(**JIT)
def compare_rows_vjp(begin, end, a, b, derivatives, absolute, similarity, out):
    """Rows of the gradient by a, of `absolute` times the sum of differences and `similarity` times that of similarities.

    The window is its own adjoint.
    """
    height, width = a.shape[1], a.shape[2]
    padded, blurred = np.zeros((3, width + 2 * RADIUS), np.float32), np.empty((3, width), np.float32)
    for line in range(begin, end):
        channel = line // height
        row = line - channel * height
        padded[:] = ZERO
        for other in range(max(row - RADIUS, 0), min(row + RADIUS + 1, height)):
            tap = _tap(abs(other - row))
            for k in range(3):
                _add(padded[k, RADIUS : RADIUS + width], tap, derivatives[k, channel, other])
        for k in range(3):
            _blur_row(padded[k], blurred[k])
        _gradient_row(
            a[channel, row], b[channel, row], blurred[0], blurred[1], blurred[2], absolute, similarity, out[channel, row]
        )  # fmt: skip


def l1_and_ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `utils.splatting.ssim.reference.l1_and_ssim`, for float32 on the CPU and a fixed b."""
    return _Compare.apply(a.permute(2, 0, 1).contiguous(), b.detach().permute(2, 0, 1).contiguous())


class _Compare(torch.autograd.Function):
    """Of images (C, H, W)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        lines = a.shape[0] * a.shape[1]
        derivatives: Array = np.empty((3, *a.shape), np.float32)
        sums: Array = np.empty((lines, 2))
        run_chunks(compare_rows, ranges(lines), a.detach().numpy(), b.numpy(), derivatives, sums)
        ctx.save_for_backward(a, b)
        ctx.derivatives = derivatives
        absolute, similarity = (sums.sum(0) / a.numel()).tolist()
        return torch.tensor(absolute, dtype=a.dtype), torch.tensor(similarity, dtype=a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        a, b = ctx.saved_tensors
        out = torch.empty_like(a)
        absolute, similarity = (F32(float(grad) / a.numel()) for grad in grads)
        lines = a.shape[0] * a.shape[1]
        arrays = (a.detach().numpy(), b.numpy(), ctx.derivatives)
        run_chunks(compare_rows_vjp, ranges(lines), *arrays, absolute, similarity, out.numpy())
        return out, None
