"""Floaters: splats that lie on no training frame's surface and in front of at least one or beside the cameras' way; and veils.

Both are hidden some steps before the end, so that splats on the surfaces can take over their colours. Floaters that are dropped after
the last step would leave holes (Uni3C clip: 29.8 -> 27.5 dB on held-out frames). Veils add next to nothing to the frames, so those that
have come since are dropped then.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from configs.stage3_gs import GSConfig
from train_gs.data import TrainingData
from train_gs.population import EMPTY_LOGIT, SplatRows, living
from train_gs.veils import beside_the_path, veiling
from utils.deformation.inverse import InverseWarp
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.coverage import Coverage, measure_coverage
from utils.splatting.rasterize.contract import Rasterizer
from utils.types import Array, CameraSet


@torch.no_grad()
def hide_floating(
    rows: SplatRows, trained: TrainedScene, data: TrainingData, warp: InverseWarp | None, rasterizer: Rasterizer | None
) -> int:
    """Sets the opacity of splats that float, or hide the view from between two frames, to that of an empty slot, in place; how many.

    Does nothing without depth.

    Args:
        rows: of the splats, in the order of those of `trained`.
        trained: splats and cameras of all frames as they are now.
        data: depth, and the frames that count.
        warp: inverse deformation of all frames as it is now; None for none.
        rasterizer: also hides what hides the view from between two frames, as this draws it; None does not.
    """
    if data.depth is None:
        return 0
    coverage = coverage_of(trained.splats.means, trained.cameras, data, warp)
    floating = coverage.floating
    if rasterizer is not None:
        floating |= veils_of(trained, data, rasterizer) | _unseen_beside_the_path(trained, coverage, data)
    floating &= rows.logit_opacities > EMPTY_LOGIT
    rows.logit_opacities.masked_fill_(floating, EMPTY_LOGIT)
    return int(floating.sum())


def coverage_of(means: Tensor, cameras: CameraSet, data: TrainingData, warp: InverseWarp | None) -> Coverage:
    """Coverage of splats (N, 3) by the frames that are trained on."""
    assert data.depth is not None
    return measure_coverage(means.detach(), cameras, data.depth, np.flatnonzero(data.trained), warp)


@torch.no_grad()
def veils_of(trained: TrainedScene, data: TrainingData, rasterizer: Rasterizer) -> Tensor:
    """(N,) bool, splats that hide the view from between two frames that are trained on."""
    return veiling(trained.splats, *_way(trained, data), rasterizer, trained.renderer, trained.near)  # type: ignore[arg-type]


def _unseen_beside_the_path(trained: TrainedScene, coverage: Coverage, data: TrainingData) -> Tensor:
    return (coverage.views == 0) & beside_the_path(trained.splats.means.detach(), *_way(trained, data))


def _way(trained: TrainedScene, data: TrainingData) -> tuple[CameraSet, Array, Array | None]:
    """Cameras, depth and clips of the frames that are trained on, in their order."""
    assert data.depth is not None
    views = np.flatnonzero(data.trained)
    return trained.cameras.select(views), data.depth[views], None if data.clips is None else data.clips[views]


def without_veils(trained: TrainedScene, data: TrainingData, rasterizer: Rasterizer) -> TrainedScene:
    """The scene without splats that hide the view from between two frames; as it is where there is no depth."""
    if data.depth is None:
        return trained
    return replace(trained, splats=trained.splats.select(~veils_of(trained, data, rasterizer)))


def with_coverage(trained: TrainedScene, data: TrainingData, warp: InverseWarp, config: GSConfig) -> TrainedScene:
    """The scene without invisible splats; where there is depth with the others' coverage by the trained frames, and without those that no
    frame has on a surface beside the cameras' way.
    """
    if config.prune_floating_at:
        trained = replace(trained, splats=trained.splats.select(living(trained.splats, config.dead_opacity)))
    if data.depth is None:
        return trained
    coverage = coverage_of(trained.splats.means, trained.cameras, data, warp if config.deform else None)
    if config.clear_views > 0:
        stay = ~_unseen_beside_the_path(trained, coverage, data)
        trained, coverage = replace(trained, splats=trained.splats.select(stay)), coverage.select(stay)
    return replace(trained, coverage=coverage)
