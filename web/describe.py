"""What the page shows: the runs, how far they are, how long they will take, and what came out."""

import time
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from configs.pipeline import BUDGETS, Budget
from configs.web import WebConfig
from utils.runtime import cuda_device_present
from utils.scene.layout import SceneLayout
from web import clips, results
from web.jobs import Job, JobStore
from web.runner import EXPORT_STAGE, Runner, earlier_times, progress, seconds_left

MODES = ("fast", "extensive")


def budget(mode: str) -> Budget:
    """What a preset spends on this machine."""
    return BUDGETS[mode, "cuda" if cuda_device_present() else "cpu"]  # type: ignore[index]


def state(config: WebConfig, store: JobStore, runner: Runner) -> dict[str, Any]:
    """Everything the page knows."""
    waiting = [j.id for j in store.queue()]
    jobs = [_job(store, runner, job, waiting.index(job.id) + 1 if job.id in waiting else 0) for job in store.all()]
    return {
        "jobs": jobs,
        "limits": {"bytes": config.max_upload_mb * 1_000_000, "types": clips.UPLOAD_TYPES},
        "budgets": {mode: asdict(budget(mode)) for mode in MODES},
        "device": "cuda" if cuda_device_present() else "cpu",
        "mesh": find_spec("trimesh") is not None,
        "trouble": runner.trouble,
    }


def _job(store: JobStore, runner: Runner, job: Job, place: int) -> dict[str, Any]:
    now = progress(store.folder(job.id))
    running = job.state == "running"
    left = seconds_left(job, now, earlier_times(store, job)) if running else None
    described: dict[str, Any] = {
        **{name: getattr(job, name) for name in ("id", "name", "state", "mode", "renderer", "frames", "resolution", "about", "extras")},
        **{name: getattr(job, name) for name in ("created", "started", "finished", "spent", "error", "hint", "stage", "export_errors")},
        "place": place,
        "cancelling": runner.cancelling(job.id),
        "now": time.time(),
        "stages": [*now.get("stages", []), EXPORT_STAGE] if now.get("stages") else [],
        "number": len(now["stages"]) + 1 if job.reconstructed and now.get("stages") else now.get("number", 0),
        "phase": EXPORT_STAGE if job.reconstructed else now.get("phase", ""),
        "step": 0 if job.reconstructed else now.get("step", 0),
        "total": 0 if job.reconstructed else now.get("total", 0),
        "phase_left": None if job.reconstructed else now.get("seconds_left"),
        "left": left,
        "times": now.get("finished", []),
        "thumbnail": (store.folder(job.id) / clips.THUMBNAIL).is_file(),
    }
    return described | _results(store, job)


def _results(store: JobStore, job: Job) -> dict[str, Any]:
    root = store.scene_root(job.id)
    found = [{"key": o.key, "kind": o.kind, "words": o.words, "bytes": o.path.stat().st_size} for o in results.offers(root)]
    return {
        "files": found,
        "quality": results.quality(root),
        "report": SceneLayout(root).report_html.is_file(),
        "viewer": results.viewable(root),
        "mesh_wanted": any(kind in job.exports for kind in results.BUNDLES["mesh"]),
    }
