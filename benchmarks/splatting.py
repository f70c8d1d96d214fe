"""Novel views of synthetic worlds against the clean truth: ours, aligned points rendered rigidly, and the naive baseline.

python -m benchmarks.splatting [--layouts room corridor object outdoor] [--seeds 0 1 2] [--severity medium] [--frames 24]
                               [--size 256x144] [--iterations 1000] [--splats 30000] [--renderer 3dgs]

Every variant trains the same code with the same budget on the same predicted geometry; only what is named differs:
naive = predicted poses and cloud as they are, no deformation; rigid = stages 1 and 2, no deformation; ours = stages 1, 2 and 3.1.
Novel cameras are carried into the reconstruction by one similarity, fitted between its points and the true ones. No method can see
a smooth deformation that all frames share, so a third figure shifts every render by a smooth image flow (Gaussian of a tenth of the width)
onto the truth first, all variants alike: it keeps blur and doubled walls and forgives that common deformation.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.alignment_metrics import Similarity, fit_to_truth
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig, PointFilterConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from eval_gs.metrics import psnr, ssim
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from train_gs import stage as stage32
from train_inverse_deformation import stage as stage31
from utils.geometry.projection import project, transform
from utils.points.confidence import confident_pixels
from utils.registration import build_cloud, forward_points, usable_pixels
from utils.registration.result import to_alignment
from utils.registration.sequential import unaligned
from utils.reporting import ConsoleReporter
from utils.scene import artifacts
from utils.scene.layout import SceneLayout
from utils.scene.manifest import publish, write_manifest
from utils.splats.checkpoint import MODEL, load_checkpoint
from utils.splats.view import SplatView, resolve_rasterizer, rgb_image
from utils.synthetic.world import SyntheticWorld, WorldConfig, make_world
from utils.types import Alignment, Array

VARIANTS = ("naive", "rigid", "ours")


def write_naive(root: Path, frames: int) -> Path:
    """An alignment artifact of the predicted geometry as it is: what splatting without this project would start from."""
    layout = SceneLayout(root)
    scene = artifacts.load_scene(root)
    as_is = PointFilterConfig(enabled=False)
    usable = usable_pixels(scene, confident_pixels(scene, AlignmentDataConfig(num_frames=frames, stride=1)), as_is)
    result = unaligned(scene)
    cloud = build_cloud(scene, result.cameras, result.fields, result.aligned, usable, as_is)
    out = layout.run("frame_to_model_icp_naive").after_global_optimization
    with publish(out) as folder:
        artifacts.save_alignment(folder, to_alignment(scene, result, cloud), {"naive": True})
        write_manifest(folder, schema=artifacts.ALIGNMENT_SCHEMA, config={}, inputs={"results": artifacts.scene_id(root)})
    return out


def align(root: Path, frames: int, report: ConsoleReporter) -> Path:
    """Stages 1, 2 and 3.1; the folder of stage 2."""
    data = AlignmentDataConfig(num_frames=frames, stride=1)
    run = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data), report).parent.name
    folder = stage2.run(GlobalOptimizationConfig(root_path=root, run=run), report)
    stage31.run(InverseDeformationConfig(root_path=root, run=run), report)
    return folder


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
    """Fits the similarity between a reconstruction and the true world."""
    scene = artifacts.load_scene(root)
    points = forward_points(scene, alignment.cameras, alignment.fields)
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


def smoothly_registered(image: Array, truth: Array) -> Array:
    """The image (h, w, 3) uint8 moved onto the truth by dense flow, smoothed over a tenth of the width."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
        cv2.cvtColor(truth, cv2.COLOR_RGB2GRAY), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None
    )
    flow = cv2.GaussianBlur(flow, (0, 0), truth.shape[1] / 10)
    row, column = np.mgrid[: truth.shape[0], : truth.shape[1]].astype(np.float32)
    return cv2.remap(image, column + flow[..., 0], row + flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def novel_scores(registered: Registered, checkpoint: Path) -> dict[str, float]:
    """Means over the novel views: PSNR in dB and SSIM with one similarity for all views, and PSNR with one per view."""
    rasterizer, device, _ = resolve_rasterizer("auto", "auto")
    view = SplatView(load_checkpoint(checkpoint), rasterizer, device)
    cameras = registered.world.novel_cameras
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_per_view": [], "psnr_registered": []}
    for i, truth in enumerate(registered.world.novel_images):
        for name, fit in (("", registered.fit), ("_per_view", fit_of_view(registered, i))):
            c2w = cameras.c2w[i].copy()
            c2w[:3, :3] = fit.rotation.T @ c2w[:3, :3]
            c2w[:3, 3] = fit.rotation.T @ (cameras.c2w[i][:3, 3] - fit.translation) / fit.scale
            image = rgb_image(view.render(c2w, cameras.K[i], cameras.size))
            scores["psnr" + name].append(psnr(image, truth))
            if not name:
                scores["ssim"].append(ssim(image, truth))
                scores["psnr_registered"].append(psnr(smoothly_registered(image, truth), truth))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def one_world(world: SyntheticWorld, variants: tuple[str, ...], budget: GSConfig, report: ConsoleReporter) -> dict[str, dict[str, float]]:
    """Scores per variant: novel-view PSNR and SSIM, held-out-frame PSNR, seconds of training."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        with publish(SceneLayout(root).npz_dir) as folder:
            artifacts.save_results(folder, world.predicted_scene())
            write_manifest(folder, schema="scene/1", config={}, inputs={})
        naive = write_naive(root, len(world))
        aligned = align(root, len(world), report)
        for variant in variants:
            folder = naive if variant == "naive" else aligned
            alignment = artifacts.load_alignment(folder)
            config = replace(budget, root_path=root, run=folder.parent.name, deform=variant == "ours", out_dir=root / f"gs_{variant}")
            started = time.perf_counter()
            out = stage32.run(config, report)
            seconds = time.perf_counter() - started
            held = artifacts.read_json(out / "report.json")["heldout_psnr"]
            rows[variant] = {**novel_scores(register(world, root, alignment), out / MODEL), "heldout": held, "seconds": seconds}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["room", "corridor", "object", "outdoor"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--severity", default="medium")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", default="256x144")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--splats", type=int, default=30_000)
    parser.add_argument("--renderer", default="3dgs", choices=["2dgs", "3dgs"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    w, h = (int(v) for v in args.size.split("x"))
    budget = GSConfig(num_iters=args.iterations, target_num_points=args.splats, renderer=args.renderer)
    torch.set_num_threads(max(1, torch.get_num_threads()))
    print(
        "| layout | seed | variant | novel PSNR dB | one fit per view | after smooth shift | SSIM | held-out frame PSNR dB | training s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    table: dict[str, list[dict[str, float]]] = {variant: [] for variant in args.variants}
    with ConsoleReporter(enabled=False) as report:
        for layout in args.layouts:
            for seed in args.seeds:
                world = make_world(WorldConfig(layout=layout, frames=args.frames, size=(h, w), severity=args.severity, seed=seed))
                rows = one_world(world, tuple(args.variants), budget, report)
                for variant, row in rows.items():
                    table[variant].append(row)
                    scores = " | ".join(f"{row[key]:.2f}" for key in ("psnr", "psnr_per_view", "psnr_registered"))
                    print(
                        f"| {layout} | {seed} | {variant} | {scores} | {row['ssim']:.3f} | {row['heldout']:.2f} | {row['seconds']:.0f} |",
                        flush=True,
                    )
    titles = {
        "psnr": "novel views",
        "psnr_per_view": "novel views, one fit per view",
        "psnr_registered": "novel views, after smooth shift",
        "heldout": "held-out frames",
    }
    for key, words in titles.items():
        for variant, rows_of in table.items():
            gains = [row[key] - base[key] for row, base in zip(rows_of, table[args.variants[0]], strict=True)]
            print(
                f"{words}: {variant} {statistics.median(row[key] for row in rows_of):.2f} dB, over {args.variants[0]} "
                f"median {statistics.median(gains):+.2f}, least {min(gains):+.2f}"
            )


if __name__ == "__main__":
    main()
