"""Settings of stage 1 (`python -m frame_to_model_icp`), and the groups it shares with stage 2."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.icp import FieldName, IcpConfig, Method, TwistFieldConfig
from configs.ranges import COUNT, MEMORY_GB, NOT_NEGATIVE, PERCENT, POSITIVE, SHARE, Range, check, check_lattice, refuse
from utils.errors import ConfigError

ConfidenceMode = Literal["global", "per_frame", "per_frame_guided", "voxel", "voxel_guided", "voxel_or"]


@dataclass(frozen=True, kw_only=True)
class AlignmentDataConfig:
    """Which frames and which of their pixels take part."""

    num_frames: int = 50
    """Most frames to align."""
    stride: int = 2
    """Step through the frames of results.npz; lowered where it would leave fewer than num_frames frames."""
    offset: int = 0
    """First frame."""
    holdout_every: int = 0
    """Every k-th of these frames takes part in nothing but stage 0, so that splatting can be measured on frames that no stage saw; 0: all
    take part."""
    holdout_frames: tuple[int, ...] = ()
    """Further frames of results.npz, by number, that take part in nothing but stage 0."""
    conf_thresh_percentile: float = 80.0
    """Percentile of the strong confidence filter, 0..100; higher keeps fewer pixels."""
    conf_mode: ConfidenceMode = "voxel_or"
    """Where the confidence percentiles are taken: over all frames, over each frame, or over world voxels."""
    conf_global_percentile: float | None = 10.0
    """Percentile over all frames used by the guided modes (none: conf_thresh_percentile)."""
    conf_local_percentile: float | None = 10.0
    """Percentile per frame or voxel used by the guided modes (none: conf_thresh_percentile)."""
    conf_voxel_size: float = 0.33
    """Edge of the confidence voxels, in median depths of the scene."""
    conf_voxel_min_count_percentile: float | None = 50.0
    """Voxels with fewer points than this percentile of occupied voxels fail the strong filter (none: off)."""

    def __post_init__(self) -> None:
        check(self, COUNT, "num_frames", "stride", group="alignment")
        check(self, NOT_NEGATIVE, "offset", "holdout_every", "holdout_frames", group="alignment")
        if self.holdout_every == 1:
            refuse(ConfigError("alignment.holdout_every is 1, no frame would be left", "give 0 (all take part) or at least 2"))
        check(self, PERCENT, "conf_thresh_percentile", "conf_global_percentile", "conf_local_percentile", group="alignment")
        check(self, PERCENT, "conf_voxel_min_count_percentile", group="alignment")
        check(self, POSITIVE, "conf_voxel_size", group="alignment")


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Correspondences between frames."""

    matcher: str = "flow"
    """`flow` (dense optical flow started from the current geometry: `flow_torch` on a GPU, `flow_dis` on the CPU), `romav2` (learned, needs
    its package and weights) or `none` (poses and fields stay as they are)."""
    gaps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Frame distances that are matched; long ones stop drift."""
    revisits_per_frame: int = 1
    """Further pairs per frame, beyond the largest gap, chosen by overlap: they close loops."""
    min_overlap: float = 0.1
    """Pairs that share a smaller part of the view are skipped, 0..1."""
    matches_per_frame: int = 12000
    """Matches kept per frame over all its pairs; time is linear in it."""
    max_cycle_error_px: float = 1.0
    """Largest forward-backward disagreement of the flow, in pixels."""
    min_correlation: float = 0.4
    """Least correlation of the matched image patches, -1..1; flat patches pass if their brightness pattern agrees."""
    edges: bool = True
    """Match pixels on depth edges too, so that fields need not be continued to them; they do not enter the cloud."""
    gpus: int = 1
    """GPUs that `flow` is computed on, where there are several; it is done in a second on one."""
    roma_setting: Literal["auto", "turbo", "fast", "base", "precise"] = "auto"
    """Resolution of RoMa v2: 320, 512, 640 or 800 with refinement at 1280 pixels; auto is precise on a GPU, turbo on the CPU."""
    roma_min_overlap: float = 0.5
    """RoMa's matches count above this probability of being visible in the other frame, 0..1."""
    roma_cache: Path | None = None
    """Folder for RoMa's matches, one file a pair. Default: roma_cache in the scene root."""

    def __post_init__(self) -> None:
        check(self, COUNT, "gaps", "matches_per_frame", group="matching")
        check(self, Range(1, 64), "gpus", group="matching")
        check(self, NOT_NEGATIVE, "revisits_per_frame", group="matching")
        check(self, SHARE, "min_overlap", "roma_min_overlap", group="matching")
        check(self, POSITIVE, "max_cycle_error_px", group="matching")
        check(self, Range(-1, 1), "min_correlation", group="matching")


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Robust least squares for poses and displacement lattices."""

    lattice: tuple[int, int, int] = (24, 14, 6)
    """Nodes across, down and along inverse depth."""
    smoothness: float = 0.003
    """Weight of differences between neighbouring nodes; higher is stiffer."""
    ridge: float = 0.01
    """Weight that holds the mean displacement of all frames at zero (the gauge)."""
    temporal: float = 0.01
    """Weight of differences between the fields of frames that follow each other; what a field is not told by its own matches then comes
    from its neighbours in time. Higher is stiffer; 0: off."""
    pose_evidence: float = 0.4
    """The cameras move only if moving them alone removes a larger share of the median distance of matches, 0..1; else what frames show
    wrongly is put down to their fields, and the poses stay as given. 0: they always move."""
    pose_ridge: float = 0.1
    """Weight that holds the poses near those given where they move; low, and the cameras take up what their frames show wrongly."""
    match_sigma: float = 0.003
    """Expected distance of matched points, in depths."""
    confidence_power: float = 0.0
    """Matches count by the confidence of their pixels, over the scene's median, to this power; 0: all the same."""
    robust_scales: tuple[float, ...] = (12.0, 6.0, 3.0)
    """Geman-McClure scale of each reweighting step, in sigmas, from lenient to strict."""
    cg_iterations: int = 30
    """Conjugate-gradient iterations per reweighting step."""
    rigid_only: bool = False
    """Refine poses only, no displacement."""

    def __post_init__(self) -> None:
        check_lattice(self, "lattice", group="solver")
        check(self, SHARE, "pose_evidence", group="solver")
        check(self, NOT_NEGATIVE, "smoothness", "ridge", "temporal", "confidence_power", group="solver")
        if not math.isinf(self.pose_ridge):  # infinite: the cameras stay
            check(self, NOT_NEGATIVE, "pose_ridge", group="solver")
        check(self, POSITIVE, "match_sigma", "robust_scales", group="solver")
        check(self, COUNT, "cg_iterations", group="solver")


@dataclass(frozen=True, kw_only=True)
class PointFilterConfig:
    """Which aligned points enter the canonical cloud."""

    enabled: bool = True
    """Drop points that other frames see through."""
    tolerance: float = 0.02
    """Depth agreement that counts as support, relative to depth."""
    neighbors: int = 6
    """Frames that vote on each point."""
    edge_ratio: float = 0.05
    """A pixel is a depth edge if depth varies by more than this share within its 3x3 neighbourhood, and not as on a slope."""

    def __post_init__(self) -> None:
        check(self, POSITIVE, "tolerance", "edge_ratio", group="filter")
        check(self, NOT_NEGATIVE, "neighbors", group="filter")


@dataclass(frozen=True, kw_only=True)
class FrameToModelICPConfig:
    """Stage 1: registers the frames one after another into a growing canonical cloud."""

    root_path: Path = Path()
    """Scene root, as written by stage 0."""
    out_suffix: str = ""
    """Appended to the name of the run folder."""
    overwrite: bool = False
    """Run even if a current result exists."""
    max_gpu_gb: float = 0.0
    """Most GPU memory to take, in GiB; work that does not fit is done in smaller parts or on the CPU. 0: all there is."""
    tensorboard: bool = False
    """Write TensorBoard scalars to <run>/tensorboard/ (needs the tensorboard package)."""
    alignment: AlignmentDataConfig = field(default_factory=AlignmentDataConfig)
    matching: MatchingConfig = field(default_factory=lambda: MatchingConfig(matches_per_frame=8000))
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(cg_iterations=20, ridge=0.1))
    filter: PointFilterConfig = field(default_factory=PointFilterConfig)
    min_fitness: float = 0.2
    """A frame is left out if a smaller share of its matches agrees after its registration, 0..1."""

    method: Method = "lattice"
    """lattice: robust least squares on image matches. parity: the published method (surface, colour and match terms by gradient descent),
    to compare with; minutes instead of seconds."""

    icp: IcpConfig = field(default_factory=IcpConfig)
    """Used by method parity."""

    twists: TwistFieldConfig = field(default_factory=TwistFieldConfig)
    """Used by method parity."""

    # Last of all settings: from here on the name hides dataclasses.field.
    field: FieldName = "auto"
    """Deformation of a frame: auto is the method's own (lattice, or hashgrid for parity). Method lattice has hash grids in stage 2 only."""

    def __post_init__(self) -> None:
        check(self, MEMORY_GB, "max_gpu_gb")
        check(self, SHARE, "min_fitness")
        if self.method == "lattice" and self.field == "hashgrid":
            refuse(ConfigError("stage 1 has hash grids with method parity only", "pass --config.method parity, or choose it in stage 2"))
