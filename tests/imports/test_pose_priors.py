"""Cameras that a video model was given: their formats, by number, in whatever convention, and what stays of them."""

import json
import re

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import utils.imports.backend as backend
from benchmarks.inputs_world import make_cube
from configs.preprocess import PreprocessConfig
from utils.cameras.projection import invert_rigid
from utils.errors import ConfigError, CorruptArtifactError, InputError, MissingArtifactError
from utils.geometry_backend import ClipFrames
from utils.imports.backend import ImportGeometry
from utils.imports.cameras import read_cameras
from utils.imports.conventions import conventions, judge
from utils.imports.sightings import find_sightings

GL = np.diag([1.0, -1.0, -1.0, 1.0])
FRAMES, SIZE = 16, (144, 192)


class Notes:
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)

    def step(self, report):
        pass

    def says(self, words):
        return any(re.search(words, line) for line in self.lines)


@pytest.fixture(scope="module")
def cube():
    return make_cube(FRAMES, SIZE, seed=2)


@pytest.fixture(scope="module")
def sightings(cube):
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in cube.images]
    return find_sightings(grays, [(a, a + gap) for gap in (1, 3) for a in range(FRAMES - gap)])


def clip(cube, first=0, counted=True):
    """Every second frame of a clip is chosen; the frames are called what this program calls those of a clip."""
    shown = np.arange(first, FRAMES)
    return ClipFrames(
        images=cube.images[shown],
        chosen=np.arange(0, len(shown), 2),
        size=SIZE,
        names=tuple(f"{i + 1:06d}.png" for i in shown),
        numbers=shown,
        total=FRAMES,
        counted=counted,
    )


@pytest.fixture
def posed(monkeypatch):
    """The backend without its dense depth, which is no matter here."""

    def flat(images, w2c, K, refs, report):
        return (np.ones((len(refs), *images.shape[1:3]), np.float32),) * 2

    monkeypatch.setattr(backend, "depth_along_poses", flat)

    def estimate(path, frames, prior=True):
        notes, geometry = Notes(), ImportGeometry(source=path, prior=prior)
        return geometry.estimate(frames, notes), notes, geometry.provenance

    return estimate


def write_text(path, rows, head=""):
    path.write_text(head + "\n".join(" ".join(map(str, row)) for row in rows) + "\n")


def written(kind, folder, cube, count=FRAMES):
    """A trajectory as a program writes it; returns what to give."""
    h, w = SIZE
    c2w, K = cube.c2w[:count], cube.K
    w2c, Ks = invert_rigid(c2w), np.repeat(K[None], count, axis=0)
    path = folder / f"{kind}.json"
    plain = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "w": w, "h": h}
    poses = [(pose @ GL).tolist() for pose in c2w]
    if kind in ("seva", "seva without images"):
        named = [f"./samples-rgb/{i:03d}.png" if kind == "seva" else None for i in range(count)]
        frames = [{**plain, "file_path": name, "transform_matrix": pose} for name, pose in zip(named, poses, strict=True)]
        path.write_text(json.dumps({"orientation_override": "none", "frames": frames}))
    elif kind == "camera path":
        fov = float(np.degrees(2 * np.arctan(h / 2 / K[1, 1])))
        steps = [{"camera_to_world": np.ravel(pose).tolist(), "fov": fov, "aspect": w / h} for pose in poses]
        path.write_text(json.dumps({"render_height": 4 * h, "render_width": 4 * w, "camera_path": steps, "fps": 24}))
    elif kind == "worldplay":  # c2w under the name extrinsic, keys that do not sort as text
        path.write_text(json.dumps({str(i): {"extrinsic": c2w[i].tolist(), "K": K.tolist()} for i in reversed(range(count))}))
    elif kind == "voyager":
        path.write_text(json.dumps({"extrinsics": w2c.tolist(), "intrinsics": K.tolist(), "height": h, "width": w}))
    elif kind == "open3d":
        inner = {"width": w, "height": h, "intrinsic_matrix": K.T.ravel().tolist()}
        path.write_text(json.dumps({"parameters": [{"extrinsic": e.T.ravel().tolist(), "intrinsic": inner} for e in w2c]}))
    elif kind == "gen3c":  # intrinsics of another size than the clip's
        path = folder / "gen3c.npz"
        np.savez(path, w2c=w2c.astype(np.float32), intrinsics=np.diag([4.0, 4.0, 1.0]) @ Ks, image_height=4 * h, image_width=4 * w)
    elif kind == "vipe":
        for part, data in (("pose", c2w), ("intrinsics", Ks[:, [0, 1, 0, 1], [0, 1, 2, 2]])):
            (folder / part).mkdir()
            np.savez(folder / part / "clip.npz", data=data, inds=np.arange(count))
        return folder
    elif kind == "realestate":
        rows = [[i, K[0, 0] / w, K[1, 1] / h, 0.5, 0.5, 0, 0, *pose[:3].ravel()] for i, pose in enumerate(w2c)]
        write_text(path := folder / "poses.txt", rows, "https://example.org/watch\n")
    elif kind == "kitti":
        write_text(path := folder / "poses.txt", [pose[:3].ravel() for pose in c2w])
    elif kind == "array":
        np.save(path := folder / "poses.npy", c2w)
    return path


KINDS = (
    *("seva", "seva without images", "camera path", "worldplay", "voyager", "open3d", "gen3c", "vipe", "realestate", "kitti", "array"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trajectory_stays_to_the_last_digit_where_matches_agree(kind, cube, tmp_path, posed):
    scene, notes, told = posed(written(kind, tmp_path, cube), clip(cube))
    wanted = cube.c2w[::2]
    relative = invert_rigid(wanted[:1]) @ wanted
    own = invert_rigid(scene.cameras.c2w[:1]) @ scene.cameras.c2w
    assert np.allclose(own, relative, atol=1e-6)
    assert np.allclose(scene.cameras.K[0][:2], cube.K[:2], rtol=0.03 if kind in ("kitti", "array") else 1e-3)
    assert notes.says("8 of 8 frames, and these stay") and "8 stay" in told["cameras"]
    assert notes.says("exchanged") == (kind == "worldplay")
    assert notes.says("no focal length is given") == (kind in ("kitti", "array"))


def test_another_number_of_frames_is_named(cube, tmp_path, posed):
    with pytest.raises(InputError, match="those of 15 frames without names, but there are 16"):
        posed(written("gen3c", tmp_path, cube, count=15), clip(cube))
    with pytest.raises(InputError, match="those of 15 frames, but there are 16"):
        posed(written("seva", tmp_path, cube, count=15), clip(cube))
    longer = make_cube(FRAMES, SIZE, seed=2)
    np.savez(tmp_path / "more.npz", c2w=np.concatenate([longer.c2w, longer.c2w[-3:]]), intrinsics=longer.K)
    _, notes, _ = posed(tmp_path / "more.npz", clip(cube))
    assert notes.says("19 are given for 16 frames: the first 16")
    with pytest.raises(InputError, match="those of 19 frames without names, but there are 16"):
        posed(tmp_path / "more.npz", clip(cube), prior=False)


def test_frames_that_are_left_out_do_not_shift_the_others(cube, tmp_path, posed):
    scene, _, _ = posed(written("gen3c", tmp_path, cube), clip(cube, first=3))
    assert np.allclose(scene.cameras.c2w, cube.c2w[3::2], atol=1e-6)


def test_frames_that_do_not_follow_are_placed_among_those_that_do(cube, tmp_path, posed):
    c2w = cube.c2w.copy()
    c2w[10:] = c2w[9]
    np.savez(tmp_path / "half.npz", c2w=c2w, intrinsics=cube.K)
    scene, notes, told = posed(tmp_path / "half.npz", clip(cube))
    assert np.allclose(scene.cameras.c2w[:5], cube.c2w[:10:2], rtol=0, atol=1e-9)
    error = np.linalg.norm(scene.cameras.c2w[:, :3, 3] - cube.c2w[::2, :3, 3], axis=1)
    assert error.max() < 0.1 < np.linalg.norm(c2w[::2, :3, 3] - cube.c2w[::2, :3, 3], axis=1).max()
    assert notes.says("3 frames are placed anew") and "3 placed anew" in told["cameras"]


def test_a_trajectory_that_was_not_followed_is_dropped(cube, tmp_path, posed, monkeypatch):
    np.savez(tmp_path / "other.npz", c2w=cube.c2w[np.arange(FRAMES) % 3], intrinsics=cube.K)
    asked = []
    monkeypatch.setattr(backend.SfmGeometry, "estimate", lambda self, frames, report: asked.append(frames))
    _, notes, told = posed(tmp_path / "other.npz", clip(cube))
    assert len(asked) == 1 and notes.says("estimated from the frames instead") and told["cameras"].startswith("estimated")


def test_cameras_that_must_hold_are_doubted_aloud(cube, tmp_path, posed):
    np.savez(tmp_path / "other.npz", c2w=cube.c2w[np.arange(FRAMES) % 3], intrinsics=cube.K)
    scene, notes, _ = posed(tmp_path / "other.npz", clip(cube), prior=False)
    assert notes.says("warning: only .* of the frames' matches agree") and np.allclose(scene.cameras.c2w[1], cube.c2w[2])


def mirrored(pose):
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    return flip @ pose @ flip


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("opengl", lambda w2c: GL @ w2c, "OpenGL"),
        ("inverse", invert_rigid, "exchanged"),
        ("both", lambda w2c: invert_rigid(GL @ w2c), "exchanged.*OpenGL"),
        ("left-handed", mirrored, "left-handed"),
        ("robot", lambda w2c: np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]) @ w2c, "-y, -z, [+]x"),
    ],
)
def test_matches_tell_the_convention(name, wrong, words, cube, sightings):
    w2c = invert_rigid(cube.c2w)
    verdict = judge(sightings, np.stack([wrong(pose[None])[0] if name in ("inverse", "both") else wrong(pose) for pose in w2c]), cube.K)
    assert verdict.known and verdict.given < 0.3 and verdict.found > 0.95
    assert re.search(words, verdict.convention.text)
    right = judge(sightings, w2c, cube.K)
    assert right.convention.text == "as they were read" and right.focal == 1.0 and right.given > 0.95


@pytest.mark.parametrize("factor", [0.5, 0.97, 2.0])
def test_matches_tell_a_focal_length_of_another_size(factor, cube, sightings):
    K = cube.K.copy()
    K[[0, 1], [0, 1]] *= factor
    verdict = judge(sightings, invert_rigid(cube.c2w), K)
    assert verdict.convention.text == "as they were read"
    assert verdict.focal == (1.0 if factor == 0.97 else pytest.approx(1 / factor, rel=0.03))


def test_conventions_are_96_different_ones():
    w2c = np.eye(4)[None].copy()
    w2c[0, :3, 3] = [1, 2, 3]
    every = conventions()
    applied = {tuple(np.round(option.applied(w2c), 6).ravel()) for option in every}
    assert len(every) == 96 == len(applied)
    assert all(abs(np.linalg.det(option.applied(w2c)[0, :3, :3]) - 1) < 1e-9 for option in every)
    assert every[0].text == "as they were read"


def test_too_few_matches_say_nothing(cube, sightings):
    verdict = judge(sightings.only(np.arange(10)), invert_rigid(cube.c2w), cube.K)
    assert not verdict.known and verdict.convention.text == "as they were read" and verdict.focal == 1.0


def test_stored_depth_of_another_unit_is_brought_to_that_of_the_poses(cube, tmp_path, posed):
    np.savez(tmp_path / "both.npz", depth=7 * cube.depth, c2w=cube.c2w, intrinsics=cube.K)
    scene, notes, told = posed(tmp_path / "both.npz", clip(cube), prior=False)
    assert told["depth"] == "stored" and notes.says("another unit")
    assert np.allclose(scene.depth, cube.depth[::2], rtol=0.02)


@pytest.mark.parametrize("jitter", [False, True])
def test_depth_without_poses_gets_them_in_its_unit(cube, tmp_path, jitter):
    scale = np.ones(FRAMES)
    scale[6] = 1.4 if jitter else 1.0
    np.savez(tmp_path / "depth.npz", depth=5 * scale[:, None, None] * cube.depth)
    notes, geometry = Notes(), ImportGeometry(source=tmp_path / "depth.npz")
    scene = geometry.estimate(clip(cube), notes)
    assert geometry.provenance["cameras"] == "estimated" and geometry.provenance["depth"] == "stored"
    assert len(scene) == 8 and np.allclose(scene.depth, 5 * cube.depth[::2], rtol=0.05 if jitter else 1e-3)
    step = np.linalg.norm(scene.cameras.c2w[-1, :3, 3] - scene.cameras.c2w[0, :3, 3])
    assert step == pytest.approx(5 * np.linalg.norm(cube.c2w[14, :3, 3] - cube.c2w[0, :3, 3]), rel=0.1)
    assert notes.says("a scale of its own") == jitter and (scene.confidence > 1).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "1 2 3\n4 5\n", "different counts"),
        ("a.txt", "nothing here\n", "no poses"),
        ("a.txt", "1 2 3 4 5\n", "hold 5 numbers"),
        ("a.json", '{"0": {"extrinsic": [[1, 2], [3, 4]]}}', "shape"),
        ("a.json", '{"0": {"extrinsic": [[1, 2], [3]]}}', "no usable trajectory"),
        ("a.json", '{"camera_path": [{"camera_to_world": 3}], "render_height": 9, "render_width": 9}', "no usable trajectory"),
        ("a.npy", "x", "cannot be read"),
    ],
)
def test_what_is_no_trajectory_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorruptArtifactError, match=words):
        read_cameras(tmp_path / name, SIZE)


def test_an_npz_of_neither_poses_nor_depth_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(MissingArtifactError, match="neither poses nor depth"):
        read_cameras(tmp_path / "a.npz")


def test_priors_and_cameras_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="both cameras and pose_priors"):
        PreprocessConfig(frames_dir=tmp_path, cameras=tmp_path, pose_priors=tmp_path)


def test_quaternions_in_another_order_are_no_odd_convention(cube, sightings):
    """Some program's TUM files have w first: read as they should be, no common convention fits, and a rare one must not stand in for it."""
    q = Rotation.from_matrix(cube.c2w[:, :3, :3]).as_quat()[:, [3, 0, 1, 2]]
    c2w = cube.c2w.copy()
    c2w[:, :3, :3] = Rotation.from_quat(q).as_matrix()
    verdict = judge(sightings, invert_rigid(c2w), cube.K, focal_known=False)
    assert verdict.known and verdict.convention.text == "as they were read" and verdict.found < 0.6
