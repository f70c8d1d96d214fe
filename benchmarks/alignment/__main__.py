"""Alignment on synthetic worlds: how much of the removable inconsistency each variant removes, beside the input and the oracle.

Geometry is given (poses and depth with drift and noise), so only alignment is measured. All variants of a world use and are measured on
the same pixels: those that pass the confidence filter and lie on no depth edge. Removable is the input's median consistency distance
minus the oracle's. Lengths are in percent of the median depth.

    python -m benchmarks.alignment                                     # 4 layouts x 3 seeds x {8, 16, 50} frames, the compared variants
    python -m benchmarks.alignment --layouts room --seeds 0 --frames 8 --variants ours exact --json room.jsonl
    python -m benchmarks.alignment --layouts room --seeds 0 --frames 16 --variants ablation
    python -m benchmarks.alignment --table *.jsonl                     # markdown tables of earlier runs
    python -m benchmarks.alignment.jobs OUT                            # the command lines of all tables, for many cores
    python -m benchmarks.alignment --speed 50 --size 280 504           # wall time and memory of one long clip
    python -m benchmarks.alignment --time-sweep 10 25 50 100 200 --size 280 504 --plot time.svg
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.alignment.metrics import Correspondences, evaluate, find_correspondences, removed
from benchmarks.alignment.tables import read_lines, tables
from benchmarks.alignment.timing import measure, sweep, words
from benchmarks.alignment.variants import ABLATIONS, COMPARED, VARIANTS, Outcome, Task
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.errors import MissingDependencyError
from utils.points.confidence import confident_pixels
from utils.registration import usable_pixels
from utils.runtime import run_stage
from utils.synthetic import WorldConfig, make_world
from utils.synthetic.texture import TEXTURES

GROUPS = {"compared": COMPARED, "ablation": ("ours", *ABLATIONS), "all": tuple(VARIANTS)}
# Sizes of the published method in `--parity quick`: log2 of the table, points of a frame, pairs and places of an iteration.
QUICK_TABLE, QUICK_POINTS, QUICK_PAIRS, QUICK_ANCHORS = 14, 3000, 3000, 1024
REPORTED = {
    "consistency": "consistency_median_percent",
    "thickness": "thickness_percent",
    "error_to_truth": "error_to_truth_percent",
    "f_score": "f_score",
    "ate": "trajectory_error_percent",
    "rotation_error_deg": "rotation_error_deg",
    "fit_scale": "fit_scale",
}


def make_task(config: WorldConfig, stage1: FrameToModelICPConfig, stage2: GlobalOptimizationConfig) -> Task:
    """A world and what the variants start from."""
    world = make_world(config)
    scene = world.predicted_scene()
    usable = usable_pixels(scene, confident_pixels(scene, stage1.alignment), stage1.filter)
    return Task(world, scene, usable, stage1, stage2)


def measured(task: Task, outcome: Outcome, pairs: Correspondences) -> dict[str, Any]:
    """The figures of one outcome."""
    metrics = evaluate(task.world, outcome.points, task.usable, outcome.cameras, pairs)
    gaps = {
        name.removesuffix("_percent"): value for name, value in metrics.items() if name.startswith("consistency_gap_") and "percent" in name
    }
    return {name: metrics.get(key) for name, key in REPORTED.items()} | gaps


def run_world(task: Task, variants: tuple[str, ...]) -> list[dict[str, Any]]:
    """One line a variant; one that lacks its package says so instead of figures."""
    pairs = find_correspondences(task.world)
    ends = {name: measured(task, VARIANTS[name](task), pairs) for name in ("input", "oracle")}
    start = {f"{name}_input": ends["input"][name] for name in ("consistency", "thickness", "error_to_truth", "ate")}
    best = {f"{name}_oracle": ends["oracle"][name] for name in ("consistency", "thickness")}
    lines = []
    for variant in variants:
        line: dict[str, Any] = {"world": asdict(task.world.config), "variant": variant}
        begin = time.perf_counter()
        try:
            outcome = VARIANTS[variant](task)
        except MissingDependencyError as error:
            lines.append(line | {"error": error.message})
            continue
        line["seconds"] = time.perf_counter() - begin
        figures = measured(task, outcome, pairs)
        share = removed(start["consistency_input"], figures["consistency"], best["consistency_oracle"])
        line |= figures | start | best | {"removed": share, "left_out": outcome.left_out, "seconds_by_part": outcome.seconds or {}}
        lines.append(line)
    return lines


def quality(args: argparse.Namespace) -> None:
    """Measures all worlds and prints their tables; appends to the JSON lines after each world."""
    stage1, stage2 = configurations(args)
    variants = tuple(dict.fromkeys(name for group in args.variants for name in GROUPS.get(group, (group,))))
    lines = []
    for layout, seed, frames in product(args.layouts, args.seeds, args.frames):
        new = run_world(make_task(world_config(args, layout, seed, frames), stage1, stage2), variants)
        lines += new
        if args.json:
            with args.json.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in new))
    print(tables(lines))


def speed(args: argparse.Namespace) -> None:
    """Prints wall time by part and peak memory for one clip of `args.speed` frames."""
    line = measure(args.layouts[0], args.speed, tuple(args.size), *configurations(args))
    print(words(line), flush=True)
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


def configurations(args: argparse.Namespace) -> tuple[FrameToModelICPConfig, GlobalOptimizationConfig]:
    """Stage settings: the defaults, with the chosen matcher; the published method on a sample of the points unless `--parity full`."""
    stage1, stage2 = FrameToModelICPConfig(), GlobalOptimizationConfig()
    if args.parity == "quick":
        twists = replace(stage1.twists, log2_table_size=QUICK_TABLE)
        stage1 = replace(stage1, twists=twists, icp=replace(stage1.icp, max_points=QUICK_POINTS))
        stage2 = replace(stage2, twists=twists, loo=replace(stage2.loo, max_pairs=QUICK_PAIRS, anchor_samples=QUICK_ANCHORS))
    return (
        replace(stage1, matching=replace(stage1.matching, matcher=args.matcher)),
        replace(stage2, matching=replace(stage2.matching, matcher=args.matcher)),
    )


def world_config(args: argparse.Namespace, layout: str, seed: int, frames: int) -> WorldConfig:
    """The world of one row."""
    return WorldConfig(
        layout=layout,
        seed=seed,
        frames=frames,
        size=tuple(args.size),
        severity=args.severity,
        warp=args.warp,
        path_scale=args.sweep,
        texture=args.texture,
        occluders=args.occluders,
        vanishing=args.vanishing,
        pose_errors=args.pose_errors,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["room", "corridor", "object", "outdoor"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16, 50])
    parser.add_argument("--severity", default="medium")
    parser.add_argument("--warp", default="smooth", choices=["smooth", "sharp", "object"])
    parser.add_argument("--sweep", type=float, default=1.0, help="speed of the camera; larger: wider baselines")
    parser.add_argument("--texture", default="rich", choices=TEXTURES)
    parser.add_argument("--occluders", type=int, default=0, help="posts near the camera")
    parser.add_argument("--vanishing", type=float, default=0.0, help="share of the objects that come and go")
    parser.add_argument("--pose-errors", type=float, default=1.0, help="factor on the errors of the predicted poses")
    parser.add_argument("--size", nargs=2, type=int, default=[144, 256], metavar=("H", "W"))
    parser.add_argument("--matcher", default="flow")
    parser.add_argument(
        "--variants", nargs="+", default=["compared"], choices=[*GROUPS, *VARIANTS], metavar="NAME",
        help=f"groups: {', '.join(GROUPS)}; variants: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("--parity", default="quick", choices=["quick", "full"], help="sizes of the published method and the hash grids")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per world and variant")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the tables of JSON lines instead of measuring")
    parser.add_argument("--speed", type=int, default=0, metavar="FRAMES", help="measure time and memory of one clip instead")
    parser.add_argument(
        "--time-sweep", nargs="+", type=int, metavar="FRAMES", help="measure time and memory of clips of these lengths instead"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="SVG of the time sweep")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.table:
        print(tables(read_lines(args.table)))
    elif args.time_sweep:
        print(sweep(args.time_sweep, args.layouts[0], tuple(args.size), args.plot))
    elif args.speed:
        speed(args)
    else:
        quality(args)


if __name__ == "__main__":
    run_stage(main)
