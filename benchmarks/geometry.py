"""Accuracy, coverage and time of the weight-free geometry backend.

python -m benchmarks.geometry --data FOLDER [--sizes 252 504] [--only synthetic captured redkitchen clips decoding]
    [--scenes room:none:0 ...] [--captured-scenes room:0.6:-0.1 ...] [--clips NAME ...] [--frames 28] [--out FOLDER] [--json] [--again]

Prints Markdown tables, or one JSON object a line, and writes a picture of depth beside its frame for every clip. Every row is added to
`rows.jsonl` in the output folder as soon as it is measured, and rows that are there already are not measured again: the same command
goes on where it was stopped. `--data` holds clips (*.mp4) and, if there, `rgbd_redkitchen/` with `color/`, `depth/`, `poses.txt` and
`intrinsics.json`. The table `decoding` times the `ffmpeg` on the path (or in $FFMPEG_FOLDER) beside ours.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import V2WError
from utils.geometry_backend import ClipFrames, SparseModel
from utils.report.pictures import colorize_depth, depth_range, grid, labelled
from utils.scene.captured import CapturedCamera, ClipMotion
from utils.scene.clip.extract import write_frames
from utils.scene.clip.plan import plan_clip
from utils.scene.clip.survey import survey_clip
from utils.scene.folders import list_frames
from utils.scene.frame_selection import between, choose_uniform
from utils.scene.media import decode, read_frames, resize_area, working_size, write_image
from utils.sfm.backend import SfmGeometry
from utils.sfm.captured_camera import estimate_camera
from utils.sfm.clip_cameras import place_clip
from utils.synthetic.captured import CapturedConfig, capture
from utils.synthetic.scenes import LAYOUTS
from utils.synthetic.world import WorldConfig, make_world
from utils.types import Array, Scene, StepReport

_POSE_RESOLUTION = 512
# Confidence above which depth is measured and not a guess.
_MEASURED = 1.1


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
    cpu_seconds: float
    chosen: Array


def estimate(images: Array, count: int, longest: int, mapped: SparseModel | None = None) -> Run:
    """Geometry of `count` frames of a clip (T, h, w, 3), with up to three more in every gap; `mapped` if these were mapped before."""
    chosen = choose_uniform(len(images), count, 0).indices
    used = between(chosen, 3)
    scale = min(1.0, max(_POSE_RESOLUTION, longest) / max(images.shape[1:3]))
    small = (round(images.shape[1] * scale), round(images.shape[2] * scale))
    frames = ClipFrames(
        images=np.stack([resize_area(images[i], small) for i in used]),
        chosen=np.searchsorted(used, chosen),
        size=working_size((images.shape[1], images.shape[2]), longest),
        names=tuple(str(i) for i in used),
        mapped=mapped,
    )
    started, busy = time.perf_counter(), time.process_time()
    scene = SfmGeometry(seed=0).estimate(frames, Notes([]))
    return Run(scene, time.perf_counter() - started, time.process_time() - busy, chosen[scene.cameras.frame_ids])


def placed_frames(run: Run, images: Array) -> int:
    """How many frames of the whole clip (T, h, w, 3) get a pose."""

    def gray(frame: int) -> Array:
        return cv2.cvtColor(resize_area(images[frame], run.scene.cameras.size), cv2.COLOR_RGB2GRAY)

    return int(place_clip(run.scene, run.chosen, [len(images)], gray, Notes([])).placed.sum())


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


def sky_coverage(scene: Scene, truth: Array) -> tuple[float, float]:
    """Share of the surfaces' pixels that are measured, and share of the sky's that are as far as the farthest 5 % of the surfaces.

    Args:
        scene: the estimate.
        truth: (F, H, W) true depth on the same grid, 0 = sky.
    """
    surface = truth > 0
    measured = float((scene.confidence[surface] > _MEASURED).mean())
    if surface.all():
        return measured, float("nan")
    return measured, float((scene.depth[~surface] >= np.percentile(scene.depth[surface], 95)).mean())


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


class Table:
    """Prints rows as they come, Markdown under a header or JSON lines, and keeps them in a file.

    Args:
        path: the file, one JSON object a line: `row`, what was asked for, and the cells.
        as_json: print JSON lines.
    """

    def __init__(self, path: Path, as_json: bool):
        self._path, self._as_json = path, as_json
        self._columns: list[str] = []
        lines = path.read_text().splitlines() if path.is_file() else []
        self._stored: dict[str, dict[str, object]] = {entry["row"]: entry["cells"] for entry in map(json.loads, filter(None, lines))}

    def stored(self, *asked: object) -> bool:
        """Prints the row of this question if it is known."""
        cells = self._stored.get(json.dumps(asked))
        if cells is not None:
            self._show(cells)
        return cells is not None

    def row(self, cells: dict[str, object], *asked: object) -> None:
        """One row and what was asked for."""
        with self._path.open("a") as stream:
            stream.write(json.dumps({"row": json.dumps(asked), "cells": cells}) + "\n")
        self._show(cells)

    def _show(self, cells: dict[str, object]) -> None:
        """A header comes first whenever the columns change."""
        if self._as_json:
            print(json.dumps(cells), flush=True)
            return
        if list(cells) != self._columns:
            self._columns = list(cells)
            print("\n| " + " | ".join(self._columns) + " |\n" + "|---" * len(self._columns) + "|")
        print("| " + " | ".join(str(cell) for cell in cells.values()) + " |", flush=True)


def accuracy(run: Run, centers: Array, truth: Array, focal_ratio: float) -> dict[str, object]:
    """Cells of the tables with ground truth; `measured` is the share of pixels whose depth is not a guess."""
    scene = run.scene
    median, off5, off10 = depth_errors(scene, truth)
    return {
        "size": f"{scene.cameras.size[1]}x{scene.cameras.size[0]}",
        "frames": len(scene),
        "ATE % of path": round(100 * trajectory_error(scene.cameras.centers, centers), 3),
        "focal / truth": round(float(focal_ratio), 4),
        "median depth error %": round(100 * median, 2),
        "> 5 % *": round(100 * off5, 1),
        "> 10 % *": round(100 * off10, 1),
        "measured": round(float((scene.confidence > _MEASURED).mean()), 3),
        "s a frame": round(run.seconds / len(scene), 2),
        "CPU s a frame": round(run.cpu_seconds / len(scene), 2),
    }


def synthetic(table: Table, out: Path, frames: int, sizes: list[int], scenes: list[str]) -> None:
    """Rendered worlds, named layout:severity:seed."""
    for size in sizes:
        for name in scenes:
            if table.stored("synthetic", name, size, frames):
                continue
            layout, severity, seed = name.split(":")
            height = round(size * 9 / 16 / 2) * 2
            world = make_world(WorldConfig(layout=layout, severity=severity, seed=int(seed), size=(height, size), frames=frames))
            try:
                run = estimate(world.images, frames, size)
            except V2WError as error:
                table.row({"scene": name, "size": size, "failed": error.message}, "synthetic", name, size, frames)
                continue
            truth = np.stack([nearest(world.depth[i], run.scene.cameras.size) for i in run.chosen])
            ratio = run.scene.cameras.K[0, 0, 0] / world.cameras.resized(run.scene.cameras.size).K[0, 0, 0]
            surfaces, sky = sky_coverage(run.scene, truth)
            cells = {"scene": name} | accuracy(run, world.cameras.centers[run.chosen], truth, ratio)
            cells |= {"measured of surfaces": round(surfaces, 3), "sky that is far": "-" if np.isnan(sky) else round(sky, 3)}
            table.row(cells, "synthetic", name, size, frames)
            picture(run.scene, out / f"synthetic_{name.replace(':', '_')}_{size}.png")


# What is taken out of captured frames before, and what the row is called.
_TAKEN_OUT = {"nothing": "redkitchen", "lens": "redkitchen, lens estimated", "camera": "redkitchen, lens and shutter estimated"}


def redkitchen(table: Table, data: Path, out: Path, frames: int, sizes: list[int], wanted: list[str]) -> None:
    """The captured RGB-D clip against its sensor depth and poses, as it is and with its camera's lens and shutter taken out."""
    cases = [case for case in itertools.product(sizes, wanted) if not table.stored("redkitchen", *case, frames)]
    if not cases:
        return
    folder = data / "rgbd_redkitchen"
    images = read_frames(list_frames(folder / "color"))
    poses = np.loadtxt(folder / "poses.txt")
    stored = json.loads((folder / "intrinsics.json").read_text())
    focal = float(stored.get("fx", stored.get("fl_x", 525.0))) / images.shape[2]
    depth = np.stack([cv2.imread(str(folder / "depth" / f"{int(i):06d}.png"), cv2.IMREAD_UNCHANGED) for i in poses[:, 0]])
    depth = depth.astype(np.float32) / 1000
    motion = ClipMotion(lambda position: images[position], [len(images)])
    for taken_out, name in _TAKEN_OUT.items():
        asked = [size for size, case in cases if case == taken_out]
        if not asked:
            continue
        shown, truth, _, mapped, estimating = straightened(images, depth, motion, taken_out, frames)
        for size in asked:
            run = estimate(shown, frames, size, mapped)
            expected = np.stack([nearest(truth[i], run.scene.cameras.size) for i in run.chosen])
            centers = poses[run.chosen, 1:].reshape(-1, 4, 4)[:, :3, 3]
            ratio = run.scene.cameras.K[0, 0, 0] / run.scene.cameras.size[1] / focal
            cells = accuracy(run, centers, expected, ratio) | {"CPU s before": round(estimating, 1)}
            table.row({"scene": name} | cells, "redkitchen", size, taken_out, frames)
            picture(run.scene, out / f"{name.replace(', ', '_').replace(' ', '_')}_{size}.png")


def straightened(
    images: Array, depth: Array, motion: ClipMotion, taken_out: str, frames: int
) -> tuple[Array, Array, CapturedCamera | None, SparseModel | None, float]:
    """Images (T, h, w, 3) and depth (T, h, w) without lens, or lens and shutter, camera and model found, and the CPU seconds it took."""
    if taken_out == "nothing":
        return images, depth, None, None, 0.0
    started = time.process_time()
    chosen = choose_uniform(len(images), frames, 0).indices
    small = np.stack([resize_area(images[i], _bounded(images[i])) for i in chosen])
    field = (lambda row: motion.of(int(chosen[row]))) if taken_out == "camera" else None
    notes = Notes([])
    camera, mapped = estimate_camera(small, field, seed=0, report=notes)
    straight = np.stack([camera.straightened(image, motion.of(i)) for i, image in enumerate(images)])
    seconds = time.process_time() - started
    print(f"{'; '.join(notes.lines)}; readout {camera.readout:+.3f} frame intervals", file=sys.stderr)
    truth = np.stack([camera.straightened(image, motion.of(i), nearest=True) for i, image in enumerate(depth)])
    return straight, truth, camera, mapped, seconds


def captured(table: Table, out: Path, frames: int, sizes: list[int], scenes: list[str], wanted: list[str]) -> None:
    """Worlds rendered with a lens and a rolling shutter, named layout:readout:k, as they are and with both estimated and taken out."""
    for size, scene in itertools.product(sizes, scenes):
        layout, readout, k = scene.split(":")
        cases = [case for case in wanted if case != "lens" and not table.stored("captured", scene, size, case, frames)]
        if not cases:
            continue
        config = CapturedConfig(layout, frames, (round(size * 9 / 16 / 2) * 2, size), readout=float(readout), k=float(k))
        clip = capture(config)
        motion = ClipMotion(lambda position, images=clip.images: images[position], [frames])
        for taken_out in cases:
            # The truth is that of a pinhole with a global shutter, so it stays as it is.
            shown, _, camera, mapped, _ = straightened(clip.images, clip.depth, motion, taken_out, frames)
            run = estimate(shown, frames, size, mapped)
            truth = np.stack([nearest(clip.depth[i], run.scene.cameras.size) for i in run.chosen])
            ratio = run.scene.cameras.K[0, 0, 0] / clip.cameras.resized(run.scene.cameras.size).K[0, 0, 0]
            found = {"k": round(camera.lens.k, 4), "readout": round(camera.readout, 3)} if camera else {"k": "-", "readout": "-"}
            cells = {"scene": f"{scene}, {taken_out} taken out"} | found | accuracy(run, clip.cameras.centers[run.chosen], truth, ratio)
            table.row(cells, "captured", scene, size, taken_out, frames)
            picture(run.scene, out / f"captured_{scene.replace(':', '_')}_{taken_out}_{size}.png")


def clips(table: Table, data: Path, out: Path, frames: int, sizes: list[int], names: list[str]) -> None:
    """Every clip without truth: does it run, how much is measured, and pictures to look at."""
    for clip in sorted(data.glob("*.mp4")):
        if names and not any(name in clip.stem for name in names):
            continue
        missing = [size for size in sizes if not table.stored("clips", clip.stem, size, frames)]
        images = np.stack([resize_area(image, _bounded(image)) for image in decode(clip)]) if missing else np.zeros(0)
        for size in missing:
            try:
                run = estimate(images, frames, size)
            except V2WError as error:
                table.row({"clip": clip.stem, "size": size, "failed": error.message}, "clips", clip.stem, size, frames)
                continue
            scene = run.scene
            table.row(
                {
                    "clip": clip.stem,
                    "size": f"{scene.cameras.size[1]}x{scene.cameras.size[0]}",
                    "registered": f"{len(scene)}/{min(frames, len(images))}",
                    "placed of the clip": f"{placed_frames(run, images)}/{len(images)}",
                    "focal / longest side": round(float(scene.cameras.K[0, 0, 0] / max(scene.cameras.size)), 3),
                    "measured": round(float((scene.confidence > _MEASURED).mean()), 3),
                    "s in all": round(run.seconds, 1),
                    "s a frame": round(run.seconds / len(scene), 2),
                    "CPU s a frame": round(run.cpu_seconds / len(scene), 2),
                },
                "clips",
                clip.stem,
                size,
                frames,
            )
            picture(scene, out / f"{clip.stem}_{size}.png")


def decoding(table: Table, data: Path, names: list[str]) -> None:
    """Decoding every frame to PNG files, against the ffmpeg command line doing the same, if it is installed; the best of three."""
    ffmpeg = shutil.which("ffmpeg") or shutil.which("ffmpeg", path=os.environ.get("FFMPEG_FOLDER", ""))
    for clip in sorted(data.glob("*.mp4")):
        if names and not any(name in clip.stem for name in names):
            continue
        if table.stored("decoding", clip.stem):
            continue
        own, theirs, count = [], [], 0
        for _ in range(3):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                survey = survey_clip(clip)
                plan = plan_clip(survey, as_is=True)
                count = len(write_frames(clip, survey, plan, plan.used, Path(folder), extension="png"))
                own.append(time.perf_counter() - started)
            if ffmpeg is not None:
                with tempfile.TemporaryDirectory() as folder:
                    started = time.perf_counter()
                    command = [ffmpeg, "-v", "error", "-y", "-i", str(clip), "-fps_mode", "passthrough", f"{folder}/%06d.png"]
                    subprocess.run(command, check=True)
                    theirs.append(time.perf_counter() - started)
        cells = {"clip": clip.stem, "frames": count, "own s": round(min(own), 2), "ffmpeg s": round(min(theirs), 2) if theirs else "-"}
        table.row(cells, "decoding", clip.stem)


def _bounded(image: Array) -> tuple[int, int]:
    scale = min(1.0, _POSE_RESOLUTION / max(image.shape[:2]))
    return round(image.shape[0] * scale), round(image.shape[1] * scale)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("synthetic", "captured", "redkitchen", "clips", "decoding")
    shutters = [f"{layout}:{fault}" for layout in ("room", "object") for fault in ("0:0", "0.6:-0.1", "-0.3:0.05")]
    scenes = [f"{layout}:{severity}:0" for severity in ("none", "medium") for layout in LAYOUTS if layout != "forgetful"]
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of clips")
    parser.add_argument("--out", type=Path, default=Path("outputs/geometry"))
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--scenes", nargs="+", default=scenes, metavar="LAYOUT:SEVERITY:SEED", help="worlds of the synthetic table")
    parser.add_argument("--captured-scenes", nargs="+", default=shutters, metavar="LAYOUT:READOUT:K", help="worlds of the captured table")
    parser.add_argument(
        "--taken-out", nargs="+", choices=list(_TAKEN_OUT), default=list(_TAKEN_OUT), help="of redkitchen and captured: which rows"
    )
    parser.add_argument("--clips", nargs="*", default=[], metavar="NAME", help="only clips whose names contain one of these")
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--sizes", type=int, nargs="+", default=[252, 504])
    parser.add_argument("--again", action="store_true", help="measure rows again that are known already")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tables")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = args.out / "rows.jsonl"
    if args.again:
        rows.unlink(missing_ok=True)
    table = Table(rows, args.json)
    if "synthetic" in args.only:
        synthetic(table, args.out, args.frames, args.sizes, args.scenes)
    if "captured" in args.only:
        captured(table, args.out, args.frames, args.sizes, args.captured_scenes, args.taken_out)
    if "redkitchen" in args.only and (args.data / "rgbd_redkitchen").is_dir():
        redkitchen(table, args.data, args.out, args.frames, args.sizes, args.taken_out)
    if "clips" in args.only:
        clips(table, args.data, args.out, args.frames, args.sizes, args.clips)
    if "decoding" in args.only:
        decoding(table, args.data, args.clips)
    if not args.json:
        print("\n* of the 90 % most confident pixels; the first row after a change of the code includes compiling")


if __name__ == "__main__":
    main()
