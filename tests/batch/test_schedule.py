"""What runs next and what becomes of what went wrong, on pretended machines with a clock of their own."""

import collections

import pytest

from batch.engine_simulated import SimulatedEngine
from batch.schedule import SceneRun, Schedule
from batch.tasks import Outcome, Resources, StageTask
from batch.view import duration, summary, table

SECONDS = {"geometry": 40.0, "alignment": 5.0, "3dgs splats": 60.0}
CPU, GPU = Resources(4, 0, 4), Resources(2, 1, 8)


def chain(name: str, needs: dict[str, Resources] | None = None) -> SceneRun:
    needs = needs or {"geometry": CPU, "alignment": GPU, "3dgs splats": GPU}
    tasks = tuple(StageTask(name, (), i, len(needs), title, need, "out") for i, (title, need) in enumerate(needs.items(), 1))
    return SceneRun(name, tasks)


def engine(nodes, ends=lambda task: Outcome("done")) -> SimulatedEngine:
    return SimulatedEngine(nodes, lambda task: SECONDS[task.title], ends)


def test_stages_of_different_scenes_overlap_and_nothing_is_given_twice():
    pretended = engine([Resources(16, 1, 64)])
    scenes = Schedule([chain(f"s{i}") for i in range(8)], pretended).run()
    assert {scene.state for scene in scenes} == {"done"}
    # One GPU: eight scenes of 65 s on it, after the first one's geometry; the other geometries are hidden behind it.
    assert pretended.now() == pytest.approx(40 + 8 * 65)
    events = [(begin, 1, row) for *row, begin, _ in pretended.log] + [(end, 0, row) for *row, _, end in pretended.log]
    cpus = gpus = 0.0
    for _, begins, (_, title, _) in sorted(events, key=lambda e: e[:2]):
        need = CPU if title == "geometry" else GPU
        cpus, gpus = cpus + (need.cpus if begins else -need.cpus), gpus + (need.gpus if begins else -need.gpus)
        assert cpus <= 16 and gpus <= 1
    order = [row[:2] for row in pretended.log]
    assert order.index(("s0", "3dgs splats")) < order.index(("s7", "alignment"))  # worlds get finished one after another


def test_geometry_of_later_scenes_leaves_cores_to_the_gpu():
    pretended = engine([Resources(6, 1, 64)])
    Schedule([chain(f"s{i}") for i in range(6)], pretended).run()
    first = next(begin for _, title, _, begin, _ in pretended.log if title == "alignment")
    assert first == pytest.approx(40)  # two of the six cores were not taken by a second geometry


def test_a_lost_worker_costs_its_stage_and_retries_are_bounded():
    tries = collections.Counter()

    def ends(task: StageTask) -> Outcome:
        tries[task.scene, task.title] += 1
        if task.scene == "unlucky" and task.title == "alignment" and tries[task.scene, task.title] < 3:
            return Outcome("lost", error="its machine is gone")
        if task.scene == "cursed" and task.title == "3dgs splats":
            return Outcome("fault", error="a bug", hint="send it")
        if task.scene == "bad" and task.title == "geometry":
            return Outcome("refused", error="the camera hardly moves", hint="take another clip")
        return Outcome("done", figures={"psnr": 25.0} if task.number == task.of else {})

    over: list[str] = []
    scenes = [chain(name) for name in ("bad", "unlucky", "cursed", "good")]
    Schedule(scenes, engine([Resources(16, 2, 64)], ends), retries=2, over=lambda s: over.append(s.name)).run()
    states = {scene.name: scene.state for scene in scenes}
    assert states == {"bad": "failed", "unlucky": "done", "cursed": "failed", "good": "done"}
    assert tries["bad", "geometry"] == 1 and tries["unlucky", "alignment"] == 3 and tries["cursed", "3dgs splats"] == 3
    assert tries["unlucky", "geometry"] == 1 and tries["cursed", "alignment"] == 1  # what is finished is not done again
    assert sorted(over) == ["bad", "cursed", "good", "unlucky"]
    lines = table(scenes).splitlines()
    assert lines[1].split()[:2] == ["bad", "failed"] and "geometry: the camera hardly moves; take another clip" in lines[1]
    assert "25.00 dB" in lines[2] and "2 stages tried again" in lines[2] and "tried 3 times" in lines[3]


def test_an_interrupt_ends_everything_in_order():
    pretended = engine([Resources(16, 1, 64)])
    scenes = [chain(f"s{i}") for i in range(3)]

    def interrupted(schedule: Schedule) -> None:
        if any(scene.at == 2 for scene in schedule.scenes):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Schedule(scenes, pretended, watch=interrupted).run()
    assert {scene.state for scene in scenes} == {"stopped"} and "not finished" in table(scenes)


def test_a_stage_larger_than_every_machine_takes_the_whole_of_one():
    pretended = engine([Resources(2, 0, 4)])
    scene = chain("s", {"geometry": Resources(8, 0, 64)})
    Schedule([scene], pretended).run()
    assert scene.state == "done"


def test_time_left_is_that_of_the_longest_chain_or_of_the_work():
    pretended = engine([Resources(8, 1, 64)])
    few = Schedule([chain("a")], pretended, expected=SECONDS)
    assert few.seconds_left() == pytest.approx(105)
    many = Schedule([chain(f"s{i}") for i in range(10)], pretended, expected=SECONDS)
    assert many.seconds_left() == pytest.approx(650)
    assert "0 of 10 scenes done" in summary(many) and "about 10 min 50 s left" in summary(many)
    assert Schedule([chain("a")], pretended).seconds_left() is None
    assert [duration(s) for s in (59, 61, 7320)] == ["59 s", "1 min 01 s", "2 h 02 min"]
