"""Accuracy, coverage and time of the weight-free geometry backend.

python benchmarks/geometry.py [--data FOLDER] [--out FOLDER] [--only synthetic redkitchen clips] [--frames 28] [--sizes 252]

Prints Markdown tables and writes a picture of depth beside its frame for every clip. `--data` holds clips (*.mp4) and, if there,
`rgbd_redkitchen/` with `color/`, `depth/`, `poses.txt` and `intrinsics.json`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.backends.geometry import ClipFrames
from utils.backends.geometry_sfm import SfmGeometry
from utils.errors import V2WError
from utils.pictures import colorize_depth, depth_range, grid, labelled
from utils.scene.frame_selection import between, choose_uniform
from utils.scene.media import decode, list_frames, read_frames, resize_area, working_size, write_image
from utils.synthetic.scenes import LAYOUTS
from utils.synthetic.world import WorldConfig, make_world
from utils.types import Array, Scene, StepReport

_POSE_RESOLUTION = 512


@dataclass
class Notes:
    """Keeps what the backend says; prints nothing."""

    lines: list[str]

    def step(self, report: StepReport) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Kept."""
        self.lines.append(message)


@dataclass
class Run:
    """One estimate and how long it took."""

    scene: Scene
    seconds: float
    chosen: Array


def estimate(images: Array, count: int, longest: int) -> Run:
    """Geometry of `count` frames of a clip (T, h, w, 3), with up to three more in every gap."""
    chosen = choose_uniform(len(images), count, 0).indices
    used = between(chosen, 3)
    scale = min(1.0, max(_POSE_RESOLUTION, longest) / max(images.shape[1:3]))
    small = (round(images.shape[1] * scale), round(images.shape[2] * scale))
    frames = ClipFrames(
        images=np.stack([resize_area(images[i], small) for i in used]),
        chosen=np.searchsorted(used, chosen),
        size=working_size((images.shape[1], images.shape[2]), longest),
        names=tuple(str(i) for i in used),
    )
    started = time.perf_counter()
    scene = SfmGeometry(seed=0).estimate(frames, Notes([]))
    return Run(scene, time.perf_counter() - started, chosen[scene.cameras.frame_ids])


def trajectory_error(centers: Array, truth: Array) -> float:
    """RMS distance of camera centres (F, 3) after the best similarity, as a share of the true path's length."""
    a, b = centers - centers.mean(0), truth - truth.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    moved = (s * np.diag(flip)).sum() / (a**2).sum() * a @ (u @ flip @ vt).T
    path = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return float(np.sqrt(((moved - b) ** 2).sum(1).mean()) / path)


def depth_errors(scene: Scene, truth: Array) -> tuple[float, float, float]:
    """Median relative error, and the shares off by more than 5 % and 10 % among the 90 % most confident pixels.

    Args:
        scene: the estimate.
        truth: (F, H, W) true depth on the same grid, 0 = unknown.
    """
    known = truth > 0
    ratio = scene.depth[known] / truth[known]
    error = np.abs(ratio / np.median(ratio) - 1)
    confidence = scene.confidence[known]
    kept = error[confidence >= np.percentile(confidence, 10)]
    return float(np.median(error)), float((kept > 0.05).mean()), float((kept > 0.1).mean())


def nearest(image: Array, size: tuple[int, int]) -> Array:
    """Depth image at another size without mixing depths."""
    rows = ((np.arange(size[0]) + 0.5) * image.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * image.shape[1] / size[1]).astype(int)
    return image[rows][:, columns]


def picture(scene: Scene, path: Path, rows: int = 4) -> None:
    """Frame, depth and confidence of a few frames."""
    near, far = depth_range(scene.depth)
    top = np.percentile(scene.confidence, 99)
    lines = []
    for i in np.unique(np.linspace(0, len(scene) - 1, rows).astype(int)):
        trust = np.clip((scene.confidence[i] - 1) / max(top - 1, 1e-6) * 255, 0, 255).astype(np.uint8)
        lines.append(
            [
                labelled(scene.images[i], f"frame {scene.cameras.frame_ids[i]}"),
                labelled(colorize_depth(scene.depth[i], near, far), "depth"),
                labelled(np.repeat(trust[..., None], 3, -1), "confidence"),
            ]
        )
    write_image(path, grid(lines))


def table_row(*cells: object) -> None:
    """One Markdown row."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def accuracy_header() -> None:
    """Header of the tables with ground truth."""
    table_row(
        "scene", "size", "frames", "ATE % of path", "focal / truth", "depth error median %", "> 5 % *", "> 10 % *", "measured", "s a frame"
    )
    table_row(*["---"] * 10)


def accuracy_row(name: str, run: Run, centers: Array, truth: Array, focal_ratio: float) -> None:
    """One row; `measured` is the share of pixels whose depth is not a guess."""
    scene = run.scene
    median, off5, off10 = depth_errors(scene, truth)
    table_row(
        name,
        f"{scene.cameras.size[1]}x{scene.cameras.size[0]}",
        len(scene),
        f"{100 * trajectory_error(scene.cameras.centers, centers):.2f}",
        f"{focal_ratio:.3f}",
        f"{100 * median:.2f}",
        f"{100 * off5:.1f} %",
        f"{100 * off10:.1f} %",
        f"{(scene.confidence > 1.1).mean():.2f}",
        f"{run.seconds / len(scene):.2f}",
    )


def synthetic(out: Path, frames: int, sizes: list[int], severities: list[str]) -> None:
    """Every layout, exact and contradictory."""
    accuracy_header()
    for size in sizes:
        for severity in severities:
            for layout in LAYOUTS:
                height = round(size * 9 / 16 / 2) * 2
                world = make_world(WorldConfig(layout=layout, severity=severity, size=(height, size), frames=frames))
                try:
                    run = estimate(world.images, frames, size)
                except V2WError as error:
                    table_row(f"{layout} {severity}", f"{size}", f"failed: {error.message}")
                    continue
                truth = np.stack([nearest(world.depth[i], run.scene.cameras.size) for i in run.chosen])
                ratio = run.scene.cameras.K[0, 0, 0] / world.cameras.resized(run.scene.cameras.size).K[0, 0, 0]
                accuracy_row(f"{layout} {severity}", run, world.cameras.centers[run.chosen], truth, ratio)
                picture(run.scene, out / f"synthetic_{layout}_{severity}_{size}.png")


def redkitchen(data: Path, out: Path, frames: int, sizes: list[int]) -> None:
    """The captured RGB-D clip against its sensor depth and poses."""
    folder = data / "rgbd_redkitchen"
    images = read_frames(list_frames(folder / "color"))
    poses = np.loadtxt(folder / "poses.txt")
    stored = json.loads((folder / "intrinsics.json").read_text())
    focal = float(stored.get("fx", stored.get("fl_x", 525.0))) / images.shape[2]
    accuracy_header()
    for size in sizes:
        run = estimate(images, frames, size)
        truth = []
        for i in run.chosen:
            raw = cv2.imread(str(folder / "depth" / f"{int(poses[i, 0]):06d}.png"), cv2.IMREAD_UNCHANGED)
            truth.append(nearest(raw.astype(np.float32) / 1000, run.scene.cameras.size))
        centers = poses[run.chosen, 1:].reshape(-1, 4, 4)[:, :3, 3]
        accuracy_row("redkitchen", run, centers, np.stack(truth), run.scene.cameras.K[0, 0, 0] / run.scene.cameras.size[1] / focal)
        picture(run.scene, out / f"redkitchen_{size}.png")


def clips(data: Path, out: Path, frames: int, sizes: list[int]) -> None:
    """Every clip without truth: does it run, how much is measured, and pictures to look at."""
    table_row("clip", "size", "registered", "focal / longest side", "measured", "s in all", "s a frame")
    table_row(*["---"] * 7)
    for clip in sorted(data.glob("*.mp4")):
        images = np.stack([resize_area(image, _bounded(image)) for image in decode(clip)])
        for size in sizes:
            try:
                run = estimate(images, frames, size)
            except V2WError as error:
                table_row(clip.stem, size, f"failed: {error.message}")
                continue
            scene = run.scene
            focal = scene.cameras.K[0, 0, 0] / scene.cameras.size[1] * min(1.0, images.shape[2] / max(images.shape[1:3]))
            table_row(
                clip.stem,
                f"{scene.cameras.size[1]}x{scene.cameras.size[0]}",
                f"{len(scene)}/{frames}",
                f"{focal:.3f}",
                f"{(scene.confidence > 1.1).mean():.2f}",
                f"{run.seconds:.1f}",
                f"{run.seconds / len(scene):.2f}",
            )
            picture(scene, out / f"{clip.stem}_{size}.png")


def _bounded(image: Array) -> tuple[int, int]:
    scale = min(1.0, _POSE_RESOLUTION / max(image.shape[:2]))
    return round(image.shape[0] * scale), round(image.shape[1] * scale)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of clips")
    parser.add_argument("--out", type=Path, default=Path("outputs/geometry"))
    parser.add_argument("--only", nargs="+", choices=("synthetic", "redkitchen", "clips"), default=["synthetic", "redkitchen", "clips"])
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--severities", nargs="+", default=["none", "medium"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if "synthetic" in args.only:
        synthetic(args.out, args.frames, args.sizes, args.severities)
    if "redkitchen" in args.only and (args.data / "rgbd_redkitchen").is_dir():
        redkitchen(args.data, args.out, args.frames, args.sizes)
    if "clips" in args.only:
        clips(args.data, args.out, args.frames, args.sizes)
    print("\n* of the 90 % most confident pixels; times include compiling on the first run")


if __name__ == "__main__":
    main()
