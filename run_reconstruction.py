"""From an MP4 to a 3D world in one command: `python run_reconstruction.py clip.mp4` or `--config.input-video clip.mp4`."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.base import load_config_file, parse, without_aliases
from configs.pipeline import BUDGETS, PipelineConfig, preset
from configs.preprocess import PreprocessConfig
from configs.words import short_help, spelled_out
from utils.errors import ConfigError
from utils.runtime import cuda_device_present, run_stage
from utils.scene.clip_parts import clip_parts, words_about_parts
from utils.scene.json_files import json_object
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.lock import writing_scene
from utils.scene.manifest import MANIFEST, peak_memory_mb, portable, restart_peak_memory
from utils.scene.transaction import Output, publish_file, require_replaceable
from utils.version import VERSION

if TYPE_CHECKING:
    from configs.stage1_align import AlignmentDataConfig
    from utils.reporting import ProgressFileReporter
    from utils.types import Reporter


@dataclass(frozen=True)
class StageCall:
    """One stage as the driver runs it.

    Attributes:
        title: what it does, for the progress line.
        module: command-line module, for the printed command.
        target: "module:function" called with config and reporter.
        config: its settings.
        folder: the artifact it makes.
    """

    title: str
    module: str
    target: str
    config: Any
    folder: Path


def plan(config: PipelineConfig) -> list[StageCall]:
    """The stages of a run in order, with every path filled in."""
    root = config.scene_root
    layout = SceneLayout(root)
    calls = []
    if config.input_video or config.frames_dir is not None:
        calls.append(StageCall("geometry", "preprocess_video", "preprocess.stage:run", _preprocess(config), layout.npz_dir))
    data = _held_out_alike(config)
    name = config.alignment_run or layout.run_name(data.num_frames, data.stride, data.offset, config.stage1.out_suffix)
    run = layout.run(name)
    if config.alignment_run is None:
        again = config.overwrite or config.stage1.overwrite
        stage1 = replace(config.stage1, alignment=data, root_path=root, overwrite=again, max_gpu_gb=_memory(config, config.stage1))
        stage1 = replace(stage1, tensorboard=config.tensorboard or stage1.tensorboard)
        calls.append(StageCall("alignment", "frame_to_model_icp", "frame_to_model_icp.stage:run", stage1, run.after_non_rigid_icp))
    subdir = run.after_non_rigid_icp.name
    if not config.skip_global_optimization:
        again = config.overwrite or config.stage2.overwrite
        memory = _memory(config, config.stage2)
        stage2 = replace(config.stage2, root_path=root, run=name, overwrite=again, max_gpu_gb=memory)
        stage2 = replace(stage2, tensorboard=config.tensorboard or stage2.tensorboard)
        subdir = stage2.out_subdir
        calls.append(StageCall("joint alignment", "global_optimization", "global_optimization.stage:run", stage2, run.root / subdir))
    inverse = config.inverse_deform_dir or config.stage31.out_path or run.inverse_deformation
    if not config.skip_inverse_deform and config.inverse_deform_dir is None:
        again = config.overwrite or config.stage31.overwrite
        stage31 = replace(config.stage31, root_path=root, run=name, checkpoint_subdir=subdir, overwrite=again)
        calls.append(StageCall("inverse deformation", "train_inverse_deformation", "train_inverse_deformation.stage:run", stage31, inverse))
    calls += _splat_calls(config, root, run, subdir, inverse)
    return calls


def _held_out_alike(config: PipelineConfig) -> "AlignmentDataConfig":
    """Frames of the alignment: it holds out those that splatting is measured on, where stage 1 is to hold out any.

    The network inverse knows the aligned frames only, so nothing could be measured on others; all take part then.
    """
    data = config.stage1.alignment
    if not data.holdout_every:
        return data
    return replace(data, holdout_every=0 if config.stage31.method == "network" else config.gs.holdout_every)


def _memory(config: PipelineConfig, stage: Any) -> float:
    """The memory limit of a stage: its own, or else that of the whole run."""
    return float(stage.max_gpu_gb or config.max_gpu_gb)


def _preprocess(config: PipelineConfig) -> PreprocessConfig:
    again = config.overwrite or config.stage0.overwrite
    video, folder = config.input_video, config.frames_dir
    return replace(config.stage0, input_video=video, frames_dir=folder, scene_root=config.root_path, overwrite=again)


def _splat_calls(config: PipelineConfig, root: Path, run: RunLayout, subdir: str, inverse: Path) -> list[StageCall]:
    calls = []
    for renderer in config.renderers:
        folder = run.gs(renderer)
        splats = replace(
            config.gs,
            root_path=root,
            run=run.root.name,
            global_opt_subdir=subdir,
            inverse_deform_dir=inverse,
            renderer=renderer,
            device=config.device if config.gs.device == "auto" else config.gs.device,
            overwrite=config.overwrite or config.gs.overwrite,
            max_gpu_gb=_memory(config, config.gs),
        )
        calls.append(StageCall(f"{renderer} splats", "train_gs", "train_gs.stage:run", splats, folder))
        if not config.skip_eval:
            memory = _memory(config, config.eval)
            evaluation = replace(
                config.eval, root_path=root, run=run.root.name, checkpoint_dir=folder, device=splats.device, max_gpu_gb=memory
            )
            calls.append(StageCall(f"{renderer} evaluation", "eval_gs", "eval_gs.stage:run", evaluation, RunLayout.evaluation(folder)))
    return calls


def command_of(call: StageCall) -> str:
    """The command line that runs a stage by itself: only settings that differ from the stage's defaults."""
    if isinstance(call.config, PreprocessConfig):
        return shlex.join(["python", "preprocess_video.py", *_flags(call.config)])
    return shlex.join(["python", "-m", call.module, *_flags(call.config, "config.", "-")])


def _flags(config: Any, prefix: str = "", dash: str = "_") -> list[str]:
    """The flags that make these settings from the defaults; `dash` joins the words of a name."""
    flags: list[str] = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        name = f.name.replace("_", dash)
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            flags += _flags(value, f"{prefix}{name}.", dash)
        elif isinstance(value, bool):
            flags.append(f"--{prefix}{name}" if value else f"--{prefix}no{dash}{name}")
        elif isinstance(value, (tuple, list)):
            flags += [f"--{prefix}{name}", *(str(v) for v in value)]
        else:
            flags += [f"--{prefix}{name}", str(value)]
    return flags


def execute(
    config: PipelineConfig,
    calls: list[StageCall],
    report: "Reporter",
    progress: "ProgressFileReporter | None" = None,
    only: int | None = None,
    before_evaluation: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Runs the stages, prints one line each, and returns the summary that is also written to `run_summary.json`.

    Args:
        config: the run.
        calls: its stages.
        report: told of every step.
        progress: keeps the file for programs that watch the run.
        only: number of the one stage to run, from 1; the summary keeps what it says of those before it.
        before_evaluation: called when all stages before it are done.
    """
    from utils.reporting import line

    layout = SceneLayout(config.scene_root)
    stages = [] if only is None else _summarised(layout, calls[: only - 1])
    started = time.perf_counter() - sum(float(stage["seconds"]) for stage in stages)
    for number, call in enumerate(calls, 1):
        if only not in (None, number):
            continue
        line(f"[{number}/{len(calls)}] {call.title} ...")
        if progress is not None:
            progress.begin(number)
        restart_peak_memory()
        before, begin = _created(call.folder), time.perf_counter()
        module, _, function = call.target.partition(":")
        # the report is written once, with the times of all stages
        settings = replace(call.config, report=False) if call.module == "eval_gs" else call.config
        if call.module == "eval_gs":
            before_evaluation()
        getattr(importlib.import_module(module), function)(settings, report)
        seconds = time.perf_counter() - begin
        kept = before is not None and before == _created(call.folder)
        if progress is not None:
            progress.end(seconds, kept)
        stages.append(
            {
                "title": call.title,
                "seconds": round(seconds, 2),
                "kept": kept,
                "folder": str(call.folder),
                "peak_memory_mb": round(peak_memory_mb()),
                "command": command_of(call),
            }
        )
        state = "up to date, kept" if kept else f"done in {seconds:.1f} s"
        line(f"[{number}/{len(calls)}] {call.title}: {state}")
        _write_summary(layout, config, stages, time.perf_counter() - started)
    return _write_summary(layout, config, stages, time.perf_counter() - started)


def _created(folder: Path) -> str | None:
    """What tells the artifact from an earlier one; None if there is none, or none that can be read."""
    manifest = json_object(folder / MANIFEST)
    return f"{manifest.get('created')} {manifest.get('content_id')}" if manifest else None


_STAGES = b'"stages": ['  # near the beginning of every summary and progress file


def _write_summary(layout: SceneLayout, config: PipelineConfig, stages: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    summary = {"seconds": round(seconds, 1), "stages": stages, "config": portable(config)}
    with publish_file(layout.summary_json, signature=_STAGES) as path:
        path.write_text(json.dumps(summary, indent=1))
    return summary


def _summarised(layout: SceneLayout, calls: list[StageCall]) -> list[dict[str, Any]]:
    """What the summary on disk says of these stages."""
    try:
        found = {stage["title"]: stage for stage in json.loads(layout.summary_json.read_bytes())["stages"] if stage["seconds"] >= 0}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [found[call.title] for call in calls if call.title in found]


def closing_words(config: PipelineConfig, calls: list[StageCall], summary: dict[str, Any]) -> str:
    """What was made, where, how long it took, how good it is, and what to do next."""
    from utils.report.verdict import verdict

    command = ""
    lines = ["", f"Finished in {summary['seconds']:.0f} s. Peak memory {max(s['peak_memory_mb'] for s in summary['stages'])} MB."]
    lines += [f"  {s['title']:<22} {'kept' if s['kept'] else format(s['seconds'], '.1f') + ' s':>9}" for s in summary["stages"]]
    lines += [f"  warning: {words}" for words in words_about_parts(config.scene_root)]
    for folder in [c.folder for c in calls if c.module == "global_optimization"]:
        lines += [f"  {line}" for line in alignment_words(folder)]
    for renderer, folder in [(c.config.renderer, c.folder) for c in calls if c.module == "train_gs"]:
        lines.append(f"{renderer}: {folder}")
        judged = verdict(folder, config.mode)
        lines += [f"  {line}" for line in judged.lines()] if judged is not None else []
        command = judged.command if judged is not None and judged.advice else command
        lines += [f"  {line}" for line in _quality(RunLayout.evaluation(folder))]
        for path in sorted(folder.glob("*.ply")) + sorted(RunLayout.evaluation(folder).glob("*.mp4")):
            lines.append(f"  {path}")
    report = SceneLayout(config.scene_root).report_html
    lines.append("Next:")
    if report.is_file():
        lines.append(f"  open {report}")
    scene = shlex.quote(str(config.scene_root))
    if all(importlib.util.find_spec(name) is not None for name in ("starlette", "uvicorn")):
        lines.append(f"  python -m utils.view_checkpoint --config.root-path {scene}")
    else:  # the viewer is an extra; the page with the viewer inside is not
        lines.append(f"  python -m utils.export_checkpoint_to_ply --config.root-path {scene} --config.format html")
    lines += [f"  {command}"] if command else []
    others = [part.root for part in clip_parts(config.scene_root)[1:] if part.root is not None]
    lines += [f"  python run_reconstruction.py {shlex.quote(str(root))}" for root in others]
    return "\n".join(lines)


def alignment_words(folder: Path) -> list[str]:
    """What the report of an alignment says in a few lines: held-out agreement, frames left out, contradictions; frames from 1."""
    from utils.registration.heldout import heldout_words
    from utils.registration.result import contradiction_words
    from utils.reporting import number_ranges

    path = folder / "report.json"
    if not path.is_file():
        return []
    report = json.loads(path.read_text())
    words = ["alignment: " + heldout_words(report["heldout"])] if report.get("heldout") else []
    left_out = [int(i) + 1 for i, aligned in zip(report["frames"], report["aligned"], strict=True) if not aligned]
    closer = (
        "; frames closer together fit better: raise --config.preprocess-max-frames" if len(left_out) > len(report["frames"]) / 8 else ""
    )
    words += [f"warning: frames left out, they do not fit the others: {number_ranges(left_out)}{closer}"] if left_out else []
    told = contradiction_words([(a + 1, b + 1) for a, b in (c["frames"] for c in report["contradictions"])])
    return words + ([f"warning: {told}"] if told else [])


def _quality(folder: Path) -> list[str]:
    path = folder / "metrics.json"
    if not path.is_file():
        return []
    metrics = json.loads(path.read_text())
    placed = metrics.get("frames_placed", {})
    held = "held-out frames, which no stage saw" if placed.get("held_out_of_everything") else "heldout frames"
    words = []
    for part, name in (("train", "train frames"), ("heldout", held)):
        values = metrics.get(part)
        if isinstance(values, dict) and values.get("psnr") is not None:
            rigid = f", undeformed {values['rigid_psnr']:.2f} dB" if values.get("rigid_psnr") is not None else ""
            words.append(f"{name}: PSNR {values['psnr']:.2f} dB{rigid}, SSIM {values['ssim']:.3f}")
    if placed.get("left_out"):
        words.append(
            f"{len(placed['left_out'])} of {placed['scene']} frames took no part: {', '.join(str(i + 1) for i in placed['left_out'])}"
        )
    return words


def configure(argv: list[str]) -> PipelineConfig:
    """The settings from preset and flags: the preset is chosen first (mode and device), then the flags are applied to it."""
    argv = without_aliases(PipelineConfig, spelled_out(argv))
    if "--config-file" in argv:
        at = argv.index("--config-file") + 1
        if at == len(argv):
            raise ConfigError("--config-file needs a path", "give a JSON file with settings, for example --config-file mine.json")
        saved = load_config_file(PipelineConfig, Path(argv[at]))
        return parse(PipelineConfig, argv[: at - 1] + argv[at + 1 :], prog="run_reconstruction.py", default=saved)
    mode = _flag_value(argv, "--config.mode") or "fast"
    device = _flag_value(argv, "--config.device") or "auto"
    if mode not in ("fast", "extensive") or device not in ("auto", "cpu", "cuda"):
        mode, device = "fast", "auto"  # the parser below explains the wrong value
    default = preset(mode, resolve_device(device))  # type: ignore[arg-type]
    return covering_all(parse(PipelineConfig, argv, prog="run_reconstruction.py", default=default), argv)


def covering_all(config: PipelineConfig, argv: list[str]) -> PipelineConfig:
    """Stage 1 aligns as many frames as stage 0 is to make, spread over all there are, where no flag says otherwise (a file of settings is
    taken as it is).

    The preset's own numbers belong together; a flag that changes one of them, or a results.npz with more frames, would leave the end of the
    clip unaligned.
    """
    data = config.stage1.alignment
    if _flag_value(argv, "--config.stage0.max-frames") and not _flag_value(argv, "--config.stage1.alignment.num-frames"):
        data = replace(data, num_frames=config.stage0.max_frames)
    if config.input_video or config.frames_dir is not None:
        frames = config.stage0.max_frames
    else:
        frames = _frames_there(config)
    if not _flag_value(argv, "--config.stage1.alignment.stride"):
        data = replace(data, stride=max(data.stride, -(-(frames - data.offset) // data.num_frames)))
    return replace(config, stage1=replace(config.stage1, alignment=data))


def _frames_there(config: PipelineConfig) -> int:
    """Frames of the scene's results.npz; 0 if there is none."""
    if config.root_path is None or not SceneLayout(config.root_path).results_npz.is_file():
        return 0
    from utils.scene.artifacts import count_frames

    return count_frames(config.root_path)


def _flag_value(argv: list[str], flag: str) -> str | None:
    """The word after a flag; the parser takes underscores for hyphens, so they count as such here."""
    for i, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value or (argv[i + 1] if i + 1 < len(argv) else None)
    return None


def resolve_device(device: str) -> Literal["cpu", "cuda"]:
    """The machine whose budget the preset takes: cuda only where a CUDA device answers."""
    if device == "auto":
        return "cuda" if cuda_device_present() else "cpu"
    return "cuda" if device == "cuda" else "cpu"


def computing_on(config: PipelineConfig) -> contextlib.AbstractContextManager[None]:
    """Keeps every stage off the GPU where the CPU is asked for, and within the memory limit where not."""
    from utils.device.accelerator import cap_accelerator, without_accelerator

    if config.device == "cpu":
        return without_accelerator()
    cap_accelerator(config.max_gpu_gb)
    return contextlib.nullcontext()


def compiling_ahead(config: PipelineConfig, calls: list[StageCall]) -> contextlib.AbstractContextManager[Any]:
    """Kernels of later stages are compiled while the first one works, where that is of use: on a GPU, ahead of geometry."""
    from utils.device.accelerator import accelerator

    capped = config.max_gpu_gb or any(getattr(call.config, "max_gpu_gb", 0.0) for call in calls)
    waiting = calls[0].module == "preprocess_video" and _created(calls[0].folder) is None
    if not config.precompile or capped or not waiting or accelerator() is None:
        return contextlib.nullcontext()
    from video_to_world.warm_up import warming_up

    return warming_up(config.renderers)


_LOOKING_SECONDS = 8.0
"""About as long as stage 0 looks at a clip of a hundred frames before it maps it."""


@contextlib.contextmanager
def importing_ahead(calls: list[StageCall]) -> Iterator[None]:
    """Inside, a thread imports what later stages need, while the first one computes in compiled code: seconds, where files are many.

    Not at once: stage 0 first looks at the clip in Python, and both would wait for the interpreter's lock. Nothing is imported where the
    first stage is there already. What cannot be imported is left to its stage, which says so.
    """

    def load() -> None:
        with contextlib.suppress(Exception):
            for module in dict.fromkeys(call.target.partition(":")[0] for call in calls):
                importlib.import_module(module)
            importlib.import_module("torch._dynamo")  # which torch's optimisers ask for at their first step

    if _created(calls[0].folder) is not None:
        yield
        return
    thread = threading.Timer(_LOOKING_SECONDS, load)
    thread.start()
    try:
        yield
    finally:
        thread.cancel()
        thread.join()  # a program that ends within an import may crash


def _reading_for_report(reader: ThreadPoolExecutor, config: PipelineConfig) -> Future[Any]:
    """What the report shows of the stages before the splats, read while these are evaluated."""
    from utils.report.html import read_for_report

    return reader.submit(read_for_report, config.scene_root)


def run(config: PipelineConfig, only: int | None = None) -> Path:
    """Runs every stage whose result is not up to date and writes the report; returns the scene root.

    Args:
        config: the run.
        only: number of the one stage to run, from 1, for a program that hands the stages out; the report comes with the last.
    """
    from utils.reporting import ConsoleReporter, ProgressFileReporter
    from video_to_world.ahead import require_usable

    calls = plan(config)
    with ConsoleReporter() as console:
        watched = config.progress_file
        if watched is not None:
            require_replaceable([Output(watched, "file", file=True, signature=_STAGES)])
        progress = ProgressFileReporter(watched, [c.title for c in calls], console) if watched is not None else None
        with computing_on(config):
            require_usable(config, {c.module: c.config for c in calls}, frozenset(c.module for c in calls if _created(c.folder)))
        with writing_scene(config.scene_root, console):
            require_replaceable([Output(SceneLayout(config.scene_root).summary_json, "file", file=True, signature=_STAGES)])
            with contextlib.ExitStack() as around:
                around.enter_context(computing_on(config))
                if only is None:
                    around.enter_context(compiling_ahead(config, calls))
                    around.enter_context(importing_ahead(calls))
                reader = around.enter_context(ThreadPoolExecutor(1))
                reads: list[Future[Any]] = []

                def read() -> None:
                    if not reads:
                        reads.append(_reading_for_report(reader, config))

                execute(config, calls, progress or console, progress, only, read)
            if not config.skip_eval and only in (None, len(calls)):
                from utils.report.html import write_report

                write_report(config.scene_root, reads[0].result() if reads else None)
    return config.scene_root


HELP = (
    "mode", "device", "renderer", "root_path", "stage0.max_frames", "stage0.process_res", "stage0.backend", "stage0.masks",
    "stage0.mask_sky", "stage0.mask_overlays", "stage0.lens", "stage0.cameras", "stage0.part_of", "gs.num_iters", "gs.target_num_points",
    "max_gpu_gb", "overwrite", "dry_run",
)  # fmt: skip
_INTRODUCTION = """\
usage: video-to-world CLIP [CLIP ...] [--flag value ...]      or: python run_reconstruction.py CLIP ...

Turns a clip whose frames do not agree in 3D into one consistent world of Gaussian splats.
CLIP: a clip, several clips of one place, a folder of clips or of frames, or a scene folder to go on with.
Finished stages are kept, so the same command resumes a run. Every flag may also be written --config.flag."""
_CLOSING = """\
  --help-all   every setting of every stage        --version   the version of this program
  --config-file FILE.json   start from saved settings instead of a preset"""


def main(argv: list[str] | None = None) -> None:
    """Parses, plans, runs and says what came out."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--version" in words:
        print(f"video_to_world {VERSION}")
        return
    if "--help" in words or "-h" in words:
        print(short_help(preset("fast", resolve_device("auto")), HELP, _INTRODUCTION, _CLOSING))
        return
    config = configure(["--help" if word == "--help-all" else word for word in words])
    if config.dry_run:
        for call in plan(config):
            print(command_of(call))
        return
    budget = BUDGETS[config.mode, resolve_device(config.device)]
    if resolve_device(config.device) == "cpu":
        print(
            f"No GPU in use: the {config.mode} preset takes its CPU budget ({budget.frames} frames, {budget.resolution} px, "
            f"{budget.splats} splats, {budget.iterations} iterations); explicit flags win.",
            file=sys.stderr,
        )
    run(config)
    print(closing_words(config, plan(config), json.loads(SceneLayout(config.scene_root).summary_json.read_text())))


if __name__ == "__main__":
    run_stage(main)
