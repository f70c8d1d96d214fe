"""Runs tasks on a Ray cluster, or on a Ray of its own on this machine.

Each stage is one Ray task with CPUs, a share of a GPU, and memory. The Ray worker that takes it hands it to a `batch.worker` of its own, so
stages run here exactly as they do without Ray, and Ray's process stays small. Ray tries nothing again by itself: `batch.schedule` counts.
"""

import contextlib
import os
import threading
import time
from typing import Any

from batch.process import WORKER, WorkerProcess
from batch.tasks import Outcome, Resources, StageTask
from utils.errors import BackendError, MissingDependencyError

_GIB = float(1 << 30)
_SECONDS_BETWEEN_LOOKS = 2.0  # at which machines there are
_SECONDS_TO_STOP = 20.0
_worker: WorkerProcess | None = None  # of a Ray worker, kept for its next task


def run_in_ray(plain: dict[str, Any], command: tuple[str, ...] = WORKER) -> dict[str, Any]:
    """What a Ray worker does with a task."""
    global _worker  # noqa: PLW0603  a Ray worker is a process that does one task after another
    task = StageTask.read(plain)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") if task.needs.gpus else ""  # Ray has chosen
    cpus = max(1, int(task.needs.cpus))
    if _worker is None or not _worker.alive or _worker.cpus != cpus:
        if _worker is not None:
            _worker.end()
        _worker = WorkerProcess(cpus, command)
    started, outcome = time.monotonic(), Outcome("stopped")
    worker, answer = _worker, []
    thread = threading.Thread(target=lambda: answer.append(worker.run(StageTask.read({**task.plain(), "gpu_ids": gpus}))), daemon=True)
    thread.start()
    try:
        while thread.is_alive():  # in steps, so that a cancelled task is told so
            thread.join(0.2)
        outcome = answer[0]
    except KeyboardInterrupt:
        worker.interrupt()
        thread.join(_SECONDS_TO_STOP)
        worker.end()
    if outcome.end != "done":
        outcome = Outcome(**{**vars(outcome), "seconds": round(time.monotonic() - started, 3)})
    return dict(vars(outcome))


class RayEngine:
    """Ray.

    Args:
        address: of a cluster; empty starts one of this machine alone, which ends with the engine.
        machine: what may be used of this machine; not asked where there is an address.
        command: how workers are started; tests put a stand-in here.

    Raises:
        MissingDependencyError: ray is not installed.
        BackendError: the cluster does not answer.
    """

    def __init__(self, address: str = "", machine: Resources | None = None, command: tuple[str, ...] = WORKER):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "the engine ray needs the package ray, which is not installed",
                "pip install 'video_to_world[cluster]' (in a checkout: pip install -e '.[cluster]'), or use --engine local",
            ) from error
        self._ray = ray
        self._joined = ray.is_initialized()
        try:
            if not self._joined:
                own = _own(machine) if machine is not None and not address else {"address": address or "auto"}
                ray.init(log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise BackendError(
                f"the Ray cluster {address} does not answer: {error}", "start one with: ray start --head, or leave --address out"
            ) from error
        self._remote = ray.remote(max_retries=0, max_calls=0)(run_in_ray)
        self._command = command
        self._running: dict[Any, StageTask] = {}
        self._nodes: list[Resources] = []
        self._looked = -_SECONDS_BETWEEN_LOOKS

    def capacity(self) -> list[Resources]:
        """The machines that are alive."""
        if time.monotonic() - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            found = [Resources(n.get("CPU", 0.0), n.get("GPU", 0.0), n.get("memory", 0.0) / _GIB) for n in alive]
            self._nodes = [node for node in found if node.cpus > 0]
        return self._nodes

    def now(self) -> float:
        """Clock of the machine that hands tasks out."""
        return time.monotonic()

    def submit(self, task: StageTask) -> None:
        """Hands it to Ray."""
        needs = task.needs
        options = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "memory": int(needs.memory_gb * _GIB),
            "name": f"{task.scene}: {task.title}",
        }
        self._running[self._remote.options(**options).remote(task.plain(), self._command)] = task

    def wait(self, seconds: float) -> list[tuple[StageTask, Outcome]]:
        """Those that have ended, well or not."""
        if not self._running:
            time.sleep(min(seconds, 0.05))
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running.pop(ref), self._outcome(ref)) for ref in ready]

    def stop(self) -> None:
        """Cancels what is under way, which interrupts the stages, and leaves the cluster; one of its own ends."""
        for ref in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(ref, force=False)
        until = time.monotonic() + _SECONDS_TO_STOP
        left = list(self._running)
        while left and time.monotonic() < until:
            _, left = self._ray.wait(left, num_returns=len(left), timeout=0.5)
        self._running.clear()
        if not self._joined:
            self._ray.shutdown()

    def _outcome(self, ref: Any) -> Outcome:
        try:
            return Outcome(**self._ray.get(ref))
        except self._ray.exceptions.TaskCancelledError:
            return Outcome("stopped")
        except self._ray.exceptions.RayTaskError as error:
            return Outcome("fault", error=str(error.cause), hint="this is a fault of the program")
        except self._ray.exceptions.RayError as error:  # its worker or machine is gone, or its memory
            words = str(error).strip().splitlines() or [type(error).__name__]
            return Outcome("lost", error=f"{type(error).__name__}: {words[0]}", hint="its machine or worker was lost")


def _own(machine: Resources) -> dict[str, Any]:
    given = {"num_cpus": int(machine.cpus), "num_gpus": int(machine.gpus), "_memory": int(machine.memory_gb * _GIB)}
    return {"address": "local", "include_dashboard": False, **given}
