"""How well a trained scene explains the frames: PSNR through the deformation and of the rigid, consistent world."""

from typing import Any

import torch
from torch import Tensor

from train_gs.data import TrainingData
from train_gs.train import image_psnr
from utils.deformation.inverse import InverseWarp, camera_from_world
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.rasterize.contract import Rasterizer
from utils.splatting.view import apply_appearance, rigid, view_gaussians
from utils.types import RenderOutput


@torch.no_grad()
def render_frame(
    scene: TrainedScene, position: int, rasterizer: Rasterizer, warp: InverseWarp | None, *, turn: bool = True
) -> RenderOutput:
    """One frame's view of a trained scene, without its colour map.

    Args:
        scene: on the rasteriser's device.
        position: of the frame in `scene.cameras`.
        rasterizer: backend.
        warp: the inverse deformation; None shows the consistent world.
        turn: whether the deformation's local rotation also turns the splats.
    """
    splats = scene.splats
    c2w = torch.from_numpy(scene.cameras.c2w[position]).to(splats.means)
    local = rigid(splats, c2w) if warp is None else warp.linearize(camera_from_world(splats.means, c2w), position)
    gaussians = view_gaussians(splats, c2w, local, active_degree=splats.sh_degree, turn=turn)
    K = torch.from_numpy(scene.cameras.K[position]).to(splats.means)
    return rasterizer.render(gaussians, K, scene.cameras.size, scene.renderer, scene.near)  # type: ignore[arg-type]


def shown_as_frame(output: RenderOutput, scene: TrainedScene, position: int) -> Tensor:
    """(H, W, 3) with the frame's colour map applied."""
    return apply_appearance(output.rgb, output.alpha, scene.appearance[position].to(output.rgb))


def measure(scene: TrainedScene, data: TrainingData, rasterizer: Rasterizer, warp: InverseWarp, *, turn: bool) -> list[dict[str, Any]]:
    """Per frame: PSNR (dB) through the deformation and of the rigid world, both with the frame's colour map; masked pixels do not count."""
    return [
        {
            "frame_id": int(frame_id),
            "heldout": bool(scene.heldout[position]),
            "psnr": _frame_psnr(scene, data, position, rasterizer, warp, turn=turn),
            "psnr_rigid": _frame_psnr(scene, data, position, rasterizer, None),
        }
        for position, frame_id in enumerate(scene.cameras.frame_ids)
    ]


def _frame_psnr(
    scene: TrainedScene, data: TrainingData, position: int, rasterizer: Rasterizer, warp: InverseWarp | None, *, turn: bool = True
) -> float:
    """PSNR of one frame, see `measure`."""
    target = data.images[position].to(scene.splats.means.device).float() / 255.0
    used = None if data.used is None else data.used[position].to(target.device)
    shown = shown_as_frame(render_frame(scene, position, rasterizer, warp, turn=turn), scene, position)
    return image_psnr(shown, target, used)


def averages(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means of `measure` over the training and over the held-out frames (those that exist)."""
    result = {}
    for name, heldout in (("train", False), ("heldout", True)):
        chosen = [row for row in rows if row["heldout"] == heldout]
        for key in ("psnr", "psnr_rigid"):
            if chosen:
                result[f"{name}_{key}"] = sum(row[key] for row in chosen) / len(chosen)
    return result
