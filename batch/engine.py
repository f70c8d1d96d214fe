"""Where tasks run: the protocol of an engine, and the one of this machine."""

import os
import queue
import threading
import time
from pathlib import Path
from typing import Protocol

from batch.process import WORKER, WorkerProcess
from batch.tasks import Outcome, Resources, StageTask
from utils.runtime import cpu_count, cuda_device_present

_USABLE_MEMORY = 0.9
_GIB = float(1 << 30)


class Engine(Protocol):
    """Runs tasks somewhere. It is never given more at once than `capacity` allows in all."""

    def capacity(self) -> list[Resources]:
        """What its machines have, one entry each; it may change as machines come and go."""
        ...

    def submit(self, task: StageTask) -> None:
        """Begins a task as soon as a machine has room for it."""
        ...

    def wait(self, seconds: float) -> list[tuple[StageTask, Outcome]]:
        """Tasks that have ended since the last call; waits that long for the first."""
        ...

    def now(self) -> float:
        """Seconds of its clock."""
        ...

    def stop(self) -> None:
        """Ends what is under way, in order; later calls do nothing."""
        ...


class LocalEngine:
    """Processes of this machine.

    Args:
        machine: what may be used of it.
        command: how workers are started; tests put a stand-in here.
    """

    def __init__(self, machine: Resources, command: tuple[str, ...] = WORKER):
        self._machine, self._command = machine, command
        self._ended: queue.SimpleQueue[tuple[StageTask, Outcome]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle: list[WorkerProcess] = []
        self._busy: dict[str, WorkerProcess] = {}
        self._gpu_room = [1.0] * round(machine.gpus)
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def capacity(self) -> list[Resources]:
        """One machine: the one that it runs on."""
        return [self._machine]

    def now(self) -> float:
        """The machine's clock."""
        return time.monotonic()

    def submit(self, task: StageTask) -> None:
        """In a thread of its own, which talks to a worker process."""
        self._threads = [t for t in self._threads if t.is_alive()]
        thread = threading.Thread(target=self._run, args=(task,), name=f"{task.scene}/{task.title}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, seconds: float) -> list[tuple[StageTask, Outcome]]:
        """Those that have ended."""
        ended = []
        try:
            ended.append(self._ended.get(timeout=max(seconds, 1e-3)))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            return ended

    def stop(self) -> None:
        """Interrupts every stage, waits for its process, and ends the workers."""
        with self._lock:
            self._stopped = True
            busy, idle = list(self._busy.values()), list(self._idle)
        for worker in busy:
            worker.interrupt()
        for worker in (*idle, *busy):
            worker.end()
        for thread in self._threads:
            thread.join(5)

    def busy(self) -> dict[str, WorkerProcess]:
        """Scene -> worker of the tasks under way."""
        with self._lock:
            return dict(self._busy)

    def _run(self, task: StageTask) -> None:
        gpus = self._take_gpus(task.needs.gpus)
        outcome, worker = Outcome("stopped"), None
        try:
            with self._lock:
                if not self._stopped:
                    worker = self._worker(int(task.needs.cpus))
                    self._busy[task.scene] = worker
            if worker is not None:
                started = time.monotonic()
                ids = ",".join(_visible(i) for i in gpus) if self._gpu_room else task.gpu_ids
                outcome = worker.run(StageTask.read({**task.plain(), "gpu_ids": ids}))
                if outcome.end != "done":
                    outcome = Outcome(**{**vars(outcome), "seconds": round(time.monotonic() - started, 3)})
        except OSError as error:
            outcome = Outcome("lost", error=f"no worker can be started: {error}")
        finally:
            self._give_back(gpus, task.needs.gpus)
            with self._lock:
                self._busy.pop(task.scene, None)
                if worker is not None and worker.alive:
                    self._idle.append(worker)
            self._ended.put((task, outcome))

    def _worker(self, cpus: int) -> WorkerProcess:
        """An idle worker with that many threads, or a new one; idle ones of other sizes are let go."""
        fitting = [w for w in self._idle if w.cpus == cpus and w.alive]
        if fitting:
            self._idle.remove(fitting[-1])
            return fitting[-1]
        return WorkerProcess(cpus, self._command)

    def _take_gpus(self, share: float) -> list[int]:
        """Numbers of the GPUs that a task uses: the fullest one with room, so that whole ones stay whole."""
        if not self._gpu_room or not share:
            return []
        with self._lock:
            if share >= 1:
                taken = sorted(range(len(self._gpu_room)), key=lambda i: -self._gpu_room[i])[: round(share)]
                for i in taken:
                    self._gpu_room[i] -= 1.0
                return taken
            roomy = [i for i, room in enumerate(self._gpu_room) if room >= share - 1e-6] or [0]
            chosen = min(roomy, key=lambda i: self._gpu_room[i])
            self._gpu_room[chosen] -= share
            return [chosen]

    def _give_back(self, gpus: list[int], share: float) -> None:
        with self._lock:
            for i in gpus:
                self._gpu_room[i] += min(share, 1.0)


def this_machine(cpus: int = 0, device: str = "auto") -> Resources:
    """What this machine has: cores (at most `cpus` if given), GPUs (none for the device `cpu`), memory that is free."""
    there = cpu_count()
    gpus = _gpu_count() if device != "cpu" and cuda_device_present() else 0
    return Resources(min(cpus, there) if cpus else there, gpus, round(_free_memory() * _USABLE_MEMORY, 2))


def _free_memory() -> float:
    """GiB that can be had, within the limit of a container."""
    free = float("inf")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / (1 << 20)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():
            free = min(free, (int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())) / _GIB)
    except (OSError, KeyError, ValueError):
        pass
    return free if free != float("inf") else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB


def _gpu_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip()])
    import ctypes

    count = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _visible(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls a GPU of this process."""
    visible = [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
    return visible[number] if number < len(visible) else str(number)
