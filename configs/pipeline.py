"""Settings of the whole run (`python run_reconstruction.py`) and its presets.

A preset is a complete `PipelineConfig`; the command line starts from it, so a flag always wins and `--help` shows the values in force.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from configs.evaluation import EvalConfig
from configs.preprocess import PreprocessConfig, default_root
from configs.ranges import MEMORY_GB, check, refuse
from configs.stage1_align import AlignmentDataConfig, FrameToModelICPConfig
from configs.stage2_global_optimization import GlobalOptimizationConfig
from configs.stage3_gs import GSConfig
from configs.stage3_inverse_deformation import InverseDeformationConfig
from utils.errors import ConfigError

Mode = Literal["fast", "extensive"]
Device = Literal["auto", "cpu", "cuda"]

_HERE = Path()  # stands for the scene root, and for stage 0's source, until the driver knows them
_PREPROCESS = (
    "overwrite", "max_frames", "max_stride", "image_ext", "process_res", "model_name", "cameras", "masks", "mask_overlays", "mask_sky",
    "prefer_sharp", "lens", "backend", "features",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """From a clip to a 3D world: geometry, alignment, inverse deformation, splats, evaluation.

    Give one source: a clip, a folder of frames, or a scene root that already holds exports/npz/results.npz (for example from Depth
    Anything 3). Finished stages are skipped when their settings and inputs have not changed, so the same command resumes a run.
    --config.preprocess-X of earlier versions is --config.stage0.X, and --config.commercial-safe is --config.stage0.commercial-safe;
    --config.part-of is short for --config.stage0.part-of.
    """

    ALIASES: ClassVar[dict[str, str]] = {f"preprocess_{name}": f"stage0.{name}" for name in _PREPROCESS} | {
        "commercial_safe": "stage0.commercial_safe",
        "part_of": "stage0.part_of",
    }
    """Earlier and short names of settings, as flags and in saved files -> where they are now."""

    input_video: tuple[Path, ...] = ()
    """Clip(s) of one place, or a folder of them: MP4, MOV, WebM or GIF."""
    frames_dir: Path | None = None
    """Folder of frames instead of a clip."""
    root_path: Path | None = None
    """Scene root: where everything is written, or an existing scene to go on with. Default: the clip's path without its extension."""
    mode: Mode = "fast"
    """fast: a preview in minutes; extensive: more frames, resolution, splats and iterations, both renderers."""
    renderer: Literal["2dgs", "3dgs", "both"] = "3dgs"
    """Splat type(s) to train."""
    device: Device = "auto"
    """auto takes the GPU where PyTorch can use one. It sets the budget of the preset too."""
    max_gpu_gb: float = 0.0
    """Most GPU memory that any stage takes, in GiB; what does not fit is done in smaller parts, with fewer splats, on smaller images
    or on the CPU. 0: all of it."""
    dry_run: bool = False
    """Print the command of every stage and do nothing."""
    overwrite: bool = False
    """Run every stage even if its result is up to date."""

    alignment_run: str | None = None
    """Go on from this existing alignment run; stage 1 is skipped."""
    skip_global_optimization: bool = False
    """Skip stage 2, as the published fast preset does; the splats then use stage 1's alignment."""
    skip_inverse_deform: bool = False
    """Reuse the run's inverse_deformation folder as it is."""
    inverse_deform_dir: Path | None = None
    """Reuse this inverse deformation; stage 3.1 is skipped."""
    tensorboard: bool = False
    """Write TensorBoard scalars of both alignment stages to <run>/tensorboard/ (needs the tensorboard package)."""
    skip_eval: bool = False
    """Stop after training: no videos, metrics or report."""
    precompile: bool = True
    """On a GPU without a memory limit: compile the kernels of later stages in the background on the first run on a machine."""
    progress_file: Path | None = None
    """Keep this JSON file up to date with stage, step and time left, for programs that watch the run."""

    stage0: PreprocessConfig = field(default_factory=lambda: PreprocessConfig(frames_dir=_HERE))
    stage1: FrameToModelICPConfig = field(default_factory=lambda: FrameToModelICPConfig(root_path=_HERE))
    stage2: GlobalOptimizationConfig = field(default_factory=lambda: GlobalOptimizationConfig(root_path=_HERE, run=""))
    stage31: InverseDeformationConfig = field(default_factory=lambda: InverseDeformationConfig(root_path=_HERE))
    gs: GSConfig = field(default_factory=lambda: GSConfig(root_path=_HERE))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(root_path=_HERE))

    def __post_init__(self) -> None:
        if self.input_video and self.frames_dir is not None:
            refuse(ConfigError("both --config.input-video and --config.frames-dir are given", "give one of them"))
        if self.stage0.input_video or self.stage0.frames_dir != _HERE or self.stage0.scene_root is not None:
            refuse(
                ConfigError(
                    "the input or the scene root is given for stage 0 alone",
                    "give --config.input-video, --config.frames-dir, --config.root-path",
                )
            )
        check(self, MEMORY_GB, "max_gpu_gb")

    @property
    def renderers(self) -> tuple[Literal["2dgs", "3dgs"], ...]:
        """Renderers in the order they are trained."""
        return ("2dgs", "3dgs") if self.renderer == "both" else (self.renderer,)

    @property
    def scene_root(self) -> Path:
        """Where the scene is, or will be.

        Raises:
            ConfigError: no source was given.
        """
        if self.root_path is not None:
            return self.root_path
        if self.input_video or self.frames_dir is not None:
            return default_root(self.input_video, self.frames_dir)
        raise ConfigError(
            "no input: none of --config.input-video, --config.frames-dir and --config.root-path is given",
            "for example: python run_reconstruction.py --config.input-video clip.mp4",
        )


@dataclass(frozen=True)
class Budget:
    """What a preset spends on one kind of machine.

    Attributes:
        frames: frames used.
        resolution: longest side of the working images in pixels.
        splats: splat budget.
        iterations: training steps.
        sh_degree: highest band of view-dependent colour.
    """

    frames: int
    resolution: int
    splats: int
    iterations: int
    sh_degree: int


BUDGETS: dict[tuple[Mode, Literal["cpu", "cuda"]], Budget] = {
    ("fast", "cpu"): Budget(frames=32, resolution=256, splats=30_000, iterations=1000, sh_degree=1),
    ("extensive", "cpu"): Budget(frames=64, resolution=392, splats=100_000, iterations=5000, sh_degree=2),
    ("fast", "cuda"): Budget(frames=100, resolution=504, splats=300_000, iterations=10_000, sh_degree=3),
    ("extensive", "cuda"): Budget(frames=100, resolution=504, splats=1_500_000, iterations=15_000, sh_degree=3),
}


# Every k-th frame takes part in nothing but stage 0, so that the world is measured on frames that no stage saw.
HOLDOUT_EVERY = 8

# Steps between two states of the training on a CPU, where a step takes 30 ms and more: a kill costs less than half a minute.
_SAVE_EVERY_ON_CPU = 500


def preset(mode: Mode, device: Literal["cpu", "cuda"]) -> PipelineConfig:
    """The settings a run starts from, before any flag."""
    budget = BUDGETS[mode, device]
    base = PipelineConfig(mode=mode)
    save_every = _SAVE_EVERY_ON_CPU if device == "cpu" else base.gs.save_every
    return replace(
        base,
        renderer="3dgs" if mode == "fast" else "both",
        stage0=replace(base.stage0, max_frames=budget.frames, process_res=budget.resolution),
        stage1=replace(base.stage1, alignment=AlignmentDataConfig(num_frames=budget.frames, stride=1, holdout_every=HOLDOUT_EVERY)),
        gs=replace(
            base.gs, num_iters=budget.iterations, target_num_points=budget.splats, sh_degree=budget.sh_degree, save_every=save_every
        ),
        eval=replace(base.eval, save_path_images=mode != "fast"),
    )
