"""What the frames know of the trained splats, and the splats that float: no frame knows them, and some look through them."""

from dataclasses import replace

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs.train import TrainingData
from utils.deformation.inverse import InverseWarp
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.coverage import measure_coverage
from utils.types import Reporter


def with_coverage(trained: TrainedScene, data: TrainingData, warp: InverseWarp, config: GSConfig, report: Reporter) -> TrainedScene:
    """The scene with what the trained frames know of its splats, without those that float; as it is where there is no depth."""
    if data.depth is None:
        return trained
    frames = np.flatnonzero(data.trained)
    coverage = measure_coverage(trained.splats.means, trained.cameras, data.depth, frames, warp if config.deform else None)
    if not config.prune_floating or not coverage.floating.any():
        return replace(trained, coverage=coverage)
    kept = torch.nonzero(~coverage.floating)[:, 0]
    dropped = len(coverage) - len(kept)
    report.note(f"splatting: {dropped} of {len(coverage)} splats float and are dropped: no frame knows them, some see through")
    return replace(trained, splats=trained.splats.select(kept), coverage=coverage.select(kept))
