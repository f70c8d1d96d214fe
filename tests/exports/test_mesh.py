"""Meshes: a sphere from its exact distances, surfaces from depth images, textures, and files that trimesh reads."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from configs.evaluation import ExportConfig
from tests.box_world import HALF
from tests.trained_world import write_trained_world
from utils.errors import DegenerateCloudError
from utils.exports.meshes.mesh import Mesh, SurfaceView, connected_parts, extract, fuse_mesh, largest_parts, simplified, vertex_normals
from utils.exports.meshes.mesh_files import write_mesh_glb
from utils.exports.meshes.texture import textured
from utils.exports.meshes.volume import Volume, closed, empty_volume, integrate, without_edges
from utils.exports.stage import run as export


def sphere(radius: float = 0.6, count: int = 24) -> Volume:
    axis = np.linspace(-1, 1, count)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = np.sqrt(x**2 + y**2 + z**2) - radius
    voxel = float(axis[1] - axis[0])
    color = np.stack([np.full_like(x, 255), (z + 1) * 127, 0 * x], axis=-1).astype(np.float32)
    return Volume(np.full(3, -1.0), voxel, 4 * voxel, distance.astype(np.float32), np.ones_like(distance, np.float32), color)


def test_sphere_is_closed_round_and_faces_outwards() -> None:
    mesh = extract(sphere())
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radii - 0.6).max() < 0.01
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normal * corners.mean(axis=1)).sum(axis=1) >= -1e-12).all()
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.03)
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


def opened(path: Path):
    """The one mesh in a file and its vertex colours, by trimesh; it keeps colours as an attribute where there is a material, too."""
    read = pytest.importorskip("trimesh").load(path)
    mesh = next(iter(read.geometry.values())) if hasattr(read, "geometry") else read
    return mesh, np.asarray(mesh.visual.vertex_attributes["color"] if mesh.visual.kind == "texture" else mesh.visual.vertex_colors)


@pytest.mark.parametrize("kind", ["mesh-ply", "mesh-glb"])
def test_box_world_mesh_is_read_back_on_the_walls(kind: str, tmp_path: Path) -> None:
    write_trained_world(tmp_path, "2dgs")
    mesh, colors = opened(export(ExportConfig(root_path=tmp_path, format=kind, mesh_resolution=48, scale=3.0)))  # type: ignore[arg-type]
    assert len(mesh.faces) > 500 and len(colors) == len(mesh.vertices)
    off = np.abs(np.abs(np.asarray(mesh.vertices) / 3.0) - HALF).min(axis=1)
    assert np.median(off) < 0.03 and np.percentile(off, 95) < 0.15


K = np.array([[30.0, 0, 40], [0, 30, 30], [0, 0, 1]])


def room_view(c2w: np.ndarray, half: tuple[float, float, float] = (2.0, 1.5, 3.0)) -> SurfaceView:
    """A box from inside: floor (y > 0) green, ceiling blue, left (x < 0) red, the rest grey."""
    y, x = np.mgrid[0:60, 0:80] + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], axis=-1) @ c2w[:3, :3].T
    with np.errstate(divide="ignore"):
        hits = np.max(np.stack([(np.array(half) - c2w[:3, 3]) / rays, (-np.array(half) - c2w[:3, 3]) / rays]), axis=0)
    depth, wall = hits.min(axis=-1), hits.argmin(axis=-1)
    side = np.take_along_axis(rays, wall[..., None], axis=-1)[..., 0] > 0
    color = np.full((60, 80, 3), 128, np.uint8)
    color[(wall == 1) & side], color[(wall == 1) & ~side], color[(wall == 0) & ~side] = (0, 200, 0), (0, 0, 200), (200, 0, 0)
    return SurfaceView(depth.astype(np.float32), color, np.linalg.inv(c2w), K)


@pytest.fixture(scope="module")
def room() -> list[SurfaceView]:
    """Eight views that turn around in the middle of the box, which leave floor and ceiling unseen near the axis."""
    views = []
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        c2w = np.eye(4)
        c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        c2w[:3, 3] = 0.4 * c2w[:3, 2] + [0.3, 0, 0]
        views.append(room_view(c2w))
    return views


def edge_counts(mesh: Mesh) -> np.ndarray:
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def test_edges_between_surfaces_are_left_out_and_slanted_planes_are_not() -> None:
    x = np.arange(40) + 0.5
    slanted = np.tile(1 / (1.2 - 0.025 * x), (30, 1)).astype(np.float32)  # depth grows fivefold over the picture
    np.testing.assert_array_equal(without_edges(slanted), slanted)
    step = slanted.copy()
    step[:, 20:] *= 4
    assert (without_edges(step)[:, 19:21] == 0).any(axis=1).all() and (without_edges(step)[:, :18] > 0).all()


def test_a_room_has_holes_where_nobody_looked_and_none_if_watertight(room: list[SurfaceView]) -> None:
    seen = fuse_mesh(room, 48)
    assert (edge_counts(seen) == 1).any()
    whole = fuse_mesh(room, 48, watertight=True)
    assert (edge_counts(whole) % 2 == 0).all()  # no open edge; four triangles may meet at one
    corners = whole.vertices[whole.faces]
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert -1.05 * 72 < volume < -0.75 * 72  # triangles face inwards; what nobody saw is solid
    small = simplified(whole, 4000)
    assert len(small.faces) < 4200 and (edge_counts(small) % 2 == 0).all()
    off = np.abs(np.abs(small.vertices) - [2.0, 1.5, 3.0]).min(axis=1)
    assert np.median(off) < 0.03


def test_an_object_is_closed_from_outside() -> None:
    volume = sphere()
    volume.weight[:12] = 0
    solid = extract(closed(volume, from_inside=False), edges=True)
    assert (edge_counts(solid) == 2).all()
    hollow = extract(closed(volume, from_inside=True), edges=True)
    assert (edge_counts(hollow) == 2).all()
    assert solid.vertices[:, 0].min() < -0.99 and hollow.vertices[:, 0].min() > -0.1  # the unseen half is solid, or has no end


def test_floaters_are_removed() -> None:
    ball = extract(sphere())
    speck = Mesh(np.array([[5.0, 5, 5], [5.1, 5, 5], [5, 5.1, 5]]), np.zeros((3, 3), np.uint8), np.array([[0, 1, 2]]))
    both = Mesh(
        np.concatenate([ball.vertices, speck.vertices]),
        np.concatenate([ball.colors, speck.colors]),
        np.concatenate([ball.faces, speck.faces + len(ball.vertices)]),
    )
    assert connected_parts(both)[0] == 2
    kept = largest_parts(both)
    assert len(kept.faces) == len(ball.faces) and kept.vertices.max() < 1


def test_texture_has_the_colours_of_the_walls(room: list[SurfaceView]) -> None:
    pytest.importorskip("xatlas")
    mesh = simplified(fuse_mesh(room, 48), 3000)
    painted = textured(mesh, room, 512)
    assert painted.seen > 0.9
    centre = painted.vertices[painted.faces].mean(axis=1)
    u, v = np.clip((painted.uv[painted.faces].mean(axis=1) * 512).astype(int), 0, 511).T
    color = painted.texture[v, u].astype(int)
    for wall, expected in (
        (centre[:, 1] > 1.45, (0, 200, 0)),
        (centre[:, 1] < -1.45, (0, 0, 200)),
        (centre[:, 0] < -1.95, (200, 0, 0)),
        (centre[:, 2] > 2.95, (128, 128, 128)),
    ):
        assert wall.sum() > 20 and np.median(np.abs(color[wall] - expected).max(axis=1)) < 6
    np.testing.assert_allclose(np.linalg.norm(painted.normals, axis=1), 1, atol=1e-6)


def glb_document(path: Path) -> dict:
    raw = path.read_bytes()
    (size,) = struct.unpack_from("<I", raw, 12)
    return json.loads(raw[20 : 20 + size])


def test_glb_colours_are_linear_and_unlit_with_normals_for_readers_that_light(tmp_path: Path) -> None:
    ball = extract(sphere())
    grey = Mesh(ball.vertices, np.full_like(ball.colors, 128), ball.faces)
    write_mesh_glb(tmp_path / "a.glb", grey)
    document = glb_document(tmp_path / "a.glb")
    (material,) = document["materials"]
    assert material["extensions"] == {"KHR_materials_unlit": {}} and document["extensionsUsed"] == ["KHR_materials_unlit"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0 and material["doubleSided"]
    _, colors = opened(tmp_path / "a.glb")
    # sRGB 128 is 0.2159 of linear light (IEC 61966-2-1)
    assert np.median(colors[:, 0] / np.iinfo(colors.dtype).max) == pytest.approx(0.2159, abs=0.004)
    outwards = (vertex_normals(ball) * ball.vertices).sum(axis=1)
    assert outwards.min() > 0.5


@pytest.mark.parametrize(("kind", "most"), [("collider", 2000), ("mesh-textured", 1500)])
def test_engine_meshes_open_in_trimesh_upright(kind: str, most: int, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("fast_simplification")
    write_trained_world(tmp_path, "2dgs")
    settings = {"mesh_resolution": 48, "mesh_triangles": most, "texture_size": 256}
    path = export(ExportConfig(root_path=tmp_path, format=kind, **settings))  # type: ignore[arg-type]
    mesh = trimesh.load(path, force="mesh")
    assert 0.5 * most < len(mesh.faces) <= most
    off = np.abs(np.abs(np.asarray(mesh.vertices)) - HALF).min(axis=1)
    assert np.median(off) < 0.05 * (1 if kind == "collider" else 1.5)
    # The cameras look along +z of the world, which is -z of glTF: that wall is seen, the one behind is not.
    assert mesh.vertices[:, 2].min() < -2.5 and mesh.vertices[:, 2].max() < 2.5
    document = glb_document(path)
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert ("TEXCOORD_0" in attributes) == (kind == "mesh-textured") and "NORMAL" in attributes
    if kind == "mesh-textured":
        assert mesh.visual.material.baseColorTexture.size == (256, 256)
