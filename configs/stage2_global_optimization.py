"""Settings of stage 2 (`python -m global_optimization`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.icp import FieldName, LeaveOneOutConfig, MatchedFieldConfig, Method, TwistFieldConfig
from configs.ranges import MEMORY_GB, NOT_NEGATIVE, SHARE, Range, check, check_lattice
from configs.stage1_align import MatchingConfig, SolverConfig


@dataclass(frozen=True, kw_only=True)
class GlobalOptimizationConfig:
    """Stage 2: aligns all frames jointly, twice, the second time with matches from the aligned geometry and a finer lattice."""

    root_path: Path = Path()
    """Scene root."""
    run: str = ""
    """Name of the run folder inside the scene root, for example frame_to_model_icp_50_2_offset0."""
    checkpoint_subdir: str = "after_non_rigid_icp"
    """Alignment to start from."""
    out_subdir: str = "after_global_optimization"
    """Folder of the result."""
    overwrite: bool = False
    """Run even if a current result exists."""
    max_gpu_gb: float = 0.0
    """Most GPU memory to take, in GiB; work that does not fit is done in smaller parts or on the CPU. 0: all there is."""
    tensorboard: bool = False
    """Write TensorBoard scalars to <run>/tensorboard/ (needs the tensorboard package)."""
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    coarse: SolverConfig = field(default_factory=lambda: SolverConfig(cg_iterations=15))
    """Solver of the first round; with 30 iterations held-out errors are the same to half a percent."""
    fine: SolverConfig = field(default_factory=lambda: SolverConfig(lattice=(36, 20, 6), smoothness=0.001, cg_iterations=20))
    """Solver of the second round."""
    rounds: int = 2
    """1 stops after the first round."""
    mean_gauge: Literal["auto", "on", "off"] = "auto"
    """Bring the world to the mean of what the frames show of it, not where the fields are smallest; only if cameras stay. auto: where
    depth was predicted or came with imported cameras; what is measured in the clip is right but for noise, which this would take for the
    world's shape."""
    gauge_lattice: tuple[int, int, int] = (12, 7, 4)
    """Nodes across, down and along inverse depth by which that is done in each frame."""
    color_drift: bool = True
    """Estimate how exposure and tint change between frames, take it out of the cloud and start splatting's colour maps there."""
    heldout_pairs: int = 12
    """Pairs of frames that are matched after the solve, only to measure it: their reprojection error is reported; 0: none."""
    heldout_pixels: float = 0.0
    """Share of 16 x 16 pixel blocks whose pixels take no part in the solve, to measure it on them too, 0..0.5; costs a little accuracy."""
    carry_over: bool = True
    """Weaken fields where frames that took no part (alignment.holdout_every) are explained better by weaker ones between their neighbours'
    or by none."""
    min_fitness: float = 0.2
    """A frame is left out if a smaller share of its matches agrees after the last round, 0..1."""

    method: Method = "lattice"
    """lattice: robust least squares on image matches. parity: the published method (leave-one-out surface terms by gradient descent), to
    compare with."""

    loo: LeaveOneOutConfig = field(default_factory=LeaveOneOutConfig)
    """Used by method parity."""

    refine: MatchedFieldConfig = field(default_factory=MatchedFieldConfig)
    """Used by method lattice with field hashgrid."""

    twists: TwistFieldConfig = field(default_factory=TwistFieldConfig)
    """Used by method parity and by field hashgrid."""

    # Last of all settings: from here on the name hides dataclasses.field.
    field: FieldName = "auto"
    """Deformation of a frame: auto is the method's own (lattice, or hashgrid for parity). Method lattice with hashgrid adds hash grids,
    fitted to the same matches, to the lattices."""

    def __post_init__(self) -> None:
        check(self, NOT_NEGATIVE, "heldout_pairs")
        check(self, MEMORY_GB, "max_gpu_gb")
        check(self, Range(0, 0.5), "heldout_pixels")
        check(self, SHARE, "min_fitness")
        check(self, Range(1, 2), "rounds")
        check_lattice(self, "gauge_lattice")
