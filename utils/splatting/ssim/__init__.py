"""Mean absolute difference and structural similarity of two images, as a training loss: chooses the fastest implementation.

May import: what `utils.splatting` may.
Start: `reference`.
"""

import torch
from torch import Tensor

from utils.device.triton_support import triton_ready
from utils.splatting.ssim import numba, reference


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of two (H, W, 3) images in 0..1, at most 1, differentiable; defined in `reference`."""
    if a.is_cuda and a.dtype == torch.float32 and not b.requires_grad and triton_ready():
        from utils.splatting.ssim import triton

        return triton.ssim(a, b)
    if _compiled_on_cpu(a, b):
        return numba.l1_and_ssim(a, b)[1]
    return reference.ssim(a, b)


def l1_and_ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference and `ssim` of two (H, W, 3) images; on a CPU both come from one pass."""
    if _compiled_on_cpu(a, b):
        return numba.l1_and_ssim(a, b)
    return (a - b).abs().mean(), ssim(a, b)


def _compiled_on_cpu(a: Tensor, b: Tensor) -> bool:
    return a.device.type == "cpu" and a.dtype == b.dtype == torch.float32 and not b.requires_grad
