"""The whole pipeline on one GPU from results.npz to PLY and film, timed by stage, and CPU against GPU on a small world.

Part of `python -m benchmarks.gpu --end-to-end`. A small world runs first, on the CPU and on the GPU: it compiles everything and shows that
speed is not bought with accuracy.
"""

import contextlib
import importlib.util
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.alignment.metrics import evaluate, find_correspondences, removed
from configs.evaluation import EvalConfig
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from eval_gs import stage as evaluation
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from train_gs import stage as stage32
from train_inverse_deformation import stage as stage31
from utils.device.accelerator import without_accelerator
from utils.points.confidence import confident_pixels
from utils.registration import forward_points, usable_pixels
from utils.registration.sequential import unaligned
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.synthetic.world import SyntheticWorld, WorldConfig, make_world
from utils.types import Scene, StepReport


class Notes:
    """Prints what stages say, not their steps."""

    def step(self, step: StepReport) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """One indented line."""
        print(f"    {message}", flush=True)


@dataclass(frozen=True)
class Timed:
    """Seconds of a stage and GPU memory in GiB: most in use, most taken from the device."""

    name: str
    seconds: float
    used: float
    reserved: float


def run_stages(root: Path, frames: int, gs: GSConfig, film: bool, max_gpu_gb: float = 0.0) -> tuple[list[Timed], Path]:
    """Every stage after geometry; the folder of the trained splats."""
    report, rows = Notes(), []

    def timed(name: str, work):  # type: ignore[no-untyped-def]
        torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        row = Timed(name, seconds, torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
        print(f"  {name}: {seconds:.2f} s, {row.used:.2f} GiB in use, {row.reserved:.2f} GiB taken", flush=True)
        rows.append(row)
        torch.cuda.empty_cache()
        return result

    data = AlignmentDataConfig(num_frames=frames, stride=1)
    first = timed("stage 1", lambda: stage1.run(FrameToModelICPConfig(root_path=root, alignment=data, max_gpu_gb=max_gpu_gb), report))
    print_parts(first)
    run = first.parent.name
    second = timed("stage 2", lambda: stage2.run(GlobalOptimizationConfig(root_path=root, run=run, max_gpu_gb=max_gpu_gb), report))
    print_parts(second)
    timed("inverse deformation", lambda: stage31.run(InverseDeformationConfig(root_path=root, run=run), report))
    out = timed(f"{gs.renderer} splats and PLY", lambda: stage32.run(replace(gs, root_path=root, run=run, max_gpu_gb=max_gpu_gb), report))
    print_parts(out)
    if film:
        config = EvalConfig(
            root_path=root, run=run, checkpoint_dir=out, device=gs.device, extra_paths=("orbit",), save_images=False, metrics=False,
            report=False, render_input_poses=False, render_optimised_poses=False, max_gpu_gb=max_gpu_gb,
        )  # fmt: skip
        timed("film of 90 views", lambda: evaluation.run(config, report))
    return rows, out


def print_parts(folder: Path) -> None:
    """Seconds of the parts of a stage, from its report; for a training also the pace between its first and last log entry."""
    said = json.loads((folder / "report.json").read_text())
    parts = said["seconds"] if "curve" in said else said["seconds_by_part"]
    print("    seconds:", {name: round(value, 2) for name, value in parts.items()}, flush=True)
    if "curve" in said:
        first, last = said["curve"][0], said["curve"][-1]
        pace = 1000 * (last["seconds"] - first["seconds"]) / max(last["step"] - first["step"], 1)
        print(f"    {said['splats']} splats, {pace:.2f} ms a step, held out {said['heldout_psnr']:.2f} dB", flush=True)


def write_scene(root: Path, scene: Scene) -> None:
    """Predicted geometry as results.npz."""
    folder = SceneLayout(root).npz_dir
    folder.mkdir(parents=True)
    artifacts.save_results(folder, scene)


def removed_percent(root: Path, run: Path, world: SyntheticWorld) -> float:
    """Share of the removable inconsistency that stages 1 and 2 removed."""
    scene, alignment = artifacts.load_scene(root), artifacts.load_alignment(run / "after_global_optimization")
    config = FrameToModelICPConfig()
    usable = usable_pixels(scene, confident_pixels(scene, config.alignment), config.filter)
    pairs, start = find_correspondences(world), unaligned(scene)
    values = [
        evaluate(world, points, usable, cameras, pairs)["consistency_median_percent"]
        for points, cameras in (
            (forward_points(scene, start.cameras, start.fields), start.cameras),
            (forward_points(scene, alignment.cameras, alignment.fields), alignment.cameras),
            (world.oracle_points(), None),
        )
    ]
    return removed(*values)


def compare_small(names: tuple[str, ...]) -> None:
    """CPU and GPU on one small world with the same settings."""
    world = make_world(WorldConfig(frames=12, size=(144, 256)))
    gs = GSConfig(renderer="3dgs", num_iters=400, target_num_points=30_000)
    for name in names:
        device = "cpu" if name == "CPU" else "cuda"
        kept_off = without_accelerator() if device == "cpu" else contextlib.nullcontext()
        with kept_off, tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "scene"
            write_scene(root, world.predicted_scene())
            rows, out = run_stages(root, len(world), replace(gs, device=device), film=False)
            quality = json.loads((out / "report.json").read_text())
            share = removed_percent(root, out.parent, world)
        print(
            f"small world on {name}: removed {share:.2f} %, PSNR held out {quality['heldout_psnr']:.3f} dB, training "
            f"{quality['train_psnr']:.3f} dB; " + ", ".join(f"{r.name} {r.seconds:.1f} s" for r in rows),
            flush=True,
        )


def end_to_end(frames: int, size: tuple[int, int], splats: int, steps: int, repeats: int, max_gpu_gb: float = 0.0) -> None:
    """From results.npz to PLY and fly-through on a room of this size: markdown of stages (medians over runs), memory and quality."""
    begun = time.perf_counter()
    world = make_world(WorldConfig(frames=frames, size=size))
    scene = world.predicted_scene()
    print(f"world of {frames} frames made in {time.perf_counter() - begun:.1f} s", flush=True)
    gs = GSConfig(renderer="3dgs", num_iters=steps, target_num_points=splats, device="cuda")
    film = importlib.util.find_spec("av") is not None
    runs: list[list[Timed]] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "scene"
            write_scene(root, scene)
            rows, out = run_stages(root, frames, gs, film, max_gpu_gb)
            quality = json.loads((out / "report.json").read_text())
            share = removed_percent(root, out.parent, world)
        runs.append(rows)
    print(f"\n{frames} frames of {size[1]}x{size[0]}, {quality['splats']} splats, {steps} steps, warm, {repeats} run(s), files included\n")
    print("| stage | median s | spread | GiB in use | GiB taken |\n|---|---|---|---|---|")
    for stage in zip(*runs, strict=True):
        seconds = [r.seconds for r in stage]
        memory = f"{max(r.used for r in stage):.2f} | {max(r.reserved for r in stage):.2f}"
        print(f"| {stage[0].name} | {np.median(seconds):.2f} | {min(seconds):.2f}-{max(seconds):.2f} | {memory} |")
    for label, wanted in (("stages 1 and 2", slice(0, 2)), ("**results.npz to PLY and film**", slice(None))):
        sums = [sum(r.seconds for r in rows[wanted]) for rows in runs]
        print(f"| {label} | {np.median(sums):.2f} | {min(sums):.2f}-{max(sums):.2f} | | |")
    words = f"removed {share:.2f} %, training {quality['train_psnr']:.2f} dB, held out {quality['heldout_psnr']:.2f} dB"
    print(
        f"\n{words}; targets: stages 1 and 2 5 s, inverse 5 s, splats 60 s, all 75 s" + ("" if film else "; no film: av is not installed")
    )
