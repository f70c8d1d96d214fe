"""Keeps a training within the GPU's memory: blocks where it is known to be too large, and what to do when it runs out all the same.

A training that runs out of memory is tried again with fewer splats and, where they are large, smaller images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from configs.stage3_gs import GSConfig
from train_gs.data import TrainingData
from utils.device.accelerator import release_memory
from utils.errors import OptimizationError
from utils.types import Reporter

SMALLEST = 10_000
"""Splats below which a smaller number is not tried: what does not fit then is something else."""
LARGE = 400_000
"""Pixels of an image above which it is made smaller too: about 850 x 480."""

MOST_BLOCKS = 64
_PER_PIXEL = 13_000
"""Bytes of a training for each pixel of an image, from 12.64 GiB at 1280x720; at 504x294 it takes less (RESULTS.md, NVIDIA H200)."""
_PER_SPLAT = 1_100
"""Bytes for each splat beside its numbers, their gradients and moments: what a step makes of it. From 1.24 GiB for 0.6 and 2.32 GiB for 1.2
million splats at 504x294."""
_OWN_AND_BORDER = 1.5
"""Splats of a block with its border, relative to those of its core; `blocks.cut.BORDER` on two of three sides."""

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


def estimated_bytes(splats: int, sh_degree: int, frames: int, pixels: int) -> float:
    """GPU memory of a training: splats with gradients and two moments, all images of its frames, and what a step makes."""
    numbers = 11 + 3 * (sh_degree + 1) ** 2
    return splats * (4 * 4 * numbers + _PER_SPLAT) + frames * pixels * 3 + pixels * _PER_PIXEL


def number_of_blocks(config: GSConfig, data: TrainingData, device: torch.device) -> int:
    """In how many blocks the world is trained: as many as are asked for, or as few as fit the memory.

    On a CPU, and where there is a limit of time, one training has it all unless blocks are asked for.
    """
    if config.blocks != "auto":
        return int(config.blocks)
    if device.type != "cuda" or config.budget_seconds:
        return 1
    limit = config.max_gpu_gb * 2**30 or 0.9 * torch.cuda.get_device_properties(device).total_memory
    frames, pixels = len(data.cameras), math.prod(data.cameras.size)
    need = lambda splats: estimated_bytes(splats, config.sh_degree, frames, pixels)  # noqa: E731
    if need(config.target_num_points) <= limit:
        return 1
    shares = {count: (_OWN_AND_BORDER + 1) / count for count in range(3, MOST_BLOCKS + 1)}  # its own, and the coarse rest of the world
    fitting = [count for count, share in shares.items() if need(math.ceil(config.target_num_points * share)) <= limit]
    return fitting[0] if fitting else 1  # it is not the splats that are too many: see `within_memory`


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
