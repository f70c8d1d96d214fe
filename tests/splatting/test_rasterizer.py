"""Every CPU rasteriser against the dense float64 one, and that one against finite differences and plain geometry."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.errors import MissingDependencyError, UnknownBackendError
from utils.splatting.rasterize.contract import RASTERIZERS, SplatMode, load_rasterizer
from utils.splatting.rasterize.numba import depth_order
from utils.types import CameraGaussians, RenderOutput

MODES: list[SplatMode] = ["3dgs", "2dgs"]
CUDA_BACKENDS = ("gsplat", "triton")
CPU_BACKENDS = [name for name in RASTERIZERS.names() if name not in CUDA_BACKENDS]
NAMES = ("means", "quats", "scales", "opacities", "colors")


def make_scene(count: int, size: tuple[int, int], seed: int) -> tuple[list[Tensor], Tensor]:
    """Float64 attributes filling the view and some of its surroundings, and K with an off-centre principal point."""
    g = torch.Generator().manual_seed(seed)
    h, w = size
    fx, fy, cx, cy = 0.9 * w, 0.95 * w, w / 2 + 1.3, h / 2 - 0.7
    z = 2 + 4 * torch.rand(count, generator=g, dtype=torch.float64)
    x = (torch.rand(count, generator=g, dtype=torch.float64) * 1.3 - 0.15) * w
    y = (torch.rand(count, generator=g, dtype=torch.float64) * 1.3 - 0.15) * h
    means = torch.stack([(x - cx) / fx * z, (y - cy) / fy * z, z], -1)
    sigma = 0.9 * math.sqrt(h * w / count) * z / fx
    scales = sigma[:, None] * torch.exp(0.4 * torch.randn(count, 3, generator=g, dtype=torch.float64))
    quats = torch.randn(count, 4, generator=g, dtype=torch.float64)
    opacities = torch.sigmoid(1 + 1.5 * torch.randn(count, generator=g, dtype=torch.float64))
    colors = torch.rand(count, 3, generator=g, dtype=torch.float64)
    return [means, quats, scales, opacities, colors], torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def draw(name: str, attributes: list[Tensor], K: Tensor, size: tuple[int, int], mode: SplatMode, near: float = 0.01) -> RenderOutput:
    return load_rasterizer(name, "cpu").render(CameraGaussians(*attributes), K, size, mode, near)


def images_of(out: RenderOutput) -> dict[str, Tensor]:
    named = {"rgb": out.rgb, "alpha": out.alpha, "depth": out.depth, "normal": out.normal, "distortion": out.distortion}
    return {name: image for name, image in named.items() if image is not None}


def draw_with_gradients(
    name: str, attributes: list[Tensor], K: Tensor, size: tuple[int, int], mode: SplatMode, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images, and gradients of a fixed random linear function of them."""
    leaves = [a.to(dtype).clone().requires_grad_() for a in attributes]
    images = images_of(draw(name, leaves, K.to(dtype), size, mode))
    g = torch.Generator().manual_seed(5)
    loss = torch.stack([(i * torch.randn(i.shape, generator=g, dtype=torch.float64).to(dtype)).sum() for i in images.values()]).sum()
    torch.autograd.backward(loss)
    return images, {n: leaf.grad for n, leaf in zip(NAMES, leaves, strict=True) if leaf.grad is not None}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name].double() - value).norm() / value.norm().clamp(min=1e-12)
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_hidden_gaussians_change_nothing(backend: str, mode: SplatMode) -> None:
    """Behind the camera, off-screen, transparent: no part in the image, gradients of exactly 0."""
    size = (24, 40)
    attributes, K = make_scene(60, size, 1)
    visible = draw(backend, attributes, K, size, mode)
    hidden = [a[:4].clone() for a in attributes]
    hidden[0][0] = torch.tensor([0.0, 0.0, -3.0])
    hidden[0][1] = torch.tensor([0.0, 0.0, 1e-4])
    hidden[0][2] = torch.tensor([50.0, -70.0, 3.0])
    hidden[3][3] = 1e-3
    leaves = [torch.cat([h, a]).requires_grad_() for h, a in zip(hidden, attributes, strict=True)]
    out = draw(backend, leaves, K, size, mode)
    for name, image in images_of(out).items():
        torch.testing.assert_close(image, images_of(visible)[name])
    torch.autograd.backward([i.sum() for i in images_of(out).values()])
    for name, leaf in zip(NAMES, leaves, strict=True):
        assert leaf.grad is not None
        assert (leaf.grad[:4] == 0).all(), name
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize("mode", MODES)
def test_oracle_matches_finite_differences(mode: SplatMode) -> None:
    size = (6, 7)
    attributes, K = make_scene(4, size, 11)
    attributes[3] = attributes[3].clamp(0.3, 0.9)
    weights = torch.Generator().manual_seed(3)
    images = images_of(draw("torch", attributes, K, size, mode))
    probes = {name: torch.randn(i.shape, generator=weights, dtype=torch.float64) for name, i in images.items()}

    def loss(*leaves: Tensor) -> Tensor:
        drawn = images_of(draw("torch", list(leaves), K, size, mode))
        return torch.stack([(drawn[name] * probe).sum() for name, probe in probes.items()]).sum()

    leaves = [a.clone().requires_grad_() for a in attributes]
    # Small steps, because alpha is cut off below 1/255 and the image jumps there.
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_order_of_gaussians_does_not_matter(backend: str, mode: SplatMode) -> None:
    size = (24, 40)
    attributes, K = make_scene(80, size, 7)
    shuffled = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    images, grads = draw_with_gradients(backend, attributes, K, size, mode, torch.float32)
    images2, grads2 = draw_with_gradients(backend, [a[shuffled] for a in attributes], K, size, mode, torch.float32)
    assert_close({n: i.double() for n, i in images2.items()}, {n: i.double() for n, i in images.items()}, 1e-6)
    assert_close({n: g.double() for n, g in grads2.items()}, {n: g[shuffled].double() for n, g in grads.items()}, 1e-5)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_pixel_centres_are_at_half(backend: str, mode: SplatMode) -> None:
    """A tiny Gaussian at the centre of pixel (row 5, column 9) is brightest there and symmetric about it."""
    h, w, row, column, depth = 20, 24, 5, 9, 2.0
    K = torch.tensor([[30.0, 0.0, 11.0], [0.0, 31.0, 8.0], [0.0, 0.0, 1.0]])
    mean = torch.tensor([[(column + 0.5 - 11) / 30 * depth, (row + 0.5 - 8) / 31 * depth, depth]])
    attributes = [mean, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 1e-3), torch.tensor([0.9]), torch.ones(1, 3)]
    out = draw(backend, attributes, K, (h, w), mode)
    assert divmod(int(out.alpha.argmax()), w) == (row, column)
    assert out.alpha[row, column] == pytest.approx(0.9, abs=1e-3)
    patch = out.alpha[row - 3 : row + 4, column - 3 : column + 4]
    torch.testing.assert_close(patch, patch.flip(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(patch, patch.flip(1), atol=1e-4, rtol=1e-3)
    assert out.expected_depth()[row, column] == pytest.approx(depth, rel=1e-4)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_surfel_normals_face_the_camera(backend: str) -> None:
    """A disc turned 30 degrees about y, once seen from each side of its plane: normal (-sin, 0, -cos) both times."""
    K = torch.tensor([[30.0, 0.0, 12.0], [0.0, 30.0, 10.0], [0.0, 0.0, 1.0]])
    turn, half_turn = math.radians(15), math.radians(15 + 90)
    for angle in (turn, half_turn):
        quat = torch.tensor([[math.cos(angle), 0, math.sin(angle), 0]])
        out = draw(
            backend, [torch.tensor([[0.0, 0, 2]]), quat, torch.full((1, 3), 0.3), torch.ones(1), torch.ones(1, 3)], K, (20, 24), "2dgs"
        )
        assert out.normal is not None
        normal = out.normal[10, 12] / out.alpha[10, 12]
        torch.testing.assert_close(normal, torch.tensor([-0.5, 0.0, -math.sqrt(0.75)]), atol=1e-4, rtol=0)
        # The right half of a disc whose normal points left and at us lies nearer than the left half.
        assert out.expected_depth()[10, 14] < out.expected_depth()[10, 10]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_extreme_gaussians_stay_finite(backend: str, mode: SplatMode) -> None:
    """Huge, tiny, thin, close to the camera, opaque: finite images and gradients."""
    size = (24, 40)
    attributes, K = make_scene(12, size, 9)
    leaves = [a.float().clone() for a in attributes]
    leaves[2][0] = 1e4
    leaves[2][1] = 1e-6
    leaves[2][2] = torch.tensor([5.0, 1e-5, 1e-5])
    leaves[0][3] = torch.tensor([0.0, 0.0, 0.02])
    leaves[3][4] = 1.0
    leaves[1][5] = 0.0
    for leaf in leaves:
        leaf.requires_grad_()
    images = images_of(draw(backend, leaves, K.float(), size, mode))
    torch.autograd.backward([i.sum() for i in images.values()])
    assert all(i.isfinite().all() for i in images.values())
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_disc_through_the_camera_plane_is_drawn() -> None:
    """Two floors that pass under the camera: their boxes on screen are unbounded, and they must still agree with the oracle."""
    size = (24, 40)
    _, K = make_scene(1, size, 0)
    quats = torch.tensor([[0.7, 0.71, 0.05, 0.1], [0.72, 0.7, -0.1, 0.02]], dtype=torch.float64)
    means = torch.tensor([[0.1, 1.0, 3.0], [-0.2, 1.4, 3.5]], dtype=torch.float64)
    scales = torch.tensor([[2.0, 1.6, 1.0], [2.2, 1.9, 1.0]], dtype=torch.float64)
    attributes = [means, quats, scales, torch.tensor([0.8, 0.7], dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]]
    images, grads = draw_with_gradients("torch", attributes, K, size, "2dgs", torch.float64)
    got_images, got_grads = draw_with_gradients("numba", attributes, K, size, "2dgs", torch.float32)
    assert images["alpha"][-1].min() > 0.1
    assert_close(got_images, images, 1e-5)
    assert_close(got_grads, grads, 3e-4)


def test_near_plane_cuts() -> None:
    attributes, K = make_scene(30, (24, 40), 1)
    for backend in CPU_BACKENDS:
        assert (draw(backend, attributes, K, (24, 40), "3dgs", near=10.0).alpha == 0).all()


def test_wrong_name_and_device_are_explained() -> None:
    with pytest.raises(UnknownBackendError):
        load_rasterizer("nothing", "cpu")
    with pytest.raises(MissingDependencyError):
        load_rasterizer("numba", "cuda")
    with pytest.raises(MissingDependencyError):
        load_rasterizer("gsplat", "cpu")


def test_depth_order_is_that_of_a_stable_sort() -> None:
    depth = torch.rand(5000, generator=torch.Generator().manual_seed(0)).numpy() * 10 + 1e-3
    depth[100:200] = depth[300]
    depth[:3] = (1e-20, 1e20, 1.0)
    np.testing.assert_array_equal(depth_order(depth), np.argsort(depth, kind="stable"))
    assert len(depth_order(depth[:0])) == 0
