"""From a list of scenes to chains of tasks: settings are parsed, so what is wrong with a scene is known before anything runs."""

import filecmp
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import run_reconstruction
from batch import records
from batch.scenes import SceneEntry
from batch.schedule import SceneRun
from batch.storage import Storage, fetch_source
from batch.tasks import Resources, StageTask, needs_of
from configs.batch import BatchConfig
from configs.words import spelled_out
from utils.errors import ConfigError, InputError, V2WError
from utils.scene.layout import SceneLayout
from utils.scene.manifest import MANIFEST, writing

_OURS = ("root-path", "progress-file", "input-video", "frames-dir", "dry-run", "config-file")
_MOST_CPUS = 8  # a stage gains little from more
_GPU_STAGE_CPUS = 4
# GiB that a stage takes, by preset and device: measured peaks (benchmarks/RESULTS.md) with a margin.
_MEMORY = {("fast", "cpu"): 2.0, ("extensive", "cpu"): 5.0, ("fast", "cuda"): 8.0, ("extensive", "cuda"): 10.0}


@dataclass(frozen=True)
class Shares:
    """What a stage takes of the machines there are.

    Attributes:
        cpus: on the CPU.
        gpu_cpus: cores beside a GPU.
        gpu_share: of a GPU; 0 where there is none.
        memory_gb: 0 for by preset.
    """

    cpus: int
    gpu_cpus: int
    gpu_share: float
    memory_gb: float


def shares(config: BatchConfig, nodes: Sequence[Resources], scenes: int, device: str) -> Shares:
    """As many cores for a stage as there are for each scene at once, so that few scenes are done soon and many at the best rate."""
    cpus = int(max(node.cpus for node in nodes))
    if device == "cpu":
        each = int(sum(node.cpus for node in nodes)) // max(scenes, 1)
        return Shares(config.stage_cpus or max(1, min(each, cpus, _MOST_CPUS)), 0, 0.0, config.stage_memory_gb)
    best = max(nodes, key=lambda node: node.gpus)
    beside = max(1, min(_GPU_STAGE_CPUS, int(best.cpus // max(best.gpus / config.gpu_share, 1) // 2)))
    left = int(best.cpus - beside * best.gpus / config.gpu_share)
    return Shares(config.stage_cpus or max(1, min(_MOST_CPUS, left // 2)), beside, config.gpu_share, config.stage_memory_gb)


def planned(entry: SceneEntry, common: Sequence[str], config: BatchConfig, storage: Storage, device: str, share: Shares) -> SceneRun:
    """A scene's chain of tasks, or its failure if its source or settings cannot be used.

    Args:
        entry: the scene.
        common: flags of all scenes, as they were typed.
        config: of the batch.
        storage: where it goes.
        device: that the presets are for.
        share: what a stage takes.
    """
    try:
        words = _words(entry, common, device)
        root = storage.root(entry.name)
        if _is_results(entry.sources[0]):
            _bring_results(entry, storage)
        run = run_reconstruction.configure([*words, "--config.root-path", str(root)])
        calls = run_reconstruction.plan(run)
        scene_device = "cpu" if run.device == "cpu" else device
        memory = share.memory_gb or _MEMORY[run.mode, "cuda" if scene_device == "cuda" else "cpu"]
        gpu_share = share.gpu_share if scene_device == "cuda" else 0.0
        tasks = tuple(
            StageTask(
                scene=entry.name,
                words=tuple(words),
                number=number,
                of=len(calls),
                title=call.title,
                needs=needs_of(call.title, tuple(words), cpus=share.cpus, gpu_share=gpu_share, memory_gb=memory, gpu_cpus=share.gpu_cpus),
                out=storage.out if not storage.shared else str(storage.folder),
                scratch=storage.scratch,
                cwd=os.getcwd(),
            )
            for number, call in enumerate(calls, 1)
        )
        folders = tuple(call.folder.relative_to(root).as_posix() for call in calls if call.folder.is_relative_to(root))
        scene = SceneRun(entry.name, tasks)
        scene.facts = records.facts(entry, words, folders, run.mode)
        finished = records.finished(storage, scene)
        if finished is not None and not run.overwrite:
            scene.state, scene.at, scene.figures = "kept", len(tasks), finished
        return scene
    except V2WError as error:
        return SceneRun(entry.name, state="failed", error=error.message, hint=error.hint)


def _words(entry: SceneEntry, common: Sequence[str], device: str) -> list[str]:
    """The command line of a scene without its place; its own settings win over the common ones.

    Raises:
        ConfigError: a flag that the batch itself gives.
        InputError: a source is not there.
    """
    flags = spelled_out([*common, *entry.settings])
    for flag in flags:
        if flag.startswith("--") and flag.partition("=")[0].removeprefix("--config.").replace("_", "-").lstrip("-") in _OURS:
            raise ConfigError(f"{flag} cannot be given to the scenes of a batch", "the batch gives sources and places itself")
    if flags and not flags[0].startswith("--"):
        raise ConfigError(f"{flags[0]} is no flag", "after -- come flags for every scene, for example: -- --mode extensive")
    if not any(flag.partition("=")[0] == "--config.device" for flag in flags):
        flags = ["--config.device", device, *flags]
    for source in entry.sources:
        if "://" not in source and not Path(source).exists():
            raise InputError(f"{source} is not there", "check the path in the list of scenes")
    if _is_results(entry.sources[0]):
        return flags
    if any("://" in source for source in entry.sources):
        return ["--config.input-video", *entry.sources, *flags]
    return spelled_out([*entry.sources, *flags])


def _is_results(source: str) -> bool:
    """A results.npz, or a folder that holds one as a scene or by itself."""
    return source.lower().endswith(".npz") or _results_in(Path(source)) is not None


def _results_in(folder: Path) -> Path | None:
    places = (SceneLayout(folder).results_npz, folder / "results.npz")
    return next((path for path in places if "://" not in str(folder) and path.is_file()), None)


def _bring_results(entry: SceneEntry, storage: Storage) -> None:
    """Puts the results.npz of another program, or of another scene, into the scene folder, if it is not that already.

    Raises:
        ConfigError: several sources.
        ArtifactError: it cannot be written.
    """
    if len(entry.sources) > 1:
        raise ConfigError(f"{entry.name} has several sources, one of which is a results.npz", "give it one results.npz, or clips")
    given = fetch_source(entry.sources[0], storage.folder / ".inputs")
    source = given if given.is_file() else _results_in(given)
    assert source is not None
    target = SceneLayout(storage.fetch(entry.name, only="exports/npz/")).results_npz
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    if (target.parent / MANIFEST).is_file():
        raise ConfigError(
            f"{target} was made from a clip, and {source} is to take its place",
            "give the scene another name, or go on with what is there by leaving it out of the list",
        )
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.partial-copy")
        shutil.copyfile(source, beside)
        beside.replace(target)
    storage.put(entry.name)


def command_of(scene: SceneRun, storage: Storage) -> str:
    """The command that makes a scene by itself."""
    return shlex.join(["video-to-world", *scene.tasks[0].words, "--config.root-path", str(storage.root(scene.name))])
