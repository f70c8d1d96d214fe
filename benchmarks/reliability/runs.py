"""A run of a few seconds a stage: its commands, its results as hashes of what does not tell the time, and how to break it off."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reliability import sandbox
from run_reconstruction import command_of, configure, plan
from utils.scene.layout import RunLayout, SceneLayout
from utils.scene.lock import LOCK
from utils.scene.manifest import MARK

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = (
    "--config.device cpu --config.stage0.max-frames 6 --config.stage0.process-res 112 --config.stage1.alignment.num-frames 6"
    " --config.gs.num-iters 60 --config.gs.target-num-points 800 --config.gs.save-every 10 --config.eval.max-frames 4"
    " --config.eval.no-render-input-poses --config.eval.no-report"
).split()
STAGES = ("geometry", "alignment", "joint alignment", "inverse deformation", "3dgs splats", "3dgs evaluation")
EXPORT = "mesh export"
"""No stage, but a command that computes for as long."""
# Entries of JSON files that tell when or how fast something was made, where it lies and by which checkout.
_TIMES = {"seconds", "created", "peak_memory_mb", "code", "root_path", "seconds_left", "seconds_by_part", "render_seconds"}
# Kinds of file that hold such entries, or pictures of them; their hashes in manifests vary with them.
_TIMED = ("report.json", "metrics.json", "eval_config.json", "config.json", "manifest.json", MARK)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal.
        output: what it said on standard error.
        seconds: from the moment it took the scene's lock, or from its start where that was not seen.
    """

    code: int
    output: str
    seconds: float


def command(clip: Path, root: Path, stage: str) -> list[str]:
    """The command line of one stage of the small run, or of an export of its result."""
    if stage == EXPORT:
        words = f"-m utils.export_checkpoint_to_ply --config.format mesh-textured --config.device cpu --config.run {_run(root).root.name}"
        places = ("--config.root-path", str(root), "--config.out-ply", str(_mesh(root)))
        return [sys.executable, *words.split(), "--config.texture-size", "256", *places]
    calls = plan(configure(["--config.input-video", str(clip), "--config.root-path", str(root), *FLAGS]))
    words = shlex.split(command_of(next(call for call in calls if call.title == stage)))
    return [sys.executable, *words[1:]]


class Forked:
    """A command in a process that is forked from this one, in which all that it imports is loaded: it starts in no time.

    It has memory, signals and an end of its own, as any process. Call `sandbox.load` before.

    Attributes:
        pid: its number.
        code: its exit code, negative for a signal; None while it runs.
    """

    def __init__(self, words: list[str]) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.chdir(REPOSITORY)
            sandbox.redirect(self._folder / "out", self._folder / "errors")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sandbox.end_with(lambda: sandbox.as_python(words[1:]))

    def over(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Waits for its end; exit code, and what it said on standard error."""
        while not self.over():
            time.sleep(0.005)
        said = (self._folder / "errors").read_text(errors="replace")
        shutil.rmtree(self._folder)
        return self.code or 0, said


Stop = Callable[[Forked, float], bool]


def run(words: list[str], root: Path, stop: Stop | None = None, from_start: bool = False) -> Outcome:
    """Runs a command to its end.

    Args:
        words: the command.
        root: its scene.
        stop: asked every few milliseconds once it has the lock; may send it a signal and say so.
        from_start: ask from the start on, for commands that lock nothing.
    """
    process = Forked(words)
    begin, stopped = time.monotonic(), stop is None
    locked = begin if from_start else 0.0
    while not stopped and not process.over():
        now = time.monotonic()
        locked = locked or (now if (root / LOCK).exists() else 0.0)
        stopped = bool(locked) and stop is not None and stop(process, now - locked)
        time.sleep(0.002)
    code, output = process.end()
    return Outcome(code, output, time.monotonic() - (locked or begin))


def after(seconds: float, number: signal.Signals) -> Stop:
    """Sends a signal when that much time has passed."""

    def stop(process: Forked, passed: float) -> bool:
        if passed < seconds:
            return False
        process.send(number)
        return True

    return stop


def killed_at_change(words: list[str], number: int) -> list[str]:
    """The same command in a process that kills itself before its change of that number to any folder."""
    module = ["-m", words[2]] if words[1] == "-m" else [words[1]]
    return [words[0], "-m", "benchmarks.reliability.killed", str(number), *module, *words[1 + len(module) :]]


# ------------------------------------------------------------------------------------------------ results


def _run(root: Path) -> RunLayout:
    layout = SceneLayout(root)
    return layout.run(layout.run_name(6, 1, 0))


def _mesh(root: Path) -> Path:
    """Of the export: not in the folder of the splats, which their stage replaces."""
    return root / "mesh.glb"


def folders(root: Path, stage: str) -> list[Path]:
    """What a stage of the small run makes."""
    layout, run_layout = SceneLayout(root), _run(root)
    results = {
        EXPORT: [_mesh(root)],
        "geometry": [
            layout.npz_dir,
            layout.clip_cameras,
            layout.frames,
            layout.frames_subsampled,
            layout.preprocess_json,
            layout.path_json,
        ],
        "alignment": [run_layout.after_non_rigid_icp],
        "joint alignment": [run_layout.after_global_optimization],
        "inverse deformation": [run_layout.inverse_deformation],
        "3dgs splats": [run_layout.gs("3dgs")],
        "3dgs evaluation": [RunLayout.evaluation(run_layout.gs("3dgs"))],
    }
    return results[stage]


def bits(root: Path, stage: str) -> dict[str, str]:
    """Every file that a stage made -> hash of its content without times; films, which x264 writes otherwise now and then, are left out."""
    found = {}
    for top in folders(root, stage):
        for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
            if path.suffix == ".mp4" or (stage == "3dgs splats" and "gs_video_eval" in path.parts):
                continue
            found[path.relative_to(root).as_posix()] = hashlib.sha256(timeless(path)).hexdigest()
    return found


def timeless(path: Path) -> bytes:
    """Content of a file without what tells when or how fast it was made."""
    if path.name not in _TIMED:
        return path.read_bytes()
    return json.dumps(_without_times(json.loads(path.read_bytes())), sort_keys=True).encode()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
        files = kept.get("files")
        if isinstance(files, dict):
            kept["files"] = {k: v for k, v in files.items() if Path(k).name not in _TIMED and Path(k).suffix != ".mp4"}
            if len(kept["files"]) < len(files):
                kept.pop("content_id", None)  # a hash of all of them
        return kept
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def leftovers(root: Path) -> list[str]:
    """What an interrupted run has left behind that no result is made of."""
    signs = (".partial", ".old-", ".failed-", ".kept-", ".resume", ".commit-")
    return [str(p.relative_to(root)) for p in root.rglob("*") if any(sign in p.name for sign in signs) or p.name == LOCK]


def without(reference: Path, stage: str, target: Path) -> Path:
    """A copy of a finished scene from before a stage."""
    shutil.copytree(reference, target)
    stages = (*STAGES, EXPORT)
    for later in stages[stages.index(stage) :]:
        for path in folders(target, later):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (target / MARK).unlink(missing_ok=True) if stage == "geometry" else None
    return target


def size_of(root: Path) -> int:
    """Bytes of disk that a scene takes, in blocks of a page."""
    page = os.sysconf("SC_PAGESIZE")
    return sum(-(-p.stat().st_size // page) * page + page for p in root.rglob("*"))
