"""Spherical harmonics against their defining properties, SSIM against its definition."""

import math

import pytest
import torch

from utils.splatting.sh import evaluate_sh, sh_basis
from utils.splatting.ssim import ssim
from utils.splatting.ssim.reference import gaussian_blur


def test_sh_are_orthonormal() -> None:
    """The mean over the sphere of Y_i Y_j is delta_ij / 4 pi (exact quadrature for degree 6)."""
    nodes, weights = torch.as_tensor(_GAUSS_NODES, dtype=torch.float64).unbind(-1)
    phi = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    z, p = torch.meshgrid(nodes, phi, indexing="ij")
    r = (1 - z * z).sqrt()
    basis = sh_basis(torch.stack([r * p.cos(), r * p.sin(), z], -1).reshape(-1, 3), 3)
    gram = (basis.T * weights.repeat_interleave(16)) @ basis * (2 * math.pi / 16)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-9, rtol=0)


_GAUSS_NODES = [
    (-0.949107912342759, 0.129484966168870),
    (-0.741531185599394, 0.279705391489277),
    (-0.405845151377397, 0.381830050505119),
    (0.0, 0.417959183673469),
    (0.405845151377397, 0.381830050505119),
    (0.741531185599394, 0.279705391489277),
    (0.949107912342759, 0.129484966168870),
]


def test_sh_signs_of_the_exchange_format() -> None:
    """Signs at (+x, +y, +z) and in between, as other 3DGS programs read them from a file."""
    axes = torch.eye(3)
    c1 = math.sqrt(3 / (4 * math.pi))
    expected = torch.tensor([[0.0, 0.0, -c1], [-c1, 0.0, 0.0], [0.0, c1, 0.0]])
    torch.testing.assert_close(sh_basis(axes, 1)[:, 1:], expected)
    diagonal = torch.full((1, 3), 1 / math.sqrt(3))
    signs = torch.sign(sh_basis(diagonal, 3)[0, [4, 5, 7, 9, 10, 11, 12, 13, 15]])
    assert signs.tolist() == [1, -1, -1, -1, 1, -1, -1, -1, 1]


def test_evaluate_sh_uses_active_bands_and_clamps() -> None:
    sh = torch.randn(20, 16, 3, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    for degree in range(4):
        expected = torch.einsum(
            "nb,nbc->nc", sh_basis(directions / directions.norm(dim=-1, keepdim=True), degree), sh[:, : (degree + 1) ** 2]
        )
        got = evaluate_sh(sh, directions, degree)
        torch.testing.assert_close(got, (0.5 + expected).clamp(min=0))
        torch.testing.assert_close(evaluate_sh(sh, 7 * directions, degree), got)
    assert (evaluate_sh(torch.full((1, 1, 3), -10.0), torch.ones(1, 3), 0) == 0).all()


@pytest.mark.parametrize("size", [(5, 7), (30, 41), (64, 13)])
def test_blur_is_convolution(size: tuple[int, int]) -> None:
    offsets = torch.arange(11, dtype=torch.float64) - 5
    taps = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    images = torch.rand(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = torch.nn.functional.conv2d(images[:, None], kernel[None, None], padding=5)[:, 0]
    torch.testing.assert_close(gaussian_blur(images), expected)
    probe = torch.rand(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (got_grad,) = torch.autograd.grad((gaussian_blur(images) * probe).sum(), images)
    (expected_grad,) = torch.autograd.grad((expected * probe).sum(), images)
    torch.testing.assert_close(got_grad, expected_grad)


def test_ssim_of_constant_images() -> None:
    """Without structure only the luminance term is left: (2 a b + C1) / (a^2 + b^2 + C1), far from the border."""
    a, b = 0.3, 0.7
    x, y = torch.full((61, 61, 3), a, dtype=torch.float64), torch.full((61, 61, 3), b, dtype=torch.float64)
    x.requires_grad_()
    assert float(ssim(x, x).detach()) == pytest.approx(1.0)
    luminance = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    inner = float(ssim(x, y).detach())
    # The border sees zeros, which adds the same structure to both.
    assert inner == pytest.approx(luminance, abs=0.1)


def test_ssim_is_symmetric_bounded_and_differentiable() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.rand(12, 9, 3, dtype=torch.float64, generator=g).requires_grad_()
    y = torch.rand(12, 9, 3, dtype=torch.float64, generator=g).requires_grad_()
    assert float((ssim(x, y) - ssim(y, x)).abs().detach()) < 1e-12
    assert float(ssim(x, y).detach()) < float(ssim(x, 0.9 * x).detach()) < 1
    assert torch.autograd.gradcheck(ssim, (x, y))
