"""What surrounds a stage: errors to exit codes, logging, seeds and threads. Imports nothing heavy, so `--help` stays quick."""

import ctypes
import logging
import os
import random
import sys
from collections.abc import Callable

from utils.errors import V2WError


def run_stage(work: Callable[[], None]) -> None:
    """Runs `work`; a `V2WError` prints `error:` and `hint:` and exits with 2, an interrupt exits with 130."""
    configure_logging()
    try:
        work()
    except V2WError as error:
        print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; finished stages are kept, run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def print_error(error: V2WError) -> None:
    """One line of what is wrong and one of what to do."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def configure_logging(verbose: bool = False) -> None:
    """Messages of this program to stderr, one line each; third-party chatter from warnings up."""
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    for name in (
        "utils",
        "configs",
        "frame_to_model_icp",
        "global_optimization",
        "train_inverse_deformation",
        "train_gs",
        "eval_gs",
        "v2w",
    ):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


def seed_everything(seed: int) -> None:
    """Seeds python, numpy and torch. On the CPU a run is then repeatable; on CUDA atomics leave differences of rounding."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def cpu_count() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_device_present() -> bool:
    """Whether the CUDA driver answers and has a device; asks the driver itself, so that `--help` need not import torch."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False
