"""A worker whose stages only write their manifests: `python tests/batch_stand_in.py`. The clip's last bytes steer it.

The process around the stages is the real one (`batch.worker`). A stage notes in `<clip>.log` that it ran.
"""

import json
import os
import signal
import sys
import time

import run_reconstruction
from batch import worker
from batch.storage import Storage, fetch_source
from batch.tasks import Outcome, StageTask
from utils.errors import InputError


def run_task(task: StageTask) -> Outcome:
    storage = Storage(task.out, task.scratch)
    root = storage.fetch(task.scene)
    root.mkdir(parents=True, exist_ok=True)
    words = [str(fetch_source(w, storage.folder / ".inputs")) if "://" in w else w for w in task.words]
    config = run_reconstruction.configure([*words, "--config.root-path", str(root)])
    call = run_reconstruction.plan(config)[task.number - 1]
    clip = config.input_video[0]
    says = clip.read_bytes().split(b"_")[-1].decode()
    with clip.with_suffix(".log").open("a") as log:
        log.write(f"{task.title} {os.environ.get('OMP_NUM_THREADS')} {task.attempt}\n")
    if says == "bad" and task.number == 2:
        raise InputError("the camera hardly moves", "take a clip in which it travels")
    if says == "fault" and task.number == 2:
        raise RuntimeError("a bug")
    if says == "killed" and task.number == 2 and task.attempt < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if says == "slow" and task.number == 2 and not (clip.parent / "quick").exists():
        time.sleep(60)
    kept = (call.folder / "manifest.json").is_file()
    if not kept:
        call.folder.mkdir(parents=True, exist_ok=True)
        (call.folder / "result.bin").write_bytes(clip.read_bytes() + task.title.encode())
        (call.folder / "manifest.json").write_text(json.dumps({"created": "now", "content_id": task.title}))
    time.sleep(0.05)
    storage.put(task.scene)
    told = {"psnr": 24.5, "grade": "good", "film": "film.mp4", "report": "report.html", "still": ""} if task.number == task.of else {}
    return Outcome("done", 0.05, kept, figures=told)


if __name__ == "__main__":
    worker.run_task = run_task
    worker._IMPORTED = ("run_reconstruction", "tyro")
    sys.exit(worker.main())
