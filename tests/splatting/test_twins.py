"""Rasterisers, views and similarities: Numba and Triton against the references."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.twins import CPU, CUDA, GPU, check, difference, evaluate, implementations, needs_triton, normal, uniform
from utils.cameras import se3
from utils.deformation.inverse import LocalWarp
from utils.splatting import ssim, view
from utils.splatting.rasterize.contract import Rasterizer, SplatMode
from utils.splatting.rasterize.numba import NumbaRasterizer
from utils.splatting.rasterize.reference import TorchRasterizer
from utils.types import CameraGaussians, RenderOutput, Splats

SHAPES: dict[str, dict[str, Any]] = {  # of the tiles and chunks of the Triton rasteriser
    "triton": {},
    "triton small tiles": {"tile": 16, "chunk": 8, "back_chunk": 8, "dot": False, "segment": 16},
    "triton ahead": {"segment": 16, "steps": 2, "ahead": True, "warps": 1},
}
Size = tuple[int, int]


def rasterizer(twin: str) -> Rasterizer:
    if twin == "numba":
        return NumbaRasterizer(CPU)
    from utils.splatting.rasterize.triton import BlendShape, TritonRasterizer

    return TritonRasterizer(GPU, BlendShape(**SHAPES[twin]) if SHAPES[twin] else None)


def intrinsics(size: Size) -> Tensor:
    h, w = size
    return torch.tensor([[0.9 * w, 0, w / 2 + 1.3], [0, 0.95 * w, h / 2 - 0.7], [0, 0, 1]], dtype=torch.float64)


def cloud(count: int, size: Size, seed: int) -> list[Tensor]:
    """Means, quaternions, scales, opacities, colours: in view and around it, one behind, one too near, one that covers everything."""
    (h, w), K = size, intrinsics(size)
    z = 2 + 4 * uniform(seed, count)
    place = torch.stack([uniform(seed + 1, count), uniform(seed + 2, count)], -1) * 1.3 - 0.15
    x, y = ((place * torch.tensor([w, h]) - K[:2, 2]) / K.diagonal()[:2]).unbind(-1)
    scales = (0.9 * math.sqrt(h * w / max(count, 1)) * z / K[0, 0])[:, None] * torch.exp(0.4 * normal(seed + 3, count, 3))
    means = torch.stack([x * z, y * z, z], -1)
    means[:1, 2], means[1:2, 2], scales[2:3] = -1.0, 0.005, 4.0
    return [means, normal(seed + 4, count, 4), scales, torch.sigmoid(1 + 1.5 * normal(seed + 5, count)), uniform(seed + 6, count, 3)]


def images(out: RenderOutput) -> list[Tensor]:
    return [image for image in (out.rgb, out.alpha, out.depth, out.normal, out.distortion) if image is not None]


def drawing(rasterizer: Rasterizer, size: Size, mode: SplatMode) -> Callable[..., list[Tensor]]:
    return lambda *attributes: images(rasterizer.render(CameraGaussians(*attributes), intrinsics(size).to(attributes[0]), size, mode))


@implementations("numba", *SHAPES)
@pytest.mark.parametrize("mode", ["3dgs", "2dgs"])
@pytest.mark.parametrize(("count", "size"), [(50, (17, 26)), (300, (40, 50))])
def test_rasterizers(twin: str, mode: SplatMode, count: int, size: Size) -> None:
    if twin.startswith("triton") and count > 100 and not CUDA:
        pytest.skip("the interpreter is slow")
    check(twin, drawing(rasterizer(twin), size, mode), drawing(TorchRasterizer(CPU), size, mode), cloud(count, size, 1), (1e-5, 3e-4))


@implementations("torch", "numba", "triton")
@pytest.mark.parametrize("mode", ["3dgs", "2dgs"])
@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_draw_is_black_with_zero_gradients(twin: str, mode: SplatMode, count: int) -> None:
    attributes = cloud(count, (20, 30), 0)
    attributes[0] = attributes[0] - torch.tensor([0.0, 0.0, 10.0])
    backend = TorchRasterizer(CPU) if twin == "torch" else rasterizer(twin)
    values, gradients = evaluate(drawing(backend, (20, 30), mode), attributes, GPU if twin == "triton" else CPU, torch.float32)
    assert len(values) == (5 if mode == "2dgs" else 3) and len(gradients) == 5
    assert all(bool((r == 0).all()) for r in (*values, *gradients))


@needs_triton
@pytest.mark.parametrize("mode", ["3dgs", "2dgs"])
def test_room_for_more_pairs_than_there_are_changes_nothing_and_too_little_leaves_out_the_farthest(mode: SplatMode) -> None:
    attributes, size, backend = cloud(50, (17, 26), 3), (17, 26), rasterizer("triton")
    budget = backend.budget
    draw = lambda: list(chain(*evaluate(drawing(backend, size, mode), attributes, GPU, torch.float32)))
    expected = draw()
    needed = int(budget.needed)
    budget.capacity = needed + 77
    got = draw()
    assert all(torch.equal(g, e) for g, e in zip(got[:2], expected[:2], strict=True))
    assert max(difference(g, e) for g, e in zip(got, expected, strict=True)) < 1e-5
    budget.capacity = needed // 2
    changed = (draw()[1] - expected[1]).cpu()
    assert float(changed.min()) < 0 and float(changed.max()) < 1e-5
    assert int(budget.needed) == needed


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_a_large_cloud_agrees_with_the_reference_on_the_device() -> None:
    attributes, size = cloud(3000, (96, 128), 8), (96, 128)
    for mode in ("3dgs", "2dgs"):
        expected = list(chain(*evaluate(drawing(TorchRasterizer(GPU), size, mode), attributes, GPU, torch.float64)))
        got = list(chain(*evaluate(drawing(rasterizer("triton"), size, mode), attributes, GPU, torch.float32)))
        assert max(difference(g, e.cpu()) for g, e in zip(got, expected, strict=True)) < 1e-3


class View:
    """What one of the implementations makes of canonical splats; a joined one has all bands in one tensor."""

    def __init__(self, function: Callable[..., CameraGaussians], count: int, degree: int, deformed: bool, turn: bool, joined: bool):
        self.function, self.degree, self.turn, self.joined, self.deformed = function, degree, turn, joined, deformed
        y0 = normal(6, count, 3)
        self.warp = [y0, y0 + 0.1 * normal(7, count, 3), torch.eye(3) + 0.1 * normal(8, count, 3, 3)]

    def __call__(self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, twist: Tensor) -> Sequence[Tensor]:
        y0, q0, jacobian = (t.to(means) for t in self.warp)
        local = LocalWarp(y0=y0, q0=q0, jacobian=jacobian if self.deformed else None, residual=torch.zeros_like(y0[:, 0]))
        base, higher = (sh, None) if self.joined else (sh[:, :1], sh[:, 1:])
        splats = Splats(means, quats, scales, opacities, base)
        out = self.function(splats, se3.exp(twist), local, active_degree=self.degree, turn=self.turn, higher=higher)
        return list(vars(out).values())


@implementations("numba", "triton")
@pytest.mark.parametrize("count", [0, 5000])  # more than two blocks of sums
@pytest.mark.parametrize(
    ("degree", "bands", "deformed", "turn", "joined"),
    [
        (0, 1, True, True, True),
        (1, 4, True, False, True),
        (2, 9, False, True, False),
        (3, 16, True, True, False),
        (0, 16, True, True, True),
    ],
)
def test_views(twin: str, count: int, degree: int, bands: int, deformed: bool, turn: bool, joined: bool) -> None:
    if twin == "triton":
        from utils.splatting.view import triton

        count = min(count, 5000 if CUDA else 70)
    function = view.numba.view_gaussians if twin == "numba" else triton.view_gaussians
    shapes = ((3,), (4,), (3,), (), (bands, 3))
    arrays = [0.5 * normal(10 + i, count, *shape) for i, shape in enumerate(shapes)] + [0.3 * normal(5, 6)]
    settings = (count, degree, deformed, turn, joined)
    check(twin, View(function, *settings), View(view.reference.view_gaussians, *settings), arrays, (2e-6, 1e-5))


@needs_triton
def test_rigid_views() -> None:
    from utils.deformation.inverse import camera_from_world
    from utils.splatting.view import triton

    pose, points = se3.exp(normal(0, 6)), normal(1, 300, 3)
    got = triton.camera_from_world(points.float().to(GPU), pose.float().to(GPU))
    assert difference(got, camera_from_world(points, pose)) < 1e-6


@implementations("numba", "triton")
@pytest.mark.parametrize("size", [(40, 33), (7, 5), (3, 64)])
def test_similarities(twin: str, size: Size) -> None:
    if twin == "triton" and size != (7, 5) and not CUDA:
        pytest.skip("the interpreter is slow")
    b = uniform(0, *size, 3)
    a = b + 0.2 * normal(1, *size, 3)
    a[0, 0] = b[0, 0]
    if twin == "numba":
        function = lambda x: [torch.stack(ssim.numba.l1_and_ssim(x, b.to(x)))]
        reference = lambda x: [torch.stack([(x - b).abs().mean(), ssim.reference.ssim(x, b)])]
    else:
        from utils.splatting.ssim import triton

        function = lambda x: [triton.ssim(x, b.to(x))]
        reference = lambda x: [ssim.reference.ssim(x, b)]
    check(twin, function, reference, [a], (2e-6, 1e-4))
