"""Quality over training time, and memory against its estimate: `python -m benchmarks.splatting_time --scene S [S ...]`.

Trains the splats of finished scenes (results.npz and the alignments there) with the budget of the fast preset on a GPU, once for each
number of seconds and once for each variant, which is a list of settings of stage 3.2; the plot shows the PSNR of the training frames at
each time of each training:

    python -m benchmarks.splatting_time --scene kitchen/scene room/scene --run RUN --seconds 5 10 20 30 --plot psnr.png
    python -m benchmarks.splatting_time --scene kitchen/scene --run RUN --variant num_iters=5000 --variant "num_iters=5000 sh_degree=1"

The first training compiles what is not compiled yet, so a short one is run before any that is timed. `train s` and `ms a step` are those of
the steps alone; `all s` is the whole stage with its files.
"""

import argparse
import ast
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.gpu_scaling import plotted
from configs.pipeline import preset
from configs.stage3_gs import GSConfig
from train_gs import stage
from train_gs.memory import estimated_bytes
from utils.device.accelerator import release_memory
from utils.scene import artifacts

# fmt: off
COLUMNS = ("scene", "training", "held dB", "train dB", "train s", "ms a step", "all s", "steps", "splats", "GiB in use", "GiB estimated")
# fmt: on


def settings_of(text: str) -> dict[str, Any]:
    """`name=value name=value` as settings; values are Python literals."""
    pairs = [word.split("=", 1) for word in text.split()]
    return {name: ast.literal_eval(value) for name, value in pairs}


def trained(config: GSConfig, name: str, said: str) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """One training: the cells of its row, and PSNR of the training frames in dB over seconds."""
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    folder = stage.run(config)
    report = artifacts.read_json(folder / "report.json")
    curve, pixels = report["curve"], artifacts.load_scene(config.root_path).images.shape[1:3]
    frames = len(report["frames"])
    first, last = curve[len(curve) // 2], curve[-1]
    row = {
        "scene": name,
        "training": said,
        "held dB": report["heldout_psnr"],
        "train dB": report["train_psnr"],
        "train s": report["seconds"]["train"],
        "ms a step": 1000 * (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"]),
        "all s": time.perf_counter() - begun,
        "steps": curve[-1]["step"],
        "splats": report["splats"],
        "GiB in use": torch.cuda.max_memory_allocated() / 2**30,
        "GiB estimated": estimated_bytes(report["splats"], config.sh_degree, frames, math.prod(pixels)) / 2**30,
    }
    return row, [(entry["seconds"], entry["psnr"]) for entry in curve]


def shown(row: dict[str, Any]) -> str:
    """A row as markdown."""
    return "| " + " | ".join(f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS) + " |"


def main() -> None:
    """Prints the table and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, nargs="+", required=True, help="scenes with an alignment and its inverse deformation")
    parser.add_argument("--run", required=True, help="name of their alignment run")
    parser.add_argument("--seconds", type=float, nargs="+", default=[], help="budgets of the training")
    parser.add_argument("--variant", action="append", default=[], help="settings of stage 3.2, such as 'num_iters=5000 sh_degree=1'")
    parser.add_argument("--out", type=Path, default=Path("splatting_time"))
    parser.add_argument("--plot", type=Path, default=Path("psnr_over_seconds.png"))
    args = parser.parse_args()
    base = replace(preset("fast", "cuda").gs, renderer="3dgs", run=args.run, overwrite=True)
    trainings = [(f"{s:g} s", {"budget_seconds": s}) for s in args.seconds] + [
        (text or "preset", settings_of(text)) for text in args.variant
    ]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for root in args.scene:
        name = root.parent.name if root.name == "scene" else root.name
        here = replace(base, root_path=root, out_dir=args.out / name)
        stage.run(replace(here, num_iters=200, target_num_points=20_000))
        for said, settings in trainings:
            row, curves[f"{name}, {said}"] = trained(replace(here, **settings), name, said)
            print(shown(row), flush=True)
    least = min(y for curve in curves.values() for _, y in curve)
    cv2.imwrite(str(args.plot), plotted(curves, "seconds of training; PSNR of training frames in dB", math.floor(least)))


if __name__ == "__main__":
    main()
