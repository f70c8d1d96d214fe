"""The training of a world in blocks, see the package's docstring."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.blocks.cut import Block, cut
from train_gs.blocks.views import shares, views_of
from train_gs.data import TrainingData
from train_gs.saved import Saved
from train_gs.shared import together, trainer_for
from train_gs.train import train
from utils.deformation.inverse import InverseWarp
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.rasterize.contract import load_rasterizer
from utils.types import Reporter, Splats


@dataclass(frozen=True)
class Coarse:
    """The world after its coarse training, on the host.

    Attributes:
        scene: splats, and cameras and colour maps of the frames, which the blocks keep.
        warp: the inverse deformation of the frames, which the blocks keep.
        data: what it was trained on.
    """

    scene: TrainedScene
    warp: InverseWarp
    data: TrainingData


@dataclass(frozen=True)
class BlockJob:
    """One block to train.

    Attributes:
        block: the box.
        views: (V,) positions of the frames that see it.
        share: of the training's steps that it gets, so that its frames are visited as often as in a training of the whole.
    """

    block: Block
    views: np.ndarray
    share: float


def coarse_config(config: GSConfig, blocks: int) -> GSConfig:
    """Settings of the coarse training of a world that is then trained in so many blocks."""
    return replace(config, target_num_points=math.ceil(config.target_num_points / blocks))


def block_config(config: GSConfig, share: float) -> GSConfig:
    """Settings of a block's training: what frames have of their own stays as the coarse training left it."""
    steps = lambda count: max(1, round(count * share))  # noqa: E731
    return replace(
        config,
        num_iters=steps(config.num_iters),
        sh_full_from_iter=None if config.sh_full_from_iter is None else round(config.sh_full_from_iter * share),
        reference_frame=0,
        optimize_cams=False,
        refine_deformation=False,
        lr_appearance=0.0,
    )


def block_data(coarse: Coarse, views: np.ndarray) -> TrainingData:
    """The frames of a block, where the coarse training left them."""
    settled = replace(coarse.data, cameras=coarse.scene.cameras, color_maps=coarse.scene.appearance.numpy())
    return settled.select(views)


def starting_block(splats: Splats, coarse: Splats, block: Block) -> Splats:
    """The splats that a block starts from: its own at full density with those of its border, and the coarse ones elsewhere."""
    own = torch.from_numpy(block.reach(splats.means.numpy()))
    rest = torch.from_numpy(~block.reach(coarse.means.numpy()))
    return joined(splats.select(own), coarse.select(rest))


def of_core(splats: Splats, block: Block) -> Splats:
    """The splats in a block's core."""
    return splats.select(torch.from_numpy(block.core(splats.means.numpy())))


def kept(start: Splats, trained: Splats, block: Block) -> Splats:
    """What the world takes over from a block.

    These are the splats that began in the core, wherever they are now: what crosses a face in one block's training does not do so in its
    neighbour's, and would be there twice or not at all. Where relocation has moved splats about, those that are in the core now.
    """
    if len(trained) == len(start):
        return trained.select(torch.from_numpy(block.core(start.means.numpy())))
    return of_core(trained, block)


def joined(*parts: Splats) -> Splats:
    """All splats of the parts, in their order."""
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Splats(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class BlockTraining:
    """What the blocks of a world have in common.

    Attributes:
        backend: rasteriser.
        device: to train on.
        config: of the whole training.
        folder: of what is unfinished. A block that is done is kept there, so that a run that is stopped goes on with the next.
        key: of settings and inputs; what was made with others is ignored.
        report: progress.
    """

    backend: str
    device: torch.device
    config: GSConfig
    folder: Path
    key: str
    report: Reporter

    def train(self, splats: Splats, coarse: Coarse, blocks: int) -> TrainedScene:
        """The world, trained block by block, on the host.

        Args:
            splats: all of them at full density, before their training, on the host.
            coarse: the world after its coarse training.
            blocks: their number.
        """
        jobs = self.plan(splats, coarse, blocks)
        parts = []
        for number, job in enumerate(jobs):
            finished = Saved(self.folder / f"block_{number}.pt", self.key)
            part = finished.splats()
            if part is None:
                self.report.note(f"splatting: block {number + 1} of {blocks}, {len(job.views)} frames see it")
                state = Saved(self.folder / f"block_{number}_state.pt", self.key)
                part = self.train_block(job, splats, coarse, state)
                finished.save_splats(part)
                state.forget()
            parts.append(part)
        return replace(coarse.scene, splats=joined(*parts))

    def plan(self, splats: Splats, coarse: Coarse, count: int) -> list[BlockJob]:
        """The blocks of a world and the frames that see them; see `train`."""
        blocks = cut(splats.means.numpy(), count)
        scene = replace(coarse.scene, splats=coarse.scene.splats.to(self.device))
        share = shares(scene, blocks, load_rasterizer(self.backend, self.device), coarse.warp.to(self.device))
        trained = coarse.data.trained
        return [BlockJob(block, seen, len(seen) / trained.sum()) for block, seen in zip(blocks, views_of(share, trained), strict=True)]

    def train_block(self, job: BlockJob, splats: Splats, coarse: Coarse, state: Saved) -> Splats:
        """The trained splats of a block's core, on the host; `state` keeps an interrupted training, for the rest see `train`."""
        if not len(job.views):
            return of_core(coarse.scene.splats, job.block)
        start = starting_block(splats, coarse.scene.splats, job.block)
        warp, config = coarse.warp.select(job.views.tolist()), block_config(self.config, job.share)
        trainer = trainer_for(start, block_data(coarse, job.views), warp, self.backend, self.device, config)
        state.restore(trainer, self.report)
        with together(trainer, self.backend):
            trained = train(trainer, self.report, state.save)
        trainer.release()
        return kept(start, trained.splats.to("cpu"), job.block)
