"""One picture of a finished scene: input frame, render of the consistent world at the same refined pose, rendered depth.

python benchmarks/side_by_side.py SCENE_ROOT --out side_by_side.png [--run R] [--checkpoint-dir C] [--frames 4] [--width 420]
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from utils.errors import V2WError
from utils.report import pictures
from utils.runtime import error_lines
from utils.scene.artifacts import load_scene
from utils.scene.media import resize_area, write_image
from utils.splatting.checkpoint import load_checkpoint
from utils.splatting.render import SplatView, depth_image, locate_checkpoint, resolve_rasterizer, rgb_image
from utils.types import Array


def sheet(root: Path, run: str, checkpoint_dir: Path | None, frames: int, width: int) -> Array:
    """(h, w, 3) uint8: a labelled row per frame."""
    _, checkpoint = locate_checkpoint(root, run, checkpoint_dir)
    trained = load_checkpoint(checkpoint)
    rasterizer, device, _ = resolve_rasterizer("auto", "auto")
    view, scene, cameras = SplatView(trained, rasterizer, device), load_scene(root), trained.cameras
    height = round(width * cameras.size[0] / cameras.size[1])
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(frames, len(cameras))).round().astype(int))
    outputs = {int(i): view.render(cameras.c2w[i], cameras.K[i], cameras.size) for i in chosen}
    near, far = pictures.depth_range(np.stack([depth_image(o) for o in outputs.values()]))
    rows = []
    for i, output in outputs.items():
        frame = int(cameras.frame_ids[i])
        held = ", held out" if trained.heldout[i] else ""
        row = {
            f"frame {frame}: input{held}": scene.images[frame],
            "render, consistent world": rgb_image(output),
            "rendered depth": pictures.colorize_depth(depth_image(output), near, far),
        }
        rows.append([pictures.labelled(resize_area(image, (height, width)), text) for text, image in row.items()])
    return pictures.grid(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene_root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="PNG or JPEG to write")
    parser.add_argument("--run", default="", help="run folder; the newest without it")
    parser.add_argument("--checkpoint-dir", type=Path, help="folder of trained splats; the newest without it")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--width", type=int, default=420, help="width of one picture in pixels")
    args = parser.parse_args()
    try:
        write_image(args.out, sheet(args.scene_root, args.run, args.checkpoint_dir, args.frames, args.width))
    except V2WError as error:
        print(error_lines(error), file=sys.stderr)
        sys.exit(2)
    print(args.out)


if __name__ == "__main__":
    main()
