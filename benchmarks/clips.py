"""Real clips, ours beside the naive baseline: one command for a folder of clips, figures that need no weights, pictures side by side.

    python -m benchmarks.clips CLIP_OR_FOLDER ... --out DIR                            # 32 frames of 252 px, 800 steps: minutes a clip
    python -m benchmarks.clips clips/ --out DIR --jobs 6 --frames 64 --resolution 504 --steps 3000 --splats 400000     # on a GPU
    python -m benchmarks.clips clips/multi_*.mp4 --together --out DIR                  # one world of all, then one without each clip
    python -m benchmarks.clips --out DIR --table                                       # the tables of what is there

All variants of a clip share stage 0 and the budget: naive = its poses and cloud as they are, nothing is deformed; rigid = stages 1 and 2,
nothing is deformed; ours = stages 1, 2, 3.1 and 3.2; parity = the published method's alignment; seen = ours with held-out frames that take
part in the alignment and are only kept from the training, rendered through their own deformation.
Every k-th frame is held out. But for `seen` it takes part in nothing but stage 0 (strict): it is rendered rigidly and through what its
neighbours in time found. With `--together` the frames of a whole clip are held out.
DIR holds a folder per clip (scene, runs, evaluation), CLIP.jsonl with a line per variant, CLIP.png, and table.md. What has a line is not
done again; stages that are current are skipped.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import preprocess_video
from benchmarks.clip_pictures import write_sheet
from benchmarks.clip_tables import Line, clip_tables
from benchmarks.splatting import write_alignment
from configs.evaluation import EvalConfig
from configs.preprocess import PreprocessConfig
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from eval_gs.stage import run as evaluate
from frame_to_model_icp import stage as stage1
from frame_to_model_icp.selection import split_frames
from global_optimization import stage as stage2
from train_gs import stage as stage32
from train_inverse_deformation import stage as stage31
from utils.device.accelerator import accelerator
from utils.errors import ConfigError, V2WError
from utils.registration.sequential import unaligned
from utils.reporting import ConsoleReporter
from utils.runtime import cpu_count, run_stage
from utils.scene import artifacts
from video_to_world.warm_up import warming_up

SUFFIXES = (".mp4", ".mov", ".webm", ".gif")
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class ClipVariant:
    """What is compared.

    Attributes:
        method: of the alignment; none takes the geometry of stage 0 as it is.
        deform: whether splats are trained and shown through the inverse deformation.
        strict: whether held-out frames take part in nothing but stage 0.
    """

    method: str
    deform: bool
    strict: bool = True


VARIANTS = {
    "naive": ClipVariant(method="none", deform=False),
    "rigid": ClipVariant(method="lattice", deform=False),
    "ours": ClipVariant(method="lattice", deform=True),
    "parity": ClipVariant(method="parity", deform=True),
    "seen": ClipVariant(method="lattice", deform=True, strict=False),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A scene to be measured.

    Attributes:
        name: of the clip, or of the clips together and the one that is left out.
        root: scene root.
        data: which frames are aligned and which are held out.
    """

    name: str
    root: Path
    data: AlignmentDataConfig


# ------------------------------------------------------------------------------------------------ one clip


def geometry(clips: tuple[Path, ...], root: Path, args: argparse.Namespace, report: ConsoleReporter) -> None:
    """Stage 0, which all variants share."""
    config = PreprocessConfig(
        input_video=clips, scene_root=root, max_frames=args.frames, process_res=args.resolution, every_frame=False, seed=args.seed
    )
    preprocess_video.run(config, report)


def aligned(subject: Subject, variant: ClipVariant, report: ConsoleReporter) -> Path:
    """Folder of the alignment of a variant."""
    data = subject.data if variant.strict else replace(subject.data, holdout_every=0, holdout_frames=())
    suffix = f"_{subject.name}_{variant.method}" + ("" if variant.strict else "_seen")
    if variant.method == "none":
        scene = artifacts.load_scene(subject.root)
        rows, heldout = split_frames(len(scene), data)
        return write_alignment(subject.root, subject.name + "_none", unaligned(scene.select(rows)), heldout)
    config = FrameToModelICPConfig(root_path=subject.root, alignment=data, out_suffix=suffix, method=variant.method)  # type: ignore[arg-type]
    run = stage1.run(config, report).parent.name
    joint = GlobalOptimizationConfig(root_path=subject.root, run=run, method=variant.method)  # type: ignore[arg-type]
    return stage2.run(joint, report)


def splats(subject: Subject, name: str, folder: Path, args: argparse.Namespace, report: ConsoleReporter) -> Path:
    """Folder of the trained splats of a variant."""
    variant, run = VARIANTS[name], folder.parent.name
    config = GSConfig(
        root_path=subject.root,
        run=run,
        out_dir=subject.root / f"gs_{subject.name}_{name}",
        renderer="3dgs",
        device=args.device,
        deform=variant.deform,
        supervise="aligned",
        holdout_every=args.holdout_every,
        num_iters=args.steps,
        target_num_points=args.splats,
        sh_degree=1,
        seed=args.seed,
    )
    if variant.deform:
        stage31.run(InverseDeformationConfig(root_path=subject.root, run=run), report)
    return stage32.run(config, report)


def measured(subject: Subject, name: str, args: argparse.Namespace, report: ConsoleReporter) -> Line:
    """One line: figures of a variant of a clip."""
    started = time.perf_counter()
    folder = aligned(subject, VARIANTS[name], report)
    aligned_at = time.perf_counter()
    out = splats(subject, name, folder, args, report)
    trained_at = time.perf_counter()
    evaluation = EvalConfig(
        root_path=subject.root,
        run=folder.parent.name,
        checkpoint_dir=out,
        out_dir=subject.root / f"eval_{subject.name}_{name}",
        device=args.device,
        save_images=False,
        save_video=args.films,
        render_gs_video_path=args.films,
        render_input_poses=False,
        report=False,
    )
    metrics = artifacts.read_json(evaluate(evaluation, report) / "metrics.json")
    ended = time.perf_counter()
    return {
        "clip": subject.name,
        "variant": name,
        "budget": {k: getattr(args, k) for k in ("frames", "resolution", "steps", "splats", "holdout_every", "seed")},
        **figures(metrics),
        **frames_placed(subject, folder),
        "seconds": {"alignment": aligned_at - started, "splats": trained_at - aligned_at, "evaluation": ended - trained_at},
        "gs": out.name,
    }


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of metrics.json."""
    train, held = metrics.get("train", {}), metrics.get("heldout", {})
    along = metrics["consistency"].get("optimised_poses", {})
    return {
        "train": train.get("psnr"),
        "heldout": held.get("psnr"),
        "heldout_rigid": held.get("rigid_psnr"),
        "ssim": held.get("ssim"),
        "sharpness": held["sharpness"] / held["input_sharpness"] if held else None,
        "reprojection_px": along.get("reprojection_px"),
        "flow_photometric": along.get("flow_photometric"),
        "multi_layer": metrics.get("multi_layer"),
        "off_path_known": metrics.get("off_path", {}).get("known"),
        "off_path_px": metrics.get("off_path", {}).get("reprojection_px"),
        "splats": metrics["splats"],
        "frames": [{k: f.get(k) for k in ("frame_id", "heldout", "psnr", "rigid_psnr", "canonical_psnr")} for f in metrics["frames"]],
    }


def frames_placed(subject: Subject, folder: Path) -> dict[str, int]:
    """Frames of the scene, and how many of those to be aligned were aligned and left out."""
    alignment = artifacts.load_alignment(folder, with_cloud=False)
    total = artifacts.count_frames(subject.root)
    return {"placed": total, "aligned": int(alignment.aligned.sum()), "left_out": int((~alignment.aligned).sum())}


# ------------------------------------------------------------------------------------------------ many clips


def subjects(args: argparse.Namespace, clips: list[Path], report: ConsoleReporter) -> Iterator[Subject]:
    """The scenes to be measured, their geometry made."""
    data = AlignmentDataConfig(num_frames=args.frames, stride=1, holdout_every=args.holdout_every)
    if not args.together:
        for clip in clips:
            root = args.out / clip.stem / "scene"
            geometry((clip,), root, args, report)
            yield Subject(name=clip.stem, root=root, data=data)
        return
    root = args.out / (args.only or "together") / "scene"
    geometry(tuple(clips), root, args, report)
    yield Subject(name="together", root=root, data=data)
    of_clip = artifacts.clip_of_frames(root, artifacts.count_frames(root))
    for number, clip in enumerate(clips):
        held = tuple(int(frame) for frame in np.flatnonzero(of_clip == number))
        yield Subject(name=f"without_{clip.stem}", root=root, data=replace(data, holdout_every=0, holdout_frames=held))


def work_through(args: argparse.Namespace, clips: list[Path]) -> None:
    """Everything that has no line yet, one after another in this process; a clip that fails is told and does not stop the others."""
    with ConsoleReporter(enabled=args.verbose) as report:
        for subject in subjects(args, clips, report):
            if args.only not in (None, subject.name):
                continue
            path = args.out / f"{subject.name}.jsonl"
            done = {line["variant"] for line in read_lines(path)}
            for name in args.variants:
                if name in done:
                    continue
                line = attempt(subject, name, args, report)
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                told = {k: round(v, 3) for k, v in line.items() if isinstance(v, float)}
                print(f"{subject.name} {name}: {line.get('error') or told}", file=sys.stderr, flush=True)
            write_sheet(args.out / f"{subject.name}.png", subject.root, read_lines(path), args.rows, args.width, args.device)


def attempt(subject: Subject, name: str, args: argparse.Namespace, report: ConsoleReporter) -> Line:
    """A line, or one that says what went wrong."""
    try:
        return measured(subject, name, args, report)
    except V2WError as error:
        return {"clip": subject.name, "variant": name, "error": f"{error.message} ({error.hint})"}


def spread(args: argparse.Namespace, clips: list[Path]) -> None:
    """Subjects in processes of their own, `jobs` at a time, each with its share of the cores."""
    flags = [word for word in sys.argv[1:] if word not in {str(given) for given in args.clips}]
    shares = core_shares(sorted(os.sched_getaffinity(0)), args.jobs) if hasattr(os, "sched_getaffinity") else []
    threads = {name: str(max(1, cpu_count() // args.jobs)) for name in THREADS}

    def run(job: tuple[int, tuple[str, list[Path]]]) -> None:
        number, (name, given) = job
        words = [*(str(clip) for clip in given), *flags, "--jobs", "1", "--only", name, "--no-table"]
        command = [sys.executable, "-m", "benchmarks.clips", *words]
        if shares:
            command += ["--cores", *(str(core) for core in shares[number % args.jobs])]
        with (args.out / f"{name}.log").open("w") as log:
            code = subprocess.run(command, env=os.environ | threads, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        print(f"{name}: {'done' if code == 0 else f'failed, see {log.name}'}", file=sys.stderr, flush=True)

    ahead = contextlib.nullcontext() if accelerator() is None or args.device == "cpu" else warming_up(("3dgs",))
    with ahead, ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, enumerate(apart(args, clips))))


def apart(args: argparse.Namespace, clips: list[Path]) -> list[tuple[str, list[Path]]]:
    """Name and clips of each subject; the geometry that subjects of clips together share is made here, and copied to each."""
    if not args.together:
        return [(clip.stem, [clip]) for clip in clips]
    with ConsoleReporter(enabled=args.verbose) as report:
        names = [subject.name for subject in subjects(args, clips, report)]
    for name in names[1:]:
        if not (args.out / name).exists():
            shutil.copytree(args.out / names[0] / "scene", args.out / name / "scene")
    return [(name, clips) for name in names]


def core_shares(cores: list[int], jobs: int) -> list[list[int]]:
    """The cores of each job: all of them shared out, or one each, some used by several, where there are more jobs."""
    return [cores[j::jobs] or [cores[j % len(cores)]] for j in range(jobs)]


def listed(given: list[Path]) -> list[Path]:
    """The clips of files and folders.

    Raises:
        ConfigError: there are none, or two of one name.
    """
    clips = [c for path in given for c in (sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path])]
    names = [clip.stem for clip in clips]
    if not clips or len(set(names)) < len(names):
        raise ConfigError("no clips, or two of one name", "give clips, or folders of them, whose names differ")
    return clips


def read_lines(path: Path) -> list[Line]:
    """The lines of a file; none if it is not there. Of several of one variant the last counts."""
    lines = [json.loads(text) for text in path.read_text().splitlines() if text.strip()] if path.is_file() else []
    return list({line["variant"]: line for line in lines}.values())


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path, metavar="CLIP", help="clips, or folders of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes; a later call goes on there")
    parser.add_argument("--variants", nargs="+", default=["naive", "rigid", "ours"], choices=list(VARIANTS), metavar="NAME",
                        help=f"of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--together", action="store_true", help="all clips as one scene, then a world without each clip")
    parser.add_argument("--frames", type=int, default=32, help="frames of a scene")
    parser.add_argument("--resolution", type=int, default=252, help="longest side of the working images in pixels")
    parser.add_argument("--steps", type=int, default=800, help="training steps")
    parser.add_argument("--splats", type=int, default=20_000, help="splat budget")
    parser.add_argument("--holdout-every", type=int, default=8, help="every k-th frame is held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--jobs", type=int, default=1, help="scenes at a time, each in a process of its own")
    parser.add_argument("--films", action="store_true", help="also make the fly-through and the film of the frames' poses")
    parser.add_argument("--rows", type=int, default=5, help="frames shown in a picture")
    parser.add_argument("--width", type=int, default=300, help="width of a frame in it, in pixels")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is in DIR")
    parser.add_argument("--no-table", action="store_true", help=argparse.SUPPRESS)  # of a job: its caller makes it
    parser.add_argument("--only", help=argparse.SUPPRESS)  # of a job: the subject that it does
    parser.add_argument("--cores", nargs="+", type=int, help=argparse.SUPPRESS)  # of a job
    parser.add_argument("--verbose", action="store_true", help="show what the stages say")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    if not args.table:
        clips = listed(args.clips)
        if args.jobs > 1 and len(clips) > 1:
            spread(args, clips)
        else:
            work_through(args, clips)
    if args.no_table:
        return
    text = clip_tables([line for path in sorted(args.out.glob("*.jsonl")) for line in read_lines(path)])
    (args.out / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    run_stage(main)
