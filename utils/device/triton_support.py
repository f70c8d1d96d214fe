"""Whether the Triton kernels can run; imports Triton only where there is a CUDA device."""

import importlib.util
import logging
import subprocess
from functools import cache

import torch

_log = logging.getLogger(__name__)


@cache
def triton_ready() -> bool:
    """A CUDA device is there, and Triton, which comes with torch's CUDA builds, works; where it does not, one line says why.

    Triton links every kernel to a small launcher in C, so it needs a C compiler and Python's headers, and fails at its first step without.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # whatever the compiler or the linker say
        compiler = isinstance(error, subprocess.CalledProcessError)  # its message is the whole command
        reason = ["the C compiler failed"] if compiler else str(error).strip().splitlines() or [type(error).__name__]
        _log.warning(
            "Triton does not work here, what its kernels do is done on the CPU, much slower: %s (a C compiler and Python's headers "
            "make it work: apt install gcc python3-dev)",
            reason[0],
        )
        return False
    return True
