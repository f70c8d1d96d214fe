"""Cameras and depth of other programs: axes, pixel centres, distortion, names; depth along given poses against the truth."""

import json

import cv2
import numpy as np
import pytest

from tests.box_world import make_box_world
from utils.cameras.projection import project, transform
from utils.errors import ArtifactError, ConfigError, CorruptArtifactError, GeometryError, InputError, MissingArtifactError
from utils.geometry_backend import ClipFrames
from utils.imports.backend import ImportGeometry
from utils.imports.cameras import read_cameras
from utils.types import NULL_REPORTER

GL = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def world():
    return make_box_world(frames=9, size=(84, 140), warp=0.0)


def clip(world, names):
    return ClipFrames(images=world.scene.images, chosen=np.arange(0, len(names), 2), size=world.true.size, names=names)


def write_transforms(path, world, names, **extra):
    h, w = world.true.size
    frames = []
    for i, name in enumerate(names):
        K, matrix = world.true.K[i], (world.true.c2w[i] @ GL).tolist()
        frames.append(
            {"file_path": f"images/{name}", "transform_matrix": matrix, "fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        )
    path.write_text(json.dumps({"w": w, "h": h, "frames": frames[::-1]} | extra))
    return path


def write_colmap(folder, world, names, text=False, model="PINHOLE", extra=()):
    pycolmap = pytest.importorskip("pycolmap")
    folder.mkdir(parents=True, exist_ok=True)
    h, w = world.true.size
    K = world.true.K[0]
    focal = [K[0, 0], K[1, 1]] if model in ("PINHOLE", "OPENCV") else [K[0, 0]]
    params = [*focal, K[0, 2], K[1, 2], *extra]
    model_ = pycolmap.Reconstruction()
    model_.add_camera_with_trivial_rig(pycolmap.Camera(camera_id=1, model=model, width=w, height=h, params=params))
    for i, name in enumerate(names):
        w2c = np.linalg.inv(world.true.c2w[i])
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1)
        model_.add_image_with_trivial_frame(image, pycolmap.Rigid3d(w2c[:3]))
    (model_.write_text if text else model_.write_binary)(str(folder))
    return folder


NAMES = tuple(f"{i:06d}.png" for i in range(9))


@pytest.mark.parametrize("kind", ["transforms", "binary", "text"])
def test_cameras_arrive_in_our_axes(world, tmp_path, kind):
    if kind == "transforms":
        write_transforms(tmp_path / "transforms.json", world, NAMES)
    else:
        write_colmap(tmp_path / "sparse" / "0", world, NAMES, text=kind == "text")
    cameras = read_cameras(tmp_path)
    order = cameras.rows(NAMES)
    assert np.allclose(cameras.c2w[order], world.true.c2w, atol=1e-9)
    assert np.allclose(cameras.K[order], world.true.K)
    point = transform(world.true.c2w[3], np.array([0.1, -0.2, 2.0]))
    x, y, _ = project(transform(np.linalg.inv(cameras.c2w[order[3]]), point), cameras.K[order[3]])
    expected = project(np.array([0.1, -0.2, 2.0]), world.true.K[3])
    assert np.allclose([x, y], expected[:2])


def test_poses_may_have_three_rows(world, tmp_path):
    write_transforms(tmp_path / "transforms.json", world, NAMES)
    document = json.loads((tmp_path / "transforms.json").read_text())
    for frame in document["frames"]:
        frame["transform_matrix"] = frame["transform_matrix"][:3]
    (tmp_path / "transforms.json").write_text(json.dumps(document))
    cameras = read_cameras(tmp_path)
    assert np.allclose(cameras.c2w[cameras.rows(NAMES)], world.true.c2w, atol=1e-9)


def test_intrinsics_follow_the_size(world, tmp_path):
    cameras = read_cameras(write_transforms(tmp_path / "transforms.json", world, NAMES))
    K = cameras.intrinsics(0, (42, 70))
    assert np.allclose(K[:2], world.true.K[0][:2] / 2) and K[2, 2] == 1


def test_names_match_without_folder_or_suffix(world, tmp_path):
    cameras = read_cameras(write_transforms(tmp_path / "transforms.json", world, NAMES))
    assert cameras.rows(["000004.jpg", "x/000002.png", "other.png"]).tolist()[2] == -1
    assert [cameras.names[r] for r in cameras.rows(["000004.jpg", "x/000002.png"])] == ["images/000004.png", "images/000002.png"]


def test_a_field_of_view_is_enough(world, tmp_path):
    path = write_transforms(tmp_path / "transforms.json", world, NAMES[:2])
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del frame[key]
    content["camera_angle_x"] = 2 * np.arctan(0.5 / 0.9)
    path.write_text(json.dumps(content))
    assert np.allclose(read_cameras(path).K, world.true.K[:2])


def test_stored_depth_is_used_in_its_unit(world, tmp_path):
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        index = int(frame["file_path"][-10:-4])
        frame["depth_file_path"] = f"depth_{index}.png"
        stored = cv2.resize(world.true_depth[index] * 1000, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST).astype(np.uint16)
        stored[:10] = 0
        cv2.imwrite(str(tmp_path / frame["depth_file_path"]), stored)
    path.write_text(json.dumps(content))
    backend = ImportGeometry(source=path)
    scene = backend.estimate(clip(world, NAMES), NULL_REPORTER)
    assert backend.provenance == {"depth": "stored"}
    assert np.allclose(scene.depth[:, 5:], world.true_depth[::2, 5:], atol=2e-3)
    assert (scene.depth[:, :5] == 0).all() and (scene.confidence[:, :5] == 1).all()
    assert scene.cameras.frame_ids.tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "depth_4.png").unlink()
    with pytest.raises(InputError, match=r"depth_4\.png"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)


@pytest.mark.parametrize("scale", [1.0, 250.0])
def test_depth_along_given_poses_is_in_their_units(world, tmp_path, scale):
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        for row in range(3):
            frame["transform_matrix"][row][3] *= scale
    path.write_text(json.dumps(content))
    backend = ImportGeometry(source=path)
    scene = backend.estimate(clip(world, NAMES), NULL_REPORTER)
    assert backend.provenance == {"depth": "measured"}
    error = np.abs(scene.depth / (scale * world.true_depth[::2]) - 1)
    assert np.median(error) < 0.01 and np.percentile(error, 80) < 0.05
    sure = scene.confidence > np.percentile(scene.confidence, 50)
    assert error[sure].mean() < error[~sure].mean()


def test_frames_without_a_camera_are_left_out(world, tmp_path):
    write_colmap(tmp_path, world, NAMES[:7])
    scene = ImportGeometry(source=tmp_path).estimate(clip(world, NAMES), NULL_REPORTER)
    assert scene.cameras.frame_ids.tolist() == [0, 1, 2, 3]
    assert np.array_equal(scene.images, world.scene.images[[0, 2, 4, 6]])


def test_poses_that_do_not_belong_to_the_frames_are_refused(world, tmp_path):
    path = write_transforms(tmp_path / "transforms.json", world, tuple(f"other_{i}.png" for i in range(9)))
    with pytest.raises(GeometryError, match="0 of 5 chosen frames have a camera"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)
    still = json.loads(write_transforms(path, world, NAMES).read_text())
    for frame in still["frames"]:
        frame["transform_matrix"] = still["frames"][0]["transform_matrix"]
    path.write_text(json.dumps(still))
    with pytest.raises(GeometryError, match="no parallax"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)


@pytest.mark.parametrize("source", ["transforms", "colmap"])
def test_lens_distortion_is_taken_out(world, tmp_path, source):
    """A point drawn where the distorted camera sees it ends where the pinhole sees it, to a fifth of a pixel."""
    k1 = -0.15
    if source == "transforms":
        cameras = read_cameras(write_transforms(tmp_path / "transforms.json", world, NAMES, k1=k1, camera_model="OPENCV"))
    else:
        cameras = read_cameras(write_colmap(tmp_path, world, NAMES, model="OPENCV", extra=(k1, 0.0, 0.0, 0.0)))
    h, w = 420, 700
    K = cameras.intrinsics(0, (h, w))
    ray = np.array([0.4, -0.25])
    bent = ray * (1 + k1 * (ray @ ray))
    y, x = np.mgrid[:h, :w] + 0.5
    seen = bent * [K[0, 0], K[1, 1]] + K[:2, 2]
    image = np.exp(-((x - seen[0]) ** 2 + (y - seen[1]) ** 2) / 18)
    straight, inside = cameras.undistorted(0, np.repeat((255 * image).astype(np.uint8)[..., None], 3, axis=2))
    weight = straight[..., 0] / straight[..., 0].sum()
    found = np.array([(weight * x).sum(), (weight * y).sum()])
    assert np.allclose(found, ray * [K[0, 0], K[1, 1]] + K[:2, 2], atol=0.2)
    assert inside[h // 2, w // 2]


def test_mistakes_are_named(world, tmp_path):
    with pytest.raises(MissingArtifactError, match="no cameras"):
        read_cameras(tmp_path)
    with pytest.raises(ConfigError, match="where the cameras are"):
        ImportGeometry().estimate(clip(world, NAMES), NULL_REPORTER)
    path = tmp_path / "transforms.json"
    path.write_text("{")
    with pytest.raises(CorruptArtifactError, match="no usable"):
        read_cameras(path)
    with pytest.raises(ArtifactError, match="EQUIRECTANGULAR"):
        read_cameras(write_transforms(path, world, NAMES, camera_model="EQUIRECTANGULAR"))
    (tmp_path / "cameras.bin").write_bytes(b"\x01")
    (tmp_path / "images.bin").write_bytes(b"\x01")
    with pytest.raises(CorruptArtifactError, match="COLMAP"):
        read_cameras(tmp_path)
