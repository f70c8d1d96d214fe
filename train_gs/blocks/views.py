"""Which frames see which block."""

from dataclasses import replace

import numpy as np
import torch

from train_gs.blocks.cut import Block
from utils.deformation.inverse import InverseWarp, camera_from_world
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.rasterize.contract import Rasterizer
from utils.splatting.view import view_gaussians
from utils.types import Array

LEAST_SHARE = 0.02
"""A frame is trained on for a block that fills at least this share of its picture."""


@torch.no_grad()
def shares(scene: TrainedScene, blocks: list[Block], rasterizer: Rasterizer, warp: InverseWarp) -> Array:
    """(F, B) share of each frame's picture that is made of each block's splats, rendered with the block in place of the colour.

    Args:
        scene: the coarse world, on the rasteriser's device.
        blocks: of the world.
        rasterizer: backend.
        warp: the inverse deformation of all frames.
    """
    means = scene.splats.means
    member = np.stack([block.core(means.cpu().numpy().astype(np.float64)) for block in blocks], 1)
    painted = torch.from_numpy(member).to(means)
    painted = torch.nn.functional.pad(painted, (0, -len(blocks) % 3))
    result = np.zeros((len(scene.cameras), painted.shape[1]))
    for view in range(len(scene.cameras)):
        c2w, K = (torch.from_numpy(values[view]).to(means) for values in (scene.cameras.c2w, scene.cameras.K))
        local = warp.linearize(camera_from_world(means, c2w), view)
        seen = view_gaussians(scene.splats, c2w, local, active_degree=0, turn=False)
        for first in range(0, painted.shape[1], 3):
            shown = replace(seen, colors=painted[:, first : first + 3].contiguous())
            output = rasterizer.render(shown, K, scene.cameras.size, scene.renderer, scene.near)  # type: ignore[arg-type]
            result[view, first : first + 3] = output.rgb.mean((0, 1)).cpu().numpy()
    return result[:, : len(blocks)]


def views_of(share: Array, trained: Array) -> list[Array]:
    """Positions of the frames to train each block on, of those that are trained on (F,); for a block that none shows large, the best one.

    Args:
        share: (F, B), see `shares`.
        trained: (F,) bool.
    """
    chosen = []
    for column in np.where(trained[:, None], share, 0.0).T:
        least = min(LEAST_SHARE, float(column.max()))
        chosen.append(np.flatnonzero(column >= least) if least > 0 else np.zeros(0, np.int64))
    return chosen
