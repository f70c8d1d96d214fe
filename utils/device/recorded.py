"""Work on a GPU that takes longer to launch than to compute, recorded as a CUDA graph; and results read back while it goes on."""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.types import Array


class Recorded:
    """A function of tensors that is recorded as a CUDA graph at its second call and replayed from then on.

    The first call goes kernel by kernel: it compiles kernels and fills caches, which must not happen while recording. On the CPU every
    call is one of the function.

    Args:
        work: only work on the device, with nothing read back and nothing made from numbers of the host; same shapes at every call.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]]):
        self._work, self._called = work, False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._results: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The results, which the next call may overwrite."""
        if not self._called or not inputs[0].is_cuda:
            self._called = True
            return self._work(*inputs)
        if self._graph is None:
            self._record(inputs)
        assert self._graph is not None
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._results

    def _record(self, inputs: Sequence[Tensor]) -> None:
        device = inputs[0].device
        self._inputs = [given.clone() for given in inputs]
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # the memory of the first call, which the graph takes once more
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the device meanwhile
            try:
                self._results = self._work(*self._inputs)
            except torch.OutOfMemoryError:
                with contextlib.suppress(RuntimeError):  # of a recording that broke off
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = graph


class OnTheWay:
    """Tensors on their way to the host: the device goes on with what it is given next.

    Args:
        tensors: free to be overwritten by later work on the current stream.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._arrived: torch.cuda.Event | None = None
        if not tensors[0].is_cuda:
            self._host = list(tensors)
            return
        self._host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for own, tensor in zip(self._host, tensors, strict=True):
            own.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def wait(self) -> list[Array]:
        """The arrays; they live as long as this."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [own.numpy() for own in self._host]
