"""Which splats the viewer shows: the newest checkpoint of one training, which may still be running."""

from dataclasses import dataclass
from pathlib import Path

from configs.evaluation import ViewerConfig
from utils.errors import MissingArtifactError
from utils.scene.layout import RunLayout, SceneLayout
from utils.splatting.checkpoint import MODEL, PREVIEW, unfinished
from utils.splatting.render import locate_checkpoint


@dataclass(frozen=True)
class Source:
    """A training.

    Attributes:
        run: the alignment run it belongs to.
        folder: where its result is or will be.
    """

    run: RunLayout
    folder: Path

    def latest(self) -> tuple[Path, int] | None:
        """The newest checkpoint file and its time in nanoseconds: the result, or what an unfinished training has so far."""
        found = [(path, time) for path in (self.folder / MODEL, unfinished(self.folder) / PREVIEW) if (time := _time(path))]
        return max(found, key=lambda entry: entry[1], default=None)


def locate_source(config: ViewerConfig) -> Source:
    """The training that is meant; what is not given is the newest there is, finished or not.

    Raises:
        MissingArtifactError: neither trained splats nor a training that has begun.
        ConfigError: the named run does not exist.
    """
    try:
        finished = Source(*locate_checkpoint(config.root_path, config.run, config.checkpoint_dir))
    except MissingArtifactError:
        running = _running(config)
        if running is None:
            raise
        return running
    running = _running(config)
    if running is not None and _time(unfinished(running.folder) / PREVIEW) > _time(finished.folder / MODEL):
        return running
    return finished


def _running(config: ViewerConfig) -> Source | None:
    """The training whose preview is the newest."""
    layout, wanted = SceneLayout(config.root_path), config.checkpoint_dir
    folders = [] if wanted is None else [wanted]
    for name in [config.run] if config.run else layout.runs()[-1:]:
        root = layout.run(name).root
        if wanted is not None:
            folders.append(root / wanted.name)
        else:
            folders += [path.with_suffix("") for path in root.glob("gs_*.resume")]
    folder = max(folders, key=lambda f: _time(unfinished(f) / PREVIEW), default=None)
    if folder is None or not _time(unfinished(folder) / PREVIEW):
        return None
    return Source(RunLayout(folder.resolve().parent), folder)


def _time(path: Path) -> int:
    """When the file was written, in nanoseconds; 0 if it is not there, as while it is being replaced."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
