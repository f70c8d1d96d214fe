"""GPU kernels against their float64 oracles: in Triton's interpreter on the CPU, compiled where there is a CUDA device."""

import importlib.util
import os

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

from configs.stage1_align import SolverConfig  # noqa: E402
from train_gs import cameras_triton  # noqa: E402
from train_gs.refine import interpolation  # noqa: E402
from utils.cameras import se3  # noqa: E402
from utils.cameras.rotations import matrix_to_quat  # noqa: E402
from utils.deformation import inverse, node_shift  # noqa: E402
from utils.deformation.inverse import FIXED_POINT_STEPS, LEAST_DETERMINANT, NEWTON_STEPS, TOLERANCE, FixedPointInverseWarp, LocalWarp  # noqa: E402
from utils.deformation.lattice import triton as lattice_triton  # noqa: E402
from utils.deformation.lattice.reference import LatticeField  # noqa: E402
from utils.matching.contract import MatchSet  # noqa: E402
from utils.matching.optical_flow import reference as flow_torch  # noqa: E402
from utils.matching.optical_flow import triton as flow_triton  # noqa: E402
from utils.registration import solver  # noqa: E402
from utils.registration.solver import problem as solver_problem  # noqa: E402
from utils.registration.solver import triton as solver_triton  # noqa: E402
from utils.splatting.rasterize.reference import TorchRasterizer  # noqa: E402
from utils.splatting.rasterize.triton import BlendShape, TritonRasterizer  # noqa: E402
from utils.splatting.ssim import reference as ssim  # noqa: E402
from utils.splatting.ssim import triton as ssim_triton  # noqa: E402
from utils.splatting.view import reference as gaussians  # noqa: E402
from utils.splatting.view import triton as gaussians_triton  # noqa: E402
from utils.types import CameraGaussians, CameraSet, Splats  # noqa: E402

DEVICE = torch.device("cuda" if CUDA else "cpu")
MODES = ("3dgs", "2dgs")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def relative(got, expected):
    got, expected = got.detach().cpu().double(), expected.detach().cpu()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-9))


def cloud(num, seed):
    """Some behind the camera or nearer than the near plane, one that covers the image many times over."""
    uniform = torch.rand(num, 8, generator=generator(seed), dtype=torch.float64)
    z = uniform[:, 0] * 3 + 1
    means = torch.stack([(uniform[:, 1] - 0.5) * 1.6 * z, (uniform[:, 2] - 0.5) * 1.2 * z, z], -1)
    scales = 0.06 * torch.exp(0.6 * normal(seed + 1, num, 3))
    means[0, 2], means[1, 2], scales[2] = -1.0, 0.005, 4.0
    return [means, normal(seed + 2, num, 4), scales, uniform[:, 3], uniform[:, 4:7]]


def render(rasterizer, attributes, size, mode, dtype):
    leaves = [a.detach().to(rasterizer.device, dtype, copy=True).requires_grad_() for a in attributes]
    h, w = size
    K = torch.tensor([[0.9 * w, 0, 0.48 * w], [0, 0.85 * w, 0.53 * h], [0, 0, 1]], dtype=dtype, device=rasterizer.device)
    out = rasterizer.render(CameraGaussians(*leaves), K, size, mode)
    images = [out.rgb, out.alpha, out.depth, *((out.normal, out.distortion) if mode == "2dgs" else ())]
    weights = [normal(50 + i, *image.shape).to(image) for i, image in enumerate(images)]
    sum((i * w).sum() for i, w in zip(images, weights, strict=True)).backward()
    return [*images, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [None, BlendShape(tile=16, chunk=8, back_chunk=8, dot=False, segment=16), BlendShape(segment=16, steps=2, ahead=True, warps=1)]
)
def test_rasterizer_agrees_with_the_oracle(mode, shape):
    attributes, size = cloud(50, 3), (17, 26)
    expected = render(TorchRasterizer(torch.device("cpu")), attributes, size, mode, torch.float64)
    got = render(TritonRasterizer(DEVICE, shape), attributes, size, mode, torch.float32)
    assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num", [0, 3])
def test_nothing_to_draw_is_black_with_zero_gradients(mode, num):
    attributes = [a[:num] for a in cloud(5, 1)]
    attributes[0] = attributes[0] - 10.0
    results = render(TritonRasterizer(DEVICE), attributes, (9, 13), mode, torch.float32)
    assert all(bool((r == 0).all()) for r in results)


def test_inverse_agrees_with_batched_torch_also_where_newton_is_needed():
    coarse = 0.15 * normal(0, 1, 3, 3, 2, 4)
    nodes = torch.nn.functional.interpolate(coarse, size=(5, 6, 7), mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
    K = torch.tensor([[[90.0, 0, 50], [0, 88, 31], [0, 0, 1]]], dtype=torch.float64)
    field = LatticeField(nodes[None].contiguous(), torch.tensor([[0.2, 0.9]], dtype=torch.float64), K, torch.tensor([60, 100]))
    y = torch.rand(200, 3, generator=generator(2), dtype=torch.float64) * 4 - torch.tensor([2.0, 2.0, -0.8])
    expected = FixedPointInverseWarp(field).linearize_torch(y, 0)
    camera = torch.from_numpy(field.affine_coordinates(0)).float().to(DEVICE)
    settings = (FIXED_POINT_STEPS, NEWTON_STEPS, TOLERANCE, LEAST_DETERMINANT)
    q, jacobian, residual = (
        t.cpu() for t in lattice_triton.invert_lattice(nodes.float().to(DEVICE), camera, y.float().to(DEVICE), settings)
    )
    unsteady = (y - field.displacement(y, 0) - expected.q0).norm(dim=-1) > 0.01
    solved = expected.residual < TOLERANCE
    assert unsteady.any() and solved.float().mean() > 0.95
    assert bool((residual[solved] < 2 * TOLERANCE).all())
    assert float((q - expected.q0)[solved].abs().max()) < 2e-4
    assert float((jacobian - expected.jacobian)[solved].abs().median()) < 1e-6


def test_gradient_of_the_nodes():
    counts, num = (3, 4, 5), 300
    camera = torch.tensor([3.0, 2.0, 2.5, 1.5, 4.0, -0.5, 1e-3], dtype=torch.float64)
    points, gradient = normal(1, num, 3), normal(2, num, 3)
    points[:, 2] = points[:, 2].abs() + 1
    gradient[5:20] = 0
    jacobian = torch.eye(3, dtype=torch.float64) + 0.2 * normal(3, num, 3, 3)
    expected = node_shift._shift_vjp_torch(counts, points, jacobian, camera, gradient)
    got = lattice_triton.shift_vjp(counts, *(t.float().to(DEVICE) for t in (camera, points, jacobian, gradient)))
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_room_for_more_pairs_than_there_are_changes_nothing_and_too_little_leaves_out_the_farthest(mode):
    attributes, size = cloud(50, 3), (17, 26)
    rasterizer = TritonRasterizer(DEVICE)
    expected = render(rasterizer, attributes, size, mode, torch.float32)
    needed = int(rasterizer.budget.needed)
    rasterizer.budget.capacity = needed + 77
    got = render(rasterizer, attributes, size, mode, torch.float32)
    assert all(torch.equal(g, e) for g, e in zip(got[:2], expected[:2], strict=True))
    assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-5
    rasterizer.budget.capacity = needed // 2
    nearer = render(rasterizer, attributes, size, mode, torch.float32)
    changed = (nearer[1] - expected[1]).detach().cpu()
    assert float(changed.min()) < 0 and float(changed.max()) < 1e-5
    assert int(rasterizer.budget.needed) == needed


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("degree", "bands", "warped"), [(3, 16, True), (0, 16, True), (1, 4, False), (0, 1, True)])
def test_view_of_the_splats_agrees_with_torch(degree, bands, warped, split):
    num = 70
    arrays = [normal(0, num, 3), normal(1, num, 4), 0.3 * normal(2, num, 3), normal(3, num), 0.3 * normal(4, num, bands, 3)]
    pose, y0 = se3.exp(0.3 * normal(5, 6)), normal(6, num, 3)
    jacobian = torch.eye(3, dtype=torch.float64) + 0.1 * normal(7, num, 3, 3)

    def evaluate(function, device, dtype):
        leaves = [a.detach().to(device, dtype, copy=True).requires_grad_() for a in (*arrays, pose)]
        first, turn, residual = (t.to(device, dtype) for t in (y0, jacobian, y0[:, 0]))
        local = LocalWarp(first, first + 0.1, turn if warped else None, residual)
        base, higher = (leaves[4][:, :1], leaves[4][:, 1:]) if split and bands > 1 else (leaves[4], None)
        view = function(Splats(*leaves[:4], base), leaves[5], local, active_degree=degree, turn=True, higher=higher)
        outputs = [view.means, view.quats, view.scales, view.opacities, view.colors]
        sum((o * normal(20 + i, *o.shape).to(o)).sum() for i, o in enumerate(outputs)).backward()
        return [*outputs, *(leaf.grad for leaf in leaves)]

    expected = evaluate(gaussians.view_gaussians, torch.device("cpu"), torch.float64)
    got = evaluate(gaussians_triton.view_gaussians, DEVICE, torch.float32)
    assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-5


def test_ssim_agrees_with_torch():
    a, b = torch.rand(2, 14, 19, 3, generator=generator(0), dtype=torch.float64)
    expected, got = a.clone().requires_grad_(), a.float().to(DEVICE).requires_grad_()
    value = ssim.ssim(expected, b)
    value.backward()
    similar = ssim_triton.ssim(got, b.float().to(DEVICE))
    similar.backward()
    assert float(similar.detach()) == pytest.approx(float(value.detach()), abs=1e-5)
    assert relative(got.grad, expected.grad) < 1e-4


def alignment_problem(fixed):
    rng = np.random.default_rng(0)
    frames, (h, w) = 3, (30, 50)
    c2w = se3.exp(torch.from_numpy(rng.normal(size=(frames, 6)) * 0.05)).numpy()
    K = np.tile(np.array([[45.0, 0, 25], [0, 45, 15], [0, 0, 1]]), (frames, 1, 1))
    cameras = CameraSet(c2w=c2w, K=K, size=(h, w), frame_ids=np.arange(frames))
    shape = solver_problem.LatticeShape((3, 3, 2), np.tile(np.array([[0.2, 0.6]]), (frames, 1)), 3.0)
    matches, targets = [], []
    for i, j in ((0, 1), (1, 2)):
        pixels, depth = rng.uniform([0, 0], [w, h], (40, 2)).astype(np.float32), rng.uniform(2, 4, 40).astype(np.float32)
        points = np.stack([(pixels[:, 0] - 25) / 45 * depth, (pixels[:, 1] - 15) / 45 * depth, depth], 1)
        seen = (points @ c2w[i, :3, :3].T + c2w[i, :3, 3] + rng.normal(size=(40, 3)) * 0.01 - c2w[j, :3, 3]) @ c2w[j, :3, :3]
        moved = np.stack([seen[:, 0] / seen[:, 2] * 45 + 25, seen[:, 1] / seen[:, 2] * 45 + 15], 1).astype(np.float32)
        matches.append(MatchSet(i, j, pixels, moved, depth, seen[:, 2].astype(np.float32)))
        targets.append(rng.normal(size=(40, 3)))
    config = SolverConfig(lattice=(3, 3, 2), cg_iterations=3, robust_scales=(6.0, 3.0))
    problem = solver_problem.build_problem(matches, cameras, shape, config.match_sigma, targets if fixed else None)
    return problem, solver_problem.initial_state(cameras, shape), shape, config


@pytest.mark.skipif(CUDA, reason="solver.solve already runs on the GPU")
@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_solver_agrees_with_the_compiled_one(fixed, errors, monkeypatch):
    monkeypatch.setattr(solver_triton, "BLOCK", 32)
    problem, state, shape, config = alignment_problem(fixed)
    first = np.random.default_rng(1).uniform(0, 0.01, len(problem.depth)) if errors else None
    origin = 0.001 * np.random.default_rng(2).normal(size=state.nodes.shape)
    expected = solver.solve(problem, state, shape, config, 400.0, first, origin=origin)
    got = solver_triton.solve(problem, state, shape, config, 400.0, first, origin, DEVICE)
    for name in ("c2w", "nodes", "update"):
        a, b = getattr(got, name), getattr(expected, name)
        assert np.abs(a - b).max() < 1e-9 * np.abs(b).max()


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_large_cloud_agrees_with_the_oracle_on_the_device():
    attributes, size = cloud(3000, 8), (96, 128)
    for mode in MODES:
        expected = render(TorchRasterizer(DEVICE), attributes, size, mode, torch.float64)
        got = render(TritonRasterizer(DEVICE), attributes, size, mode, torch.float32)
        assert max(relative(g, e.cpu()) for g, e in zip(got, expected, strict=True)) < 1e-3


def test_flow_relaxation_agrees_with_torch():
    draw = lambda *shape: torch.rand(*shape, generator=generator(sum(shape)))
    batch, h, w = 2, 11, 17
    xx, yy, xy = 1 + draw(batch, 1, h, w), 1 + draw(batch, 1, h, w + 0), draw(batch, 1, h, w) - 0.5
    across, down = torch.zeros(batch, 1, h, w + 1), torch.zeros(batch, 1, h + 1, w)
    across[..., 1:-1], down[..., 1:-1, :] = draw(batch, 1, h, w - 1), draw(batch, 1, h - 1, w)
    right, flow = draw(batch, 2, h, w), draw(batch, 2, h, w + 0)
    arguments = (xx, xy, yy, right, across, down, flow)
    expected = flow_torch.relax(*arguments)
    got = flow_triton.relax(*(a.to(DEVICE) for a in arguments), flow_torch.RELAXATIONS)
    assert relative(got, expected.double()) < 1e-5


def test_gradient_of_corrections_agrees_with_that_of_the_nodes_they_are_spread_over():
    counts, coarse, num = (5, 9, 14), (2, 4, 5), 300
    camera = torch.tensor([9.0, 6.5, 6.0, 4.0, 8.0, -0.5, 1e-3], dtype=torch.float64)
    points, gradient = normal(1, num, 3), normal(2, num, 3)
    points[:, 2] = points[:, 2].abs() + 1
    gradient[5:20], gradient[64:128] = 0, 0
    jacobian = torch.eye(3, dtype=torch.float64) + 0.2 * normal(3, num, 3, 3)
    layers = torch.linspace(4.0, 1.0, 5, dtype=torch.float64)
    by_node = node_shift._shift_vjp_torch(counts, points, jacobian, camera, gradient) * layers[:, None, None, None]
    spread = [interpolation(c, n, torch.device("cpu")).double() for c, n in zip(coarse, counts, strict=True)]
    expected = torch.einsum("zyxk,zc,yb,xa->cbak", by_node, *spread)
    arrays = (t.float().to(DEVICE) for t in (camera, layers, points, jacobian, gradient))
    assert relative(lattice_triton.correction_vjp(counts, coarse, *arrays), expected) < 1e-5


@pytest.mark.parametrize("size", [0.02, 0.9, 2.8])
def test_pose_agrees_with_torch(size):
    scale, w2c = torch.tensor([1.0, 1, 1, 3, 3, 3], dtype=torch.float64), se3.exp(normal(1, 6))
    expected = (size * torch.nn.functional.normalize(normal(0, 6), dim=0)).requires_grad_()
    got = expected.detach().float().to(DEVICE).requires_grad_()
    c2w = se3.inverse(se3.exp(expected * scale) @ w2c)
    quat = matrix_to_quat(c2w[:3, :3].T)
    found, turn = cameras_triton.pose(got, scale.float().to(DEVICE), w2c.float().to(DEVICE))
    assert relative(found, c2w) < 1e-6
    assert relative(turn, quat) < 1e-6
    weights, others = normal(2, 4, 4)[:3], normal(3, 4)
    ((c2w[:3] * weights).sum() + (quat * others).sum()).backward()
    ((found[:3] * weights.to(found)).sum() + (turn * others.to(turn)).sum()).backward()
    assert relative(got.grad, expected.grad) < 1e-5


def test_rigid_positions_agree_with_torch():
    pose, points = se3.exp(normal(0, 6)), normal(1, 300, 3)
    got = gaussians_triton.camera_from_world(points.float().to(DEVICE), pose.float().to(DEVICE))
    assert relative(got, inverse.camera_from_world(points, pose)) < 1e-6


def test_equations_of_the_flow_agree_with_torch():
    draw = lambda channels, k: torch.rand(2, channels, 11, 17, generator=generator(k), dtype=torch.float64)
    source, warped, known, flow = 200 * draw(1, 0), 200 * draw(1, 1), (draw(1, 2) > 0.2).double(), draw(2, 3) - 0.5
    expected = flow_torch.linearised(source, warped, known, flow)
    arrays = (t.float().to(DEVICE) for t in (source, warped, known, flow))
    got = flow_triton.linearised(*arrays, flow_torch.ROBUST_TERMS)
    assert max(relative(g, e) for g, e in zip(got, expected, strict=True)) < 1e-4
