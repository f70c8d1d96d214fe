"""Every path inside a scene. No other module joins scene paths."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from utils.errors import ConfigError
from utils.scene.json_files import json_object

PARTS = "parts"
_LONGEST_NAME = 200  # bytes; file systems allow 255, and results on their way have longer names


def plain_name(name: str, flag: str) -> str:
    """A name given by the user, if it can be that of a folder inside another.

    Raises:
        ConfigError: empty, a path, or with characters that cannot be printed.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(f"{flag}: {name!r} is no name of a folder", "give a name without slashes, for example mine_2")
    return name


def part_name(number: int) -> str:
    """Folder of a part in `parts/`."""
    return f"{number:02d}"


@dataclass(frozen=True)
class RunLayout:
    """One alignment run: `<scene_root>/frame_to_model_icp_<N>_<stride>_offset<k>/`."""

    root: Path

    def part(self, name: str, flag: str) -> Path:
        """Folder of this run that a setting names.

        Raises:
            ConfigError: no plain name.
        """
        return self.root / plain_name(name, flag)

    @property
    def after_non_rigid_icp(self) -> Path:
        return self.root / "after_non_rigid_icp"

    @property
    def after_global_optimization(self) -> Path:
        return self.root / "after_global_optimization"

    def tensorboard(self, stage: str) -> Path:
        """Folder of a stage's TensorBoard events."""
        return self.root / "tensorboard" / stage

    @property
    def inverse_deformation(self) -> Path:
        return self.root / "inverse_deformation"

    def gs(self, renderer: str) -> Path:
        """Folder of the trained splats of one renderer."""
        return self.root / f"gs_{renderer}"

    def trained(self) -> list[Path]:
        """Folders of trained splats, newest first."""
        return sorted((p for p in self.root.glob("gs_*") if p.is_dir() and not p.suffix), key=_made, reverse=True)

    @staticmethod
    def evaluation(checkpoint_dir: Path) -> Path:
        """Folder of the evaluation of one checkpoint folder."""
        return checkpoint_dir / "gs_video_eval"


@dataclass(frozen=True)
class SceneLayout:
    """Paths of one scene, as published: see the README's `scene_root` section."""

    root: Path

    @property
    def npz_dir(self) -> Path:
        return self.root / "exports" / "npz"

    @property
    def results_npz(self) -> Path:
        return self.npz_dir / "results.npz"

    @property
    def clip_cameras(self) -> Path:
        return self.root / "exports" / "cameras"

    @property
    def frames(self) -> Path:
        return self.root / "frames"

    @property
    def frames_subsampled(self) -> Path:
        return self.root / "frames_subsampled"

    @property
    def preprocess_json(self) -> Path:
        return self.root / "preprocess_frames.json"

    @property
    def roma_cache(self) -> Path:
        return self.root / "roma_cache"

    @property
    def path_json(self) -> Path:
        return self.root / "gs_video" / "0000_extend_transforms.json"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def summary_json(self) -> Path:
        return self.root / "run_summary.json"

    def part(self, number: int) -> "SceneLayout":
        """Of another part of the same clip, from 2: the first is the scene itself."""
        return SceneLayout(self.root / PARTS / part_name(number))

    def run_name(self, num_frames: int, stride: int, offset: int, suffix: str = "") -> str:
        """Folder name of an alignment run."""
        return f"frame_to_model_icp_{num_frames}_{stride}_offset{offset}{suffix}"

    def run(self, name: str) -> RunLayout:
        """Paths of the run folder of this name.

        Raises:
            ConfigError: no plain name.
        """
        return RunLayout(self.root / plain_name(name, "run"))

    def named_run(self, name: str) -> RunLayout:
        """Paths of the run that a stage is told to work on.

        Raises:
            ConfigError: no name was given.
        """
        if not name:
            raise ConfigError("no alignment run is named", f"pass --config.run; there are: {', '.join(self.runs()) or 'none yet'}")
        return self.run(name)

    def runs(self) -> list[str]:
        """Names of the runs that exist, oldest first."""
        found = [p for p in self.root.glob("frame_to_model_icp_*") if p.is_dir()]
        return [p.name for p in sorted(found, key=_last_change)]


def _last_change(run: Path) -> float:
    """When the newest alignment of a run was made."""
    return max((_made(path.parent) for path in run.glob("*/manifest.json")), default=run.stat().st_mtime)


def _made(folder: Path) -> float:
    """When an artifact was made, by its manifest: times of files do not survive every copy."""
    try:
        created = json_object(folder / "manifest.json")["created"]
        return datetime.strptime(created, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (ValueError, KeyError, TypeError):
        return folder.stat().st_mtime
