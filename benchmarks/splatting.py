"""Splatting on synthetic worlds, novel views against the clean truth, and on real clips: ours, its ingredients, and the naive baseline.

    python -m benchmarks.splatting                                     # 4 layouts x 3 seeds, the compared variants
    python -m benchmarks.splatting --layouts room --seeds 0 --severity medium high --variants ablation --json room.jsonl
    python -m benchmarks.splatting --layouts room --seeds 0 --variants ours --counts 0.1 0.3 1 3
    python -m benchmarks.splatting --clip clip.mp4 --frames 32 --process-res 252 --variants naive ours --json clip.jsonl
    python -m benchmarks.splatting --table *.jsonl                     # markdown tables of earlier runs

Every variant trains the same code with the same budget on the same predicted geometry; only what is named differs:
naive = predicted poses and cloud as they are, no deformation; rigid = stages 1 and 2, no deformation; ours = stages 1, 2 and 3.1;
with_X and without_X = ours with an ingredient switched; network = the other inverse; half and half_supervised = every second frame aligned,
the others unused or supervising. Bounds: true and true_mean = alignment from the truth (see `splatting_oracle`), consistent = a clip of
the same world without contradictions. One world per process runs well beside others.
Novel cameras are carried into the reconstruction by one similarity, fitted between its points and the true ones. No method can see
a deformation that all frames share, so a third figure takes it out with the truth, all variants alike: each pixel of a render is read where
the reconstruction puts, on average over the frames, the true point of that pixel. It keeps blur and doubled walls.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

import preprocess_video
from benchmarks.alignment.metrics import Similarity, fit_to_truth
from benchmarks.splatting_oracle import true_registration
from benchmarks.splatting_tables import COLUMNS, Line, read_lines, tables
from benchmarks.splatting_variants import BOUNDS, COMPARED, HALF, VARIANTS, Geometry, ablation
from configs.evaluation import EvalConfig
from configs.preprocess import PreprocessConfig
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, PointFilterConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from eval_gs.metrics import psnr, ssim
from eval_gs.novel_views import as_trained
from eval_gs.stage import run as evaluate
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from train_gs import stage as stage32
from train_inverse_deformation import stage as stage31
from utils.cameras.projection import pixel_centers, project, transform, unproject
from utils.deformation.artifact import trained_inverse
from utils.errors import ConfigError
from utils.points.confidence import confident_pixels
from utils.registration import build_cloud, forward_points, usable_pixels
from utils.registration.result import Registration, to_alignment
from utils.registration.sequential import unaligned
from utils.reporting import ConsoleReporter
from utils.runtime import run_stage
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.manifest import write_manifest
from utils.scene.transaction import publish
from utils.splatting.checkpoint import MODEL, load_checkpoint
from utils.splatting.render import SplatView, resolve_rasterizer, rgb_image
from utils.synthetic.world import SyntheticWorld, WorldConfig, make_world
from utils.types import Alignment, Array, Scene

COMMON_POINTS = 200_000
COMMON_NEIGHBOURS = 32

ORBIT_TURNING = 1.0
"""Radians by which the figure in the middle of an orbit turns while the camera goes round (64 frames)."""


def write_scene(root: Path, scene: Scene) -> None:
    """results.npz of a predicted scene."""
    with publish(SceneLayout(root).npz_dir, "scene/1") as folder:
        artifacts.save_results(folder, scene)
        write_manifest(folder, schema="scene/1", config={}, inputs={})


def write_alignment(root: Path, name: str, result: Registration, heldout: Array | None = None) -> Path:
    """An alignment artifact that no stage made: the folder that takes the place of stage 2's; `heldout` are ids it has not seen."""
    layout, ids = SceneLayout(root), result.cameras.frame_ids
    everything = artifacts.load_scene(root)
    scene = everything.select(ids)
    as_is = PointFilterConfig(enabled=False)
    data = AlignmentDataConfig(num_frames=len(everything), stride=1)
    usable = usable_pixels(scene, confident_pixels(everything, data)[ids], as_is)
    cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, usable, as_is)
    out = layout.run(f"frame_to_model_icp_{name}").after_global_optimization
    with publish(out, artifacts.ALIGNMENT_SCHEMA) as folder:
        artifacts.save_alignment(folder, to_alignment(scene, result, cloud, heldout), {name: True})
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={"results": artifacts.scene_id(root)})
    return out


def align(root: Path, stride: int, report: ConsoleReporter) -> Path:
    """Stages 1 and 2 on every `stride`-th frame; the folder of stage 2."""
    data = AlignmentDataConfig(num_frames=-(-len(artifacts.load_scene(root)) // stride), stride=stride)
    run = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data), report).parent.name
    return stage2.run(GlobalOptimizationConfig(root_path=root, run=run), report)


def start(root: Path, geometry: Geometry, world: SyntheticWorld | None, report: ConsoleReporter) -> Path:
    """The alignment that splats start from; made unless it is there. The truth is only for synthetic worlds."""
    if geometry == "aligned":
        return align(root, 1, report)
    if geometry == "half_aligned":
        return align(root, 2, report)
    out = SceneLayout(root).run(f"frame_to_model_icp_{geometry}").after_global_optimization
    if out.is_dir():
        return out
    scene = artifacts.load_scene(root)
    if geometry in ("predicted", "consistent"):
        return write_alignment(root, geometry, unaligned(scene))
    if world is None:
        raise ConfigError(
            f"a clip has no truth to make the geometry '{geometry}' from", "leave out the variants true, true_mean and consistent"
        )
    return write_alignment(root, geometry, true_registration(world, scene, keep_mean=geometry == "true_mean"))


@dataclass(frozen=True)
class Registered:
    """A reconstruction beside its truth.

    Attributes:
        world: the truth.
        points: (F, H, W, 3) reconstructed canonical position of every pixel.
        mask: (F, H, W) bool, both are known.
        fit: similarity from the reconstruction to the truth, over all pixels.
    """

    world: SyntheticWorld
    points: Array
    mask: Array
    fit: Similarity


def register(world: SyntheticWorld, root: Path, alignment: Alignment) -> Registered:
    """Fits the similarity between a reconstruction and the true world; frames that are not aligned are left out."""
    scene, ids = artifacts.load_scene(root), alignment.cameras.frame_ids
    points = np.full((*scene.depth.shape, 3), np.nan, np.float32)
    points[ids] = forward_points(scene.select(ids), alignment.cameras, alignment.fields)
    mask = world.valid & scene.valid & np.isfinite(points).all(-1)
    return Registered(world, points, mask, fit_to_truth(world, points, mask))


def fit_of_view(registered: Registered, view: int) -> Similarity:
    """The similarity over the pixels whose true point is in the novel view and not hidden there."""
    cameras, (h, w) = registered.world.novel_cameras, registered.world.novel_cameras.size
    x, y, z = project(transform(cameras.w2c[view], registered.world.canonical.astype(np.float64)), cameras.K[view])
    inside = np.nan_to_num(registered.mask & (z > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h), nan=False).astype(bool)
    column, row = np.where(inside, x, 0).astype(int), np.where(inside, y, 0).astype(int)
    seen = registered.world.novel_depth[view][row, column]
    return fit_to_truth(registered.world, registered.points, inside & (np.abs(seen - z) < 0.02 * z))


def common_deformation(registered: Registered) -> tuple[cKDTree, Array]:
    """Where the reconstruction puts true points: a tree of N true points, and (N, 3) how far they are moved on average."""
    index = np.flatnonzero(registered.mask)
    index = np.random.default_rng(0).choice(index, min(COMMON_POINTS, len(index)), replace=False)
    truth = registered.world.canonical.reshape(-1, 3)[index].astype(np.float64)
    error = registered.fit.apply(registered.points.reshape(-1, 3)[index].astype(np.float64)) - truth
    tree = cKDTree(truth)
    # The median over the neighbours, so that mixed depths at edges do not pull.
    return tree, np.median(error[tree.query(truth, COMMON_NEIGHBOURS)[1]], axis=1)


def without_common(registered: Registered, tree: cKDTree, common: Array, view: int, image: Array) -> Array:
    """A render (h, w, 3) uint8 of a novel camera, each pixel taken from where the reconstruction puts the pixel's true point."""
    cameras, depth = registered.world.novel_cameras, registered.world.novel_depth[view].astype(np.float64)
    x, y = pixel_centers(cameras.size)
    truth = transform(cameras.c2w[view], unproject(x, y, depth, cameras.K[view]))
    shifted = truth + common[tree.query(truth.reshape(-1, 3))[1]].reshape(truth.shape)
    u, v, z = project(transform(cameras.w2c[view], shifted), cameras.K[view])
    known = (depth > 0) & (z > 0)
    u, v = np.where(known, u, x), np.where(known, v, y)
    return cv2.remap(image, (u - 0.5).astype(np.float32), (v - 0.5).astype(np.float32), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def novel_scores(registered: Registered, checkpoint: Path) -> dict[str, float]:
    """Means over the novel views: PSNR in dB and SSIM with one similarity for all views, and PSNR with one per view."""
    rasterizer, device, _ = resolve_rasterizer("auto", "auto")
    view = SplatView(load_checkpoint(checkpoint), rasterizer, device)
    cameras = registered.world.novel_cameras
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_per_view": [], "psnr_unbent": []}
    tree, common = common_deformation(registered)
    for i, truth in enumerate(registered.world.novel_images):
        for name, fit in (("", registered.fit), ("_per_view", fit_of_view(registered, i))):
            image = rgb_image(view.render(fit.camera_before(cameras.c2w[i]), cameras.K[i], cameras.size))
            scores["psnr" + name].append(psnr(image, truth))
            if not name:
                scores["ssim"].append(ssim(image, truth))
                scores["psnr_unbent"].append(psnr(without_common(registered, tree, common, i, image), truth))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def inverse_of(root: Path, folder: Path, method: str, report: ConsoleReporter) -> Path:
    """The inverse deformation of an alignment by a method; made unless it is there."""
    run = folder.parent
    config = InverseDeformationConfig(root_path=root, run=run.name, method=method, out_path=run / f"inverse_{method}")  # type: ignore[arg-type]
    return stage31.run(config, report)


def trained(root: Path, folder: Path, name: str, budget: GSConfig, report: ConsoleReporter) -> tuple[Path, dict[str, float]]:
    """Splats of a variant: their folder, and seconds, splats and held-out PSNR."""
    variant = VARIANTS[name]
    config = replace(budget, root_path=root, run=folder.parent.name, out_dir=root / f"gs_{name}", overwrite=True, **variant.changes)
    if config.deform:
        config = replace(config, inverse_deform_dir=inverse_of(root, folder, variant.inverse, report))
    started = time.perf_counter()
    out = stage32.run(config, report)
    seconds = time.perf_counter() - started
    summary = artifacts.read_json(out / "report.json")
    return out, {"heldout": summary.get("heldout_psnr"), "splats": summary["splats"], "seconds": seconds}


def one_world(world: SyntheticWorld, variants: tuple[str, ...], budgets: dict[float, GSConfig], report: ConsoleReporter) -> Iterator[Line]:
    """One line per variant and splat count, as they are done."""
    with tempfile.TemporaryDirectory() as temporary:
        worlds = {"": world}
        if any(VARIANTS[name].geometry == "consistent" for name in variants):
            worlds["consistent"] = make_world(replace(world.config, severity="none"))
        for name, shown in worlds.items():
            write_scene(Path(temporary) / (name or "shown"), shown.predicted_scene())
        for (count, budget), name in product(budgets.items(), variants):
            geometry = VARIANTS[name].geometry
            shown = worlds["consistent" if geometry == "consistent" else ""]
            root = Path(temporary) / ("consistent" if geometry == "consistent" else "shown")
            folder = start(root, geometry, shown, report)
            out, figures = trained(root, folder, name, budget, report)
            alignment = artifacts.load_alignment(folder)
            if (out / "inverse_local.pt").is_file():
                alignment = as_trained(alignment, load_checkpoint(out).cameras, trained_inverse(out, out))
            scores = novel_scores(register(shown, root, alignment), out / MODEL)
            yield labels(asdict(world.config), name, count, budget) | figures | scores


def one_clip(clip: Path, args: argparse.Namespace, budgets: dict[float, GSConfig], report: ConsoleReporter) -> Iterator[Line]:
    """One line per variant and splat count of a real clip: held-out frames, and consistency between neighbouring renders."""
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.keep or Path(temporary)) / clip.stem
        preprocess_video.run(
            PreprocessConfig(input_video=(clip,), scene_root=root, max_frames=args.frames, process_res=args.process_res), report
        )
        world = {"clip": clip.name, "frames": len(artifacts.load_scene(root)), "process_res": args.process_res}
        for (count, budget), name in product(budgets.items(), tuple(expanded(args.variants))):
            folder = start(root, VARIANTS[name].geometry, None, report)
            out, figures = trained(root, folder, name, budget, report)
            yield labels(world, name, count, budget) | figures | clip_scores(root, folder, out, name, args.keep is not None, report)


def clip_scores(root: Path, folder: Path, out: Path, name: str, keep: bool, report: ConsoleReporter) -> dict[str, float]:
    """Figures of trained splats of a clip, by eval_gs."""
    evaluation = EvalConfig(
        root_path=root, run=folder.parent.name, checkpoint_dir=out, out_dir=root / f"eval_{name}", save_images=keep,
        render_gs_video_path=False, render_input_poses=False, report=False, overwrite=True,
    )  # fmt: skip
    metrics = artifacts.read_json(evaluate(evaluation, report) / "metrics.json")
    held = metrics["heldout"]
    sharpness = {"sharpness": held["sharpness"] / held["input_sharpness"]}
    return {"heldout": held["psnr"], "heldout_ssim": held["ssim"], **sharpness, **metrics["consistency"]["optimised_poses"]}


def labels(world: dict[str, Any], variant: str, count: float, budget: GSConfig) -> Line:
    """What identifies a line."""
    budget_labels = {"count": count, "renderer": budget.renderer, "iterations": budget.num_iters, "wanted": budget.target_num_points}
    return {"world": world, "variant": variant, "budget": budget_labels}


def expanded(names: list[str]) -> list[str]:
    """Variants, groups replaced by their members, without doubles."""
    groups = {"compared": COMPARED, "bounds": BOUNDS, "half_frames": HALF, "ablation": ablation() if "ablation" in names else ()}
    return list(dict.fromkeys(member for name in names for member in groups.get(name, (name,))))


def measure(args: argparse.Namespace) -> Iterator[Line]:
    """All lines that were asked for."""
    w, h = (int(v) for v in args.size.split("x"))
    base = GSConfig(num_iters=args.iterations, target_num_points=args.splats, renderer=args.renderer)
    budgets = {count: replace(base, target_num_points=round(count * args.splats)) for count in args.counts}
    with ConsoleReporter(enabled=False) as report:
        if args.clip:
            yield from one_clip(args.clip, args, budgets, report)
            return
        for severity, layout, seed in product(args.severity, args.layouts, args.seeds):
            turning = ORBIT_TURNING if layout == "orbit" else 0.0
            world = make_world(WorldConfig(layout=layout, frames=args.frames, size=(h, w), severity=severity, seed=seed, turning=turning))
            yield from one_world(world, tuple(expanded(args.variants)), budgets, report)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["room", "corridor", "object", "outdoor"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--severity", nargs="+", default=["medium"])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", default="256x144")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--splats", type=int, default=30_000)
    parser.add_argument("--counts", nargs="+", type=float, default=[1.0], help="multiples of --splats to train with")
    parser.add_argument("--renderer", default="3dgs", choices=["2dgs", "3dgs"])
    parser.add_argument(
        "--variants", nargs="+", default=["compared"], choices=["compared", "bounds", "half_frames", "ablation", *VARIANTS], metavar="NAME",
        help=f"groups: compared, bounds, half_frames, ablation; variants: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument("--clip", type=Path, metavar="FILE", help="a real clip in place of synthetic worlds")
    parser.add_argument("--process-res", type=int, default=252, help="longest side of the clip's working images in pixels")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the clip's results, with pictures, in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per world and variant")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the tables of JSON lines instead of measuring")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.table:
        print(tables(read_lines(args.table)))
        return
    lines = []
    for line in measure(args):
        lines.append(line)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(line) + "\n")
        figures = " ".join(f"{name} {line[name]:.3f}" for name in COLUMNS if line.get(name) is not None)
        print(f"{line['variant']} {json.dumps(line['world'])}: {figures}", file=sys.stderr, flush=True)
    print(tables(lines))


if __name__ == "__main__":
    run_stage(main)
