"""What a training that is under way leaves on disk: its state, to resume from, and a preview, to look at."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from train_gs.train import Trainer
from utils.errors import ArtifactError
from utils.exports.view import FOLDER as VIEW
from utils.exports.view import write_view
from utils.scene import artifacts
from utils.scene.manifest import writing
from utils.splatting.checkpoint import PREVIEW, TrainedScene, save_checkpoint, unfinished
from utils.types import Reporter, Splats

# Seconds between two previews, or this many times as long as writing one takes if that is longer.
_PREVIEW_SECONDS, _PREVIEW_PAUSE = 15.0, 50.0
_SPLATS = ("means", "quats", "log_scales", "logit_opacities", "sh")


class Saved:
    """A file of an unfinished training that is only good for the same settings and inputs.

    Args:
        path: of the file.
        key: hash of settings and inputs; a file of other ones is ignored.
    """

    def __init__(self, path: Path, key: str):
        self._path, self._key = path, key

    def save(self, trainer: Trainer) -> None:
        """Keeps the state of a training."""
        self._write(trainer.state())

    def restore(self, trainer: Trainer, report: Reporter) -> None:
        """Brings a trainer to the saved state, if there is one of the same settings and inputs."""
        state = self._read()
        if state is None:
            if self._path.is_file():
                report.note("splatting: an unfinished training with other settings or inputs is ignored")
            return
        trainer.load(state)
        report.note(f"splatting: resumes at step {trainer.iteration}")

    def save_splats(self, splats: Splats) -> None:
        """Keeps finished splats."""
        self._write({name: getattr(splats, name).contiguous() for name in _SPLATS})

    def splats(self) -> Splats | None:
        """Finished splats of the same settings and inputs, if there are any."""
        state = self._read()
        return None if state is None else Splats(*(state[name] for name in _SPLATS))

    def forget(self) -> None:
        """Deletes the file."""
        self._path.unlink(missing_ok=True)

    def _write(self, values: dict[str, Any]) -> None:
        """Writes beside the old file and renames."""
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".partial")
        artifacts.save_tensors(beside, {"key": self._key, **values})
        beside.replace(self._path)

    def _read(self) -> dict[str, Any] | None:
        state = artifacts.load_tensors(self._path) if self._path.is_file() else None
        return state if state is not None and state.pop("key") == self._key else None


class Preview:
    """The splats so far, for people to look at: a checkpoint beside the folder it will become, written again now and then.

    On a GPU a thread writes it while the training goes on.

    Args:
        out: the result's folder.
        report: told when previews cannot be written; the training goes on without them.
    """

    def __init__(self, out: Path, report: Reporter):
        self._path, self._report, self._due = unfinished(out) / PREVIEW, report, 0.0
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[float] | None = None

    def update(self, trainer: Trainer) -> None:
        """Writes the checkpoint if the last one is old enough."""
        if time.monotonic() < self._due or not self._written():
            return
        scene = trainer.result()
        if trainer.device.type == "cuda":
            # Copied here: a thread that asks anything of the device would break off steps that are being recorded.
            splats = scene.splats
            own = Splats(*(t.cpu() for t in (splats.means, splats.quats, splats.log_scales, splats.logit_opacities, splats.sh)))
            self._writing = self._pool.submit(self._write, replace(scene, splats=own, appearance=scene.appearance.cpu()))
            return
        self._writing = self._pool.submit(self._write, scene)
        self._written(wait=True)

    def finish(self) -> None:
        """Waits for what is being written."""
        self._written(wait=True)
        self._pool.shutdown()

    def _write(self, scene: TrainedScene) -> float:
        """Seconds it took."""
        begin = time.monotonic()
        beside = self._path.with_suffix(".partial")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(beside, scene)
        beside.replace(self._path)
        write_view(self._path.parent / VIEW, scene, unfinished=True)
        return time.monotonic() - begin

    def _written(self, *, wait: bool = False) -> bool:
        """Whether nothing is being written any more."""
        if self._writing is None or not (wait or self._writing.done()):
            return self._writing is None
        try:
            self._due = time.monotonic() + max(_PREVIEW_SECONDS, _PREVIEW_PAUSE * self._writing.result())
        except (OSError, ArtifactError) as error:
            self._report.note(f"splatting: no more previews, {error}")
            self._due = float("inf")
        self._writing = None
        return time.monotonic() >= self._due
