"""Every path inside a scene. No other module joins scene paths."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError


@dataclass(frozen=True)
class RunLayout:
    """One alignment run: `<scene_root>/frame_to_model_icp_<N>_<stride>_offset<k>/`."""

    root: Path

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

    def run_name(self, num_frames: int, stride: int, offset: int, suffix: str = "") -> str:
        """Folder name of an alignment run."""
        return f"frame_to_model_icp_{num_frames}_{stride}_offset{offset}{suffix}"

    def run(self, name: str) -> RunLayout:
        """Paths of the run folder of this name."""
        return RunLayout(self.root / name)

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
        return [p.name for p in sorted(found, key=lambda p: p.stat().st_mtime)]
