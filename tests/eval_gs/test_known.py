"""Paths stay where frames know the world; off the path it is measured; the plan shows what is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_gs.known import closed, coverage_plan, known_shares, longest_run, well_known_part
from eval_gs.off_path import off_path, turned_about
from tests.trained_world import write_trained_world
from utils.scene.artifacts import load_scene
from utils.splatting.checkpoint import TrainedScene, load_checkpoint, save_checkpoint
from utils.splatting.coverage import Coverage, measure_coverage
from utils.splatting.render import SplatView, resolve_rasterizer
from utils.types import CameraSet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedScene:
    root = tmp_path_factory.mktemp("world")
    run = write_trained_world(root)
    found = load_checkpoint(run.gs("3dgs"))
    depth = load_scene(root).depth
    coverage = measure_coverage(found.splats.means, found.cameras, depth, np.arange(len(found.cameras)), None)
    return replace(found, coverage=coverage)


def view_of(trained: TrainedScene) -> SplatView:
    rasterizer, device, _ = resolve_rasterizer("auto", "cpu")
    return SplatView(trained, rasterizer, device)


def test_coverage_goes_through_the_checkpoint(trained: TrainedScene, tmp_path: Path) -> None:
    left_out = np.arange(len(trained.cameras)) == 1
    save_checkpoint(tmp_path / "model_final.pt", replace(trained, near=0.123, left_out=left_out))
    read = load_checkpoint(tmp_path)
    assert read.near == pytest.approx(0.123)
    np.testing.assert_array_equal(read.left_out, left_out)
    np.testing.assert_array_equal(read.trained, ~left_out & ~trained.heldout)
    assert read.coverage is not None and trained.coverage is not None
    for name in ("views", "directions", "in_front"):
        assert torch.equal(getattr(read.coverage, name), getattr(trained.coverage, name))
    save_checkpoint(tmp_path / "model_final.pt", replace(trained, coverage=None))
    assert load_checkpoint(tmp_path).coverage is None


def away(cameras: CameraSet, count: int) -> CameraSet:
    """The middle camera, turned away step by step until it looks where no frame looked."""
    poses = np.repeat(cameras.c2w[len(cameras) // 2][None], count, axis=0)
    for pose, angle in zip(poses, np.linspace(0, np.pi, count), strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        pose[:3, :3] = pose[:3, :3] @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return replace(cameras, c2w=poses, K=np.repeat(cameras.K[:1], count, axis=0), frame_ids=np.arange(count))


def test_a_path_ends_where_no_frame_knows(trained: TrainedScene) -> None:
    view, path = view_of(trained), away(trained.cameras, 180)
    shares = known_shares(view, path)
    assert shares[0] > 0.8
    assert shares[-1] < 0.2
    part = well_known_part(view, path)
    assert part.start == 0
    assert 24 <= part.stop < 120
    assert f"{180 - part.stop} of 180 views of the film" in part.words("film")
    everything = well_known_part(view_of(replace(trained, coverage=None)), path)
    assert (everything.start, everything.stop) == (0, 180)
    assert not everything.words("film")


def test_what_only_one_frame_knows_is_not_known(trained: TrainedScene) -> None:
    assert trained.coverage is not None
    once = Coverage(trained.coverage.views.clamp(max=1), trained.coverage.directions, trained.coverage.in_front)
    assert known_shares(view_of(replace(trained, coverage=once)), trained.cameras).max() < 0.01


def test_short_gaps_are_passed_and_the_longest_run_is_found() -> None:
    good = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0], bool)
    assert longest_run(good) == (9, 13)
    assert longest_run(closed(good, 1)) == (7, 13)
    assert longest_run(closed(good, 3)) == (0, 13)
    assert longest_run(np.zeros(3, bool)) == (0, 0)


def test_off_path_figures(trained: TrainedScene) -> None:
    view = view_of(trained)
    near, far = off_path(view, 5.0), off_path(view, 60.0)
    assert near["degrees"] == 5.0
    assert near["known"] > 0.7
    assert near["opaque"] > 0.8
    assert far["known"] < near["known"]
    assert near["reprojection_px"] < 1.0


def test_a_turned_camera_looks_at_the_same_point() -> None:
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    turned = turned_about(pose, 2.0, 30.0)
    np.testing.assert_allclose(turned[:3, 3] + 2.0 * turned[:3, 2], [1, 2, 5], atol=1e-9)
    assert turned[0, 3] > 1.0
    assert np.degrees(np.arccos(turned[2, 2])) == pytest.approx(30.0)


def test_plan_shows_cameras_and_coverage(trained: TrainedScene) -> None:
    plan = coverage_plan(trained)
    assert plan.shape[1] == 720
    assert ((plan == 255).all(-1)).sum() >= 9  # the white dot of a camera
    assert (plan == np.array([250, 220, 40])).all(-1).any()  # a held-out one
