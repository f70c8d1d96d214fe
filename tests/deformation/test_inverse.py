"""The inverse warp: exact round trip, agreement of kernel and oracle, and the true gradient with respect to points and pose."""

import numpy as np
import pytest
import torch

from train_inverse_deformation.validate import round_trip
from utils.cameras import se3
from utils.cameras.rotations import quat_to_matrix
from utils.deformation.artifact import inverse_from_state
from utils.deformation.inverse import FixedPointInverseWarp, IdentityInverseWarp, InverseWarp, reference
from utils.deformation.lattice.reference import LatticeField
from utils.errors import CorruptArtifactError
from utils.types import CameraSet, LatticeFields

SIZE = (48, 64)


def make_cameras(frames: int = 2) -> CameraSet:
    twists = torch.tensor([[0.3, -0.2, 0.1, 1.0, -0.5, 0.4]], dtype=torch.float64) * torch.arange(1, frames + 1)[:, None]
    K = np.tile(np.array([[55.0, 0, 32], [0, 55.0, 24], [0, 0, 1]]), (frames, 1, 1))
    return CameraSet(c2w=se3.exp(twists).numpy(), K=K, size=SIZE, frame_ids=np.arange(frames))


def make_field(amplitude: float = 0.05, frames: int = 2, shape: tuple[int, int, int] = (4, 5, 7)) -> LatticeField:
    rng = np.random.default_rng(3)
    nodes = amplitude * rng.standard_normal((frames, *shape, 3)).astype(np.float32)
    ranges = np.tile([0.1, 1.0], (frames, 1))
    return LatticeField.from_fields(LatticeFields(nodes=nodes, inv_depth_range=ranges), make_cameras(frames), torch.float64)


def points_in_view(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x, y, z = rng.uniform(-10, 74, count), rng.uniform(-10, 58, count), rng.uniform(1.2, 9.0, count)
    return torch.from_numpy(np.stack([(x - 32) / 55 * z, (y - 24) / 55 * z, z], -1))


def test_displacement_at_a_node_is_the_node() -> None:
    field = make_field()
    nz, nv, nu = field.nodes.shape[1:4]
    a, b, c = 2, 3, 1  # u, v, inverse depth
    z = 1.0 / (0.1 + c / (nz - 1) * 0.9)
    x, y = a / (nu - 1) * SIZE[1], b / (nv - 1) * SIZE[0]
    point = torch.tensor([[(x - 32) / 55 * z, (y - 24) / 55 * z, z]], dtype=torch.float64)
    torch.testing.assert_close(field.displacement(point, 1)[0], field.nodes[1, c, b, a])


def test_outside_and_behind_are_clamped_and_finite() -> None:
    field = make_field()
    points = torch.tensor([[0.0, 0.0, 500.0], [1.0, 1.0, -2.0], [0.0, 0.0, 0.0], [900.0, 0.0, 2.0]], dtype=torch.float64)
    delta, slope = field.displacement_and_jacobian(points, 0)
    assert torch.isfinite(delta).all()
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(slope[0, :, 2], delta[0] / 500.0)  # beyond the lattice a displacement keeps its share of depth
    local = FixedPointInverseWarp(field).linearize(points, 0)
    assert torch.isfinite(local.q0).all()


def test_jacobian_matches_autograd() -> None:
    field, points = make_field(), points_in_view(40)
    _, slope = field.displacement_and_jacobian(points, 1)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: field.displacement(p[None], 1)[0], p) for p in points]  # type: ignore[misc]
    )
    torch.testing.assert_close(slope, expected)


def test_round_trip_is_exact_on_moderate_fields() -> None:
    field, cameras = make_field(0.03), make_cameras()
    trip = round_trip(FixedPointInverseWarp(field), field, cameras, 1, points_in_view(2000))
    assert trip.p99 < 1e-4
    assert trip.unsolved == 0
    rigid = round_trip(IdentityInverseWarp(), field, cameras, 1, points_in_view(2000))
    assert rigid.median > 100 * trip.median + 1e-3  # without the inverse the error is that of the field


def test_newton_solves_where_the_fixed_point_does_not_contract() -> None:
    # delta_x grows by 2.4 per unit of x: plain iteration diverges although the map stays one to one.
    nodes = np.zeros((1, 2, 2, 2, 3), np.float32)
    nodes[0, :, :, 0, 0], nodes[0, :, :, 1, 0] = -1.4, 1.4
    field = LatticeField.from_fields(LatticeFields(nodes=nodes, inv_depth_range=np.array([[0.1, 1.0]])), make_cameras(1), torch.float64)
    y = points_in_view(200) * torch.tensor([0.3, 1.0, 1.0])
    y[:, 2] = 1.0
    for solve in (FixedPointInverseWarp(field).linearize, lambda y, frame: reference.solve(field, frame, y)):
        local = solve(y, 0)
        assert local.residual.max() < 1e-4
        torch.testing.assert_close(local.q0 + field.displacement(local.q0, 0), y, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernel_matches_torch(dtype: torch.dtype) -> None:
    warp = FixedPointInverseWarp(make_field(0.04)).to(dtype)
    y = points_in_view(500).to(dtype)
    fast, slow = warp.linearize(y, 1), reference.solve(warp.field, 1, y)
    assert fast.jacobian is not None
    assert slow.jacobian is not None
    torch.testing.assert_close(fast.q0, slow.q0, atol=2e-4, rtol=0)
    assert (fast.jacobian - slow.jacobian).abs().median() < 1e-3
    assert max(fast.residual.max(), slow.residual.max()) < 2e-5


def loss_of(warp: InverseWarp, points: torch.Tensor, xi: torch.Tensor, c2w: torch.Tensor) -> torch.Tensor:
    """A projection-like scalar of the warped points, so that every component of the gradient counts differently."""
    q = warp.to_camera(points, 1, se3.exp(xi) @ c2w)
    weights = torch.linspace(-1, 2, q.numel(), dtype=q.dtype).reshape(q.shape)
    return (weights * q / q[:, 2:]).sum() + (weights.flip(0) * q).sum()


def test_gradients_match_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.deformation.inverse.reference.TOLERANCE", 1e-13)
    warp = FixedPointInverseWarp(make_field(0.05))
    c2w = torch.from_numpy(make_cameras().c2w[1])
    points = (points_in_view(60) @ c2w[:3, :3].T + c2w[:3, 3]).requires_grad_()
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    loss_of(warp, points, xi, c2w).backward()
    assert xi.grad is not None
    assert points.grad is not None
    step = 1e-6
    for k in range(6):
        shift = torch.zeros(6, dtype=torch.float64)
        shift[k] = step
        with torch.no_grad():
            numeric = (loss_of(warp, points, shift, c2w) - loss_of(warp, points, -shift, c2w)) / (2 * step)
        assert abs(numeric) > 1.0
        torch.testing.assert_close(xi.grad[k], numeric, rtol=1e-5, atol=1e-5)
    for row, axis in ((0, 0), (17, 1), (41, 2)):
        moved = points.detach().clone()
        moved[row, axis] += step
        back = points.detach().clone()
        back[row, axis] -= step
        with torch.no_grad():
            numeric = (loss_of(warp, moved, xi, c2w) - loss_of(warp, back, xi, c2w)) / (2 * step)
        torch.testing.assert_close(points.grad[row, axis], numeric, rtol=1e-5, atol=1e-5)


def test_local_warp_predicts_small_moves() -> None:
    warp = FixedPointInverseWarp(make_field(0.05))
    y = points_in_view(400)
    moved = y + 1e-3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    predicted, exact = warp.linearize(y, 0)(moved), warp.linearize(moved, 0).q0
    assert (predicted - exact).norm(dim=-1).median() < 0.02 * 1e-3


def test_local_rotation_of_a_rotating_field() -> None:
    # delta(q) = (R - I) q on the nodes of a fine lattice: the inverse turns by R^T.
    rotation = se3.exp(torch.tensor([0.02, -0.03, 0.04, 0, 0, 0], dtype=torch.float64))[:3, :3]
    nz, nv, nu = 9, 12, 16
    inv_z = torch.linspace(0.1, 1.0, nz, dtype=torch.float64)
    z, v, u = torch.meshgrid(1 / inv_z, torch.linspace(0, 48, nv).double(), torch.linspace(0, 64, nu).double(), indexing="ij")
    q = torch.stack([(u - 32) / 55 * z, (v - 24) / 55 * z, z], -1)
    nodes = (q @ rotation.T - q)[None].numpy()
    fields = LatticeFields(nodes=nodes, inv_depth_range=np.array([[0.1, 1.0]]))
    warp = FixedPointInverseWarp(LatticeField.from_fields(fields, make_cameras(1), torch.float64))
    y = points_in_view(200)
    y = y[(y[:, 2] < 3) & (y[:, :2].abs().amax(-1) < 0.3 * y[:, 2])]
    quats = warp.linearize(y, 0).rotation_quaternions
    assert quats is not None
    error = quat_to_matrix(quats).median(0).values - rotation.T
    assert error.abs().max() < 5e-3
    assert (torch.eye(3) - rotation.T).abs().max() > 0.03


def test_state_round_trip_and_damage() -> None:
    warp = FixedPointInverseWarp(make_field())
    again = inverse_from_state(warp.config(), dict(warp.state_dict()))
    y = points_in_view(20)
    torch.testing.assert_close(again.linearize(y, 1).q0, warp.linearize(y, 1).q0)
    with pytest.raises(CorruptArtifactError, match="no tensor"):
        inverse_from_state(warp.config(), {})
    for name in ("nodes", "inv_depth_range", "K", "size"):
        for damaged in (warp.state_dict()[f"field.{name}"][:1], torch.zeros(())):
            if damaged.shape != warp.state_dict()[f"field.{name}"].shape:
                with pytest.raises(CorruptArtifactError, match="has shape"):
                    inverse_from_state(warp.config(), {**warp.state_dict(), f"field.{name}": damaged})
    with pytest.raises(CorruptArtifactError, match="unknown method"):
        inverse_from_state({"method": "magic"}, {})
