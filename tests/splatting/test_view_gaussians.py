"""Splats as a camera sees them: the compiled path of float32 against the one of torch in float64, values and gradients."""

import pytest
import torch

from utils.cameras import se3
from utils.deformation.inverse import LocalWarp
from utils.splatting.view import view_gaussians
from utils.types import Splats

COUNT = 5000  # more than two blocks of sums


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_local(dtype: torch.dtype, deformed: bool) -> LocalWarp:
    y0 = numbers(COUNT, 3, seed=0).to(dtype)
    jacobian = (torch.eye(3) + 0.1 * numbers(COUNT, 3, 3, seed=2)).to(dtype) if deformed else None
    return LocalWarp(y0=y0, q0=y0 + 0.1 * numbers(COUNT, 3, seed=1).to(dtype), jacobian=jacobian, residual=torch.zeros(COUNT, dtype=dtype))


def value_and_gradients(dtype: torch.dtype, degree: int, deformed: bool, turn: bool) -> list[torch.Tensor]:
    shapes = ((3,), (4,), (3,), (), (1, 3), ((degree + 1) ** 2 - 1, 3))
    leaves = [numbers(COUNT, *shape, seed=10 + i).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
    twist = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.7, -0.4], dtype=dtype, requires_grad=True)
    c2w = se3.inverse(se3.exp(twist))
    higher = leaves[5] if degree else None
    out = view_gaussians(Splats(*leaves[:5]), c2w, make_local(dtype, deformed), active_degree=degree, turn=turn, higher=higher)
    values = list(vars(out).values())
    torch.autograd.backward([(v * numbers(*v.shape, seed=30 + i).to(dtype)).sum() for i, v in enumerate(values)])
    grads = [leaf.grad for leaf in (*leaves[: 6 if degree else 5], twist)]
    return [t.detach() for t in (*values, *grads) if t is not None]


@pytest.mark.parametrize(("degree", "deformed", "turn"), [(0, True, True), (1, True, False), (2, False, True), (3, True, True)])
def test_compiled_view_is_the_reference_one(degree: int, deformed: bool, turn: bool) -> None:
    before, compiled = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        compiled.append(value_and_gradients(torch.float32, degree, deformed, turn))
    torch.set_num_threads(before)
    exact = value_and_gradients(torch.float64, degree, deformed, turn)
    assert len(exact) == len(compiled[0]) == 5 + 5 + (degree > 0) + 1
    for got, again, expected in zip(*compiled, exact, strict=True):
        assert float((got.double() - expected).norm()) <= 2e-6 * float(expected.norm())
        assert torch.equal(got, again)
