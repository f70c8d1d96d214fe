"""Retries a training that runs out of GPU memory with fewer splats and, where they are large, smaller images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from utils.device.accelerator import release_memory
from utils.errors import OptimizationError
from utils.types import Reporter

SMALLEST = 10_000
"""Splats below which a smaller number is not tried: what does not fit then is something else."""
LARGE = 400_000
"""Pixels of an image above which it is made smaller too: about 850 x 480."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Load:
    """Size of a training.

    Attributes:
        splats: most splats.
        scale: of the images, relative to `image_scale`.
    """

    splats: int
    scale: float = 1.0


def within_memory(work: Callable[[Load], Result], splats: int, pixels: int, report: Reporter) -> Result:
    """`work(load)`, again with a smaller load as long as the device runs out of memory.

    Args:
        work: what may run out of memory.
        splats: `target_num_points`.
        pixels: of an image at `image_scale`.
        report: notes every further try.

    Raises:
        OptimizationError: not even few splats fit.
    """
    load = Load(splats)
    while True:
        try:
            return work(load)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside of the handler: its traceback would keep the tensors of the failed try alive.
        release_memory()
        if load.splats <= SMALLEST:
            raise OptimizationError(
                f"the GPU has too little memory to train {load.splats} splats ({reason})",
                "raise --config.max-gpu-gb, use --config.image-scale 0.5, or train with --config.device cpu",
            )
        scale = load.scale * 0.7 if pixels * load.scale**2 > LARGE else load.scale
        load = Load(max(SMALLEST, load.splats * 7 // 10), scale)
        smaller = "" if scale == 1.0 else f" and images at {scale:.2f} of their size"
        report.note(f"splatting: out of GPU memory, trying again with at most {load.splats} splats{smaller}")
