"""Settings of the published alignment method (arXiv 2603.16736), chosen with `--config.method parity`, and of the hash-grid fields.

Lengths named "units" are thirds of the scene's median depth: about metres in a room, for which the published constants were chosen.
"""

from dataclasses import dataclass
from typing import Literal

from configs.ranges import (
    COUNT,
    LAYERS,
    NEAREST,
    NOT_NEGATIVE,
    PERCENT,
    POSITIVE,
    RATE,
    SAMPLES,
    SEED,
    SHARE,
    WIDTH,
    Range,
    check,
    check_lattice,
    refuse,
)
from utils.errors import ConfigError

Method = Literal["lattice", "parity"]
FieldName = Literal["auto", "lattice", "hashgrid"]
IcpMetric = Literal["point2plane", "point2point"]
GridBackend = Literal["auto", "numba", "torch", "tcnn"]


def resolve_field(field: FieldName, method: Method) -> Literal["lattice", "hashgrid"]:
    """The field a method uses: `auto` is the method's own."""
    if field == "auto":
        return "hashgrid" if method == "parity" else "lattice"
    return field


@dataclass(frozen=True, kw_only=True)
class TwistFieldConfig:
    """Twist per point and frame: a multi-resolution hash grid with a small network, or a lattice."""

    levels: int = 16
    """Resolutions of the hash grid."""
    log2_table_size: int = 19
    """Entries per level, as a power of two; levels with fewer vertices store every vertex."""
    min_resolution: int = 16
    """Vertices along the coarsest level."""
    max_resolution: int = 2048
    """Vertices along the finest level."""
    neurons: int = 64
    """Width of the network behind the grid."""
    hidden_layers: int = 2
    """Hidden layers of that network."""
    backend: GridBackend = "auto"
    """tcnn: tiny-cuda-nn; numba: compiled CPU kernel; torch: anywhere, slow; auto: tcnn on CUDA where installed, numba on the CPU."""
    lattice: tuple[int, int, int] = (24, 14, 6)
    """Nodes across, down and along inverse depth of the lattice field."""
    stored_lattice: tuple[int, int, int] = (64, 36, 8)
    """Nodes of the displacement lattice that is fitted to a field for the stages that follow; the misfit is reported."""
    seed: int = 1337
    """Of the initial weights; all frames start alike."""

    def __post_init__(self) -> None:
        check(self, WIDTH, "neurons", group="twists")
        check(self, LAYERS, "levels", "hidden_layers", group="twists")
        check(self, Range(2, 1 << 16), "min_resolution", "max_resolution", group="twists")
        check(self, Range(3, 22), "log2_table_size", group="twists")
        check(self, SEED, "seed", group="twists")
        for name in ("lattice", "stored_lattice"):
            check_lattice(self, name, group="twists")
        if self.max_resolution < self.min_resolution:
            refuse(ConfigError(f"hash grid from {self.min_resolution} to {self.max_resolution}", "give growing levels"))


@dataclass(frozen=True, kw_only=True)
class IcpConfig:
    """Frame-to-model registration of the published method; a weight of 0 switches its term off."""

    metric: IcpMetric = "point2plane"
    """Distance of the data term: along the model's normal, or in space."""
    max_corr_dist: float = 0.03
    """Radius within which a point has a neighbour in the model, in units."""
    start_corr_dist: float = 0.0
    """Radius of the first iteration, in units; it falls to max_corr_dist over half of the iterations. 0: that radius from the start."""
    robust_scale: float = 0.0
    """Geman-McClure scale of the data term, in units; 0: squared distances."""
    min_normal_cos: float = 0.0
    """Neighbours whose normals enclose a larger angle take no part, as its cosine, 0..1; 0: all do."""
    confidence_weights: bool = False
    """Points count by their confidence in the data term."""
    n_iter: int = 100
    """Most iterations of the non-rigid step."""
    lr: float = 1e-3
    """Step of Adam, rigid and non-rigid."""
    early_stopping_patience: int = 5
    """Iterations without progress of any term before the non-rigid step ends; 0 never ends early."""
    early_stopping_min_iters: int = 25
    """Iterations before it may end early."""
    early_stopping_min_delta: float = 5e-6
    """Decrease of a weighted term that counts as progress."""
    rigid_radii: tuple[float, ...] = (0.04, 0.02)
    """Radius and voxel size of each rigid pass, in units; empty skips the rigid step."""
    rigid_iters: tuple[int, ...] = (150, 70)
    """Most iterations of each rigid pass; it ends earlier when it has converged."""
    data_weight: float = 1.0
    """Weight of the data term."""
    color_weight: float = 0.05
    """Weight of the photometric term."""
    color_gate: float | None = 0.1
    """Pairs whose intensity (0..1) differs by more take no part in the photometric term (none: off)."""
    color_neighbors: int = 10
    """Neighbours a colour gradient is fitted to."""
    normal_neighbors: int = 20
    """Neighbours a normal is fitted to."""
    smoothness_weight: float = 50.0
    """Weight of the squared difference of the twists one step apart."""
    smoothness_step: float = 0.05
    """That step, in units."""
    smoothness_every: int = 1
    """Iterations from one evaluation of that term to the next."""
    smoothness_samples: float = 0.1
    """Share of the points it is evaluated around, 0..1."""
    magnitude_weight: float = 0.0
    """Weight of the mean length of the twists."""
    match_weight: float = 1.0
    """Weight of the squared distance of image matches; uses the matcher of the group `matching`."""
    match_max_dist: float | None = 1.0
    """Matches farther apart take no part, in units (none: all do)."""
    match_references: int = 20
    """Most earlier frames a frame is matched with."""
    match_samples: int = 5000
    """Matches used of each pair."""
    match_sampling: Literal["recent_and_strided", "strided"] = "recent_and_strided"
    """Which earlier frames: half the latest and half spread over the others, or all spread."""
    max_points: int = 0
    """Points of a frame that are drawn for registration, at random; 0 takes all. Fewer are faster; all are filtered and merged."""
    filter_points: bool = True
    """Drop points that fit badly before a frame joins the model."""
    filter_geom_sigma: float = 2.5
    """Robust deviations above the usual geometric residual at which a point is dropped."""
    filter_color_sigma: float = 1.5
    """The same for the photometric residual."""
    filter_worst_pct: float = 0.2
    """Share of the remaining points, those that fit worst, that is dropped too."""
    filter_min_frames: int = 2
    """Frames whose residuals must be known before thresholds are used."""
    filter_base_percentile: int = 75
    """Percentile of a frame's residuals the thresholds are built on."""
    min_fitness: float = 0.02
    """A frame of whose points a smaller share has a neighbour in the model is reported and left out, 0..1."""

    def __post_init__(self) -> None:
        check(self, RATE, "lr", group="icp")
        check(self, POSITIVE, "max_corr_dist", "lr", "rigid_radii", "smoothness_step", "color_gate", "match_max_dist", group="icp")
        check(self, COUNT, "rigid_iters", "smoothness_every", "match_references", "filter_min_frames", group="icp")
        check(self, SAMPLES, "match_samples", group="icp")
        weights = ("data_weight", "color_weight", "smoothness_weight", "magnitude_weight", "match_weight")
        check(self, NOT_NEGATIVE, *weights, "n_iter", "max_points", "start_corr_dist", "robust_scale", group="icp")
        check(self, NOT_NEGATIVE, "early_stopping_patience", "early_stopping_min_iters", "early_stopping_min_delta", group="icp")
        check(self, NOT_NEGATIVE, "filter_geom_sigma", "filter_color_sigma", group="icp")
        check(self, SHARE, "min_normal_cos", "smoothness_samples", "filter_worst_pct", "min_fitness", group="icp")
        check(self, Range(3, NEAREST), "color_neighbors", "normal_neighbors", group="icp")
        check(self, PERCENT, "filter_base_percentile", group="icp")
        if len(self.rigid_radii) != len(self.rigid_iters):
            refuse(
                ConfigError(
                    f"icp.rigid_radii has {len(self.rigid_radii)} entries, icp.rigid_iters {len(self.rigid_iters)}",
                    "give one of each per pass",
                )
            )


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutConfig:
    """Joint refinement of the published method: every frame against the surface of all others; a weight of 0 switches its term off."""

    n_iters: int = 150
    """Iterations."""
    lr: float = 1e-3
    """Step of Adam."""
    loo_weight: float = 1.0
    """Weight of the distance along the other frame's normal."""
    thin_shell_weight: float = 1000.0
    """Weight of the distance along the own normal."""
    color_weight: float = 0.05
    """Weight of the photometric term."""
    color_gate: float | None = 0.1
    """Pairs whose intensity (0..1) differs by more take no part in it (none: off)."""
    color_neighbors: int = 10
    """Neighbours a colour gradient is fitted to."""
    anchor_weight: float = 1000.0
    """Weight of the squared change of twists since the start."""
    anchor_samples: int = 4096
    """Places per frame where the change of the field is measured."""
    smoothness_weight: float = 0.0
    """Weight of the squared difference of the twists one step apart."""
    smoothness_step: float = 0.05
    """That step, in units."""
    smoothness_samples: float = 0.1
    """Share of the sampled pairs it is evaluated around, 0..1."""
    max_corr_dist: float = 0.03125
    """Radius of a pair, in units."""
    neighbors: int = 5
    """Neighbours looked up per point, those of the own frame included."""
    normal_neighbors: int = 20
    """Neighbours a normal is fitted to."""
    rebuild_every: int = 50
    """Iterations between updates of the surface (tree, normals, colour gradients)."""
    max_pairs: int = 200_000
    """Pairs drawn per iteration."""
    max_grad_norm: float = 1.0
    """Length the gradient of all parameters together is cut to."""

    def __post_init__(self) -> None:
        weights = ("loo_weight", "thin_shell_weight", "color_weight", "anchor_weight", "smoothness_weight")
        check(self, NOT_NEGATIVE, "n_iters", *weights, group="loo")
        check(self, Range(0, SAMPLES.high), "anchor_samples", group="loo")
        check(self, RATE, "lr", group="loo")
        check(self, POSITIVE, "lr", "color_gate", "smoothness_step", "max_corr_dist", "max_grad_norm", group="loo")
        check(self, COUNT, "rebuild_every", "max_pairs", group="loo")
        check(self, SHARE, "smoothness_samples", group="loo")
        check(self, Range(2, NEAREST), "neighbors", group="loo")
        check(self, Range(3, NEAREST), "color_neighbors", "normal_neighbors", group="loo")


@dataclass(frozen=True, kw_only=True)
class MatchedFieldConfig:
    """Hash grids on top of the joint lattice alignment (`--config.field hashgrid`), fitted to its matches."""

    n_iters: int = 200
    """Iterations of Adam; its step falls to zero along a cosine."""
    lr: float = 1e-3
    """First step."""
    max_pairs: int = 30_000
    """Matches drawn per iteration."""
    robust_scale: float = 3.0
    """Geman-McClure scale in sigmas of the joint solver."""
    smoothness_weight: float = 0.3
    """Weight of the squared difference of the twists one step apart, beside the mean squared distance of matches in units."""
    smoothness_step: float = 0.05
    """That step, in units."""
    magnitude_weight: float = 0.01
    """Weight of the mean squared displacement, in squared units: the gauge."""

    def __post_init__(self) -> None:
        check(self, NOT_NEGATIVE, "n_iters", "smoothness_weight", "magnitude_weight", group="refine")
        check(self, RATE, "lr", group="refine")
        check(self, POSITIVE, "lr", "robust_scale", "smoothness_step", group="refine")
        check(self, COUNT, "max_pairs", group="refine")
