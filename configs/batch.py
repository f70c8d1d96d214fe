"""Settings of `python -m batch`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.pipeline import Device
from configs.ranges import MEMORY_GB, Range, check


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Many scenes, each stage of each a task of its own, on this machine or on a cluster.

    Flags after `--` go to every scene, for example: python -m batch clips --out worlds -- --mode extensive --gs.num-iters 3000
    Finished work is kept, so the same command goes on after whatever happened.
    """

    scenes: str
    """A folder of clips, frame folders, scene folders and results.npz files, or a list of them: JSON or CSV."""
    out: str = "worlds"
    """Where scene folders are made: a folder that all machines see, or an address that fsspec knows, such as s3://bucket/worlds."""
    engine: Literal["auto", "local", "ray"] = "auto"
    """local: processes of this machine; ray: a cluster, or one started here; auto: ray where an address is given, else local."""
    address: str = ""
    """Ray cluster to use: auto for the one this machine belongs to, host:port, or ray://host:port."""
    device: Device = "auto"
    """auto takes the GPU where this machine or the cluster has one; the budget of the presets follows it."""
    cpus: int = 0
    """CPUs of this machine to use. 0: all."""
    stage_cpus: int = 0
    """CPUs that a stage takes. 0: by the number of scenes and CPUs."""
    stage_memory_gb: float = 0.0
    """Memory that a stage takes, in GiB, so that no more run at once than fit. 0: by preset."""
    gpu_share: float = 1.0
    """Share of a GPU that a stage takes which uses one: 0.5 lets two scenes share a GPU."""
    retries: int = 2
    """How often a stage is tried again after its process or machine was lost, or after a fault of the program."""
    scratch: Path | None = None
    """Where scenes are worked on if `out` is no folder. Default: a folder of the system's temporary directory on each machine."""
    dry_run: bool = False
    """Say what would be done and about how long it takes, and do nothing."""

    def __post_init__(self) -> None:
        check(self, Range(0, 4096), "cpus", "stage_cpus")
        check(self, Range(0, 1000), "retries")
        check(self, MEMORY_GB, "stage_memory_gb")
        check(self, Range(0.01, 1), "gpu_share")
