"""Settings of stage 3.1: the inverse deformation, canonical space to each frame's camera."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class InverseDeformationConfig:
    """Invert the per-frame deformation, so that canonical splats can be seen by every frame."""

    root_path: Path = Path()
    """Scene folder, as preprocess_video.py made it."""
    run: str = ""
    """Alignment run inside the scene, for example frame_to_model_icp_24_1_offset0."""
    checkpoint_subdir: str = "after_global_optimization"
    """Alignment to invert: after_global_optimization or after_non_rigid_icp."""
    method: Literal["fixed_point"] = "fixed_point"
    """How to invert: fixed_point solves q + delta(q) = y for every point, exact and without training."""
    out_path: Path | None = None
    """Folder of the result; default <run>/inverse_deformation."""
    validation_points: int = 5000
    """Random surface points per view for the round-trip error; more points make its percentiles steadier."""
    seed: int = 0
    """Random seed of the validation points."""
    overwrite: bool = False
    """Make the result again even if it is current."""
