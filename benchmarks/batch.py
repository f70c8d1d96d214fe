"""Many scenes: nothing is lost when a machine is, the bits are those of one by one, and what the scheduling costs.

    python -m benchmarks.batch [--scenes 12] [--skip-real] [--json results.json]      (needs the extra `cluster`)

Real part: tiny scenes (a wall, 9 frames of 128x72, from results.npz), first one by one with `run_reconstruction`, then by a batch on a Ray
cluster of two simulated machines with one CPU each, one of which is killed midway. Both with one thread a stage, in this process's
environment. Overhead: stages that do nothing. Plan: the schedule on pretended machines, with stage times measured on one H200
(benchmarks/RESULTS.md) and the assumptions in `ASSUMED`.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.cli import run
from batch.engine import Engine, LocalEngine
from batch.engine_ray import RayEngine
from batch.engine_simulated import SimulatedEngine
from batch.plan import planned, shares
from batch.process import THREADS
from batch.scenes import read_scenes
from batch.schedule import SceneRun, Schedule
from batch.storage import Storage
from batch.tasks import Resources, StageTask, needs_of
from batch.view import table
from benchmarks.reliability.runs import timeless
from configs.batch import BatchConfig
from utils.scene import artifacts
from utils.scene.manifest import MARK
from video_to_world.warm_up import tiny_scene

FLAGS = (
    "--device cpu --gs.num-iters 40 --gs.target-num-points 600 --gs.save-every 1000 --eval.max-frames 4 --eval.no-render-input-poses"
).split()
# Files about a run, not of it; reports tell times.
_ABOUT = {"log.txt", "progress.json", "job.json", "batch.json", "thumbnail.jpg", "run_summary.json", "report.html"}
NULL_WORKER = """
import sys
print('{"ready": true}', flush=True)
for line in sys.stdin:
    print('{"end": "done", "seconds": 0.0}', flush=True)
"""
# Seconds of a scene of 50 frames at 504x280 with 1.2 million splats on one H200, and of weight-free geometry of 81 frames on 16 cores.
MEASURED = {
    "geometry": 44.0,
    "alignment": 1.93,
    "joint alignment": 3.59,
    "inverse deformation": 1.26,
    "3dgs splats": 55.8,
    "3dgs evaluation": 1.44,
}
ASSUMED = (
    "geometry takes as many core seconds on fewer cores; stages beside a GPU take 4 cores; 5 s a stage for start, imports and files; "
    "times vary by a factor of 0.75 to 1.25 between scenes; all machines see one folder; no machine fails"
)
_SECONDS_AT_WORK = 0.5
_GEOMETRY_CORES, _SECONDS_TO_START, _VARIATION = 16, 5.0, 0.25


def make_sources(folder: Path, scenes: int) -> Path:
    """Tiny scenes as results.npz files."""
    for i in range(scenes):
        own = folder / f"scene_{i:02d}"
        own.mkdir(parents=True)
        artifacts.save_results(own, tiny_scene(i))
    return folder


def bits(root: Path) -> dict[str, str]:
    """Every file that the stages made -> hash of its content without times."""
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in _ABOUT and p != root / MARK]
    return {p.relative_to(root).as_posix(): hashlib.sha256(timeless(p)).hexdigest() for p in files}


def one_by_one(sources: Path, out: Path) -> float:
    """Seconds of `run_reconstruction` for one scene after the other, each a process."""
    begin = time.perf_counter()
    for source in sorted(sources.iterdir()):
        root = out / source.name
        (root / "exports" / "npz").mkdir(parents=True)
        (root / "exports" / "npz" / "results.npz").write_bytes((source / "results.npz").read_bytes())
        words = [sys.executable, "run_reconstruction.py", *FLAGS, "--root-path", str(root)]
        subprocess.run(words, check=True, capture_output=True, env={**os.environ, **dict.fromkeys(THREADS, "1")})
    return time.perf_counter() - begin


class _Killing:
    """Kills a simulated machine when half of the stages are done and both machines are at work.

    Args:
        cluster: Ray's.
        node: the machine.
    """

    def __init__(self, cluster: Any, node: Any):
        self._cluster, self._node = cluster, node
        self.lost_at = 0.0

    def __call__(self, schedule: Schedule) -> None:
        done, of = sum(s.at for s in schedule.scenes), sum(len(s.tasks) for s in schedule.scenes)
        at_work = [s for s in schedule.scenes if s.state == "running" and schedule.engine.now() - s.begun > _SECONDS_AT_WORK]
        if self._node is not None and done >= of / 2 and len(at_work) == 2:
            self._cluster.remove_node(self._node, allow_graceful=False)
            self._node, self.lost_at = None, done / of


def on_a_cluster(sources: Path, out: Path, kill: bool) -> dict[str, Any]:
    """The batch on two simulated machines of one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    engine = RayEngine(cluster.address)
    try:
        storage, killing = Storage(str(out)), _Killing(cluster, node if kill else None)
        share = shares(BatchConfig(scenes="", stage_cpus=1, stage_memory_gb=0.5), engine.capacity(), 2, "cpu")
        config = BatchConfig(scenes=str(sources), out=str(out))
        scenes = [planned(entry, FLAGS, config, storage, "cpu", share) for entry in read_scenes(str(sources))]
        begin = time.perf_counter()
        Schedule(scenes, engine, retries=3, watch=killing).run()
        seconds = time.perf_counter() - begin
    finally:
        engine.stop()
        cluster.shutdown()
    print(table(scenes), file=sys.stderr)
    lost = sum(scene.lost for scene in scenes)
    return {"seconds": seconds, "states": sorted({s.state for s in scenes}), "stages_lost": lost, "killed_at_share": killing.lost_at}


def overhead(engine: Engine, tasks: int) -> float:
    """Seconds that a stage which does nothing takes, from hand-out to outcome, one after another."""
    begin = 0.0
    for i in range(tasks + 1):
        if i == 1:  # the first one starts processes
            begin = time.perf_counter()
        engine.submit(StageTask(f"s{i}", (), 1, 1, "nothing", Resources(1, 0, 0), ""))
        while not engine.wait(5):
            pass
    return (time.perf_counter() - begin) / tasks


def chains(scenes: int, cpus: float, gpu_cpus: float) -> list[SceneRun]:
    """Scenes as on a GPU machine."""
    found = []
    for i in range(scenes):
        needs = {t: needs_of(t, (), cpus=cpus, gpu_share=1.0, memory_gb=8.0, gpu_cpus=gpu_cpus) for t in MEASURED}
        tasks = tuple(StageTask(f"s{i:03d}", (), n, len(needs), t, need, "") for n, (t, need) in enumerate(needs.items(), 1))
        found.append(SceneRun(f"s{i:03d}", tasks))
    return found


def pretended_seconds(task: StageTask) -> float:
    """A stage's time under the assumptions."""
    draw = int(hashlib.sha256(task.scene.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    slower = _GEOMETRY_CORES / task.needs.cpus if task.title == "geometry" else 1.0
    return MEASURED[task.title] * slower * (1 + _VARIATION * (2 * draw - 1)) + _SECONDS_TO_START


def simulated(scenes: int, machines: int) -> dict[str, float]:
    """How long a schedule takes on GPU machines of 16 cores, and what bounds it."""
    nodes = [Resources(16, 1, 64)] * machines
    share = shares(BatchConfig(scenes=""), nodes, scenes, "cuda")
    todo = chains(scenes, share.cpus, share.gpu_cpus)
    engine = SimulatedEngine(nodes, pretended_seconds)
    begin = time.perf_counter()
    Schedule(todo, engine).run()
    planning = time.perf_counter() - begin
    longest = max(sum(pretended_seconds(t) for t in scene.tasks) for scene in todo)
    work = engine.busy_seconds
    bound = max(longest, work.gpus / machines, work.cpus / (16 * machines))
    return {
        "seconds": engine.now(),
        "bound": bound,
        "longest_chain": longest,
        "gpu_busy": work.gpus / machines / engine.now(),
        "planning": planning,
    }


def plan(scenes: int = 100, machines: int = 4) -> dict[str, Any]:
    """The plan, and how near it is to that many times the rate of one machine."""
    one, many = simulated(scenes, 1), simulated(scenes, machines)
    return {"one": one, "many": many, "of_linear": one["seconds"] / machines / many["seconds"], "of_bound": many["bound"] / many["seconds"]}


def real(scenes: int, folder: Path) -> dict[str, Any]:
    """One by one against two machines, one of which is lost."""
    sources = make_sources(folder / "sources", scenes)
    one_by_one(make_sources(folder / "warm", 1), folder / "warm_out")  # kernels are compiled
    found: dict[str, Any] = {"one_by_one": one_by_one(sources, folder / "one")}
    found["batch"] = on_a_cluster(sources, folder / "two", kill=False)
    found["batch_with_loss"] = on_a_cluster(sources, folder / "lost", kill=True)
    for name in ("two", "lost"):
        wanted = {s.name: bits(folder / "one" / s.name) for s in sources.iterdir()}
        got = {s: bits(folder / name / s) for s in wanted}
        found[f"{name}_files"] = sum(len(files) for files in wanted.values())
        found[f"{name}_differing"] = [
            f"{s}/{f}" for s in wanted for f in wanted[s].keys() | got[s].keys() if wanted[s].get(f) != got[s].get(f)
        ]
    again = time.perf_counter()
    run(BatchConfig(scenes=str(sources), out=str(folder / "lost"), engine="local", stage_cpus=1, device="cpu"), FLAGS)
    found["finding_all_done"] = time.perf_counter() - again
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--skip-real", action="store_true", help="only overhead and plan")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    found: dict[str, Any] = {"plan": plan(), "assumed": ASSUMED}
    null = (sys.executable, "-c", NULL_WORKER)
    with tempfile.TemporaryDirectory() as folder:
        local, ray = LocalEngine(Resources(1, 0, 1), null), RayEngine("", Resources(1, 0, 1), null)
        found["overhead_local"], found["overhead_ray"] = overhead(local, 200), overhead(ray, 200)
        local.stop()
        ray.stop()
        if not args.skip_real:
            found |= real(args.scenes, Path(folder))
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
