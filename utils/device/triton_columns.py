"""Columns of (N, 3) and (N, 4) arrays in Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def load3(base, row, mask):
    """Columns of an (N, 3) array."""
    return tl.load(base + row * 3, mask, 0.0), tl.load(base + row * 3 + 1, mask, 0.0), tl.load(base + row * 3 + 2, mask, 0.0)


@triton.jit
def load4(base, row, mask):
    """Columns of an (N, 4) array of quaternions; the identity beyond the end."""
    return (
        tl.load(base + row * 4, mask, 1.0),
        tl.load(base + row * 4 + 1, mask, 0.0),
        tl.load(base + row * 4 + 2, mask, 0.0),
        tl.load(base + row * 4 + 3, mask, 0.0),
    )


@triton.jit
def store3(base, row, mask, a, b, c):
    """Writes the columns of an (N, 3) array."""
    tl.store(base + row * 3, a, mask)
    tl.store(base + row * 3 + 1, b, mask)
    tl.store(base + row * 3 + 2, c, mask)


@triton.jit
def store4(base, row, mask, a, b, c, d):
    """Writes the columns of an (N, 4) array."""
    tl.store(base + row * 4, a, mask)
    tl.store(base + row * 4 + 1, b, mask)
    tl.store(base + row * 4 + 2, c, mask)
    tl.store(base + row * 4 + 3, d, mask)
