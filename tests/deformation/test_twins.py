"""The inverse of the lattice and its derivatives: Numba and Triton against batched torch in float64."""

import pytest
import torch

from tests.twins import GPU, check, difference, implementations, needs_triton, normal, uniform
from train_gs.refine import interpolation
from utils.deformation import node_shift
from utils.deformation.inverse import FixedPointInverseWarp, LocalWarp
from utils.deformation.inverse import reference as inverse_reference
from utils.deformation.lattice.reference import LatticeField


def make_field() -> LatticeField:
    """Smooth, and so strong that the fixed point does not contract everywhere."""
    coarse = 0.15 * normal(0, 1, 3, 3, 2, 4)
    nodes = torch.nn.functional.interpolate(coarse, size=(5, 6, 7), mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
    K = torch.tensor([[[90.0, 0, 50], [0, 88, 31], [0, 0, 1]]], dtype=torch.float64)
    return LatticeField(nodes[None].contiguous(), torch.tensor([[0.2, 0.9]], dtype=torch.float64), K, torch.tensor([60, 100]))


def inverse(twin: str, y: torch.Tensor) -> LocalWarp:
    """By one of the implementations, in the type of y."""
    field = make_field()
    if twin == "numba":
        return FixedPointInverseWarp(field).to(y.dtype).linearize(y, 0)
    from utils.deformation.inverse import triton

    camera = torch.from_numpy(field.affine_coordinates(0)).float().to(GPU)
    solution = triton.invert_lattice(field.nodes[0].float().to(GPU), camera, y.float().to(GPU), inverse_reference.settings())
    return LocalWarp(y, *(t.cpu() for t in solution))


@implementations("numba", "triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverses_also_where_newton_is_needed(twin: str, dtype: torch.dtype) -> None:
    if twin == "triton" and dtype == torch.float64:
        pytest.skip("float32 only")
    field, y = make_field(), uniform(2, 200, 3) * 4 - torch.tensor([2.0, 2.0, -0.8])
    expected, got = inverse_reference.solve(field, 0, y), inverse(twin, y.to(dtype))
    unsteady = (y - field.displacement(y, 0) - expected.q0).norm(dim=-1) > 0.01
    solved = expected.residual < inverse_reference.TOLERANCE
    assert unsteady.any() and solved.float().mean() > 0.95
    assert bool((got.residual[solved] < 2 * inverse_reference.TOLERANCE).all())
    assert float((got.q0 - expected.q0)[solved].abs().max()) < 2e-4
    assert float((got.jacobian - expected.jacobian)[solved].abs().median()) < 1e-6
    assert inverse(twin, y[:0].to(dtype)).q0.shape == (0, 3)


@implementations("numba", "triton")
@pytest.mark.parametrize("count", [0, 300])
def test_shifts_of_the_inverse(twin: str, count: int) -> None:
    """Value (on the CPU) and gradient of the first-order change of the inverse with the nodes."""
    counts, camera = (3, 4, 5), torch.tensor([3.0, 2.0, 2.5, 1.5, 4.0, -0.5, 1e-3], dtype=torch.float64)
    points, gradient = normal(1, count, 3), normal(2, count, 3)
    points[:, 2] = points[:, 2].abs() + 1
    gradient[5:20] = 0
    jacobian = torch.eye(3, dtype=torch.float64) + 0.2 * normal(3, count, 3, 3)
    expected = node_shift.reference.shift_vjp(counts, points, jacobian, camera, gradient)
    if twin == "triton":
        from utils.deformation.node_shift import triton

        got = triton.shift_vjp(counts, *(t.float().to(GPU) for t in (points, jacobian, camera, gradient)))
        assert difference(got, expected) < 1e-5
        return

    def shift(change: torch.Tensor) -> list[torch.Tensor]:
        local = LocalWarp(*(t.to(change) for t in (points, points, jacobian, points[:, 0])))
        return [node_shift.node_shift(change, local, camera.to(change), is_zero=False)]

    reference = lambda change: [node_shift.reference.shift(change, points, jacobian, camera)]
    check(twin, shift, reference, [normal(4, *counts, 3)], (1e-5, 1e-5), by_thread=True)
    change = normal(4, *counts, 3).requires_grad_()
    reference(change)[0].backward(gradient)
    assert difference(change.grad, expected) < 1e-12


@needs_triton
def test_gradient_of_corrections_agrees_with_that_of_the_nodes_they_are_spread_over():
    from utils.deformation.node_shift import triton

    counts, coarse, num = (5, 9, 14), (2, 4, 5), 300
    camera = torch.tensor([9.0, 6.5, 6.0, 4.0, 8.0, -0.5, 1e-3], dtype=torch.float64)
    points, gradient = normal(1, num, 3), normal(2, num, 3)
    points[:, 2] = points[:, 2].abs() + 1
    gradient[5:20], gradient[64:128] = 0, 0
    jacobian = torch.eye(3, dtype=torch.float64) + 0.2 * normal(3, num, 3, 3)
    layers = torch.linspace(4.0, 1.0, 5, dtype=torch.float64)
    by_node = node_shift.reference.shift_vjp(counts, points, jacobian, camera, gradient) * layers[:, None, None, None]
    spread = [interpolation(c, n, torch.device("cpu")).double() for c, n in zip(coarse, counts, strict=True)]
    expected = torch.einsum("zyxk,zc,yb,xa->cbak", by_node, *spread)
    arrays = (t.float().to(GPU) for t in (camera, layers, points, jacobian, gradient))
    assert difference(triton.correction_vjp(counts, coarse, *arrays), expected) < 1e-5
