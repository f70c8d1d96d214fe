"""What a batch leaves in scene folders: that a scene is finished and of what, and what the web page shows of it."""

import base64
import binascii
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch.scenes import SceneEntry
from batch.schedule import SceneRun
from batch.storage import MADE_BY, Storage, file_system
from utils.scene.manifest import MANIFEST
from utils.version import VERSION
from web.clips import THUMBNAIL
from web.jobs import JOB_FILE, Job, write_job

RECORD = "batch.json"


def facts(entry: SceneEntry, words: Sequence[str], folders: Sequence[str], mode: str) -> dict[str, Any]:
    """What a finished scene was made from, and by what.

    Args:
        entry: the scene that is asked for.
        words: its command line.
        folders: of its stages' results, relative to the scene.
        mode: preset.
    """
    sources = [_stamp(source) for source in entry.sources]
    return {"words": list(words), "sources": sources, "version": VERSION, "folders": list(folders), "mode": mode}


def finished(storage: Storage, scene: SceneRun) -> dict[str, Any] | None:
    """Figures of a scene that was finished from the same sources with the same settings, if all its results are still those; else None."""
    record = storage.read_json(scene.name, RECORD)
    same = all(record.get(key) == value for key, value in scene.facts.items())
    if not same or record.get("results") != results(storage, scene):
        return None
    told = record.get("figures")
    return told if isinstance(told, dict) else None


def results(storage: Storage, scene: SceneRun) -> list[str]:
    """Content ids and times of a scene's results as their manifests have them; empty strings for those that are missing."""
    manifests = [storage.read_json(scene.name, f"{folder}/{MANIFEST}") for folder in scene.facts["folders"]]
    return [f"{m.get('created')} {m.get('content_id')}" if m else "" for m in manifests]


def write(storage: Storage, scene: SceneRun) -> None:
    """Notes that a scene is finished, and for the web page how it ended.

    Raises:
        ArtifactError: the place cannot be written.
    """
    if scene.state == "done":
        record = {"made_by": MADE_BY, **scene.facts, "results": results(storage, scene), "figures": scene.figures, "seconds": scene.took}
        storage.put_file(scene.name, RECORD, json.dumps(record, indent=1).encode())
    if storage.shared and scene.state in ("done", "failed") and scene.tasks and storage.root(scene.name).is_dir():
        _write_job(storage, scene)


def _write_job(storage: Storage, scene: SceneRun) -> None:
    """A scene folder is a run of the web page (`python -m web --workspace`), to be looked at, gone on with, or exported.

    Files of these names that are no run's stay as they are.
    """
    root = storage.root(scene.name)
    again = {"id", "state", "stage"} <= storage.read_json(scene.name, JOB_FILE).keys()
    if not again and ((root / JOB_FILE).exists() or (root / THUMBNAIL).exists()):
        return
    now, task = time.time(), scene.tasks[min(scene.at, len(scene.tasks) - 1)]
    source = next((str(s["path"]) for s in scene.facts["sources"]), scene.name)
    job = Job(
        id=scene.name,
        name=Path(source).name,
        source=source,
        mode=scene.facts["mode"],
        scene="",
        words=task.words,
        state="done" if scene.state == "done" else "failed",
        created=now,
        started=now - scene.seconds,
        finished=now,
        spent=scene.seconds,
        error=scene.error,
        hint=scene.hint,
        stage=task.title if scene.state == "failed" else "",
        reconstructed=scene.state == "done",
        exports=(),
    )
    write_job(root / JOB_FILE, job)
    try:
        picture = base64.b64decode(scene.figures.get("still", ""), validate=True)
    except (binascii.Error, ValueError):
        picture = b""
    if picture:
        (root / THUMBNAIL).write_bytes(picture)


def _stamp(source: str) -> dict[str, Any]:
    """What tells that a source has changed: size and time of a file, names, sizes and times in a folder, what a store says of it."""
    if "://" in source:
        try:
            told = file_system(source).info(source)
        except OSError:
            told = {}
        return {"path": source, "is": sorted(f"{k}={v}" for k, v in told.items())}
    path = Path(source)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return {"path": source, "is": [f"{name} {size} {changed}" for name, size, changed in stats]}
