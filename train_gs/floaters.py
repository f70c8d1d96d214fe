"""Floaters: splats that lie on no training frame's surface and in front of at least one, by the frames' depth.

They are hidden some steps before the end, so that splats on the surfaces can take over their colours. Dropped after the last step they
would leave holes (Uni3C clip: 29.8 -> 27.5 dB on held-out frames).
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from configs.stage3_gs import GSConfig
from train_gs.data import TrainingData
from train_gs.population import EMPTY_LOGIT, SplatRows, living
from train_gs.start.clear_views import in_the_way_between
from utils.deformation.inverse import InverseWarp
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.coverage import Coverage, measure_coverage
from utils.types import CameraSet


@torch.no_grad()
def hide_floating(rows: SplatRows, cameras: CameraSet, data: TrainingData, warp: InverseWarp | None, between: bool) -> int:
    """Sets the opacity of splats that float, or hide the view from between two frames, to that of an empty slot, in place; how many.

    Does nothing without depth.

    Args:
        rows: of the splats.
        cameras: of all frames as they are now.
        data: depth, and the frames that count.
        warp: inverse deformation of all frames as it is now; None for none.
        between: also hide what hides the view from between two frames.
    """
    if data.depth is None:
        return 0
    floating = coverage_of(rows.means, cameras, data, warp).floating
    if between:
        views = np.flatnonzero(data.trained)
        clips = None if data.clips is None else data.clips[views]
        means = rows.means.detach().cpu().numpy()
        blocking = in_the_way_between(means, cameras.select(views), data.depth[views], clips)
        floating |= torch.from_numpy(blocking).to(floating.device)
    floating &= rows.logit_opacities > EMPTY_LOGIT
    rows.logit_opacities.masked_fill_(floating, EMPTY_LOGIT)
    return int(floating.sum())


def coverage_of(means: Tensor, cameras: CameraSet, data: TrainingData, warp: InverseWarp | None) -> Coverage:
    """Coverage of splats (N, 3) by the frames that are trained on."""
    assert data.depth is not None
    return measure_coverage(means.detach(), cameras, data.depth, np.flatnonzero(data.trained), warp)


def with_coverage(trained: TrainedScene, data: TrainingData, warp: InverseWarp, config: GSConfig) -> TrainedScene:
    """The scene without invisible splats, and with the others' coverage by the trained frames where there is depth."""
    if config.prune_floating_at:
        trained = replace(trained, splats=trained.splats.select(living(trained.splats, config.dead_opacity)))
    if data.depth is None:
        return trained
    return replace(trained, coverage=coverage_of(trained.splats.means, trained.cameras, data, warp if config.deform else None))
