"""Views of one world as a CUDA graph: recorded once per picture size, replayed for one camera after the other.

Drawn kernel by kernel, a view takes a hundred calls, each of which waits for the interpreter beside threads that encode and compare
pictures, and stops to read how many (Gaussian, tile) pairs there are. A recording has room for a fixed number of pairs; the number that
a view needed comes back with its picture, and the rare view that needed more is drawn again, kernel by kernel.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.device.accelerator import release_memory
from utils.types import RenderOutput

if TYPE_CHECKING:
    from utils.splatting.rasterize.triton import PairBudget

_log = logging.getLogger(__name__)

LEAST_VIEWS = 32
"""Cameras from which on a recording is worth it: making it takes as long as drawing some twenty."""
_SAMPLES = 8
"""Views drawn kernel by kernel before: they compile the kernels and show how many pairs there are."""
_SPARE = 1.3


class RecordedViews:
    """Draws a world from cameras whose numbers are in rows on the device.

    Args:
        draw: a view from the row (32,) of a camera; only device work but for the number of pairs.
        budget: of the rasteriser that draws; exact again after every recording.
    """

    def __init__(self, draw: Callable[[Tensor], RenderOutput], budget: "PairBudget"):
        self._draw, self._budget = draw, budget
        self._stream = torch.cuda.Stream(budget.needed.device)
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor, RenderOutput] | None = None
        self._room = 0

    def views(self, rows: Tensor) -> Iterator[RenderOutput]:
        """One view for each of the rows (P, 32), in their order; each is given out while the next is drawn.

        Where they cannot be recorded, for want of memory or because the driver refuses, they are drawn kernel by kernel.
        """
        done = 0
        try:
            for output in self._replayed(rows):
                done += 1
                yield output
            return
        except RuntimeError as error:  # torch.OutOfMemoryError among them
            _log.warning("views are drawn one by one, they cannot be recorded: %s", (str(error).splitlines() or ["no reason given"])[0])
        self._recorded = None
        release_memory()
        for row in rows[done:]:
            yield self._draw(row)

    def _replayed(self, rows: Tensor) -> Iterator[RenderOutput]:
        waiting: tuple[Tensor, RenderOutput, Tensor, torch.cuda.Event, int] | None = None
        for row in rows:
            graph, camera, output = self._recorded or self._record(rows)
            camera.copy_(row)
            graph.replay()
            needed = torch.empty(1, dtype=torch.int64, pin_memory=True).copy_(self._budget.needed, non_blocking=True)
            drawn = _copied(output)
            done = torch.cuda.Event()
            done.record()
            if waiting is not None:
                yield self._whole(*waiting)
            waiting = row, drawn, needed, done, self._room
        if waiting is not None:
            yield self._whole(*waiting)

    def _whole(self, row: Tensor, drawn: RenderOutput, needed: Tensor, done: torch.cuda.Event, room: int) -> RenderOutput:
        """The view, drawn again if there was not room for all of its pairs; then the next recording has more."""
        done.synchronize()
        if int(needed) <= room:
            return drawn
        if int(needed) > self._room:
            self._recorded, self._room = None, int(_SPARE * int(needed))
        return self._draw(row)

    def _record(self, rows: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, RenderOutput]:
        """Records a view; the room is that of the most pairs among some of the rows."""
        budget, camera = self._budget, rows[0].clone()
        budget.needed.zero_()
        for row in rows[:: max(1, len(rows) // _SAMPLES)]:
            self._draw(row)
        self._room = max(self._room, int(_SPARE * int(budget.needed)), 1)
        graph = torch.cuda.CUDAGraph()
        try:
            budget.capacity = self._room
            self._draw(camera)  # compiles kernels for this number of pairs
            torch.cuda.synchronize()
            with torch.cuda.stream(self._stream):
                graph.capture_begin(capture_error_mode="thread_local")  # others may copy to the device meanwhile
                try:
                    budget.needed.zero_()
                    output = self._draw(camera)
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # of a recording that broke off
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            budget.capacity = 0
        torch.cuda.current_stream().wait_stream(self._stream)
        self._recorded = graph, camera, output
        return self._recorded


def _copied(output: RenderOutput) -> RenderOutput:
    """The same in tensors of its own."""
    own = RenderOutput(output.rgb.clone(), output.alpha.clone(), output.depth.clone())
    return replace(own, **{name: part.clone() for name in ("normal", "distortion") if (part := getattr(output, name)) is not None})
