"""How time and memory of the pipeline grow: cost per frame, memory limits, several GPUs. Part of `python -m benchmarks.gpu`.

Every function is one command that prints markdown. Worlds are made small and enlarged where only time and memory matter.
"""

import contextlib
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.gpu_pipeline import Notes, run_stages, write_scene
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from frame_to_model_icp import stage as stage1
from global_optimization import stage as stage2
from train_gs import stage as stage32
from train_inverse_deformation import stage as stage31
from utils.device.accelerator import accelerator, release_memory, without_accelerator
from utils.scene import artifacts
from utils.synthetic.world import WorldConfig, make_world
from utils.types import Array, Scene

_SMALL = (144, 256)
_SWEEP_STEPS = 300  # training steps whose pace is measured


def enlarged(scene: Scene, size: tuple[int, int]) -> Scene:
    """The scene at another (h, w): for time and memory, not for quality."""
    w_h = size[::-1]
    return Scene(
        cameras=scene.cameras.resized(size),
        images=np.stack([cv2.resize(image, w_h, interpolation=cv2.INTER_CUBIC) for image in scene.images]),
        depth=np.stack([cv2.resize(depth, w_h, interpolation=cv2.INTER_NEAREST) for depth in scene.depth]),
        confidence=np.stack([cv2.resize(c, w_h, interpolation=cv2.INTER_NEAREST) for c in scene.confidence]),
    )


def made_scene(frames: int, size: tuple[int, int]) -> Scene:
    """A synthetic inconsistent room."""
    begun = time.perf_counter()
    scene = make_world(WorldConfig(frames=frames, size=_SMALL)).predicted_scene()
    print(f"(world of {frames} frames made in {time.perf_counter() - begun:.0f} s)", flush=True)
    return scene if size == _SMALL else enlarged(scene, size)


@contextlib.contextmanager
def scene_on_disk(scene: Scene) -> Iterator[Path]:
    """A scene root that holds this scene."""
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder) / "scene", scene)
        yield Path(folder) / "scene"


# ---------------------------------------------------------------------------------------------------- cost per frame


@dataclass(frozen=True)
class Cost:
    """Seconds of a clip, and milliseconds of a training step."""

    frames: int
    first: float
    second: float
    inverse: float
    step: float

    @property
    def per_frame(self) -> float:
        """Milliseconds of stages 1, 2 and 3.1 for a frame."""
        return 1000 * (self.first + self.second + self.inverse) / self.frames


def cost_of(scene: Scene, splats: int, with_training: bool) -> Cost:
    """Times of one clip, files included."""
    with scene_on_disk(scene) as root:
        data = AlignmentDataConfig(num_frames=len(scene), stride=1)
        clock = [time.perf_counter()]
        run = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data)).parent.name
        clock.append(time.perf_counter())
        stage2.run(GlobalOptimizationConfig(root_path=root, run=run))
        clock.append(time.perf_counter())
        stage31.run(InverseDeformationConfig(root_path=root, run=run))
        clock.append(time.perf_counter())
        pace = float("nan")
        if with_training:
            steps = max(_SWEEP_STEPS, 3 * len(scene))
            gs = GSConfig(root_path=root, run=run, renderer="3dgs", num_iters=steps, sh_full_from_iter=0, target_num_points=splats)
            pace = _pace(artifacts.read_json(stage32.run(gs) / "report.json")["curve"])
        return Cost(len(scene), *np.diff(clock), pace)


def frames_sweep(counts: list[int], size: tuple[int, int], splats: int, plot: Path, with_cpu: bool) -> None:
    """A table and a plot of the cost per frame over the length of a clip."""
    counts = sorted(counts)
    longest = made_scene(counts[-1], size)
    have_gpu = accelerator() is not None
    with contextlib.redirect_stdout(None):
        cost_of(longest.select(slice(0, 4)), 5000, have_gpu)  # compiles
    curves: dict[str, list[Cost]] = {}
    print(f"{size[1]}x{size[0]}, seconds with files\n")
    print("| frames | device | stage 1 | stage 2 | inverse | ms per frame | ms per training step |\n" + "|---" * 7 + "|")
    for name, context in (("GPU", contextlib.nullcontext), ("CPU", without_accelerator)):
        if (name == "GPU" and not have_gpu) or (name == "CPU" and not with_cpu):
            continue
        for count in counts:
            with context():
                cost = cost_of(longest.select(slice(0, count)), splats, name == "GPU")
            curves.setdefault(name, []).append(cost)
            seconds = " | ".join(f"{s:.2f}" for s in (cost.first, cost.second, cost.inverse))
            print(f"| {count} | {name} | {seconds} | {cost.per_frame:.0f} | {cost.step:.2f} |", flush=True)
    caption = "frames; milliseconds per frame of stages 1, 2 and inverse"
    cv2.imwrite(str(plot), plotted({name: [(c.frames, c.per_frame) for c in costs] for name, costs in curves.items()}, caption))
    print(f"\nplot: {plot}")


_COLORS = ((180, 90, 20), (40, 90, 220), (60, 150, 60), (150, 60, 150), (40, 160, 190), (90, 90, 90), (190, 160, 40), (60, 40, 130))


def plotted(curves: dict[str, list[tuple[float, float]]], caption: str, y_min: float = 0.0) -> Array:
    """(h, w, 3) uint8 BGR line plot of named curves of (x, y); x begins at zero, y at `y_min`."""
    h, w, left, bottom, top = 420, 640, 60, 50, 20
    image = np.full((h, w, 3), 255, np.uint8)
    points = [p for curve in curves.values() for p in curve]
    x_max, y_span = max(p[0] for p in points), 1.15 * (max(p[1] for p in points) - y_min)
    height = h - bottom - top
    place = lambda x, y: (round(left + x / x_max * (w - left - 20)), round(h - bottom - (y - y_min) / y_span * height))  # noqa: E731
    write = lambda text, at: cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA)  # noqa: E731
    for k in range(5):
        y = y_min + y_span * k / 4
        cv2.line(image, place(0, y), place(x_max, y), (225, 225, 225), 1)
        write(f"{y:.4g}", (8, place(0, y)[1] + 4))
        write(f"{x_max * k / 4:.0f}", (place(x_max * k / 4, y_min)[0] - 10, h - 30))
    write(caption, (left, h - 8))
    for number, (name, curve) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        corners = [place(*p) for p in curve]
        for a, b in itertools.pairwise(corners):
            cv2.line(image, a, b, color, 2, cv2.LINE_AA)
        for corner in corners:
            cv2.circle(image, corner, 4, color, -1, cv2.LINE_AA)
        at = w - 20 - 8 * len(name), h - bottom + 10 - 20 * (len(curves) - number)
        cv2.putText(image, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
    return image


# ---------------------------------------------------------------------------------------------------- memory


def memory_proof(frames: int, size: tuple[int, int], limit: float, splats: int, steps: int) -> None:
    """Every stage of a clip with the allocator capped: what was taken, and how many splats remain."""
    with scene_on_disk(made_scene(frames, size)) as root:
        gs = GSConfig(renderer="3dgs", num_iters=steps, target_num_points=splats, device="cuda")
        begun = time.perf_counter()
        rows, out = run_stages(root, frames, gs, film=False, max_gpu_gb=limit)
        said = artifacts.read_json(out / "report.json")
    print(f"\n{frames} frames of {size[1]}x{size[0]}, limit {limit:g} GiB, {steps} steps\n")
    print("| stage | seconds | GiB in use | GiB taken |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.seconds:.2f} | {row.used:.2f} | {row.reserved:.2f} |")
    fits = max(row.reserved for row in rows) <= limit
    print(f"\n{said['splats']} of {splats} splats, {'within' if fits else 'ABOVE'} the limit, {time.perf_counter() - begun:.0f} s in all")


def splats_sweep(counts: list[int], limits: list[float], frames: int, size: tuple[int, int]) -> None:
    """Pace and memory of training over the splat budget: each count without a limit, the largest within each limit in GiB as well."""
    with scene_on_disk(made_scene(frames, size)) as root:
        data = AlignmentDataConfig(num_frames=frames, stride=1)
        run = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data)).parent.name
        stage2.run(GlobalOptimizationConfig(root_path=root, run=run))
        stage31.run(InverseDeformationConfig(root_path=root, run=run))
        gs = GSConfig(
            root_path=root, run=run, renderer="3dgs", num_iters=max(_SWEEP_STEPS, 3 * frames), sh_full_from_iter=0, overwrite=True
        )
        print("| budget | limit GiB | splats | blocks | whole stage s | ms a step | GiB in use | GiB taken |\n" + "|---" * 8 + "|")
        for count, limit in [(c, 0.0) for c in sorted(counts)] + [(max(counts), limit) for limit in limits]:
            release_memory()
            torch.cuda.reset_peak_memory_stats()
            seconds, out = timed(functools.partial(stage32.run, replace(gs, target_num_points=count, max_gpu_gb=limit), Notes()))
            used, taken = (value / 2**30 for value in (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
            said = artifacts.read_json(out / "report.json")
            fits = "" if not limit or taken <= limit else " ABOVE"
            row = f"| {count} | {limit or '-'} | {said['splats']} | {said.get('blocks', 1)} | {seconds:.1f} | {_pace(said['curve']):.2f} "
            print(f"{row}| {used:.2f} | {taken:.2f}{fits} |", flush=True)


def _pace(curve: list[dict[str, float]]) -> float:
    """Milliseconds of a training step in the later half of a training: the first visit of a frame records its step."""
    late = curve[len(curve) // 2 :]
    return 1000 * (late[-1]["seconds"] - late[0]["seconds"]) / max(late[-1]["step"] - late[0]["step"], 1)


# ---------------------------------------------------------------------------------------------------- several GPUs


def several_gpus(counts: list[int], frames: int, size: tuple[int, int], splats: int, steps: int) -> None:
    """The same training and the same joint alignment on 1, 2, ... GPUs: seconds and quality."""
    print(
        "| GPUs | stage 2 s | of it matching s | matched points apart % | training s | steps | held out dB | training dB |\n"
        + "|---" * 8
        + "|"
    )
    with scene_on_disk(made_scene(frames, size)) as root:
        data = AlignmentDataConfig(num_frames=frames, stride=1)
        run = stage1.run(FrameToModelICPConfig(root_path=root, alignment=data), Notes()).parent.name
        for count in counts:
            matching = replace(GlobalOptimizationConfig().matching, gpus=count)
            joint = GlobalOptimizationConfig(root_path=root, run=run, matching=matching, overwrite=True)
            seconds, folder = timed(functools.partial(stage2.run, joint))
            parts = artifacts.read_json(folder / "report.json")
            matched = sum(value for name, value in parts["seconds_by_part"].items() if name.startswith("matching"))
            apart = 100 * float(np.nanmedian(np.array(parts["residual_after"], float)))
            stage31.run(InverseDeformationConfig(root_path=root, run=run, overwrite=True))
            gs = GSConfig(root_path=root, run=run, renderer="3dgs", target_num_points=splats, num_iters=steps, gpus=count, overwrite=True)
            training, out = timed(functools.partial(stage32.run, gs, Notes()))
            said = artifacts.read_json(out / "report.json")
            print(
                f"| {count} | {seconds:.2f} | {matched:.2f} | {apart:.4f} | {training:.1f} | {said['iterations']} | "
                f"{said['heldout_psnr']:.2f} | {said['train_psnr']:.2f} |",
                flush=True,
            )


def timed(work: Callable[[], Path]) -> tuple[float, Path]:
    """Seconds of the work, and what it returns."""
    begun = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun, result


# ---------------------------------------------------------------------------------------------------- the published method


def parity_pace(frames: int, size: tuple[int, int]) -> None:
    """Stage 1 by this program's method and by the published one on the same short clip."""
    print("| method | stage 1 s | parts |\n|---|---|---|")
    with scene_on_disk(made_scene(frames, size)) as root:
        data = AlignmentDataConfig(num_frames=frames, stride=1)
        for method in ("lattice", "parity"):
            config = FrameToModelICPConfig(root_path=root, alignment=data, method=method, out_suffix=f"_{method}")
            seconds, out = timed(functools.partial(stage1.run, config, Notes()))
            parts = artifacts.read_json(out / "report.json")["seconds_by_part"]
            print(f"| {method} | {seconds:.2f} | {', '.join(f'{k} {v:.2f}' for k, v in parts.items())} |", flush=True)
