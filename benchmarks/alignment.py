"""Alignment on synthetic worlds: how much of the removable inconsistency stages 1 and 2 remove. Prints a markdown table.

Geometry is given (poses and depth with drift and noise), so only alignment is measured. All rows of a world use the same pixels: those
that pass the confidence filter and lie on no depth edge. Removable is the input's median consistency distance minus the oracle's.

    python -m benchmarks.alignment                                     # 4 layouts x 3 seeds x {8, 16, 32} frames, about 20 minutes
    python -m benchmarks.alignment --layouts room --seeds 0 --frames 8 # one world
    python -m benchmarks.alignment --speed 50 --size 280 504           # wall time and memory of one long clip
"""

import argparse
import resource
import time
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.alignment_metrics import evaluate, find_correspondences, removed
from configs.stage1_align import FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from utils.points.confidence import confident_pixels
from utils.registration import Registration, align_jointly, align_sequential, build_cloud, forward_points, usable_pixels
from utils.registration.sequential import unaligned
from utils.synthetic import SyntheticWorld, WorldConfig, make_world
from utils.types import Array, CameraSet, Scene

COLUMNS = (
    "world | before | stage 1 | stages 1+2 | oracle | removed % st. 1 | removed % | thickness before/after/oracle | "
    "error before/after | fit scale | trajectory before/after | left out | seconds st. 1+2"
)


@dataclass(frozen=True)
class Aligned:
    """Both stages on one scene."""

    scene: Scene
    usable: Array
    first: Registration
    second: Registration
    seconds: tuple[float, float]


def align(scene: Scene, stage1: FrameToModelICPConfig, stage2: GlobalOptimizationConfig) -> Aligned:
    """Stages 1 and 2 without the disk."""
    start = time.perf_counter()
    usable = usable_pixels(scene, confident_pixels(scene, stage1.alignment), stage1.filter)
    first = align_sequential(scene, usable, stage1)
    middle = time.perf_counter()
    second = align_jointly(scene, first, usable, stage2)
    return Aligned(scene, usable, first, second, (middle - start, time.perf_counter() - middle))


def measure(world: SyntheticWorld, name: str, stage1: FrameToModelICPConfig, stage2: GlobalOptimizationConfig) -> tuple[str, Array]:
    """A row of the table, and the numbers that are averaged: removed by stage 1, by both, fit scale, error after / before."""
    result = align(world.predicted_scene(), stage1, stage2)
    scene, pairs = result.scene, find_correspondences(world)

    def metrics(points: Array, cameras: CameraSet | None) -> dict[str, float]:
        return evaluate(world, points, result.usable, cameras, pairs)

    start = unaligned(scene)
    before, first, after = (metrics(forward_points(scene, r.cameras, r.fields), r.cameras) for r in (start, result.first, result.second))
    oracle = metrics(world.oracle_points(), None)
    consistency = [m["consistency_median_percent"] for m in (before, first, after, oracle)]
    share = [removed(consistency[0], value, consistency[3]) for value in consistency[1:3]]
    thickness = "/".join(f"{m['thickness_percent']:.3f}" for m in (before, after, oracle))
    error = [m["error_to_truth_percent"] for m in (before, after)]
    trajectory = "/".join(f"{m['trajectory_error_percent']:.2f}" for m in (before, after))
    row = (
        f"{name} | "
        + " | ".join(f"{c:.3f}" for c in consistency)
        + f" | {share[0]:.1f} | **{share[1]:.1f}** | {thickness} | {error[0]:.2f}/{error[1]:.2f} | {after['fit_scale']:.4f} | {trajectory}"
        + f" | {int((~result.second.aligned).sum())} | {result.seconds[0]:.1f}+{result.seconds[1]:.1f}"
    )
    return row, np.array([*share, after["fit_scale"], error[1] / error[0]])


def quality_table(args: argparse.Namespace) -> None:
    """Prints one row per world as it is done, and the summary."""
    stage1, stage2 = configurations(args)
    print(f"Lengths in percent of the median depth. {args.size[1]}x{args.size[0]}, severity {args.severity}, {args.warp} warp.\n")
    print("| " + COLUMNS + " |\n" + "|---" * (COLUMNS.count("|") + 1) + "|", flush=True)
    numbers = []
    for layout in args.layouts:
        for seed in args.seeds:
            for frames in args.frames:
                world = make_world(world_config(args, layout, seed, frames))
                row, values = measure(world, f"{layout} seed {seed}, {frames} frames", stage1, stage2)
                numbers.append(values)
                print(f"| {row} |", flush=True)
    table = np.stack(numbers)
    print(
        f"\nRemoved by stages 1+2: median {np.median(table[:, 1]):.1f} %, least {table[:, 1].min():.1f} %; by stage 1 alone: median "
        f"{np.median(table[:, 0]):.1f} %. Fit scale {table[:, 2].min():.4f} to {table[:, 2].max():.4f}. "
        f"Error to truth: at most {table[:, 3].max():.2f} of the input's."
    )


def speed(args: argparse.Namespace) -> None:
    """Prints wall time by part and peak memory for one clip of `args.speed` frames; the second run is warm."""
    stage1, stage2 = configurations(args)
    align(make_world(world_config(args, args.layouts[0], 0, 4)).predicted_scene(), stage1, stage2)
    world = make_world(world_config(args, args.layouts[0], 0, args.speed))
    result = align(world.predicted_scene(), stage1, stage2)
    start = time.perf_counter()
    second = result.second
    cloud = build_cloud(result.scene, second.cameras, second.fields, second.aligned, result.usable, stage1.filter)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    parts = ", ".join(f"{name} {value:.1f}" for name, value in second.diagnostics.seconds.items())
    print(
        f"{args.speed} frames of {args.size[1]}x{args.size[0]}: stage 1 {result.seconds[0]:.1f} s, stage 2 {result.seconds[1]:.1f} s "
        f"({parts}), cloud of {len(cloud)} points {seconds:.1f} s, peak memory {memory:.2f} GB with the synthetic world"
    )


def configurations(args: argparse.Namespace) -> tuple[FrameToModelICPConfig, GlobalOptimizationConfig]:
    """Stage settings: the defaults, with the chosen matcher."""
    stage1, stage2 = FrameToModelICPConfig(), GlobalOptimizationConfig()
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
        path_scale=args.path_scale,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["room", "corridor", "object", "outdoor"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--severity", default="medium")
    parser.add_argument("--warp", default="smooth", choices=["smooth", "sharp", "object"])
    parser.add_argument("--path-scale", type=float, default=1.0, help="larger: wider baselines")
    parser.add_argument("--size", nargs=2, type=int, default=[144, 256], metavar=("H", "W"))
    parser.add_argument("--matcher", default="flow")
    parser.add_argument("--speed", type=int, default=0, metavar="FRAMES", help="measure time and memory instead")
    args = parser.parse_args()
    if args.speed:
        speed(args)
    else:
        quality_table(args)


if __name__ == "__main__":
    main()
