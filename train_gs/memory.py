"""Staying within a GPU's memory: a cap for the process, and fewer splats where the wanted number does not fit."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from utils.errors import OptimizationError
from utils.types import Reporter

SMALLEST = 10_000
"""Splats below which a smaller number is not tried: what does not fit then is something else."""
_GIB = 2**30

Result = TypeVar("Result")


def cap_memory(device: torch.device, gib: float) -> None:
    """Lets PyTorch take at most so many GiB of the device; 0 lifts the cap. Does nothing on the CPU."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * _GIB / total) if gib else 1.0, device.index or 0)


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
        gc.collect()
        torch.cuda.empty_cache()
        if splats <= SMALLEST:
            raise OptimizationError(
                f"the GPU has too little memory to train {splats} splats ({reason})",
                "raise --config.max-gpu-gb, use --config.image-scale 0.5, or train with --config.device cpu",
            )
        splats = max(SMALLEST, splats * 7 // 10)
        report.note(f"splatting: out of GPU memory, trying again with at most {splats} splats")
