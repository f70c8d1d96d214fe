"""The same batches through Ray: needs the extra `cluster` (`pip install -e ".[cluster]"`), else these tests are skipped."""

import sys
from pathlib import Path

import pytest

from batch.plan import planned, shares
from batch.scenes import read_scenes
from batch.schedule import Schedule
from batch.storage import Storage
from batch.tasks import Resources, StageTask
from configs.batch import BatchConfig

pytest.importorskip("ray", reason="needs the extra `cluster`")
from batch.engine_ray import RayEngine

STAND_IN = (sys.executable, str(Path(__file__).resolve().parents[1] / "batch_stand_in.py"))


def scenes_of(tmp_path: Path, engine: RayEngine, says: dict[str, str]) -> list:
    (tmp_path / "clips").mkdir()
    for name, word in says.items():
        (tmp_path / "clips" / f"{name}.mp4").write_text(f"clip_{word}")
    config = BatchConfig(scenes=str(tmp_path / "clips"), stage_cpus=1, stage_memory_gb=0.1)
    share = shares(config, engine.capacity(), len(says), "cpu")
    return [planned(entry, (), config, Storage(str(tmp_path / "worlds")), "cpu", share) for entry in read_scenes(config.scenes)]


def test_a_ray_of_its_own_retries_and_isolates_like_the_local_engine(tmp_path):
    engine = RayEngine("", Resources(2, 0, 4), STAND_IN)
    try:
        scenes = scenes_of(tmp_path, engine, {"a": "fine", "b": "bad", "c": "killed"})
        Schedule(scenes, engine).run()
        assert {s.name: s.state for s in scenes} == {"a": "done", "b": "failed", "c": "done"}
        assert scenes[1].hint == "take a clip in which it travels" and scenes[2].lost == 2
        engine.submit(StageTask("none", (), 1, 1, "geometry", Resources(1, 0, 0.1), str(tmp_path / "worlds"), cwd="/"))
        outcome = [o for _ in range(60) for _, o in engine.wait(1)]
        assert outcome[0].end in ("refused", "fault") and outcome[0].error
    finally:
        engine.stop()


def test_a_machine_that_dies_costs_the_stages_it_was_in(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    engine = RayEngine(cluster.address, command=STAND_IN)
    dying = [node]

    def watch(schedule: Schedule) -> None:
        if dying and sum(scene.at for scene in schedule.scenes) >= 4:
            cluster.remove_node(dying.pop(), allow_graceful=False)

    try:
        assert len(engine.capacity()) == 2
        scenes = scenes_of(tmp_path, engine, dict.fromkeys("abcd", "fine"))
        Schedule(scenes, engine, watch=watch).run()
        assert {s.state for s in scenes} == {"done"} and not dying
        assert sum(len(list((tmp_path / "worlds" / s).rglob("manifest.json"))) for s in "abcd") == 24
    finally:
        engine.stop()
        cluster.shutdown()
