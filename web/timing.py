"""How long runs take: before they start, while they run, and while they wait. Learnt from earlier runs of this workspace."""

import os
import time
from dataclasses import dataclass
from typing import Any

from utils.runtime import cuda_device_present
from utils.scene.json_files import json_object
from utils.scene.layout import SceneLayout
from web.jobs import Job, JobStore

# Seconds of a run without history on two cores, or on one GPU, and each stage's share of it (a kitchen of 32 frames at 252 px).
_FIRST_GUESS = {("fast", "cpu"): 300.0, ("extensive", "cpu"): 2400.0, ("fast", "cuda"): 150.0, ("extensive", "cuda"): 400.0}
_GUESSED_ON_CORES = 2
_SHARES = {"geometry": 0.21, "alignment": 0.1, "joint alignment": 0.07, "inverse deformation": 0.02}
_SPLATS_SHARE, _EVALUATION_SHARE, _OTHER_SHARE = 0.5, 0.08, 0.02
# A stage that takes longer than expected is taken to have this share of its time still before it.
_OVERDUE = 0.1


@dataclass(frozen=True)
class Pace:
    """Where a running job is.

    Attributes:
        share: of its time that is over, 0..1.
        left: seconds to go.
        known: learnt from an earlier run, so worth naming to the minute.
    """

    share: float
    left: float
    known: bool


@dataclass(frozen=True)
class History:
    """Times of finished runs.

    Attributes:
        runs: (job, stage title -> seconds), newest first.
    """

    runs: tuple[tuple[Job, dict[str, float]], ...]

    def like(self, job: Job) -> dict[str, float]:
        """Stage title -> seconds of the newest run with the same settings; empty if there is none."""
        return next((times for other, times in self.runs if _settings(other) == _settings(job)), {})

    def expected(self, mode: str) -> tuple[float, bool]:
        """Seconds of a run with a preset as it is, and whether one has been made here."""
        plain = (mode, "", 0, 0)
        found = next((times for job, times in self.runs if _settings(job) == plain), None)
        if found is not None:
            return sum(found.values()), True
        return first_guess(mode), False


def history(store: JobStore) -> History:
    """Times of the finished runs of a workspace."""
    runs = []
    for job in store.all():
        if not job.reconstructed:
            continue
        try:
            stages = json_object(SceneLayout(store.scene_root(job.id)).summary_json)["stages"]
            times = {str(s["title"]): float(s["seconds"]) for s in stages if not s["kept"]}
        except (ValueError, KeyError, TypeError):
            continue
        if times:
            runs.append((job, times))
    return History(tuple(runs))


def first_guess(mode: str, device: str = "") -> float:
    """Seconds of a run on this machine, or on the device `cpu` or `cuda`, before one was made."""
    device = device or ("cuda" if cuda_device_present() else "cpu")
    cores = min(os.cpu_count() or 1, 8)
    slower = max(_GUESSED_ON_CORES / cores, 0.4) if device == "cpu" else 1.0
    return _FIRST_GUESS[mode, device] * slower


def pace(job: Job, now: dict[str, Any], past: History) -> Pace | None:
    """Where a job is, by the time its stages are expected to take; None before its first stage.

    Args:
        job: the job.
        now: its progress file.
        past: finished runs.
    """
    titles = now.get("stages") or []
    if job.reconstructed or not now.get("number") or not titles:
        return None
    earlier = past.like(job)
    known = all(title in earlier for title in titles)
    seconds = [earlier[t] if known else share_of(t) * first_guess(job.mode) for t in titles]
    at = now["number"] - 1
    finished = {f["title"]: float(f["seconds"]) for f in now.get("finished", []) if not f.get("kept")}
    done = [(finished[t], s) for t, s in zip(titles, seconds, strict=True) if t in finished]
    factor = sum(took for took, _ in done) / sum(s for _, s in done) if not known and done and sum(s for _, s in done) > 0 else 1.0
    spent = max(0.0, time.time() - now.get("since", time.time()))
    here = 0.0
    if titles[at] not in finished and not any(f["title"] == titles[at] for f in now.get("finished", [])):
        here = max(seconds[at] * factor - spent, _OVERDUE * spent)
        if at == len(titles) - 1 or known:
            here = max(here, float(now.get("seconds_left") or 0.0))
    left = here + factor * sum(seconds[at + 1 :])
    elapsed = sum(finished.values()) + (spent if here else 0.0)
    return Pace(elapsed / max(elapsed + left, 1e-9), left, known or len(done) >= 2)


def waiting(job: Job, past: History) -> float:
    """Seconds a job that has not started is expected to take."""
    times = past.like(job)
    if times:
        return sum(times.values())
    seconds, _ = past.expected(job.mode)
    return seconds


def share_of(title: str) -> float:
    """Share of a run's time that a stage takes, before one was made."""
    if title in _SHARES:
        return _SHARES[title]
    return _SPLATS_SHARE if "splats" in title else _EVALUATION_SHARE if "evaluation" in title else _OTHER_SHARE


def _settings(job: Job) -> tuple[str, str, int, int]:
    return job.mode, job.renderer, job.frames, job.resolution
