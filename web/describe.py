"""What the page shows: the runs, how far they are, how long they will take, and what came out."""

import time
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from configs.pipeline import BUDGETS, Budget
from configs.web import WebConfig
from utils.runtime import cuda_device_present
from utils.scene.layout import SceneLayout
from web import clips, previews, results, timing
from web.jobs import Job, JobStore
from web.runner import EXPORT_STAGE, Runner, progress

MODES = ("fast", "extensive")
_OF_A_JOB = (
    "id", "name", "state", "mode", "renderer", "frames", "resolution", "about", "extras", "created", "started", "finished", "spent",
    "error", "hint", "stage", "export_errors",
)  # fmt: skip


def budget(mode: str) -> Budget:
    """What a preset spends on this machine."""
    return BUDGETS[mode, "cuda" if cuda_device_present() else "cpu"]  # type: ignore[index]


def state(config: WebConfig, store: JobStore, runner: Runner) -> dict[str, Any]:
    """Everything the page knows."""
    past = timing.history(store)
    described = {job.id: _job(store, runner, job, past) for job in store.all()}
    ahead = sum((d["left"] or timing.waiting(j, past)) for j in store.all() if j.state == "running" for d in [described[j.id]])
    for place, job in enumerate(store.queue(), 1):
        described[job.id] |= {"place": place, "starts_in": ahead}
        ahead += timing.waiting(job, past)
        described[job.id]["left"] = ahead
    return {
        "jobs": list(described.values()),
        "limits": {"bytes": config.max_upload_mb * 1_000_000, "types": clips.UPLOAD_TYPES},
        "presets": {mode: _preset(mode, past) for mode in MODES},
        "queue_seconds": ahead,
        "formats": {key: {"name": f.name, "use": f.use} for key, f in results.FORMATS.items() if not f.needs or find_spec(f.needs)},
        "trouble": runner.trouble,
    }


def _preset(mode: str, past: timing.History) -> dict[str, Any]:
    seconds, measured = past.expected(mode)
    return asdict(budget(mode)) | {"seconds": seconds, "measured": measured}


def _job(store: JobStore, runner: Runner, job: Job, past: timing.History) -> dict[str, Any]:
    now = progress(store.folder(job.id))
    pace = timing.pace(job, now, past) if job.state == "running" else None
    exporting = job.reconstructed and bool(now.get("stages"))
    return {
        **{name: getattr(job, name) for name in _OF_A_JOB},
        "place": 0,
        "cancelling": runner.cancelling(job.id),
        "now": time.time(),
        "stages": [*now.get("stages", []), EXPORT_STAGE] if now.get("stages") else [],
        "number": len(now["stages"]) + 1 if exporting else now.get("number", 0),
        "phase": EXPORT_STAGE if job.reconstructed else now.get("phase", ""),
        "step": 0 if job.reconstructed else now.get("step", 0),
        "total": 0 if job.reconstructed else now.get("total", 0),
        "share": pace.share if pace else 1.0 if job.reconstructed else 0.0,
        "left": pace.left if pace else None,
        "known": bool(pace and pace.known),
        "times": now.get("finished", []),
        "thumbnail": (store.folder(job.id) / clips.THUMBNAIL).is_file(),
        **_results(store, job),
    }


def _results(store: JobStore, job: Job) -> dict[str, Any]:
    root = store.scene_root(job.id)
    offers = results.offers(root)
    there = {
        key for key, f in results.FORMATS.items() if any(results.export_path(d, f.kinds[0]).is_file() for d in results.splat_folders(root))
    }
    under_way = job.state == "running" and not job.reconstructed
    return {
        "files": [{"key": o.key, "kind": o.kind, "words": o.words, "bytes": o.path.stat().st_size} for o in offers],
        "missing": [key for key in results.FORMATS if key not in there] if job.state == "done" else [],
        "wanted": [key for key, f in results.FORMATS.items() if f.kinds[0] in job.exports],
        "verdicts": results.judged(root, job.mode),
        "report": SceneLayout(root).report_html.is_file(),
        "viewer": results.viewable(root),
        "previews": previews.available(root) if under_way else [],
        "previews_version": previews.version(root) if under_way else "",
    }
