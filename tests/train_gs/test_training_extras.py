"""Options of the training: early stop on a plateau, LPIPS as a term, frames between the aligned ones."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_gs.stage
from tests.train_gs.test_train_gs import FRAMES, SIZE, build, make_config, make_world
from train_gs.plateau import Plateau
from train_gs.start.left_out import with_left_out
from train_gs.train import train
from utils.cameras.blending import neighbours_in_time
from utils.cameras.projection import transform
from utils.deformation.between import blended_fields, node_positions, with_frames_between
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.manifest import write_manifest
from utils.scene.transaction import publish
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.lpips import load_lpips
from utils.types import Alignment, Array, CameraSet, LatticeFields


def test_plateau_is_reached_when_rounds_pass_without_gain() -> None:
    plateau = Plateau(rounds=2, gain=0.01)
    stopped = []
    for mean in (1.0, 0.8, 0.7, 0.699, 0.698, 0.697):
        plateau.add(mean - 0.1)
        plateau.add(mean + 0.1)
        plateau.end_round()
        stopped.append(plateau.reached)
    assert stopped == [False, False, False, False, True, True]
    other = Plateau(rounds=2, gain=0.01)
    other.load(copy.deepcopy(plateau.state()))
    assert other.reached
    never = Plateau(rounds=0, gain=0.01)
    for _ in range(9):
        never.add(1.0)
        never.end_round()
    assert not never.reached


def test_training_stops_on_a_plateau() -> None:
    still = {f"lr_{name}": 0.0 for name in ("sh0", "shN", "opacities", "scales", "quats", "positions", "cams", "appearance", "deformation")}
    trainer = build(make_config(num_iters=200, plateau_rounds=3, **still))
    train(trainer)
    assert 12 <= trainer.iteration <= 24  # 4 training views a round
    assert trainer.history[-1]["step"] == trainer.iteration
    moving = build(make_config(num_iters=40, plateau_rounds=3))
    train(moving)
    assert moving.iteration > 24


def test_lpips_is_left_out_with_a_notice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load_lpips.cache_clear()
    with caplog.at_level(logging.WARNING):
        trainer = build(make_config(num_iters=3, lpips_weight=0.2))
    assert trainer.lpips is None
    assert sum("LPIPS is left out" in record.message for record in caplog.records) == 1
    assert np.isfinite(trainer.step()["loss"])
    load_lpips.cache_clear()


def test_lpips_is_a_term_of_the_loss_with_a_backbone_of_random_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lpips", reason="the package lpips is not installed")
    from utils.device.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    import torchvision

    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), tmp_path / "checkpoints" / "vgg16-397923af.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    load_lpips.cache_clear()
    plain, term = build(make_config(num_iters=1)), build(make_config(num_iters=1, lpips_weight=10.0))
    assert term.lpips is not None
    image, other = torch.rand(24, 32, 3), torch.rand(24, 32, 3)
    assert float(term.lpips(image, image)) == pytest.approx(0.0, abs=1e-6)
    assert float(term.lpips(image, other)) > 0
    assert term.step()["loss"] > plain.step()["loss"]
    load_lpips.cache_clear()


def every_second(alignment: Alignment) -> Alignment:
    """The alignment of the frames 0, 2, 4 only."""
    kept = np.arange(0, FRAMES, 2)
    fields = replace(alignment.fields, nodes=alignment.fields.nodes[kept], inv_depth_range=alignment.fields.inv_depth_range[kept])
    cloud = alignment.cloud.select(np.isin(alignment.cloud.frame, kept))
    cameras = alignment.cameras.select(kept)
    original = alignment.original_w2c[kept].copy()
    original[:, 0, 3] += 0.3  # alignment has moved all of them by the same step
    return replace(
        alignment, cameras=cameras, fields=fields, cloud=cloud, original_w2c=original, aligned=alignment.aligned[kept], color_maps=None
    )


def test_frames_between_are_blended_from_their_neighbours() -> None:
    scene, alignment = make_world()
    shifted = scene.cameras.w2c.copy()
    shifted[:, 0, 3] += 0.3
    scene = replace(scene, cameras=replace(scene.cameras, c2w=np.linalg.inv(shifted)))
    some = every_second(alignment)
    some.fields.nodes[1] += 0.5
    every = with_frames_between(scene, some)
    np.testing.assert_array_equal(every.cameras.frame_ids, np.arange(FRAMES))
    # the estimated poses are off by the same step everywhere, so all of them come out right
    np.testing.assert_allclose(every.cameras.c2w, alignment.cameras.c2w, atol=1e-6)
    np.testing.assert_array_equal(every.fields.nodes[[0, 2, 4]], some.fields.nodes)
    between, mean = every.fields.nodes[1], 0.5 * (some.fields.nodes[0] + some.fields.nodes[1])
    np.testing.assert_allclose(between[..., 1:3, :], mean[..., 1:3, :], atol=1e-6)  # at the sides only one of both sees the place
    np.testing.assert_allclose(every.fields.nodes[5], some.fields.nodes[2], atol=1e-6)


def test_frames_between_follow_aligned_frames_of_their_own_clip_only() -> None:
    scene, alignment = make_world()
    some = every_second(alignment)  # frames 0, 2, 4
    some.fields.nodes[:] = np.array([0.1, 9.0, 0.3])[:, None, None, None, None]
    some = replace(some, aligned=np.array([True, False, True]))
    every = with_frames_between(scene, some, wanted=np.array([1, 5]), clips=np.array([0, 0, 0, 0, 0, 1]))
    np.testing.assert_array_equal(every.cameras.frame_ids, [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(every.aligned, [True, True, False, True, False])
    np.testing.assert_allclose(every.fields.nodes[1, ..., 1:3, :], 0.15, atol=1e-6)  # a quarter of the way from 0 to 4; 2 was left out
    assert (every.fields.nodes[4] == 0).all()  # of another clip: nobody tells
    np.testing.assert_allclose(every.cameras.c2w[4], scene.cameras.c2w[5], atol=1e-6)


def turned_cameras(turns: list[float]) -> CameraSet:
    """Cameras on a circle of radius 3 about the origin, looking at it, after these angles in radians."""
    poses = np.tile(np.eye(4), (len(turns), 1, 1))
    for pose, angle in zip(poses, turns, strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        pose[:3, :3] = [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]
        pose[:3, 3] = -3 * pose[:3, 2]
    K = np.tile(np.array([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]), (len(turns), 1, 1))
    return CameraSet(c2w=poses, K=K, size=SIZE, frame_ids=np.arange(len(turns)))


def test_fields_are_blended_at_the_same_place_of_the_world() -> None:
    """Both known frames saw the world moved by the same amount at the same places; the frame between them sees that, too."""
    cameras = turned_cameras([-0.5, 0.25, 0.5])
    bounds, counts = np.array([[0.25, 0.6], [0.25, 0.6]]), (16, 24, 32)

    def moved(frame: int) -> Array:
        places = transform(cameras.c2w[frame], node_positions(cameras, frame, np.array([0.25, 0.6]), counts))
        told = 0.2 * np.sin(4 * places)
        return (told @ cameras.c2w[frame, :3, :3]).reshape(*counts, 3)

    known = LatticeFields(nodes=np.stack([moved(0), moved(2)]).astype(np.float32), inv_depth_range=bounds)
    around = neighbours_in_time(np.array([0, 4]), np.array([3]))
    blended = blended_fields(known, cameras.select([0, 2]), around, cameras.select([1]))
    middle = (slice(5, 11), slice(8, 16), slice(10, 22))
    np.testing.assert_allclose(blended.nodes[0][middle], moved(1)[middle], atol=0.035)
    assert np.abs(moved(1)[middle] - 0.25 * moved(0)[middle] - 0.75 * moved(2)[middle]).max() > 0.1  # pixel by pixel it is another


def test_all_frames_supervise_and_the_same_ones_are_held_out(tmp_path: Path) -> None:
    scene, alignment = make_world(bend=0.0)
    layout = SceneLayout(tmp_path)
    layout.npz_dir.mkdir(parents=True)
    artifacts.save_results(layout.npz_dir, scene)
    some = replace(every_second(alignment), original_w2c=alignment.original_w2c[::2])
    with publish(layout.run("r").after_global_optimization, "alignment/2") as folder:
        artifacts.save_alignment(folder, some, {})
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={})
    config = make_config(root_path=tmp_path, run="r", num_iters=6, deform=False)
    few = load_checkpoint(train_gs.stage.run(replace(config, supervise="aligned")))
    every = load_checkpoint(train_gs.stage.run(replace(config, supervise="all")))
    assert few.cameras.frame_ids.tolist() == [0, 2, 4]
    assert every.cameras.frame_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert every.cameras.frame_ids[every.heldout].tolist() == few.cameras.frame_ids[few.heldout].tolist() == [2]


@pytest.mark.parametrize("treated", ["train", "exclude", "agreeing"])
@pytest.mark.parametrize("contradicts", [False, True])
def test_frames_that_the_alignment_left_out(treated: str, contradicts: bool, tmp_path: Path) -> None:
    """They are trained on unless what they show stands in the way of others, and start from their own points."""
    scene, alignment = make_world()
    left_out = 3
    if contradicts:
        scene.depth[left_out] *= 0.4
    without = replace(alignment, aligned=np.arange(FRAMES) != left_out, cloud=alignment.cloud.select(alignment.cloud.frame != left_out))
    notes: list[str] = []
    report = SimpleNamespace(note=notes.append, step=lambda step: None)
    layout = SceneLayout(tmp_path)
    layout.npz_dir.mkdir(parents=True)
    artifacts.save_results(layout.npz_dir, scene)
    with publish(layout.run("r").after_global_optimization, "alignment/2") as folder:
        artifacts.save_alignment(folder, without, {})
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={})
    config = make_config(root_path=tmp_path, run="r", num_iters=1, deform=False, merge_copies=False, target_num_points=10**6)
    config = replace(config, left_out=treated, prune_floating_at=0.0, clear_views=0.0)
    trained = load_checkpoint(train_gs.stage.run(config, report))
    excluded = treated == "exclude" or (treated == "agreeing" and contradicts)
    seen = int(np.isin(without.cloud.frame, trained.cameras.frame_ids[trained.trained]).sum())
    assert (len(trained.splats) > seen) != excluded
    np.testing.assert_array_equal(trained.left_out, (np.arange(FRAMES) == left_out) & excluded)
    assert any(f"{4 - excluded} frames to train on" in note for note in notes)
    assert any("frames 3 take no part" in note for note in notes) == excluded


def test_points_of_left_out_frames_join_in_the_order_of_frames() -> None:
    scene, alignment = make_world()
    left_out, pixels = 3, scene.depth[0].size
    without = replace(alignment, aligned=np.arange(FRAMES) != left_out, cloud=alignment.cloud.select(alignment.cloud.frame != left_out))
    cloud = with_left_out(scene, without, np.array([left_out])).cloud
    assert (np.diff(cloud.frame) >= 0).all() and len(cloud) > len(without.cloud)
    added = cloud.select(cloud.frame == left_out)
    np.testing.assert_allclose(added.points, alignment.cloud.points[left_out * pixels + added.pixel], atol=1e-4)
    np.testing.assert_array_equal(added.colors, alignment.cloud.colors[left_out * pixels + added.pixel])
