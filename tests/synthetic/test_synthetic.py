"""The synthetic world: its truth is exact, it is deterministic, and severity means what it says."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from utils.cameras.projection import project, transform
from utils.errors import ConfigError, CorruptArtifactError, MissingArtifactError
from utils.synthetic import LAYOUTS, WorldConfig, load_ground_truth, make_world, save_world
from utils.synthetic.inconsistency import drift, object_centers
from utils.synthetic.scenes import build_place
from utils.synthetic.texture import surface_color, with_texture
from utils.synthetic.world import camera_rays

SMALL = (48, 80)


@pytest.fixture(scope="module")
def room():
    return make_world(WorldConfig(frames=4, size=SMALL, severity="medium"))


def shown_points(world, frame):
    valid = world.valid[frame]
    return valid, world.deform(frame, world.canonical[frame][valid], world.object_id[frame][valid])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_are_seen_and_textured(layout):
    world = make_world(WorldConfig(layout=layout, frames=2, size=SMALL))
    assert world.valid.mean() > 0.7
    assert (world.object_id.max() > 3) and (world.depth > 0).mean() > 0.7
    brightness = world.images.astype(float).mean(-1)
    assert brightness.std() > 25
    assert np.abs(np.diff(brightness, axis=2)).mean() > 5


def test_an_orbit_closes_and_its_figure_turns():
    still, turning = (WorldConfig(layout="orbit", frames=65, size=(16, 16), severity="none", turning=turn) for turn in (0.0, 1.0))
    place = build_place("orbit", 0)
    first, quarter, last = (place.path.c2w(still.progress(frame)) for frame in (0, 16, 64))
    np.testing.assert_allclose(first, last, atol=1e-9)
    assert first[[0, 2], 2] @ quarter[[0, 2], 2] == pytest.approx(0, abs=1e-9)
    world = make_world(replace(turning, frames=3))
    point, figure = np.array([[0.3, 0.0, 0.0]]), np.array([1])
    pivot = object_centers(world.place.shapes)[1]
    moved = world.deform(2, point + pivot, figure)[0] - pivot
    np.testing.assert_allclose(moved, 0.3 * np.array([np.cos(1.0), 0, -np.sin(1.0)]), atol=1e-6)
    np.testing.assert_allclose(world.deform(2, point + pivot, figure + 1)[0], point[0] + pivot, atol=1e-6)
    with pytest.raises(ConfigError, match="full turn"):
        WorldConfig(turning=7.0)


@pytest.mark.parametrize("warp", ["smooth", "sharp", "object"])
def test_displaced_points_project_to_their_pixel_centres(warp):
    world = make_world(WorldConfig(layout="object", frames=3, size=SMALL, severity="high", warp=warp))
    frame = 2
    valid, points = shown_points(world, frame)
    rows, columns = np.nonzero(valid)
    camera = points @ world.cameras.w2c[frame, :3, :3].T + world.cameras.w2c[frame, :3, 3]
    pixel = camera @ world.cameras.K[frame].T
    assert np.abs(pixel[:, 0] / pixel[:, 2] - (columns + 0.5)).max() < 1e-3
    assert np.abs(pixel[:, 1] / pixel[:, 2] - (rows + 0.5)).max() < 1e-3
    np.testing.assert_allclose(camera[:, 2], world.depth[frame][valid], rtol=1e-5)
    seen = world.depth[frame] > 0
    assert (seen & ~valid).sum() < 0.03 * seen.sum()
    moved = np.linalg.norm(points - world.canonical[frame][valid], axis=1)
    assert np.median(moved) > 1e-3 * world.scale


def _shifts(image, other, block=16):
    """(N, 2) pixels by which blocks of `other` would have to be read elsewhere to look like those of `image` (one step of Lucas-Kanade)."""
    dy, dx = np.gradient(other)
    found = []
    for top in range(0, image.shape[0] - block + 1, block):
        for left in range(0, image.shape[1] - block + 1, block):
            part = np.s_[top : top + block, left : left + block]
            if np.isnan(other[part]).any() or np.isnan(dx[part]).any() or np.isnan(dy[part]).any():
                continue
            slopes = np.stack([dx[part].ravel(), dy[part].ravel(), np.ones(block * block)], -1)
            found.append(np.linalg.lstsq(slopes, (image - other)[part].ravel(), rcond=None)[0][:2])
    return np.array(found)


def test_colours_are_those_of_the_true_points():
    """What a frame shows lies where its canonical points say, to less than a tenth of a pixel."""
    world = make_world(WorldConfig(frames=1, size=(144, 256), severity="high"))
    drift = world.inconsistency
    shown = ((world.images[0] / 255 - drift.offset[0]) / drift.gain[0]).mean(-1)
    points = world.canonical[0].reshape(-1, 3).astype(np.float64)
    x, y, z = project(transform(world.cameras.w2c[0], points), world.cameras.K[0])
    places = [np.where(z > 0, axis, np.nan).reshape(shown.shape).astype(np.float32) - np.float32(0.5) for axis in (x, y)]
    clean = world.clean_images[0].astype(np.float32).mean(-1) / 255
    there = cv2.remap(clean, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=np.nan)
    shifts = np.linalg.norm(_shifts(shown, there.astype(np.float64)), axis=1)
    assert len(shifts) > 30
    assert np.median(shifts) < 0.12


def test_depth_is_camera_z_along_the_true_ray():
    world = make_world(WorldConfig(frames=2, size=SMALL, severity=0))
    rays = camera_rays(world.cameras)
    points = world.cameras.centers[:, None, None] + world.depth[..., None] * rays
    np.testing.assert_allclose(points[world.valid], world.canonical[world.valid], atol=1e-4)


def test_normals_are_those_of_the_surface():
    world = make_world(WorldConfig(frames=1, size=SMALL, severity=0))
    points, normal = world.canonical[0].astype(float), world.normal[0]
    across = np.cross(points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1])
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    cosine = (across * normal[1:-1, 1:-1]).sum(-1)
    assert np.median(np.abs(cosine)) > 0.999
    towards = (normal * camera_rays(world.cameras)[0]).sum(-1)
    assert (towards[world.valid[0]] < 0).all()


def test_severity_zero_is_consistent():
    world = make_world(WorldConfig(layout="outdoor", frames=3, size=SMALL, severity="none"))
    np.testing.assert_array_equal(world.images, world.clean_images)
    scene = world.predicted_scene()
    np.testing.assert_array_equal(scene.cameras.c2w, world.cameras.c2w)
    np.testing.assert_allclose(scene.depth[world.valid], world.depth[world.valid], rtol=1e-6)
    np.testing.assert_allclose(world.oracle_points()[world.valid], world.canonical[world.valid], atol=1e-5)
    assert (world.depth == 0).any()  # there is sky ...
    assert (scene.depth[world.depth == 0] > world.depth.max()).all()  # ... and it is predicted as a far shell


def test_same_seed_same_world_other_seed_other_world(room):
    again = make_world(room.config)
    for name in ("images", "depth", "object_id"):
        np.testing.assert_array_equal(getattr(room, name), getattr(again, name))
    np.testing.assert_array_equal(room.canonical, again.canonical)
    np.testing.assert_array_equal(room.predicted_scene().depth, again.predicted_scene().depth)
    other = make_world(WorldConfig(frames=4, size=SMALL, severity="medium", seed=1))
    assert np.abs(other.images.astype(int) - room.images).mean() > 10


def test_first_frames_of_a_longer_world_are_those_of_a_shorter(room):
    longer = make_world(WorldConfig(frames=6, size=SMALL, severity="medium"))
    np.testing.assert_array_equal(longer.images[:4], room.images)
    np.testing.assert_array_equal(longer.canonical[:4], room.canonical)


def disagreement(world, first, second):
    valid, here = shown_points(world, first)
    there = world.deform(second, world.canonical[first][valid], world.object_id[first][valid])
    return 100 * np.median(np.linalg.norm(here - there, axis=1)) / world.scale


@pytest.mark.parametrize("layout", LAYOUTS)
def test_medium_severity_is_calibrated(layout):
    world = make_world(WorldConfig(layout=layout, frames=28, size=(24, 40)))
    adjacent = np.mean([disagreement(world, frame, frame + 1) for frame in range(0, 27, 2)])
    distant = np.mean([disagreement(world, frame, frame + 24) for frame in range(4)])
    assert 0.2 < adjacent < 0.4
    assert 1.2 < distant < 3.0


def test_severity_is_monotone():
    worlds = [make_world(WorldConfig(frames=5, size=SMALL, severity=name)) for name in ("low", "medium", "high")]
    shown = [disagreement(world, 0, 4) for world in worlds]
    tinted = [np.abs(world.inconsistency.gain - 1).max() for world in worlds]
    noise = [np.abs(world.oracle_points() - world.canonical)[world.valid].mean() for world in worlds]
    for values in (shown, tinted, noise):
        assert values[0] < values[1] < values[2]


def test_drift_grows_with_the_gap():
    process = drift(400, (200,), np.random.default_rng(0))
    step = np.sqrt(((process[1:] - process[:-1]) ** 2).mean())
    assert step == pytest.approx(1.0, rel=0.1)
    far = np.sqrt(((process[24:] - process[:-24]) ** 2).mean())
    assert 4 < far < 9


def test_oracle_error_is_along_the_ray_and_confidence_knows_it(room):
    error = room.oracle_points() - room.canonical
    rays = camera_rays(room.cameras)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    aside = error - (error * rays).sum(-1, keepdims=True) * rays
    assert np.abs(aside[room.valid]).max() < 1e-5 * room.scale
    size = np.linalg.norm(error, axis=-1) / np.maximum(room.depth, 1e-6)
    confidence = room.predicted_scene().confidence
    middle = np.median(confidence[room.valid])
    assert size[room.valid & (confidence > middle)].mean() < 0.5 * size[room.valid & (confidence < middle)].mean()


def test_novel_views_are_inside_what_the_clip_covers(room):
    assert room.novel_images.shape == (8, *SMALL, 3)
    distance = np.linalg.norm(room.novel_cameras.centers[:, None] - room.cameras.centers[None], axis=-1).min(1)
    assert (distance > 0).all() and (distance < 0.1 * room.scale).all()


def test_objects_move_rigidly_in_the_object_warp():
    world = make_world(WorldConfig(layout="object", frames=2, size=SMALL, warp="object"))
    ids = np.unique(world.object_id[0][world.valid[0]])
    pick = world.valid[0] & (world.object_id[0] == ids[-1])
    points, names = world.canonical[0][pick].astype(float), world.object_id[0][pick]
    moved = world.deform_rigid(1, points, names)
    np.testing.assert_allclose(np.linalg.norm(moved - moved.mean(0), axis=1), np.linalg.norm(points - points.mean(0), axis=1), atol=1e-9)
    assert np.abs(moved - points).max() > 0
    still = np.zeros(len(points), np.int64)
    np.testing.assert_allclose(world.deform_rigid(1, points, still), points, atol=1e-12)


def test_clip_and_ground_truth_round_trip(room, tmp_path):
    save_world(room, tmp_path / "new" / "folder")
    with av.open(str(tmp_path / "new/folder/clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == room.images.shape
    assert np.abs(frames.astype(int) - room.images).mean() < 12  # chroma is stored at half the resolution
    truth = load_ground_truth(tmp_path / "new" / "folder")
    assert truth.config == room.config
    np.testing.assert_array_equal(truth.canonical, room.canonical)
    np.testing.assert_array_equal(truth.cameras.c2w, room.cameras.c2w)
    np.testing.assert_array_equal(truth.novel_images, room.novel_images)


def test_ground_truth_errors(tmp_path):
    with pytest.raises(MissingArtifactError):
        load_ground_truth(tmp_path)
    (tmp_path / "ground_truth.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CorruptArtifactError):
        load_ground_truth(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "moon"},
        {"severity": "extreme"},
        {"severity": -1},
        {"frames": 0},
        {"warp": "melt"},
        {"texture": "lace"},
        {"occluders": -1},
        {"occluders": 9999},
        {"vanishing": 2},
    ],
)
def test_unusable_settings_are_named(settings):
    with pytest.raises(ConfigError) as error:
        make_world(WorldConfig(**{"frames": 1, "size": (16, 16), **settings}))
    assert error.value.hint


def test_command_reports_a_bad_size_in_one_line(tmp_path):
    command = [sys.executable, "-m", "utils.synthetic", "--out", str(tmp_path), "--size", "big"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: size 'big'")


def test_occluders_stand_in_front_and_leave_the_rest_as_it_is():
    plain = make_world(WorldConfig(frames=2, size=SMALL, severity=0))
    world = make_world(WorldConfig(frames=2, size=SMALL, severity=0, occluders=6))
    posts = world.object_id > plain.object_id.max()
    assert len(np.unique(world.object_id[posts])) >= 3
    assert 0.02 < posts.mean() < 0.6
    assert (world.depth[posts] < plain.depth[posts] + 1e-4).all()
    assert np.median(world.depth[posts]) < 0.6 * np.median(plain.depth[posts])
    np.testing.assert_array_equal(world.object_id[~posts], plain.object_id[~posts])
    np.testing.assert_allclose(world.depth[~posts], plain.depth[~posts], rtol=1e-5)


def test_vanishing_objects_come_and_go_and_the_structure_stays():
    settings = WorldConfig(layout="object", frames=24, size=(24, 40), severity=0, path_scale=0)
    still, world = make_world(settings), make_world(replace(settings, vanishing=0.5))
    assert (still.object_id == still.object_id[0]).all()
    changes = world.object_id != still.object_id
    assert 0.01 < changes.mean() < 0.5
    gone = [n for n in np.unique(still.object_id) if not (world.object_id == n).any((1, 2)).all()]
    assert 0 not in gone and 3 <= len(gone) <= 8
    assert sum((world.object_id == n).any() for n in gone) >= len(gone) - 1  # gone in some frames, not in all
    longer = make_world(replace(settings, frames=26, vanishing=0.5))
    np.testing.assert_array_equal(longer.object_id[:24], world.object_id)


def test_weak_texture_has_little_contrast_and_the_same_shapes():
    rich, weak = (make_world(WorldConfig(frames=1, size=SMALL, texture=texture)) for texture in ("rich", "weak"))
    np.testing.assert_array_equal(rich.depth, weak.depth)
    inside = [
        np.abs(np.diff(w.images[0].astype(float).mean(-1), axis=1))[np.diff(w.object_id[0], axis=1) == 0].mean() for w in (rich, weak)
    ]
    assert inside[1] < 0.45 * inside[0]  # shading and silhouettes stay


def test_calm_texture_has_the_same_shapes_calmer_colours_and_enough_contrast_to_follow():
    rich, calm = (make_world(WorldConfig(frames=1, size=SMALL, texture=texture)) for texture in ("rich", "calm"))
    np.testing.assert_array_equal(rich.depth, calm.depth)
    fine = [float(np.abs(np.diff(w.images[0].astype(float).mean(-1), axis=1)).mean()) for w in (rich, calm)]
    assert 0.5 * fine[0] < fine[1] < 0.9 * fine[0]
    back, floor = (with_texture(build_place("room", 0).materials, "calm").palette[i].mean(0) for i in (0, 3))
    assert (np.diff(back) < 0).all() and (np.diff(floor) < 0).all() and back.mean() > floor.mean()  # a light, warm wall over a wooden floor


def test_the_command_says_what_it_does_meanwhile(tmp_path):
    command = [sys.executable, "-m", "utils.synthetic", "--out", str(tmp_path), "--frames", "3", "--size", "64x48"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "compiling" in done.stderr and "ground truth" in done.stderr and "3 frames" in done.stdout
    reports = []
    make_world(WorldConfig(frames=2, size=SMALL), SimpleNamespace(step=reports.append, note=reports.append))
    assert [(r.step, r.total) for r in reports] == [(0, 2), (1, 2)]


def test_repeated_texture_looks_the_same_two_tiles_on():
    tiles = with_texture(build_place("room", 0).materials, "repeated")
    cell, points = tiles.cell[0, 0], np.random.default_rng(0).uniform(-2, 2, (400, 3))

    def colors(materials, step):
        return np.array([surface_color(materials, 0, x + step, y, z, 0.005) for x, y, z in points])

    variation = np.abs(colors(tiles, 0) - colors(tiles, cell)).mean()
    assert np.abs(colors(tiles, 0) - colors(tiles, 2 * cell)).mean() < 0.2 * variation
    rich = build_place("room", 0).materials
    assert np.abs(colors(rich, 0) - colors(rich, 2 * cell)).mean() > 0.5 * np.abs(colors(rich, 0) - colors(rich, cell)).mean()


def test_pose_errors_scale_and_nothing_else_does():
    worlds = [make_world(WorldConfig(frames=3, size=(32, 48), pose_errors=factor)) for factor in (0.0, 1.0, 5.0)]
    off = [world.predicted_scene().cameras.c2w - world.cameras.c2w for world in worlds]
    assert np.allclose(off[0], 0)
    np.testing.assert_allclose(off[2][:, :3, 3], 5 * off[1][:, :3, 3], rtol=1e-6)
    np.testing.assert_array_equal(worlds[0].images, worlds[2].images)
    np.testing.assert_array_equal(worlds[0].predicted_scene().depth, worlds[2].predicted_scene().depth)
