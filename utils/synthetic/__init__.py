"""A synthetic inconsistent world: a textured place filmed by a camera whose frames contradict each other, with its truth.

May import: `utils.scene`, `utils.cameras`, `utils.device` and below.
Start: `world.make_world`; `scenes.LAYOUTS` are the places, `inconsistency` what is done to their frames.
"""

from utils.synthetic.scenes import LAYOUTS
from utils.synthetic.world import (
    GroundTruth,
    SyntheticWorld,
    WorldConfig,
    load_ground_truth,
    make_world,
    save_world,
    write_clip,
)

__all__ = [
    "LAYOUTS",
    "GroundTruth",
    "SyntheticWorld",
    "WorldConfig",
    "load_ground_truth",
    "make_world",
    "save_world",
    "write_clip",
]
