"""Splats beside the path that hide the view from between two frames: found by what they contribute, with each kind of splat."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train_gs.test_clear_views import SIZE, beside_the_path
from tests.train_gs.test_train_gs import build, make_config
from train_gs.floaters import veils_of, with_coverage, without_veils
from train_gs.population import EMPTY_LOGIT
from train_gs.train import train
from train_gs.veils import beside_the_path as near_path
from train_gs.veils import veiling
from utils.splatting.rasterize.contract import SplatMode, load_rasterizer
from utils.synthetic.inconsistency import rotation_matrices
from utils.types import CameraSet, Splats

NUMBA = load_rasterizer("numba", torch.device("cpu"))
NEAR = 0.02


def splats_at(places: list[list[float]], extent: float) -> Splats:
    count = len(places)
    return Splats(
        means=torch.tensor(places),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        log_scales=torch.full((count, 3), math.log(extent)),
        logit_opacities=torch.full((count,), 2.0),
        sh=torch.zeros(count, 1, 3),
    )


@pytest.mark.parametrize("mode", ["3dgs", "2dgs"])
def test_what_only_a_view_from_between_shows_veils_it(mode: SplatMode) -> None:
    cameras, depth, _ = beside_the_path()
    # Midway and near; on the wall; near, but before the first camera, which shows it.
    splats = splats_at([[0.0, 0.0, 0.3], [0.0, 0.0, 4.0], [-0.5, 0.0, 0.5]], 0.05)
    assert veiling(splats, cameras, depth, None, NUMBA, mode, NEAR).tolist() == [True, False, False]


@pytest.mark.parametrize("turned", [0.0, 0.3])
def test_veils_are_found_in_any_world_and_between_turned_cameras(turned: float) -> None:
    """The same cameras and splats, the second camera turned by some radians, in a world that is turned and moved: w2c is not c2w."""
    cameras, depth, _ = beside_the_path()
    c2w = cameras.c2w.copy()
    c2w[1, :3, :3] = rotation_matrices(np.array([[0.0, -turned, 0.0]]))[0]  # towards the first camera's side
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rotation_matrices(np.array([[0.7, -1.9, 0.4]]))[0], [5.0, -3.0, 2.0]
    splats = splats_at([[0.0, 0.0, 0.3], [0.0, 0.0, 4.0], [0.0, 0.0, -0.3]], 0.05)
    means = splats.means @ torch.from_numpy(moved[:3, :3].T).float() + torch.from_numpy(moved[:3, 3]).float()
    elsewhere = replace(cameras, c2w=moved @ c2w)
    assert veiling(replace(splats, means=means), elsewhere, depth, None, NUMBA, "3dgs", NEAR).tolist() == [True, False, False]


def test_a_splat_beside_the_view_counts_by_its_extent() -> None:
    cameras, depth, _ = beside_the_path()
    beside = [[0.0, 0.45, 0.3]]  # its centre is outside of every picture
    assert not veiling(splats_at(beside, 0.01), cameras, depth, None, NUMBA, "3dgs", NEAR).any()
    assert veiling(splats_at(beside, 0.15), cameras, depth, None, NUMBA, "3dgs", NEAR).all()


def test_nothing_veils_between_clips_far_frames_or_from_behind() -> None:
    cameras, depth, _ = beside_the_path()
    midway = splats_at([[0.0, 0.0, 0.3]], 0.05)
    assert not veiling(midway, cameras, depth, np.array([0, 1]), NUMBA, "3dgs", NEAR).any()
    assert not veiling(splats_at([[0.0, 0.0, -0.3]], 0.05), cameras, depth, None, NUMBA, "3dgs", NEAR).any()
    c2w = cameras.c2w.copy()
    c2w[:, 0, 3] *= 6
    assert not veiling(midway, replace(cameras, c2w=c2w), depth, None, NUMBA, "3dgs", NEAR).any()
    unknown = CameraSet(c2w=cameras.c2w, K=cameras.K, size=SIZE, frame_ids=cameras.frame_ids)
    assert not veiling(midway, unknown, np.zeros_like(depth), None, NUMBA, "3dgs", NEAR).any()


def test_veils_go_halfway_and_after_the_last_step() -> None:
    trainer = build(make_config(num_iters=4, prune_floating_at=0.5, clear_views=0.3))
    cameras, views = trainer.data.cameras, np.flatnonzero(trainer.data.trained)
    middle = torch.from_numpy((cameras.centers[views[0]] + cameras.centers[views[1]]) / 2).float()
    ahead = torch.from_numpy(cameras.c2w[views[0], :3, 2]).float()
    with torch.no_grad():
        trainer.parameters.means[3] = middle + 2 * trainer._as_trained().near * ahead  # 0.06; the frames are 0.16 apart
        trainer.parameters.log_scales[3] = math.log(0.01)
        trainer.parameters.logit_opacities[3] = 3.0
    assert veils_of(trainer._as_trained(), trainer.data, trainer.rasterizer).nonzero()[:, 0].tolist() == [3]
    before = without_veils(trainer.result(), trainer.data, trainer.rasterizer)
    assert len(before.splats) == len(trainer.parameters.means) - 1
    train(trainer)
    assert trainer.hidden is not None and trainer.hidden >= 1
    assert not veils_of(trainer._as_trained(), trainer.data, trainer.rasterizer).any()


def test_splats_on_no_surface_beside_the_path_go() -> None:
    """A splat aside of all pictures, behind one frame and before none: no view from between shows it, one from a step aside does."""
    trainer = build(make_config(num_iters=4, prune_floating_at=0.5, clear_views=0.3))
    cameras, views = trainer.data.cameras, np.flatnonzero(trainer.data.trained)
    right, ahead = (torch.from_numpy(cameras.c2w[views[0], :3, axis]).float() for axis in (0, 2))
    aside = torch.from_numpy(cameras.centers[views[0]]).float() - 0.2 * right + 0.02 * ahead
    with torch.no_grad():
        trainer.parameters.means[3] = aside
        trainer.parameters.log_scales[3] = math.log(0.02)
        trainer.parameters.logit_opacities[3] = 3.0
    assert not veils_of(trainer._as_trained(), trainer.data, trainer.rasterizer).any()
    trained = with_coverage(trainer._as_trained(), trainer.data, trainer.warp, trainer.config)
    gone = (trainer.parameters.means[:, None] - trained.splats.means).norm(dim=-1).amin(1) > 0
    assert gone[3] and gone.sum() == 1
    kept = with_coverage(trainer._as_trained(), trainer.data, trainer.warp, replace(trainer.config, clear_views=0.0))
    assert len(kept.splats) == len(trained.splats) + 1
    train(trainer)
    assert trainer.parameters.logit_opacities[3] <= EMPTY_LOGIT


def test_what_is_beside_the_path_is_measured_by_the_depth_of_its_frame() -> None:
    cameras, depth, _ = beside_the_path()
    first, second = torch.from_numpy(cameras.centers[:2]).float()
    reach = 0.2 * float(np.median(depth[0]))
    places = torch.stack([(first + second) / 2, first - torch.tensor([0.9 * reach, 0, 0]), first - torch.tensor([1.1 * reach, 0, 0])])
    assert near_path(places, cameras, depth, None).tolist() == [True, True, False]
    apart = replace(cameras, c2w=cameras.c2w + 0)
    apart.c2w[1, 0, 3] += 50
    assert near_path(places, apart, depth, np.array([0, 1])).tolist() == [float((first - places[0]).norm()) < reach, True, False]
    assert not near_path(places, cameras, np.zeros_like(depth), None).any()
