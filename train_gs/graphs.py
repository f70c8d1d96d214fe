"""Training steps recorded as CUDA graphs: one per view, replayed without the work of launching some hundred kernels one by one.

A step on a GPU takes longer to launch than to compute. Per view, the tensors of a step are always the same ones (image, pose,
deformation, optimiser state), so the step is recorded at its first visit. All graphs share their memory: they never run at once.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from utils.splatting.rasterize.triton import PairBudget

_EAGER_STEPS = 2
"""Steps taken kernel by kernel first: they compile the kernels, which must not happen while recording."""
_SPARE = 1.3
"""Room for (Gaussian, tile) pairs, relative to the most seen so far: views differ, and splats grow."""


class StepGraphs:
    """One recorded step per view.

    Args:
        step: the work for a view; only device work on tensors that stay where they are, no reading back; returns what to read later.
        budget: of the rasteriser; its capacity is fixed while graphs exist.
        device: CUDA.
    """

    def __init__(self, step: Callable[[int], Tensor], budget: "PairBudget", device: torch.device):
        self._step, self._budget = step, budget
        self._stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Drops all graphs because the step changes; every view is recorded again after a few steps without graphs."""
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._eager = _EAGER_STEPS
        self._budget.capacity = 0

    def run(self, view: int) -> Tensor:
        """One step of this view; the result is overwritten by its next step."""
        if self._eager:
            self._eager -= 1
            result = self._step(view)
            if not self._eager:
                self._budget.capacity = int(_SPARE * int(self._budget.needed))
                torch.cuda.empty_cache()
            return result
        if view not in self._graphs:
            self._graphs[view] = self._record(view)
        graph, result = self._graphs[view]
        graph.replay()
        return result

    def _record(self, view: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                result = self._step(view)
            except torch.OutOfMemoryError:
                with contextlib.suppress(RuntimeError):  # of a recording that broke off
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, result

    def check_budget(self) -> None:
        """Makes room if a step needed more pairs than there was room for (that step left out the farthest ones)."""
        if not self._eager and int(self._budget.needed) > self._budget.capacity:
            self.forget()
