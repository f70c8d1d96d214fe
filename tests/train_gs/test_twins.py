"""Kernels of the training for a device against what the CPU runs: poses, merged copies, normals."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from tests.train_gs.test_train_gs import make_world
from tests.twins import check, needs_triton, normal
from train_gs.start.cells.batched import distances
from train_gs.start.initialize import merge_copies
from train_gs.start.neighbours import batched as neighbours_batched
from train_gs.start.neighbours import reference as neighbours_reference
from train_gs.start.normals.batched import smallest_eigenvectors
from utils.cameras import se3
from utils.cameras.rotations import matrix_to_quat


@needs_triton
@pytest.mark.parametrize("size", [0.02, 0.9, 2.8])
def test_poses(size):
    """The twist's pose and the quaternion of its world-to-camera rotation, with the gradient of both."""
    from train_gs.cameras import triton as cameras_triton

    scale, w2c = torch.tensor([1.0, 1, 1, 3, 3, 3], dtype=torch.float64), se3.exp(normal(1, 6))
    twist = size * torch.nn.functional.normalize(normal(0, 6), dim=0)

    def reference(xi):
        c2w = se3.inverse(se3.exp(xi * scale) @ w2c)
        return [c2w[:3], matrix_to_quat(c2w[:3, :3].T)]

    def kernel(xi):
        c2w, quat = cameras_triton.pose(xi, scale.to(xi), w2c.to(xi))
        return [c2w[:3], quat]

    check("triton", kernel, reference, [twist], (1e-6, 1e-5))


def test_copies_are_merged_on_a_device_as_on_the_cpu(monkeypatch):
    _, alignment = make_world()
    expected = merge_copies(alignment.cloud, alignment.cameras, 1500)
    monkeypatch.setattr("train_gs.start.cells.accelerator", lambda: torch.device("cpu"))
    found = merge_copies(alignment.cloud, alignment.cameras, 1500)
    assert 0.9 * 1500 < len(found[0]) <= 1500
    order = [np.lexsort(np.round(points, 6).T) for points, _ in (expected, found)]
    np.testing.assert_allclose(found[0][order[1]], expected[0][order[0]], atol=1e-9)
    np.testing.assert_allclose(found[1][order[1]], expected[1][order[0]], atol=1e-6)


def test_closed_form_normals_are_the_eigenvectors() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(200, 12, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.7, 0.02], dtype=torch.float64)
    matrices = offsets.transpose(1, 2) @ offsets
    matrices[0] = 0
    matrices[1] = torch.diag(torch.tensor([2.0, 0.0, 2.0]))
    found = smallest_eigenvectors(matrices)
    expected = torch.linalg.eigh(matrices)[1][:, :, 0]
    assert float((found * expected).sum(-1).abs()[1:].min()) > 1 - 1e-9
    torch.testing.assert_close(found[0].norm(), torch.tensor(1.0, dtype=torch.float64))


def test_distances_to_the_cameras():
    rng = np.random.default_rng(0)
    points, centers, made_by = rng.normal(size=(500, 3)), rng.normal(size=(40, 3)), rng.integers(0, 40, 500)
    nearest, own = (d.numpy() for d in distances(*(torch.from_numpy(a) for a in (points, centers, made_by))))
    np.testing.assert_allclose(nearest, cKDTree(centers).query(points)[0], rtol=1e-12)
    np.testing.assert_allclose(own, np.linalg.norm(points - centers[made_by], axis=1), rtol=1e-12)
    assert (nearest <= own).all() and (nearest < own).mean() > 0.9


@pytest.mark.parametrize("scatter", [0.0, 0.02])
def test_neighbours_by_blocks_are_those_of_a_tree(scatter):
    """On surfaces, with far points between them, and with points in one place."""
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.uniform(0, 4, (9000, 2)), scatter * rng.normal(size=(9000, 1))], 1)
    ball = rng.normal(size=(4000, 3))
    points = np.concatenate([flat, ball / np.linalg.norm(ball, axis=1, keepdims=True) + 3.0, 40 * rng.normal(size=(37, 3)), flat[:30]])
    expected = neighbours_reference.nearest(points, 12)
    distance, index = neighbours_batched.nearest(points, 12, torch.device("cpu"))
    np.testing.assert_allclose(distance, expected[0], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(points[index] - points[:, None], axis=2), expected[0], atol=1e-12)
    assert all(len(set(row)) == 12 for row in index.tolist())
