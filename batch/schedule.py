"""What runs next, and what becomes of what went wrong.

A scene is a chain of stages; the stages of different scenes overlap. Of the stages that could begin, those of the scenes that are
farthest along go first, so that worlds get finished one after another; stages on the CPU leave those cores free that the GPUs' stages
need, so that no GPU waits for geometry of later scenes. A lost worker or machine costs the stage it was in, which is tried again a bounded
number of times; what input or settings refuse is not; either way the other scenes go on. The engine decides where a task runs, and when:
its clock is the only one here, so that the same schedule can be simulated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from batch.engine import Engine
from batch.tasks import Outcome, Resources, StageTask

State = Literal["waiting", "running", "done", "kept", "failed", "stopped"]
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class SceneRun:
    """One scene on its way.

    Attributes:
        name: of its folder.
        tasks: its stages in order.
        state: where it is; kept: finished in an earlier run.
        at: index of the stage under way or next.
        begun: the engine's clock when that stage was handed out.
        took: stage title -> seconds, of those that were made and not kept.
        lost: how often a stage of it had to be tried again.
        error: what went wrong.
        hint: what helps.
        figures: of the finished scene, see `batch.figures`.
        peak_memory_mb: most memory any of its stages took.
        facts: what tells that a finished scene is what is asked for, see `batch.records`.
    """

    name: str
    tasks: tuple[StageTask, ...] = ()
    state: State = "waiting"
    at: int = 0
    begun: float = 0.0
    took: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    error: str = ""
    hint: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in ("done", "kept", "failed", "stopped")

    @property
    def seconds(self) -> float:
        """Time its stages took."""
        return sum(self.took.values())


class Schedule:
    """Runs scenes on an engine.

    Args:
        scenes: what to make.
        engine: where.
        retries: how often a stage is tried again after it was lost or met a fault.
        expected: stage title -> seconds, as far as known.
        watch: called after every change and twice a second.
        over: called when a scene is over.
    """

    def __init__(
        self,
        scenes: Sequence[SceneRun],
        engine: Engine,
        retries: int = 2,
        expected: Mapping[str, float] | None = None,
        watch: Callable[["Schedule"], None] = lambda schedule: None,
        over: Callable[[SceneRun], None] = lambda scene: None,
    ):
        self.scenes, self.engine = list(scenes), engine
        self.started = engine.now()
        self._retries, self._expected = retries, dict(expected or {})
        self._watch, self._over = watch, over
        self._by_name = {scene.name: scene for scene in self.scenes}
        self._attempts: dict[str, int] = {}

    def run(self) -> list[SceneRun]:
        """Until every scene is over; an interrupt ends what is under way in order, and is passed on."""
        try:
            while not all(scene.over for scene in self.scenes):
                self._hand_out()
                for task, outcome in self.engine.wait(_SECONDS_BETWEEN_LOOKS):
                    self._settle(self._by_name[task.scene], outcome)
                self._watch(self)
        except KeyboardInterrupt:
            self.engine.stop()
            for task, outcome in self.engine.wait(0):
                self._settle(self._by_name[task.scene], outcome)
            for scene in self.scenes:
                scene.state = scene.state if scene.over else "stopped"
            raise
        return self.scenes

    # -------------------------------------------------------------------------------------------- what runs next

    def _hand_out(self) -> None:
        nodes = self.engine.capacity()
        if not nodes:
            return
        total = sum(nodes[1:], nodes[0])
        room = total
        for scene in self.scenes:
            if scene.state == "running":
                room -= _within(scene.tasks[scene.at].needs, nodes)
        ready = [scene for scene in self.scenes if scene.state == "waiting"]
        reserved = _reserved_cpus(self.scenes, total)
        for scene in sorted(ready, key=lambda s: (-s.at, -self.remaining(s))):
            needs = _within(scene.tasks[scene.at].needs, nodes)
            kept_free = Resources(0 if needs.gpus else max(0.0, reserved - _cpus_of_gpu_stages(self.scenes)), 0, 0)
            if needs.fits(room - kept_free) or room == total:
                self._submit(scene, needs)
                room -= needs

    def _submit(self, scene: SceneRun, needs: Resources) -> None:
        scene.state, scene.begun = "running", self.engine.now()
        self.engine.submit(replace(scene.tasks[scene.at], needs=needs, attempt=self._attempts.get(scene.name, 0)))

    # -------------------------------------------------------------------------------------------- what becomes of it

    def _settle(self, scene: SceneRun, outcome: Outcome) -> None:
        task = scene.tasks[scene.at]
        scene.peak_memory_mb = max(scene.peak_memory_mb, outcome.peak_memory_mb)
        if outcome.end == "done":
            if not outcome.kept:
                scene.took[task.title] = outcome.seconds
                self._learn(task.title, outcome.seconds)
            scene.figures = outcome.figures or scene.figures
            scene.at += 1
            self._attempts.pop(scene.name, None)
            scene.state = "done" if scene.at == len(scene.tasks) else "waiting"
        elif outcome.end == "stopped":
            scene.state = "stopped"
        elif outcome.end != "refused" and self._attempts.get(scene.name, 0) < self._retries:
            self._attempts[scene.name] = self._attempts.get(scene.name, 0) + 1
            scene.lost += 1
            scene.state = "waiting"
        else:
            tries = self._attempts.get(scene.name, 0)
            again = f" (tried {tries + 1} times)" if tries else ""
            scene.state, scene.error, scene.hint = "failed", f"{task.title}: {outcome.error}{again}", outcome.hint
        if scene.over:
            self._over(scene)

    # -------------------------------------------------------------------------------------------- how long it takes

    def _learn(self, title: str, seconds: float) -> None:
        """The mean of what this batch has seen; a first measurement replaces a guess."""
        seen = [scene.took[title] for scene in self.scenes if title in scene.took]
        self._expected[title] = sum(seen) / len(seen) if seen else seconds

    def expected(self, task: StageTask) -> float:
        """Seconds a stage takes; of titles that are not known, the mean of those that are."""
        known = self._expected.get(task.title)
        return known if known is not None else sum(self._expected.values()) / max(len(self._expected), 1)

    def remaining(self, scene: SceneRun) -> float:
        """Seconds of the stages that a scene has still before it, if none had to wait."""
        if scene.over:
            return 0.0
        left = sum(self.expected(task) for task in scene.tasks[scene.at :])
        gone = self.engine.now() - scene.begun if scene.state == "running" else 0.0
        return max(left - gone, 0.05 * gone)

    def seconds_left(self) -> float | None:
        """Until all is done: the longest chain, or the work divided by what the machines can do at once; None while nothing is known."""
        nodes = self.engine.capacity()
        if not self._expected or not nodes:
            return None
        total = sum(nodes[1:], nodes[0])
        work = Resources(0, 0, 0)
        for scene in self.scenes:
            for task in scene.tasks[scene.at :] if not scene.over else ():
                needs, seconds = _within(task.needs, nodes), self.expected(task)
                if scene.state == "running" and task is scene.tasks[scene.at]:
                    seconds = max(seconds - (self.engine.now() - scene.begun), 0.0)
                work += Resources(needs.cpus * seconds, needs.gpus * seconds, needs.memory_gb * seconds)
        shares = [work.cpus / max(total.cpus, 1e-9)]
        shares += [work.gpus / total.gpus] if total.gpus else []
        shares += [work.memory_gb / total.memory_gb] if total.memory_gb else []
        return max([*shares, *(self.remaining(scene) for scene in self.scenes)])


def _within(needs: Resources, nodes: Sequence[Resources]) -> Resources:
    """What a task asks for, and no more than the machine has on which it fits best: a small machine works too."""
    best = max(nodes, key=lambda n: (needs.fits(n), min(n.gpus, needs.gpus), n.cpus, n.memory_gb))
    return Resources(min(needs.cpus, best.cpus), min(needs.gpus, best.gpus), min(needs.memory_gb, best.memory_gb))


def _reserved_cpus(scenes: Sequence[SceneRun], total: Resources) -> float:
    """Cores that stages on the CPU leave to those on GPUs: as many as keep all GPUs busy, and at most half of all."""
    asking = [t.needs for scene in scenes if not scene.over for t in scene.tasks[scene.at :] if t.needs.gpus]
    if not asking or not total.gpus:
        return 0.0
    at_once = sum(1 for scene in scenes if not scene.over and any(t.needs.gpus for t in scene.tasks[scene.at :]))
    share = min(need.gpus for need in asking)
    return min(max(need.cpus for need in asking) * min(total.gpus / share, at_once), total.cpus / 2)


def _cpus_of_gpu_stages(scenes: Sequence[SceneRun]) -> float:
    """Cores that stages on GPUs hold just now."""
    return sum(s.tasks[s.at].needs.cpus for s in scenes if s.state == "running" and s.tasks[s.at].needs.gpus)
