"""Settings of stage 3.1: the inverse deformation, canonical space to each frame's camera."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.ranges import COUNT, LAYERS, NOT_NEGATIVE, POSITIVE, RATE, SAMPLES, SEED, WIDTH, Range, check


@dataclass(frozen=True, kw_only=True)
class InverseDeformationConfig:
    """Invert the per-frame deformation, so that canonical splats can be seen by every frame."""

    root_path: Path = Path()
    """Scene folder, as preprocess_video.py made it."""
    run: str = ""
    """Alignment run inside the scene, for example frame_to_model_icp_24_1_offset0."""
    checkpoint_subdir: str = "after_global_optimization"
    """Alignment to invert: after_global_optimization or after_non_rigid_icp."""
    method: Literal["fixed_point", "network"] = "fixed_point"
    """How to invert: fixed_point solves q + delta(q) = y for every point, exact and without training; network is the published way, one
    small network for all views."""
    num_steps: int = 1500
    """Training steps of the network."""
    batch_size: int = 2048
    """Points per step of the network."""
    views_per_step: int = 2
    """Views among which a step's points are shared."""
    lr: float = 1e-2
    """Learning rate of the network at its start; it falls to 0 along a cosine."""
    cycle_weight: float = 0.1
    """Weight of the error after going back and there again."""
    magnitude_weight: float = 1e-4
    """Weight of the network's mean square twist."""
    smoothness_weight: float = 1e-4
    """Weight of the twist's change over a hundredth of the depth."""
    octaves: int = 4
    """Sines of the place that the network gets, each twice as fine as the one before."""
    view_embed_dim: int = 32
    """Length of the learned code of a view."""
    n_neurons: int = 64
    """Width of the network."""
    n_hidden_layers: int = 3
    """Hidden layers of the network."""
    out_path: Path | None = None
    """Folder of the result; default <run>/inverse_deformation."""
    validation_points: int = 5000
    """Random surface points per view for the round-trip error; more points make its percentiles steadier."""
    seed: int = 0
    """Random seed of the validation points."""
    overwrite: bool = False
    """Make the result again even if it is current."""

    def __post_init__(self) -> None:
        check(self, COUNT, "num_steps")
        check(self, SAMPLES, "batch_size", "validation_points")
        check(self, WIDTH, "views_per_step", "view_embed_dim", "n_neurons")
        check(self, LAYERS, "n_hidden_layers")
        check(self, NOT_NEGATIVE, "cycle_weight", "magnitude_weight", "smoothness_weight")
        check(self, Range(0, 16), "octaves")
        check(self, SEED, "seed")
        check(self, RATE, "lr")
        check(self, POSITIVE, "lr")
