"""The fly-through path and its file."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from utils.errors import CorruptArtifactError
from utils.exports.cameras.nerfstudio import write_transforms
from utils.scene import trajectories as tr
from utils.types import CameraSet

SIZE = (140, 252)


def arc_cameras(count: int) -> CameraSet:
    """Cameras on an arc of radius 3 about the origin that look at it; y down."""
    angles = np.linspace(-0.4, 0.4, count)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(c2w, angles, strict=True):
        pose[:3, :3] = Rotation.from_euler("Y", angle).as_matrix()
        pose[:3, 3] = -3 * pose[:3, 2]
    K = np.array([[220.0, 0, 126], [0, 215, 70], [0, 0, 1]])
    return CameraSet(c2w=c2w, K=np.repeat(K[None], count, 0), size=SIZE, frame_ids=np.arange(count))


@pytest.mark.parametrize(("views", "expected"), [(2, 48), (7, 8), (28, 8), (55, 8), (56, 4), (81, 3), (100, 2), (242, 1)])
def test_published_number_of_samples(views: int, expected: int) -> None:
    assert tr.samples_per_segment(views) == expected


def test_hundred_views_give_the_published_length() -> None:
    assert len(tr.extend_path(arc_cameras(100))) == 100 + 38 + 36


def test_path_is_rigid_continuous_and_keeps_looking_at_the_centre() -> None:
    cameras = arc_cameras(9)
    path = tr.extend_path(cameras)
    rotations = path.c2w[:, :3, :3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-9)
    assert np.linalg.norm(np.diff(path.centers, axis=0), axis=1).max() < 0.25
    toward = -path.centers / np.linalg.norm(path.centers, axis=1, keepdims=True)
    assert (toward * path.c2w[:, :3, 2]).sum(1).min() > 0.99
    assert np.sign(path.centers[-1, 0] - path.centers[0, 0]) == np.sign(cameras.centers[-1, 0] - cameras.centers[0, 0])


def test_interpolation_turns_about_what_both_look_at() -> None:
    cameras = arc_cameras(2)
    poses = tr.interpolate_about_pivot(cameras.c2w[0], cameras.c2w[1], np.linspace(0, 1, 5))
    np.testing.assert_allclose(poses[0], cameras.c2w[0], atol=1e-9)
    np.testing.assert_allclose(poses[-1], cameras.c2w[1], atol=1e-9)
    np.testing.assert_allclose(tr.axes_crossing(*cameras.c2w), 0, atol=1e-9)
    middle = poses[2]
    np.testing.assert_allclose(middle[:3, 2], [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(np.cross(middle[:3, 2], middle[:3, 3]), 0, atol=1e-9)


def test_parallel_axes_interpolate_linearly() -> None:
    start, end = np.eye(4), np.eye(4)
    end[0, 3] = 2.0
    poses = tr.interpolate_about_pivot(start, end, np.array([0.25]))
    np.testing.assert_allclose(poses[0, :3, 3], [0.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(poses[0, :3, :3], np.eye(3), atol=1e-9)


def test_dolly_moves_back_and_widens() -> None:
    poses, K = tr._dolly(np.eye(4), arc_cameras(2).K[0], 37, 1.0)
    assert poses[18, 2, 3] == pytest.approx(-0.1) and poses[0, 2, 3] == 0
    assert K[18, 0, 0] == pytest.approx(220 * 10 / 10.1) and K[0, 0, 0] == 220


def test_file_round_trip(tmp_path: Path) -> None:
    path = tr.extend_path(arc_cameras(5))
    file = tmp_path / "0000_extend_transforms.json"
    tr.save_trajectory(file, path)
    document = json.loads(file.read_text())
    assert document["frames"][3]["file_path"] == "0000_extend_frame_0003.png"
    assert document["cx"] == 126
    # OpenGL axes: the camera looks along -z, y is up
    np.testing.assert_allclose(-np.array(document["frames"][0]["transform_matrix"])[:3, 2], path.c2w[0, :3, 2])
    loaded = tr.load_trajectory(file)
    np.testing.assert_allclose(loaded.c2w, path.c2w, atol=1e-12)
    np.testing.assert_allclose(loaded.K, path.K, atol=1e-9)
    assert loaded.size == SIZE


def test_published_file_is_normalised_and_scaled(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = [1, 2, 3]
    document = {"fl_x": 0.8, "fl_y": 1.4, "cx": 0.5, "cy": 0.5, "w": 504, "h": 280, "scale_factor": 2.5}
    file = tmp_path / "t.json"
    file.write_text(json.dumps({**document, "frames": [{"file_path": "a", "transform_matrix": matrix.tolist()}]}))
    loaded = tr.load_trajectory(file)
    np.testing.assert_allclose(loaded.K[0], [[403.2, 0, 252], [0, 392, 140], [0, 0, 1]])
    np.testing.assert_allclose(loaded.c2w[0, :3, 3], [2.5, 5, 7.5])
    np.testing.assert_allclose(loaded.c2w[0, :3, :3], np.diag([1, -1, -1]))


def test_field_of_view_instead_of_focal_length(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    frames = [{"transform_matrix": np.eye(4).tolist()}]
    file.write_text(json.dumps({"camera_angle_x": np.pi / 2, "w": 200, "h": 100, "frames": frames}))
    np.testing.assert_allclose(tr.load_trajectory(file).K[0], [[100, 0, 100], [0, 100, 50], [0, 0, 1]])


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="no camera path"):
        tr.load_trajectory(tmp_path / "t.json")


def test_nerfstudios_file_is_read_with_its_sizes_and_intrinsics_per_frame(tmp_path: Path) -> None:
    """The project's own export, and a frame of half the size."""
    cameras = arc_cameras(4)
    K = cameras.K * np.array([1.0, 1.1, 1.2, 1.3])[:, None, None]
    K[:, :2, 2], K[:, 2, 2] = cameras.K[:, :2, 2], 1
    write_transforms(tmp_path / "t.json", replace(cameras, K=K), [f"images/{i}.png" for i in range(4)], "points.ply")
    loaded = tr.load_trajectory(tmp_path / "t.json")
    np.testing.assert_allclose(loaded.c2w, cameras.c2w, atol=1e-12)
    np.testing.assert_allclose(loaded.K, K, atol=1e-9)
    document = json.loads((tmp_path / "t.json").read_text())
    for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        document["frames"][2][key] /= 2
    (tmp_path / "t.json").write_text(json.dumps(document))
    np.testing.assert_allclose(tr.load_trajectory(tmp_path / "t.json").K, K, atol=1e-9)
    (tmp_path / "t.json").write_text(json.dumps({**document, "frames": []}))
    with pytest.raises(CorruptArtifactError, match="no camera path"):
        tr.load_trajectory(tmp_path / "t.json")


def test_matrices_of_three_rows_and_skew_rotations_are_read(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    pose = arc_cameras(5).c2w[3] @ np.diag([1.0, -1, -1, 1])
    skew = pose.copy()
    skew[:3, 0] += 0.01 * skew[:3, 1]
    document = {"fl_x": 200.0, "w": 200, "h": 100}

    def write(matrices: list[np.ndarray]) -> None:
        file.write_text(json.dumps({**document, "frames": [{"transform_matrix": m.tolist()} for m in matrices]}))

    write([pose[:3]] * 4)
    np.testing.assert_allclose(tr.load_trajectory(file).c2w, [arc_cameras(5).c2w[3]] * 4, atol=1e-12)
    write([skew])
    rotation = tr.load_trajectory(file).c2w[0, :3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.abs(rotation - arc_cameras(5).c2w[3, :3, :3]).max() < 0.01
    for wrong in (np.eye(3), np.full((4, 4), np.nan)):
        write([wrong])
        with pytest.raises(CorruptArtifactError, match="no camera path"):
            tr.load_trajectory(file)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "9" * 6000])
def test_json_that_exhausts_the_reader_is_no_path(tmp_path, content):
    (tmp_path / "path.json").write_text(content)
    with pytest.raises(CorruptArtifactError):
        tr.load_trajectory(tmp_path / "path.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "path.json")
    with pytest.raises(CorruptArtifactError):
        tr.load_trajectory(tmp_path / "path.json")
