"""Every format, as the command writes it, opened by a program that is not ours, with the world turned, scaled and thinned."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from configs.base import parse
from configs.evaluation import ExportConfig
from tests.trained_world import FRAMES, SIZE, write_trained_world
from utils.exports.select import rotation_between, scene_up
from utils.exports.stage import export_splats
from utils.exports.stage import run as export
from utils.splatting.checkpoint import TrainedScene, load_checkpoint

SCALE, KEPT = 2.0, 700
UP = np.array([0, 0, 1.0])
TURNED = ("--config.up", "z", "--config.scale", str(SCALE), "--config.max-points", str(KEPT), "--config.mesh-resolution", "40")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("readers")
    write_trained_world(root)
    return root


@pytest.fixture(scope="module")
def trained(root: Path) -> TrainedScene:
    return load_checkpoint(root / "frame_to_model_icp_5_1_offset0" / "gs_3dgs")


@pytest.fixture(scope="module")
def turn(trained: TrainedScene) -> np.ndarray:
    return rotation_between(scene_up(trained.cameras), UP)


def write(root: Path, kind: str, out: Path, *flags: str) -> Path:
    return export(parse(ExportConfig, ["--config.root-path", str(root), "--config.format", kind, "--config.out-ply", str(out), *flags]))


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1)


@pytest.mark.parametrize("kind", ["ply", "spz"])
def test_splats_open_in_gsply(kind: str, root: Path, trained: TrainedScene, turn: np.ndarray, tmp_path: Path) -> None:
    gsply = pytest.importorskip("gsply")
    expected = export_splats(trained, turn, SCALE, KEPT)
    path = write(root, kind, tmp_path / f"a.{kind}", *TURNED)
    read = gsply.plyread(str(path)) if kind == "ply" else gsply.read_spz(str(path))
    exact = {"ply": 1e-6, "spz": 2e-3}[kind]
    np.testing.assert_allclose(read.means, expected.means.numpy(), atol=exact)
    np.testing.assert_allclose(read.scales, expected.log_scales.numpy(), atol=1e-6 if kind == "ply" else 1 / 30)
    np.testing.assert_allclose(read.sh0.reshape(-1, 3), expected.sh[:, 0].numpy(), atol=1e-6 if kind == "ply" else 0.02)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-read.opacities.ravel())), torch.sigmoid(expected.logit_opacities).numpy(), atol=1e-6 if kind == "ply" else 0.003
    )
    # the axes' directions, not the quaternions: an axis may point either way
    ours, theirs = (Rotation.from_quat(np.asarray(q)[:, [1, 2, 3, 0]]).as_matrix() for q in (expected.quats, read.quats))
    np.testing.assert_allclose(np.abs(np.einsum("nij,nij->nj", ours, theirs)), 1, atol=1e-4)


def test_splat_is_a_table_of_32_bytes(root: Path, trained: TrainedScene, turn: np.ndarray, tmp_path: Path) -> None:
    path = write(root, "splat", tmp_path / "a.splat", *TURNED)
    rows = np.frombuffer(path.read_bytes(), np.float32).reshape(-1, 8)  # position, scale, then colour and turn as bytes
    expected = export_splats(trained, turn, SCALE, KEPT)
    assert len(rows) == KEPT
    assert float(nearest(rows[:50, :3], expected.means.numpy()).max()) < 1e-5
    np.testing.assert_allclose(np.sort(rows[:, 3]), np.sort(expected.log_scales[:, 0].exp().numpy()), rtol=1e-5)


@pytest.mark.parametrize("kind", ["colmap", "colmap-bin"])
def test_colmap_opens_in_pycolmap(kind: str, root: Path, trained: TrainedScene, turn: np.ndarray, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    folder = write(root, kind, tmp_path / "a", *TURNED)
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert (model.num_images(), model.num_points3D()) == (FRAMES, KEPT)
    for image in model.images.values():
        i = int(Path(image.name).stem.removeprefix("frame_"))
        np.testing.assert_allclose(image.projection_center(), SCALE * turn @ trained.cameras.centers[i], atol=1e-5)
        np.testing.assert_allclose(image.viewing_direction(), turn @ trained.cameras.c2w[i, :3, 2], atol=1e-5)
        assert cv2.imread(str(folder / "images" / image.name)).shape == (*SIZE, 3)
    points = np.array([p.xyz for p in model.points3D.values()])
    assert float(np.median(nearest(points[:100], SCALE * trained.splats.means.numpy() @ turn.T))) < 0.2


def test_nerfstudio_and_its_cloud(root: Path, trained: TrainedScene, turn: np.ndarray, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    folder = write(root, "nerfstudio", tmp_path / "a", *TURNED)
    content = json.loads((folder / "transforms.json").read_text())
    for i, frame in enumerate(content["frames"]):
        pose = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(pose[:3, 3], SCALE * turn @ trained.cameras.centers[i], atol=1e-5)
        np.testing.assert_allclose(pose[:3, 1], -turn @ trained.cameras.c2w[i, :3, 1], atol=1e-5)
        assert cv2.imread(str(folder / frame["file_path"])).shape == (frame["h"], frame["w"], 3)
    assert len(plyfile.PlyData.read(str(folder / content["ply_file_path"]))["vertex"]) == KEPT


def test_cloud_as_ply_and_npz(root: Path, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = trimesh.load(write(root, "cloud", tmp_path / "a.ply", *TURNED))
    with np.load(write(root, "cloud-npz", tmp_path / "a.npz", *TURNED)) as stored:
        np.testing.assert_allclose(cloud.vertices, stored["points"], atol=1e-5)
        np.testing.assert_array_equal(cloud.colors[:, :3], stored["colors"])
        assert len(stored["frame"]) == len(stored["pixel"]) == KEPT


@pytest.mark.parametrize("kind", ["mesh-ply", "mesh-glb"])
def test_mesh_opens_in_trimesh(kind: str, root: Path, trained: TrainedScene, turn: np.ndarray, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    read = trimesh.load(write(root, kind, tmp_path / f"a.{kind[5:]}", *TURNED))
    mesh = next(iter(read.geometry.values())) if kind == "mesh-glb" else read
    splats = SCALE * trained.splats.means.numpy() @ turn.T
    assert float(np.median(nearest(mesh.vertices[::40], splats))) < 0.2
    assert float(np.median(nearest(mesh.vertices[::40] * [1, -1, -1], splats))) > 0.3  # the box is not its own mirror image
    colors = mesh.visual.vertex_attributes["color"] if kind == "mesh-glb" else mesh.visual.vertex_colors
    assert len(colors) == len(mesh.vertices)


@pytest.mark.parametrize(("kind", "y_up"), [("ply", False), ("spz", True), ("mesh-glb", True)])
def test_formats_keep_their_own_axes(kind: str, y_up: bool, root: Path, trained: TrainedScene, tmp_path: Path) -> None:
    path = write(root, kind, tmp_path / f"a.{kind.removeprefix('mesh-')}", "--config.mesh-resolution", "40")
    if kind == "mesh-glb":
        points = pytest.importorskip("trimesh").load(path, force="mesh").vertices[::40]
    else:
        gsply = pytest.importorskip("gsply")
        points = (gsply.plyread(str(path)) if kind == "ply" else gsply.read_spz(str(path))).means[::20]
    as_they_are, flipped = (np.median(nearest(points * f, trained.splats.means.numpy())) for f in ([1, 1, 1], [1, -1, -1]))
    assert (flipped < as_they_are) == y_up
