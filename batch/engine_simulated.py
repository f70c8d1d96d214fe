"""An engine that only pretends: tasks take the time that is told, on machines that are told. For plans, and for tests of the schedule."""

import heapq
from collections.abc import Callable, Sequence

from batch.tasks import Outcome, Resources, StageTask


class SimulatedEngine:
    """Machines with a clock of their own.

    Args:
        nodes: the machines.
        seconds: how long a task takes.
        ends: how a task ends; by default well.
        overhead: seconds that pass between a task's hand-out and its begin.
    """

    def __init__(
        self,
        nodes: Sequence[Resources],
        seconds: Callable[[StageTask], float],
        ends: Callable[[StageTask], Outcome] = lambda task: Outcome("done"),
        overhead: float = 0.0,
    ):
        self._nodes = list(nodes)
        self._room = list(nodes)
        self._seconds, self._ends, self._overhead = seconds, ends, overhead
        self._clock = 0.0
        self._queue: list[StageTask] = []
        self._running: list[tuple[float, int, StageTask, int]] = []
        self._count = 0
        self.busy_seconds = Resources(0, 0, 0)
        self.log: list[tuple[str, str, int, float, float]] = []

    def capacity(self) -> list[Resources]:
        """The machines."""
        return self._nodes

    def now(self) -> float:
        """The pretended clock."""
        return self._clock

    def submit(self, task: StageTask) -> None:
        """Puts it on the first machine with room, or at the end of the queue."""
        self._queue.append(task)
        self._place()

    def wait(self, seconds: float) -> list[tuple[StageTask, Outcome]]:
        """The next task to end; the clock is then at its end."""
        if not self._running:
            if self._queue:
                raise RuntimeError(f"no machine has room for {self._queue[0]}")
            return []
        self._clock, _, task, node = heapq.heappop(self._running)
        self._room[node] += task.needs
        self._place()
        outcome = self._ends(task)
        return [(task, Outcome(**{**vars(outcome), "seconds": self._seconds(task)}))]

    def stop(self) -> None:
        """Nothing runs."""
        self._running.clear()
        self._queue.clear()

    def _place(self) -> None:
        for task in list(self._queue):
            node = next((i for i, room in enumerate(self._room) if task.needs.fits(room)), None)
            if node is None:
                continue
            self._queue.remove(task)
            self._room[node] -= task.needs
            took = self._seconds(task) + self._overhead
            needs = task.needs
            self.busy_seconds += Resources(needs.cpus * took, needs.gpus * took, needs.memory_gb * took)
            self.log.append((task.scene, task.title, node, self._clock, self._clock + took))
            heapq.heappush(self._running, (self._clock + took, self._count, task, node))
            self._count += 1
