"""Whether the Triton kernels can run; imports nothing of Triton itself."""

import importlib.util
from functools import cache

import torch


@cache
def triton_ready() -> bool:
    """A CUDA device and Triton, which comes with torch's CUDA builds, are there."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
