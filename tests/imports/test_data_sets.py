"""Data sets of other programs as they really come: each a small one with known cameras."""

import json

import numpy as np
import pytest

from configs.preprocess import PreprocessConfig
from preprocess.stage import run
from tests.imports.test_importers import GL, NAMES, clip, world, write_colmap, write_transforms
from utils.cameras.projection import invert_rigid
from utils.errors import CorruptArtifactError, GeometryError, InputError
from utils.exports.stage import world_offset
from utils.imports import colmap
from utils.imports.backend import ImportGeometry
from utils.imports.cameras import read_cameras
from utils.imports.names import matched
from utils.scene.artifacts import load_scene
from utils.scene.layout import SceneLayout
from utils.scene.media import write_image
from utils.types import NULL_REPORTER

__all__ = ["world"]


def test_of_several_models_the_one_with_most_images_is_taken_and_said(world, tmp_path):
    write_colmap(tmp_path / "sparse" / "0", world, NAMES[:2])
    write_colmap(tmp_path / "sparse" / "1", world, NAMES)
    cameras = read_cameras(tmp_path)
    assert len(cameras.names) == 9
    assert "0 (2 images)" in cameras.notes[0]


@pytest.mark.parametrize("text", [True, False])
def test_names_with_spaces_and_blank_lines(world, tmp_path, text):
    names = tuple(f"my clip {i}.png" for i in range(9))
    folder = write_colmap(tmp_path, world, names, text=text)
    if text:
        # pycolmap's own writer keeps the names; other writers leave lines of points out, or add blank ones
        lines = [line for line in (folder / "images.txt").read_text().splitlines() if line.strip()]
        (folder / "images.txt").write_bytes("\r\n".join([*lines[:5], "", *lines[5:], "", ""]).encode())
    assert read_cameras(tmp_path).names == names


def test_lines_of_points_are_no_images():
    lines = ["1 1 0 0 0 0 0 0 1 a.png", "10.5 20 -1 30 4e1 7", "2 1 0 0 0 0 0 0 1 0002", "", "3 1 0 0 0 0 0 0 1 b c.png"]
    assert [name for name, _, _ in colmap._text_images(lines)] == ["a.png", "0002", "b c.png"]


@pytest.mark.parametrize("damage", ["count", "cut", "empty"])
def test_a_lying_binary_model_is_refused_at_once(world, tmp_path, damage):
    write_colmap(tmp_path, world, NAMES)
    raw = bytearray((tmp_path / "images.bin").read_bytes())
    if damage == "count":
        raw[:8] = (1 << 60).to_bytes(8, "little")
    (tmp_path / "images.bin").write_bytes(b"" if damage == "empty" else raw[: len(raw) // 2] if damage == "cut" else raw)
    with pytest.raises(CorruptArtifactError, match="COLMAP"):
        read_cameras(tmp_path)


def test_images_of_one_name_are_told_apart_by_their_folders(world):
    theirs = ["images/front/000001.jpg", "images/back/000001.jpg"]
    assert matched(theirs, ["back/000001.jpg", "front/000001.jpg"]).tolist() == [1, 0]
    with pytest.raises(InputError, match=r"may be images/front/000001\.jpg or"):
        matched(theirs, ["000001.jpg"])


def test_paths_and_suffixes_of_other_systems():
    theirs = ["C:\\data\\images\\IMG_1.JPG", "./train/shot_0.10", "train/shot_0.1"]
    assert matched(theirs, ["IMG_1.png"]).tolist() == [0]
    assert matched(theirs, ["shot_0.10.png", "shot_0.1.png"]).tolist() == [1, 2]
    assert matched(["A.PNG"], ["a.png"]).tolist() == [0]


def synthetic(world, folder, extra, names=NAMES):
    frames = [{"file_path": f"./train/{n[:-4]}", "transform_matrix": (world.true.c2w[i] @ GL).tolist()} for i, n in enumerate(names)]
    (folder / "transforms_train.json").write_bytes(json.dumps({**extra, "frames": frames[:6]}).encode("utf-16"))
    (folder / "transforms_val.json").write_text(json.dumps({**extra, "frames": frames[6:]}))


def test_synthetic_scenes_have_several_files_and_only_a_field_of_view(world, tmp_path):
    h, w = world.true.size
    K = world.true.K[0]
    synthetic(world, tmp_path, {"camera_angle_x": 2 * np.arctan(w / 2 / K[0, 0]), "camera_angle_y": 2 * np.arctan(h / 2 / K[1, 1])})
    scene = ImportGeometry(source=tmp_path).estimate(clip(world, NAMES), NULL_REPORTER)
    assert len(scene) == 5
    assert np.allclose(scene.cameras.c2w, world.true.c2w[::2], atol=1e-6)
    assert np.allclose(scene.cameras.K[0][[0, 1], [0, 1]], K[[0, 1], [0, 1]], rtol=1e-3)


@pytest.mark.parametrize("extra", [{"is_fisheye": True}, {"camera_model": "OPENCV_FISHEYE"}])
def test_a_fisheye_is_taken_out(world, tmp_path, extra):
    """A point drawn where the fisheye shows it ends where a pinhole shows it."""
    k = (0.05, -0.01, 0.0, 0.0)
    path = write_transforms(tmp_path / "transforms.json", world, NAMES, **extra, **{f"k{i + 1}": v for i, v in enumerate(k)})
    cameras = read_cameras(path)
    h, w = 420, 700
    K = cameras.intrinsics(0, (h, w))
    ray = np.array([0.4, -0.25])
    r = np.linalg.norm(ray)
    theta = np.arctan(r)
    bent = ray / r * theta * (1 + k[0] * theta**2 + k[1] * theta**4)
    y, x = np.mgrid[:h, :w] + 0.5
    seen = bent * [K[0, 0], K[1, 1]] + K[:2, 2]
    image = np.exp(-((x - seen[0]) ** 2 + (y - seen[1]) ** 2) / 18)
    straight, _ = cameras.undistorted(0, np.repeat((255 * image).astype(np.uint8)[..., None], 3, axis=2))
    weight = straight[..., 0] / straight[..., 0].sum()
    assert np.allclose([(weight * x).sum(), (weight * y).sum()], ray * [K[0, 0], K[1, 1]] + K[:2, 2], atol=0.3)


def test_a_focal_length_that_varies_becomes_one(world, tmp_path):
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for i, frame in enumerate(content["frames"]):
        frame["fl_x"] *= 1 + 0.02 * np.sin(i)
        frame["fl_y"] *= 1 + 0.02 * np.sin(i)
    path.write_text(json.dumps(content))
    scene = ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)
    assert np.ptp(scene.cameras.K, axis=0).max() == 0
    content["frames"][0]["fl_x"] *= 3
    path.write_text(json.dumps(content))
    with pytest.raises(GeometryError, match="focal lengths"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)


def test_cameras_of_turned_pictures_are_refused_with_both_sizes(world, tmp_path):
    h, w = world.true.size
    path = write_transforms(tmp_path / "transforms.json", world, NAMES, w=h, h=w)
    with pytest.raises(GeometryError, match=f"{w}x{h}, but its camera is that of a picture of {h}x{w}"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)


def test_geo_referenced_cameras_come_to_the_origin(world, tmp_path):
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] += [448252.0, 5411932.0, 310.0]
        frame["transform_matrix"] = matrix.tolist()
    path.write_text(json.dumps(content))
    cameras = read_cameras(path)
    rows = cameras.rows(NAMES)
    assert np.abs(cameras.c2w[:, :3, 3]).max() < 10 and "world_offset" in cameras.notes[-1]
    assert np.allclose(cameras.c2w[rows, :3, 3] + cameras.offset, world.true.c2w[:, :3, 3] + [448252.0, 5411932.0, 310.0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"frames": [' + "[" * 100_000 + "]" * 100_000 + "]}", "no usable"),
        ('{"frames": []}', "no frames"),
        (
            '{"frames": [{"file_path": "a.png", "transform_matrix": [[0,0,0,0],[0,0,0,0],[0,0,0,0]], "fl_x": 9, "w": 9, "h": 9}]}',
            "mirrored or flat",
        ),
        (
            '{"w": 0, "h": 9, "fl_x": 9, "frames": [{"file_path": "a.png", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0]]}]}',
            "wide or high",
        ),
        (
            '{"w": 1e999, "h": 9, "fl_x": 9, "frames": [{"file_path": "a.png", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0]]}]}',
            "no usable",
        ),
        ("[1, 2]", "no usable"),
        ("3", "no usable"),
    ],
)
def test_hostile_json_is_refused(tmp_path, content, words):
    (tmp_path / "transforms.json").write_text(content)
    with pytest.raises(CorruptArtifactError, match=words):
        read_cameras(tmp_path)


def arrays(world):
    scene = world.scene
    return {
        "image": scene.images,
        "depth": world.true_depth.astype(np.float32),
        "conf": np.ones_like(world.true_depth, np.float32),
        "extrinsics": world.true.w2c[:, :3].astype(np.float32),
        "intrinsics": world.true.K.astype(np.float32),
    }


def stored(root, **content):
    path = SceneLayout(root).results_npz
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    return load_scene(root)


def test_exports_of_depth_programs_in_every_form(world, tmp_path):
    plain = arrays(world)
    h, w = world.true.size
    forms = {
        "no confidence": {k: v for k, v in plain.items() if k != "conf"},
        "a stored None": plain | {"conf": np.array(None, object)},
        "one channel": plain | {"depth": plain["depth"][..., None]},
        "a batch axis": {k: v[None] for k, v in plain.items()},
        "half precision": plain | {"depth": plain["depth"].astype(np.float16)},
        "channels first, floats": plain | {"image": plain["image"].transpose(0, 3, 1, 2).astype(np.float32) / 255},
        "camera to world": plain | {"extrinsics": world.true.c2w.astype(np.float32)},
        "intrinsics of the original": plain | {"intrinsics": np.diag([4.0, 4.0, 1.0]) @ plain["intrinsics"]},
        "one K": plain | {"intrinsics": plain["intrinsics"][0]},
        "VGGT": {
            "images": plain["image"].transpose(0, 3, 1, 2) / np.float32(255),
            "depth": plain["depth"][..., None],
            "depth_conf": plain["conf"],
            "extrinsic": plain["extrinsics"],
            "intrinsic": plain["intrinsics"],
        },
        "MapAnything": {
            "img_no_norm": plain["image"] / np.float32(255),
            "depth_z": plain["depth"][..., None],
            "conf": plain["conf"],
            "intrinsics": plain["intrinsics"],
            "camera_poses": world.true.c2w,
        },
        "Pi3": {
            "images": plain["image"],
            "local_points": local_points(world),
            "conf": 3 * plain["conf"][..., None] - 4,
            "camera_poses": world.true.c2w,
        },
    }
    for name, content in forms.items():
        scene = stored(tmp_path / name.replace(" ", "_"), **content)
        assert scene.cameras.size == (h, w), name
        assert np.abs(scene.images.astype(int) - plain["image"]).max() <= 1, name
        assert np.allclose(scene.depth, plain["depth"], rtol=2e-3), name
        assert np.allclose(scene.cameras.c2w, world.true.c2w, atol=1e-4), name
        assert np.allclose(scene.cameras.K, world.true.K, rtol=5e-3), name
        assert np.isfinite(scene.confidence).all() and scene.confidence.min() >= 0, name


def local_points(world):
    h, w = world.true.size
    y, x = np.mgrid[:h, :w] + 0.5
    K, z = world.true.K[0], world.true_depth
    return np.stack([(x - K[0, 2]) / K[0, 0] * z, (y - K[1, 2]) / K[1, 1] * z, z], -1)


def test_a_frame_without_depth_is_left_out(world, tmp_path):
    content = arrays(world)
    content["depth"] = content["depth"].copy()
    content["depth"][3] = np.nan
    scene = stored(tmp_path, **content)
    assert len(scene) == 8 and np.allclose(scene.cameras.c2w[3], world.true.c2w[4], atol=1e-5)


def test_cameras_of_an_npz_without_images(world, tmp_path):
    content = {k: v for k, v in arrays(world).items() if k in ("depth", "extrinsics", "intrinsics")}
    np.savez(tmp_path / "mini.npz", **content)
    scene = ImportGeometry(source=tmp_path / "mini.npz").estimate(clip(world, NAMES), NULL_REPORTER)
    assert len(scene) == 5 and np.allclose(scene.depth, world.true_depth[::2], rtol=1e-3)
    assert np.allclose(scene.cameras.w2c, invert_rigid(world.true.c2w[::2]), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_masks_that_a_data_set_names_arrive_in_the_scene(world, tmp_path, scale):
    h, w = world.true.size
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame["mask_path"] = f"masks/{frame['file_path'].split('/')[-1]}"
        white = np.full((scale * h, scale * w), 255, np.uint8)
        white[: scale * 20, : scale * 30] = 0
        (tmp_path / "masks").mkdir(exist_ok=True)
        write_image(tmp_path / frame["mask_path"], white)
    path.write_text(json.dumps(content))
    scene = ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)
    assert scene.ignored is not None and scene.ignored[:, :20, :30].all() and not scene.ignored[:, 20:].any()
    assert not scene.valid[:, :20, :30].any() and scene.valid[:, 20:].mean() > 0.9
    (tmp_path / "masks" / NAMES[0]).unlink()
    with pytest.raises(InputError, match="no mask file"):
        ImportGeometry(source=path).estimate(clip(world, NAMES), NULL_REPORTER)


def test_the_offset_of_geo_referenced_cameras_is_in_the_exports_and_comes_back(world, tmp_path):
    far = np.array([448252.0, 5411932.0, 310.0])
    path = write_transforms(tmp_path / "transforms.json", world, NAMES)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] += far
        frame["transform_matrix"] = matrix.tolist()
    path.write_text(json.dumps(content))
    (tmp_path / "frames").mkdir()
    for name, image in zip(NAMES[:5], world.scene.images, strict=False):
        write_image(tmp_path / "frames" / name, image)
    config = PreprocessConfig(frames_dir=tmp_path / "frames", scene_root=tmp_path / "scene", process_res=140, cameras=path)
    layout = SceneLayout(run(config, NULL_REPORTER))
    assert np.abs(load_scene(layout.root).cameras.centers).max() < 10
    written = json.loads((layout.clip_cameras / "transforms.json").read_text())
    at = np.array([frame["transform_matrix"] for frame in written["frames"]])[:, :3, 3] + written["world_offset"]
    assert np.abs(at - world.true.c2w[:5, :3, 3] - far).max() < 1e-3
    again = read_cameras(layout.clip_cameras / "transforms.json")
    assert np.abs(again.c2w[:, :3, 3] + again.offset - world.true.c2w[:5, :3, 3] - far).max() < 1e-3
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.allclose(world_offset(layout.root, turn, 2.0), 2 * turn @ written["world_offset"])
    assert not len(world_offset(tmp_path, turn, 2.0))
