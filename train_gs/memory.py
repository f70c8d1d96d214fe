"""Staying within a GPU's memory: fewer splats where the wanted number does not fit."""

from collections.abc import Callable
from typing import TypeVar

import torch

from utils.backends.accelerator import release_memory
from utils.errors import OptimizationError
from utils.types import Reporter

SMALLEST = 10_000
"""Splats below which a smaller number is not tried: what does not fit then is something else."""

Result = TypeVar("Result")


def with_fewer_splats(work: Callable[[int], Result], splats: int, report: Reporter) -> Result:
    """`work(splats)`, again with fewer splats as long as the device runs out of memory.

    Raises:
        OptimizationError: not even few splats fit.
    """
    while True:
        try:
            return work(splats)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside of the handler: its traceback would keep the tensors of the failed try alive.
        release_memory()
        if splats <= SMALLEST:
            raise OptimizationError(
                f"the GPU has too little memory to train {splats} splats ({reason})",
                "raise --config.max-gpu-gb, use --config.image-scale 0.5, or train with --config.device cpu",
            )
        splats = max(SMALLEST, splats * 7 // 10)
        report.note(f"splatting: out of GPU memory, trying again with at most {splats} splats")
