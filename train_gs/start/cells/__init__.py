"""Points of a cloud in cubes of chosen scales, to count and to average: `reference` on the CPU, `batched` on a device.

May import: what `train_gs` may.
Start: `with_cells`, which chooses.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from train_gs.start.cells.reference import HostCells
from utils.device.accelerator import accelerator, or_on_cpu
from utils.types import Array

T = TypeVar("T")


class Cells(Protocol):
    """Points in cubes of a chosen scale."""

    def groups(self) -> Array:
        """(N,) number of each point's cube at scale 1, without gaps."""
        ...

    def count(self, scale: float) -> int:
        """Occupied cubes."""
        ...

    def means(self, scale: float) -> tuple[Array, Array]:
        """Mean point (M, 3) and colour (M, 3) of every occupied cube."""
        ...


class MakeCells(Protocol):
    """The points in cubes of given edges."""

    def __call__(self, edge: Array, level: Array) -> Cells:
        """Cubes of edge (N,) at scale 1; points of different levels (N,) never share one."""
        ...


def with_cells(points: Array, colors: Array, work: Callable[[MakeCells], T], what: str) -> T:
    """What `work` returns for the points in cubes, on a device if there is one, and on the CPU if that runs out of memory.

    Args:
        points: (N, 3) float64.
        colors: (N, 3) float64.
        work: given the maker of cubes.
        what: for the message if the device fails.
    """
    device = accelerator()
    if device is None:
        return work(partial(HostCells, points, colors))
    from train_gs.start.cells.batched import DeviceCells

    return or_on_cpu(lambda: work(partial(DeviceCells, points, colors, device)), lambda: work(partial(HostCells, points, colors)), what)
