"""What the stages share. Every command imports this package before torch, so process-wide settings are made here.

One folder per subject; `LAYERS` in `tests/project/test_architecture.py` lists them from the bottom up.

May import: only the layers below (`types`, `errors`, `runtime` lie at the bottom); never a stage.
Start: `types` (conventions and the dataclasses that cross folders), `errors`, `registry` (families of backends).
"""

import os
from pathlib import Path

from utils.device.kernel_cache import drop_stale_kernels

# OpenMP threads that have run out of work spin for milliseconds, on cores that the kernels' own threads then lack: a 3DGS step
# on two busy cores took 90 to 190 ms of CPU time instead of 42. Read once, when torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

drop_stale_kernels(Path(__file__).parent)
