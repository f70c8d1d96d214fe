"""`utils.registration.flow_torch.relax` with one kernel per Jacobi step: every value is read once instead of by a dozen operations."""

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
