"""The command: reads the list, chooses the engine, runs, and says what came of it."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batch import records
from batch.engine import Engine, LocalEngine, this_machine
from batch.engine_simulated import SimulatedEngine
from batch.page import index_page
from batch.plan import command_of, planned, shares
from batch.scenes import read_scenes
from batch.schedule import SceneRun, Schedule
from batch.storage import MADE_BY, Storage, fetch_source
from batch.tasks import Resources
from batch.view import View, duration, table
from configs.base import parse
from configs.batch import BatchConfig
from configs.words import short_help
from run_reconstruction import resolve_device
from utils.errors import ConfigError, V2WError
from utils.runtime import run_stage
from utils.version import VERSION
from web.timing import first_guess, share_of

INDEX, TIMES = "index.html", "batch.json"
_HELP = (
    "out", "engine", "address", "device", "cpus", "stage_cpus", "stage_memory_gb", "gpu_share", "retries", "scratch", "dry_run",
)  # fmt: skip
_INTRODUCTION = """\
usage: video-to-world-batch SCENES --out WORLDS [--flag value ...] [-- --flag value ... for every scene]

Turns many clips into worlds, each stage of each scene a task of its own, on this machine or on a Ray cluster.
SCENES: a folder of clips, frame folders, scene folders and results.npz files, or a list of them as .json or .csv.
Finished work is kept, so the same command goes on after an interruption; WORLDS/index.html shows all scenes."""


@dataclass(frozen=True)
class Place:
    """Where a batch runs.

    Attributes:
        engine: runs its tasks.
        device: that the presets are for.
        words: it in one line.
    """

    engine: Engine
    device: str
    words: str


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a batch.

    Raises:
        V2WError: the list, a setting or the engine cannot be used, or scenes have failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own, common = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    if "--version" in own:
        print(f"video_to_world {VERSION}")
        return
    if "--help" in own or "-h" in own:
        print(short_help(BatchConfig(scenes=""), _HELP, _INTRODUCTION, "  -- --help of video-to-world lists what may stand after --"))
        return
    config = parse(BatchConfig, _spelled_out(own), prog="video-to-world-batch")
    run(config, common)


def run(config: BatchConfig, common: Sequence[str] = ()) -> list[SceneRun]:
    """Makes all scenes; returns what came of each.

    Args:
        config: the batch.
        common: flags of every scene.

    Raises:
        V2WError: the list, a setting or the engine cannot be used, or scenes have failed.
    """
    storage = Storage(config.out, str(config.scratch.absolute()) if config.scratch is not None else "")
    entries = read_scenes(str(fetch_source(config.scenes, storage.folder / ".inputs")))
    place = _place(config)
    with _ending(place.engine):
        share = shares(config, _nodes(place.engine), len(entries), place.device)
        scenes = [planned(entry, common, config, storage, place.device, share) for entry in entries]
        expected = _expected(storage, scenes, place.device)
        print(f"{len(scenes)} scenes to {config.out}, {place.words}", file=sys.stderr)
        if config.dry_run:
            _tell_plan(scenes, storage, place, expected)
            return scenes
        for name in (INDEX, TIMES):
            storage.require_own("", name)
        for scene in scenes:
            storage.require_own(scene.name, records.RECORD)
        _work(scenes, storage, place.engine, config.retries, expected)
    failed = [scene.name for scene in scenes if scene.state == "failed"]
    if failed:
        raise V2WError(
            f"{len(failed)} of {len(scenes)} scenes failed: {', '.join(failed)}",
            "mend what the table says and run the same command again: what is finished is kept",
        )
    return scenes


def _work(scenes: list[SceneRun], storage: Storage, engine: Engine, retries: int, expected: dict[str, float]) -> None:
    """Runs the schedule; the table and the page come whatever happens."""
    storage.put_file("", INDEX, index_page(scenes).encode())  # also tells before the work that nothing may be written there
    view = View(storage)

    def over(scene: SceneRun) -> None:
        try:
            records.write(storage, scene)
            storage.put_file("", INDEX, index_page(scenes).encode())
        except V2WError as error:  # the next run looks at the scene again, and finds it done
            print(f"{scene.name}: {error.message}", file=sys.stderr)

    try:
        Schedule(scenes, engine, retries, expected, view.show, over).run()
    finally:
        view.close()
        with contextlib.suppress(V2WError):
            storage.put_file("", INDEX, index_page(scenes).encode())
            _remember_times(storage, scenes)
        print(table(scenes))
        print(f"All scenes: {storage.out.rstrip('/')}/{INDEX}")


def _spelled_out(own: list[str]) -> list[str]:
    """SCENES before the flags as `--config.scenes`, and every `--x` as `--config.x`."""
    flags = [f"--config.{w[2:]}" if w.startswith("--") and not w.startswith("--config") else w for w in own]
    if flags and not flags[0].startswith("-"):
        return ["--config.scenes", *flags]
    return flags


def _place(config: BatchConfig) -> Place:
    """The engine, started; a dry run on this machine starts nothing."""
    machine = this_machine(config.cpus, config.device)
    if config.engine == "local" and config.address:
        raise ConfigError(f"--address {config.address} is for the engine ray", "leave --engine local out")
    if config.engine == "ray" or config.address:
        if config.dry_run and not config.address:
            return Place(
                SimulatedEngine([machine], lambda task: 1.0), _device(config, machine), f"a Ray of this machine ({_size(machine)})"
            )
        from batch.engine_ray import RayEngine

        engine = RayEngine(config.address, machine)
        nodes = _nodes(engine)
        total = sum(nodes[1:], nodes[0])
        return Place(engine, _device(config, total), f"Ray with {len(nodes)} machine{'s' if len(nodes) > 1 else ''} ({_size(total)})")
    return Place(LocalEngine(machine), _device(config, machine), f"this machine ({_size(machine)})")


def _nodes(engine: Engine) -> list[Resources]:
    nodes = engine.capacity()
    if not nodes:
        raise ConfigError("the Ray cluster has no machine with CPUs", "add one with: ray start --address HOST:6379")
    return nodes


def _device(config: BatchConfig, there: Resources) -> str:
    if config.device == "auto":
        return "cuda" if there.gpus >= 1 else "cpu"
    if config.device == "cuda" and not there.gpus:
        raise ConfigError("--device cuda, and no machine of this batch has a GPU", "use --device cpu, or add a machine with a GPU")
    return resolve_device(config.device)


def _size(machine: Resources) -> str:
    gpus = f", {machine.gpus:g} GPU{'s' if machine.gpus > 1 else ''}" if machine.gpus else ""
    return f"{machine.cpus:g} CPU{'s' if machine.cpus > 1 else ''}{gpus}, {machine.memory_gb:.0f} GB of memory"


@contextlib.contextmanager
def _ending(engine: Engine) -> Iterator[None]:
    """Inside, a polite request to end (SIGTERM: a scheduler's time is up) is an interrupt; afterwards the engine is stopped."""
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        engine.stop()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _expected(storage: Storage, scenes: Sequence[SceneRun], device: str) -> dict[str, float]:
    """Stage title -> seconds: as an earlier batch in this place has measured, else guessed."""
    titles = {task.title: scene.facts["mode"] for scene in scenes for task in scene.tasks}
    measured = storage.read_json("", TIMES).get("seconds")
    known = {k: float(v) for k, v in measured.items() if isinstance(v, int | float)} if isinstance(measured, dict) else {}
    return {title: known.get(title, share_of(title) * first_guess(mode, device)) for title, mode in titles.items()}


def _remember_times(storage: Storage, scenes: Sequence[SceneRun]) -> None:
    titles = {title for scene in scenes for title in scene.took}
    if not titles:
        return
    means = {}
    for title in sorted(titles):
        seen = [scene.took[title] for scene in scenes if title in scene.took]
        means[title] = round(sum(seen) / len(seen), 3)
    earlier = storage.read_json("", TIMES).get("seconds")
    seconds = {**(earlier if isinstance(earlier, dict) else {}), **means}
    storage.put_file("", TIMES, json.dumps({"made_by": MADE_BY, "seconds": seconds}, indent=1).encode())


def _tell_plan(scenes: Sequence[SceneRun], storage: Storage, place: Place, expected: dict[str, float]) -> None:
    """Per scene its command, or why there is none, and how long all of it takes."""
    for scene in scenes:
        if scene.state == "failed":
            print(f"{scene.name}: cannot be made: {scene.error}" + (f" ({scene.hint})" if scene.hint else ""))
        elif scene.state == "kept":
            print(f"{scene.name}: finished before")
        else:
            needs = scene.tasks[-1].needs
            gpu = f", {needs.gpus:g} GPU" if needs.gpus else ""
            print(f"{scene.name}: {len(scene.tasks)} stages, up to {needs.cpus:g} CPUs{gpu}, {needs.memory_gb:g} GB each")
            print(f"  {command_of(scene, storage)}")
    nodes = _nodes(place.engine)
    pretended = SimulatedEngine(nodes, lambda task: expected.get(task.title, 0.0))
    todo = [SceneRun(s.name, s.tasks, facts=s.facts) for s in scenes if not s.over]
    if todo:
        Schedule(todo, pretended, expected=expected).run()
        print(f"about {duration(pretended.now())} in all; stages finished before are found and kept")


def entry() -> None:
    """Entry point; errors that a user can mend end it with a hint."""
    run_stage(main)
