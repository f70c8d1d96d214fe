"""Twins: every implementation of an operation against its float64 reference, on the same fresh inputs.

Triton's kernels run compiled where there is a CUDA device and in Triton's interpreter elsewhere; the interpreter is asked for before any
kernel is defined, so import this module before modules with kernels, and those inside the functions that need them.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

CPU = torch.device("cpu")
CUDA = torch.cuda.is_available()
GPU = torch.device("cuda") if CUDA else CPU
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def implementations(*names: str) -> Any:
    """Runs a test once for each name, as `twin`; those that begin with "triton" only where it is installed."""
    return pytest.mark.parametrize("twin", [pytest.param(n, marks=needs_triton) if n.startswith("triton") else n for n in names])


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(got: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    got, expected = got.detach().cpu().double(), expected.detach().cpu()
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm().clamp(min=1e-9))


def evaluate(
    function: Callable[..., Sequence[Tensor]], arrays: Sequence[Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and the gradients of a fixed random linear function of them with respect to the arrays that take part."""
    leaves = [a.detach().to(device, dtype, copy=True).requires_grad_() for a in arrays]
    outputs = function(*leaves)
    torch.autograd.backward([(o * normal(50 + i, *o.shape).to(o)).sum() for i, o in enumerate(outputs)])
    return [o.detach() for o in outputs], [leaf.grad for leaf in leaves if leaf.grad is not None]


def check(
    twin: str,
    function: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    arrays: Sequence[Tensor],
    limits: tuple[float, float],
    by_thread: bool = False,
) -> None:
    """Float32 values and gradients are within these relative errors of the reference's, and a second run gives the same bits.

    It runs with another number of CPU threads, unless the implementation sums `by_thread`.
    """
    expected = evaluate(reference, arrays, CPU, torch.float64)
    got = evaluate(function, arrays, GPU if twin.startswith("triton") else CPU, torch.float32)
    for what, limit, ours, theirs in zip(("value", "gradient"), limits, got, expected, strict=True):
        errors = [difference(a, b) for a, b in zip(ours, theirs, strict=True)]
        assert all(error < limit for error in errors), f"relative errors of each {what}: {errors}"
    if not twin.startswith("triton"):
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads if by_thread else 3 - min(threads, 2))
            again = evaluate(function, arrays, CPU, torch.float32)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for one, other in zip(got, again, strict=True) for a, b in zip(one, other, strict=True))
