"""The fused mesh: a sphere from its exact distances, a plane from depth images, and files that trimesh reads."""

from pathlib import Path

import numpy as np
import pytest

from configs.evaluation import ExportConfig
from tests.box_world import HALF
from tests.trained_world import write_trained_world
from utils.errors import DegenerateCloudError
from utils.exports.mesh import Mesh, Volume, empty_volume, extract, integrate
from utils.exports.stage import run as export


def sphere(radius: float = 0.6, count: int = 24) -> Volume:
    axis = np.linspace(-1, 1, count)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = np.sqrt(x**2 + y**2 + z**2) - radius
    voxel = float(axis[1] - axis[0])
    color = np.stack([np.full_like(x, 255), (z + 1) * 127, 0 * x], axis=-1).astype(np.float32)
    return Volume(np.full(3, -1.0), voxel, distance.astype(np.float32), np.ones_like(distance, np.float32), color)


def test_sphere_is_closed_round_and_faces_outwards() -> None:
    mesh = extract(sphere())
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radii - 0.6).max() < 0.01
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normal * corners.mean(axis=1)).sum(axis=1) >= -1e-12).all()
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    top = mesh.vertices[:, 2].argmax()
    assert mesh.colors[top, 0] == 255 and mesh.colors[top, 1] == pytest.approx(1.6 * 127, abs=4)


def test_unseen_cells_have_no_surface() -> None:
    volume = sphere()
    volume.weight[:12] = 0
    mesh = extract(volume)
    assert len(mesh.faces) and mesh.vertices[:, 0].min() > -0.1


def test_plane_from_depth_lies_where_the_depth_says_and_faces_the_camera() -> None:
    K = np.array([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]])
    depth = np.full((48, 64), 2.0, np.float32)
    image = np.full((48, 64, 3), (10, 200, 30), np.uint8)
    volume = empty_volume(np.random.default_rng(0).uniform([-1, -0.8, 1.8], [1, 0.8, 2.2], (500, 3)), 30)
    w2c = np.eye(4)
    integrate(volume, depth, image, w2c, K)
    mesh: Mesh = extract(volume)
    np.testing.assert_allclose(mesh.vertices[:, 2], 2.0, atol=1e-5)
    corners = mesh.vertices[mesh.faces]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] <= 1e-12).all()
    assert (mesh.colors == (10, 200, 30)).all()
    with pytest.raises(DegenerateCloudError):
        empty_volume(np.zeros((3, 3)), 30)


@pytest.mark.parametrize("kind", ["mesh-ply", "mesh-glb"])
def test_box_world_mesh_is_read_back_on_the_walls(kind: str, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    write_trained_world(tmp_path, "2dgs")
    path = export(ExportConfig(root_path=tmp_path, format=kind, mesh_resolution=48, scale=3.0))  # type: ignore[arg-type]
    mesh = trimesh.load(path, force="mesh")
    assert len(mesh.faces) > 500 and len(mesh.visual.vertex_colors) == len(mesh.vertices)
    off = np.abs(np.abs(mesh.vertices / 3.0) - HALF).min(axis=1)
    assert np.median(off) < 0.03 and np.percentile(off, 95) < 0.15
