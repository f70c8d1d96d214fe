"""Training in blocks against training at once: `python -m benchmarks.splatting_blocks --scene demo_world/scene`.

Trains the splats of a finished scene in 1, 2 and 4 blocks and prints PSNR of its frames, where the pixels near the blocks' faces are also
counted on their own: a seam would show as a fall there that is not found elsewhere.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from configs.stage3_gs import GSConfig
from train_gs import stage
from train_gs.blocks.cut import Block
from train_gs.data import TrainingData
from train_gs.measure import render_frame, shown_as_frame
from utils.deformation.inverse import InverseWarp
from utils.splatting.checkpoint import TrainedScene
from utils.splatting.rasterize.contract import Rasterizer
from utils.types import Array

NEAR = 0.05
"""Distance to a face, in spans of the world, up to which a splat counts as near."""


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of the held-out frames' pixels.

    Attributes:
        near: of those that show splats near a face.
        far: of the others.
        share: of the pixels that are near.
    """

    near: float
    far: float
    share: float


def near_faces(points: Array, blocks: list[Block]) -> Array:
    """(N,) bool, points (N, 3) within `NEAR` spans of the world of a face between two of the blocks."""
    span = np.ptp(np.quantile(points, [0.02, 0.98], axis=0), axis=0)
    near = np.zeros(len(points), bool)
    for block in blocks:
        inside = block.core(points)
        for face in (block.low, block.high):
            near |= inside & (np.abs(points - face) < NEAR * span).any(1)
    return near


@torch.no_grad()
def errors(scene: TrainedScene, blocks: list[Block], data: TrainingData, rasterizer: Rasterizer, warp: InverseWarp) -> Errors:
    """Errors near the faces of these blocks, whether or not the scene was trained in them, and elsewhere."""
    near = torch.from_numpy(near_faces(scene.splats.means.double().numpy(), blocks)).to(scene.splats.means)
    sh = torch.zeros_like(scene.splats.sh)
    sh[:, 0] = (near[:, None] - 0.5) / 0.28209479177387814
    painted = replace(scene, splats=replace(scene.splats, sh=sh))
    sums, counts = np.zeros(2), np.zeros(2)
    for view in np.flatnonzero(scene.heldout):
        shown = shown_as_frame(render_frame(scene, view, rasterizer, warp, turn=False), scene, view).clamp(0, 1)
        squared = (shown - data.images[view].float() / 255).square().mean(-1)
        beside = render_frame(painted, view, rasterizer, warp, turn=False).rgb[..., 0] > 0.5
        for place, pixels in enumerate((beside, ~beside)):
            sums[place] += float(squared[pixels].sum())
            counts[place] += float(pixels.sum())
    return Errors(*(sums / np.maximum(counts, 1)).tolist(), share=float(counts[0] / counts.sum()))


def main() -> None:
    """Prints one line for each number of blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="a finished scene")
    parser.add_argument("--run", default="", help="its alignment run")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--splats", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path("blocks_benchmark"))
    args = parser.parse_args()
    base = GSConfig(root_path=args.scene, run=args.run, renderer="3dgs", sh_degree=1)
    base = replace(base, num_iters=args.iterations, target_num_points=args.splats)
    for blocks in args.blocks:
        begun = time.perf_counter()
        out = stage.run(replace(base, blocks=blocks, out_dir=args.out / f"blocks_{blocks}", overwrite=True))
        report = json.loads((out / "report.json").read_text())
        values = {name: round(report[name], 2) for name in ("train_psnr", "heldout_psnr", "heldout_psnr_rigid")}
        print(blocks, values, "splats", report["splats"], f"{time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
