"""Correspondences between two frames: dense optical flow started from the current geometry.

The source of wrong flow is large motion. So the target image is first warped into the source view through depth, poses and
displacements as they are now; flow (DIS, Kroeger et al., ECCV 2016) only has to find what is left, and the sum of both is the match.
A match counts if flow in the other direction leads back to where it came from and both ends may be used. On a GPU
`utils.matching.flow.batched` does the same with a flow of its own, all pairs at once.

May import: what `utils.matching` may.
Start: `flow_matcher` here, then `dis` (CPU).
"""

from configs.stage1_align import MatchingConfig
from utils.device.accelerator import accelerator
from utils.matching.contract import MATCHERS, Matcher
from utils.types import Array, Scene


def flow_matcher(scene: Scene, usable: Array, grid: int, config: MatchingConfig) -> Matcher:
    """Flow for all pairs at once on the GPU, or pair by pair on the CPU where there is none."""
    chosen = "flow_dis" if accelerator() is None else "flow_torch"
    return MATCHERS.load(chosen)(scene, usable, grid, config)
