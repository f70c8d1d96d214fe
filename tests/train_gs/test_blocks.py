"""Worlds trained in blocks: the cut, which frames see what, no seam, no loss, resuming, and how many blocks a memory asks for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_gs.stage
import train_inverse_deformation.stage
from benchmarks.splatting_blocks import errors
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from tests.train_gs.test_train_gs import data_of, make_world
from tests.train_gs.test_train_gs_stage import Notes, root, settings
from train_gs.blocks.cut import Block, cut
from train_gs.blocks.train import kept, starting_block
from train_gs.blocks.views import shares, views_of
from train_gs.data import TrainingData
from train_gs.memory import estimated_bytes, number_of_blocks
from train_gs.train import Trainer
from utils.deformation.artifact import load_inverse, trained_inverse
from utils.deformation.inverse import IdentityInverseWarp
from utils.errors import ConfigError
from utils.splatting.checkpoint import TrainedScene, load_checkpoint
from utils.splatting.rasterize.contract import load_rasterizer
from utils.types import CameraSet, Splats

__all__ = ["root"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_point_is_in_one_core_and_cores_are_equally_full(count: int) -> None:
    points = np.random.default_rng(0).normal(size=(700, 3)) * [5, 1, 2]
    blocks = cut(points, count)
    assert len(blocks) == count
    members = np.stack([block.core(points) for block in blocks])
    assert (members.sum(0) == 1).all()
    assert np.abs(members.sum(1) - 700 / count).max() < 5
    far = np.random.default_rng(1).normal(size=(100, 3)) * 1e4
    assert (sum(block.core(far).astype(int) for block in blocks) == 1).all()
    for block in blocks:
        assert (block.reach(points) | ~block.core(points)).all()


def splats_at(points: np.ndarray) -> Splats:
    count = len(points)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    return Splats(
        torch.from_numpy(points).float(), quats, torch.full((count, 3), -2.5), torch.full((count,), 4.0), torch.zeros(count, 1, 3)
    )


def test_frames_see_the_blocks_that_fill_their_picture() -> None:
    """Two walls side by side, a camera before each, and a block behind the first wall that is hidden by it."""
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 30), np.linspace(-1, 1, 30)), -1).reshape(-1, 2)
    wall = lambda x, z: np.column_stack([grid[:, 0] + x, grid[:, 1], np.full(len(grid), z)])
    left, right, behind = wall(-2, 2.0), wall(2, 2.0), wall(-2, 9.0)
    points = np.concatenate([left, right, behind])
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[0, 0, 3], c2w[1, 0, 3] = -2, 2
    K = np.tile(np.array([[40.0, 0, 16], [0, 40.0, 12], [0, 0, 1]]), (2, 1, 1))
    cameras = CameraSet(c2w=c2w, K=K, size=(24, 32), frame_ids=np.arange(2))
    scene = TrainedScene(
        splats=splats_at(points), cameras=cameras, heldout=np.zeros(2, bool), renderer="3dgs", appearance=torch.eye(3, 4).repeat(2, 1, 1)
    )
    end = np.full(3, np.inf)
    boxes = {
        "left": (-end, np.array([0.0, np.inf, 5.0])),
        "right": (np.array([0.0, -np.inf, -np.inf]), end),
        "behind": (np.array([-np.inf, -np.inf, 5.0]), np.array([0.0, np.inf, np.inf])),
    }
    blocks = [Block(low, high, np.zeros(3)) for low, high in boxes.values()]
    seen = shares(scene, blocks, load_rasterizer("numba", CPU), IdentityInverseWarp())
    assert seen.shape == (2, 3)
    assert seen[0, 0] > 0.8 and seen[1, 1] > 0.8 and max(seen[0, 1], seen[1, 0], *seen[:, 2]) < 0.02
    assert [list(views) for views in views_of(np.array([[0.5, 0.01], [0.3, 0.0]]), np.array([True, True]))] == [[0, 1], [0]]
    assert [list(views) for views in views_of(np.array([[0.5, 0.0], [0.3, 0.0]]), np.array([False, True]))] == [[1], []]


def test_a_block_starts_from_its_own_splats_and_coarse_ones_elsewhere() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    first, _ = cut(points, 2)
    coarse = points[::10]
    start = starting_block(splats_at(points), splats_at(coarse), first)
    assert len(start) == first.reach(points).sum() + (~first.reach(coarse)).sum()
    assert 0.5 * 4000 < len(start) < 0.65 * 4000


def test_splats_that_cross_a_face_are_kept_once() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    moved = splats_at(points + np.random.default_rng(1).normal(size=points.shape) * 0.1)
    first, second = cut(points, 2)
    parts = [kept(splats_at(points), moved, block) for block in (first, second)]
    assert torch.equal(torch.cat([part.means for part in parts]).sort(0).values, moved.means.sort(0).values)
    fewer = moved.select(torch.arange(1500))  # relocation has dropped rows
    assert len(kept(splats_at(points), fewer, first)) == first.core(fewer.means.double().numpy()).sum()


def test_blocks_give_the_same_world_without_seams(root: Path) -> None:
    """The wall in 1, 2 and 4 blocks: held-out frames as good within 0.3 dB, and pixels near the faces no worse than the others."""
    inverse = train_inverse_deformation.stage.run(InverseDeformationConfig(root_path=root, run="r", validation_points=200))
    scene, alignment = make_world()
    config = settings(root, num_iters=120)
    data, warp, rasterizer = data_of(scene, alignment, config), load_inverse(inverse), load_rasterizer("numba", CPU)
    worlds, reports = {}, {}
    for blocks in (1, 2, 4):
        out = train_gs.stage.run(replace(config, blocks=blocks))
        reports[blocks] = json.loads((out / "report.json").read_text())
        worlds[blocks] = load_checkpoint(out), trained_inverse(out, inverse)
    assert warp.field.nodes.shape == worlds[4][1].field.nodes.shape
    once = worlds[1][0]
    for blocks in (2, 4):
        world, own_warp = worlds[blocks]
        assert reports[blocks]["blocks"] == blocks and len(reports[blocks]["frames"]) == len(reports[1]["frames"])
        assert reports[blocks]["heldout_psnr"] > reports[1]["heldout_psnr"] - 0.3
        faces = cut(once.splats.means.double().numpy(), blocks)
        here, whole = errors(world, faces, data, rasterizer, own_warp), errors(once, faces, data, rasterizer, worlds[1][1])
        assert 0.05 < here.share < 0.7
        assert np.sqrt(here.near) - np.sqrt(whole.near) < 1 / 255  # less than one grey level
        assert len(world.splats) == len(once.splats)


def test_a_run_that_is_stopped_goes_on_with_the_block_it_was_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(root, deform=False, blocks=2, num_iters=12, save_every=5)
    whole_step, steps = Trainer.step, []

    def interrupted(self: Trainer) -> dict[str, float]:
        steps.append(self.iteration)
        if len(steps) == 12 + 12 + 8:
            raise KeyboardInterrupt
        return whole_step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_gs.stage.run(config)
    steps.clear()
    notes = Notes()
    out = train_gs.stage.run(config, notes)
    assert steps == list(range(5, 12))  # neither the coarse training nor the first block again
    assert any("block 2 of 2" in line for line in notes.lines)
    monkeypatch.setattr(Trainer, "step", whole_step)
    resumed = load_checkpoint(out)
    assert not (root / "r" / "gs_3dgs.resume").exists()
    straight = load_checkpoint(train_gs.stage.run(replace(config, overwrite=True)))
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert torch.equal(getattr(resumed.splats, name), getattr(straight.splats, name))


def sized(frames: int, size: tuple[int, int]) -> TrainingData:
    cameras = CameraSet(
        c2w=np.tile(np.eye(4), (frames, 1, 1)), K=np.tile(np.eye(3), (frames, 1, 1)), size=size, frame_ids=np.arange(frames)
    )
    return TrainingData(cameras=cameras, images=torch.zeros(0), heldout=np.zeros(frames, bool), median_depth=1.0)


def test_auto_takes_as_many_blocks_as_the_memory_asks_for() -> None:
    cuda, large = torch.device("cuda"), sized(1000, (540, 960))
    config = GSConfig(target_num_points=20_000_000, sh_degree=3, max_gpu_gb=24)
    blocks = number_of_blocks(config, large, cuda)
    assert 3 <= blocks <= 8
    assert (
        estimated_bytes(20_000_000, 3, 1000, 540 * 960) > 24 * 2**30 > estimated_bytes(20_000_000 * 5 // (2 * blocks), 3, 1000, 540 * 960)
    )
    assert number_of_blocks(replace(config, max_gpu_gb=12), large, cuda) > blocks
    assert number_of_blocks(replace(config, target_num_points=1_200_000), large, cuda) == 1
    assert number_of_blocks(config, large, CPU) == 1
    assert number_of_blocks(replace(config, blocks=6), large, CPU) == 6
    assert number_of_blocks(replace(config, budget_seconds=60), large, cuda) == 1


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"blocks": 2, "budget_seconds": 10.0}])
def test_blocks_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GSConfig(**changes)  # type: ignore[arg-type]
