"""The hash encoding and the twist fields: compiled kernels against the float64 definition, sizes, and what a field does to a point."""

import numpy as np
import pytest
import torch

from configs.icp import TwistFieldConfig
from utils.cameras import se3
from utils.errors import MissingDependencyError
from utils.published.hashgrid import HashGridEncoding
from utils.published.hashgrid.levels import make_levels
from utils.published.hashgrid.reference import encode
from utils.published.twist_fields import FrameBox, HashGridTwists, make_field, resolve_backend

CPU = torch.device("cpu")
SMALL = TwistFieldConfig(levels=6, log2_table_size=10, max_resolution=128, neurons=16, lattice=(5, 4, 3))


def box() -> FrameBox:
    K = np.array([[60.0, 0, 32], [0, 60.0, 20], [0, 0, 1]])
    return FrameBox(np.array([-2.0, -1.0, 1.0]), np.array([2.0, 1.0, 4.0]), K, (40, 64), np.array([0.25, 1.0]))


def test_published_sizes():
    levels = make_levels(16, 19, 16, 2048)
    expected = [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048]
    np.testing.assert_array_equal(levels.resolution, expected)
    assert levels.hashed.tolist() == [False] * 5 + [True] * 11
    assert 2 * levels.offset[-1] == 12_196_240


@pytest.mark.parametrize("log2_table_size", [6, 12])
def test_kernels_agree_with_the_definition(log2_table_size):
    levels = make_levels(5, log2_table_size, 4, 40)
    assert levels.hashed.any()
    generator = torch.Generator().manual_seed(0)
    encoding = HashGridEncoding(levels, generator, "numba")
    encoding.table.data.normal_(generator=generator)
    points = torch.rand(500, 3, generator=generator)
    points[0], points[1] = 0, 1
    weight = torch.randn(500, encoding.output_dim, generator=generator)
    points.requires_grad_()
    value = encoding(points)
    (value * weight).sum().backward()
    exact_points, exact_table = (t.detach().double().requires_grad_() for t in (points, encoding.table))
    exact = encode(exact_points, exact_table, levels)
    (exact * weight).sum().backward()
    for got, wanted in ((value, exact), (encoding.table.grad, exact_table.grad), (points.grad, exact_points.grad)):
        assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_encoding_interpolates_between_vertices():
    levels = make_levels(1, 12, 4, 4)
    table = torch.randn(int(levels.offset[-1]), 2, dtype=torch.float64)
    scale = float(levels.scale[0])
    vertex = torch.tensor([[1, 2, 0]], dtype=torch.float64)
    at = encode((vertex - 0.5) / scale, table, levels)
    torch.testing.assert_close(at[0], table[1 + 4 * 2])
    half = encode((vertex + torch.tensor([0.5, 0, 0]) - 0.5) / scale, table, levels)
    torch.testing.assert_close(half[0], (table[1 + 4 * 2] + table[2 + 4 * 2]) / 2)


@pytest.mark.parametrize("kind", ["hashgrid", "lattice"])
def test_a_fresh_field_is_still_and_a_trained_one_finds_a_local_motion(kind):
    field = make_field(kind, box(), SMALL, CPU)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(800, 3, generator=generator) * torch.tensor([1.0, 0.6, 2.0]) + torch.tensor([-0.5, -0.3, 1.5])
    assert (se3.warp(field(points), points) - points).abs().max() < 1e-3
    target = points + torch.stack([0.1 * torch.sin(2 * points[:, 0]), torch.zeros(800), 0.05 * points[:, 2]], -1)
    adam = torch.optim.Adam(field.parameters(), lr=1e-2 if kind == "hashgrid" else 1e-1)
    for _ in range(80):
        loss = (se3.warp(field(points), points) - target).square().sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.02 * (points - target).square().sum(-1).mean()


def test_translation_scales_with_the_box_and_the_outside_takes_its_surface():
    field = HashGridTwists(box(), SMALL, CPU)
    with torch.no_grad():
        for parameter in field.network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    corner = torch.tensor([[2.0, 1.0, 4.0]])
    torch.testing.assert_close(field(corner + 1), field(corner))
    raw = field.network(torch.ones(1, 3))
    torch.testing.assert_close(field(corner)[:, 3:], raw[:, 3:] * torch.tensor([4.0, 2.0, 3.0]))


def test_lattice_field_meets_its_nodes():
    field = make_field("lattice", box(), SMALL, CPU)
    nodes = field.nodes.data.normal_()
    a, b, c = 3, 1, 1  # u, v, inverse depth
    z = 1 / (0.25 + 0.75 * c / 2)
    x, y = (a / 4 * 64 - 32) / 60 * z, (b / 3 * 40 - 20) / 60 * z
    twist = field(torch.tensor([[x, y, z]]))[0]
    torch.testing.assert_close(twist[3:], 0.1 * nodes[0, :, c, b, a], rtol=1e-4, atol=1e-5)
    assert not twist[:3].any()


def test_warp_is_the_exponential_of_each_twist():
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    xi[:10] *= 1e-5
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(se3.warp(xi, points), se3.apply(se3.exp(xi), points), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(se3.warp, (xi[8:12].requires_grad_(), points[8:12].requires_grad_()))


def test_backends_are_chosen_and_refused():
    notes: list[str] = []
    assert resolve_backend(SMALL, CPU, notes.append) == "numba"
    assert not notes
    with pytest.raises(MissingDependencyError, match="tcnn"):
        resolve_backend(TwistFieldConfig(backend="tcnn"), CPU, notes.append)
    with pytest.raises(MissingDependencyError, match="CPU only"):
        resolve_backend(TwistFieldConfig(backend="numba"), torch.device("cuda"), notes.append)
