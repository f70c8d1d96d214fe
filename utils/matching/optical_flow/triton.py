"""The robust step of `utils.matching.optical_flow.reference` in one kernel for its equations and one per Jacobi step.

Every value is read once instead of by some eighty operations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit(do_not_specialize=["num", "height", "width"])
def _relax(xx, xy, yy, right, across, down, flow, out, num, height, width, BLOCK: tl.constexpr):
    """One Jacobi step at every pixel; arrays as in `relax`, all contiguous."""
    element = (tl.program_id(0).to(tl.int64)) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num
    pixels = height * width
    image, pixel = element // pixels, element % pixels
    row, column = pixel // width, pixel % width
    edge = across + (image * height + row) * (width + 1) + column
    left, next_ = tl.load(edge, mask, 0.0), tl.load(edge + 1, mask, 0.0)
    edge = down + (image * (height + 1) + row) * width + column
    above, below = tl.load(edge, mask, 0.0), tl.load(edge + width, mask, 0.0)
    x = 2 * image * pixels + pixel
    y = x + pixels
    has_left, has_next, has_above, has_below = column > 0, column < width - 1, row > 0, row < height - 1
    bx = tl.load(right + x, mask, 0.0)
    bx += left * tl.load(flow + x - 1, mask & has_left, 0.0) + next_ * tl.load(flow + x + 1, mask & has_next, 0.0)
    bx += above * tl.load(flow + x - width, mask & has_above, 0.0) + below * tl.load(flow + x + width, mask & has_below, 0.0)
    by = tl.load(right + y, mask, 0.0)
    by += left * tl.load(flow + y - 1, mask & has_left, 0.0) + next_ * tl.load(flow + y + 1, mask & has_next, 0.0)
    by += above * tl.load(flow + y - width, mask & has_above, 0.0) + below * tl.load(flow + y + width, mask & has_below, 0.0)
    total = left + next_ + above + below
    a, b, c = tl.load(xx + element, mask, 1.0) + total, tl.load(xy + element, mask, 0.0), tl.load(yy + element, mask, 1.0) + total
    inverse = 1.0 / (a * c - b * b)
    tl.store(out + x, (c * bx - b * by) * inverse, mask)
    tl.store(out + y, (a * by - b * bx) * inverse, mask)


def relax(xx: Tensor, xy: Tensor, yy: Tensor, right: Tensor, across: Tensor, down: Tensor, flow: Tensor, iterations: int) -> Tensor:
    """See `flow_torch.relax`; float32."""
    xx, xy, yy, right, across, down, flow = (t.contiguous() for t in (xx, xy, yy, right, across, down, flow))
    height, width = flow.shape[2:]
    buffers = [torch.empty_like(flow), torch.empty_like(flow)]  # two, so that the flow given stays as it is
    for step in range(iterations):
        out = buffers[step % 2]
        _relax[(triton.cdiv(xx.numel(), BLOCK),)](
            xx, xy, yy, right, across, down, flow, out, xx.numel(), height, width, BLOCK=BLOCK
        )  # fmt: skip
        flow = out
    return flow


@triton.jit
def _mean(source, warped, row, column, height, width, image, mask):
    """Mean of both images at pixels, the border continued outwards."""
    at = image + tl.minimum(tl.maximum(row, 0), height - 1) * width + tl.minimum(tl.maximum(column, 0), width - 1)
    return (tl.load(warped + at, mask, 0.0) + tl.load(source + at, mask, 0.0)) / 2


@triton.jit
def _slope(values, base, row, column, height, width, mask):
    """Central differences, across and down, of an image that begins at `base`; the border is continued outwards."""
    left, right = base + row * width + tl.maximum(column - 1, 0), base + row * width + tl.minimum(column + 1, width - 1)
    above, below = base + tl.maximum(row - 1, 0) * width + column, base + tl.minimum(row + 1, height - 1) * width + column
    across = (tl.load(values + right, mask, 0.0) - tl.load(values + left, mask, 0.0)) / 2
    return across, (tl.load(values + below, mask, 0.0) - tl.load(values + above, mask, 0.0)) / 2


@triton.jit
def _mean_slope(source, warped, row, column, height, width, image, mask):
    """Central differences of the mean image at a pixel whose place is brought back into the image, as padding its slopes does."""
    row, column = tl.minimum(tl.maximum(row, 0), height - 1), tl.minimum(tl.maximum(column, 0), width - 1)
    across = _mean(source, warped, row, column + 1, height, width, image, mask)
    across -= _mean(source, warped, row, column - 1, height, width, image, mask)
    down = _mean(source, warped, row + 1, column, height, width, image, mask)
    down -= _mean(source, warped, row - 1, column, height, width, image, mask)
    return across / 2, down / 2


@triton.jit(do_not_specialize=["num", "height", "width"])
def _linearised(
    source, warped, known, flow, xx_out, xy_out, yy_out, right_out, stiff_out, num, height, width,
    smoothness, brightness, constancy, flat2, robust2, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `flow_torch.linearised`."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num
    pixels = height * width
    pixel = element % pixels
    image = element - pixel
    row, column = pixel // width, pixel % width
    ix, iy = _mean_slope(source, warped, row, column, height, width, image, mask)
    right_x, _ = _mean_slope(source, warped, row, column + 1, height, width, image, mask)
    left_x, _ = _mean_slope(source, warped, row, column - 1, height, width, image, mask)
    below_x, below_y = _mean_slope(source, warped, row + 1, column, height, width, image, mask)
    above_x, above_y = _mean_slope(source, warped, row - 1, column, height, width, image, mask)
    ixx, ixy, iyy = (right_x - left_x) / 2, (below_x - above_x) / 2, (below_y - above_y) / 2
    wx, wy = _slope(warped, image, row, column, height, width, mask)
    sx, sy = _slope(source, image, row, column, height, width, mask)
    ixt, iyt = wx - sx, wy - sy
    difference = tl.load(warped + element, mask, 0.0) - tl.load(source + element, mask, 0.0)
    m = tl.load(known + element, mask, 0.0)
    norm, norm_x, norm_y = ix * ix + iy * iy + flat2, ixx * ixx + ixy * ixy + flat2, ixy * ixy + iyy * iyy + flat2
    weight = m * brightness / norm / tl.sqrt(difference * difference / norm + robust2)
    gradient = m * constancy / tl.sqrt(ixt * ixt / norm_x + iyt * iyt / norm_y + robust2)
    weight_x, weight_y = gradient / norm_x, gradient / norm_y
    xx = weight * ix * ix + weight_x * ixx * ixx + weight_y * ixy * ixy
    xy = weight * ix * iy + weight_x * ixx * ixy + weight_y * ixy * iyy
    yy = weight * iy * iy + weight_x * ixy * ixy + weight_y * iyy * iyy
    x = weight * ix * difference + weight_x * ixx * ixt + weight_y * ixy * iyt
    y = weight * iy * difference + weight_x * ixy * ixt + weight_y * iyy * iyt
    at_x = 2 * image + pixel
    fx, fy = tl.load(flow + at_x, mask, 0.0), tl.load(flow + at_x + pixels, mask, 0.0)
    tl.store(xx_out + element, xx, mask)
    tl.store(xy_out + element, xy, mask)
    tl.store(yy_out + element, yy, mask)
    tl.store(right_out + at_x, xx * fx + xy * fy - x, mask)
    tl.store(right_out + at_x + pixels, xy * fx + yy * fy - y, mask)
    ux, uy = _slope(flow, 2 * image, row, column, height, width, mask)
    vx, vy = _slope(flow, 2 * image + pixels, row, column, height, width, mask)
    tl.store(stiff_out + element, smoothness / tl.sqrt(ux * ux + uy * uy + vx * vx + vy * vy + robust2), mask)


def linearised(
    source: Tensor, warped: Tensor, known: Tensor, flow: Tensor, terms: tuple[float, float, float, float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `flow_torch.linearised`; terms are `flow_torch.ROBUST_TERMS`."""
    source, warped, known, flow = (t.contiguous() for t in (source, warped, known, flow))
    smoothness, brightness, constancy, flat, robust = terms
    height, width = flow.shape[2:]
    xx, xy, yy, stiff = (torch.empty_like(source) for _ in range(4))
    right = torch.empty_like(flow)
    _linearised[(triton.cdiv(source.numel(), BLOCK),)](
        source, warped, known, flow, xx, xy, yy, right, stiff, source.numel(), height, width,
        smoothness, brightness, constancy, flat**2, robust**2, BLOCK=BLOCK,
    )  # fmt: skip
    return xx, xy, yy, right, stiff
