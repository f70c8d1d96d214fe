"""Spreads compiled kernels over threads.

Plain Python threads running kernels that release the GIL, not Numba's `prange`: kernels compile faster, threads take chunks as
they become free, calls from two threads at once are safe (a viewer beside an optimisation), and there is no second OpenMP pool.
Torch's pool must not spin while it waits: `utils` sets OMP_WAIT_POLICY.
"""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from utils.types import Array

CHUNKS_PER_THREAD = 6
"""Enough that the last thread to finish is not far behind, few enough that dispatch (about 20 us each) does not show."""

MAX_THREADS = 8
"""Dispatch holds the interpreter, so chunks of more threads queue for it: 32 took 65 ms for a training step that takes two about 29 ms."""

_SWITCH_SECONDS = 5e-4


@contextlib.contextmanager
def quick_to_switch() -> Iterator[None]:
    """Inside, a thread that wants the interpreter gets it ten times as soon as usual.

    Work on a GPU gives it away at each of its many small steps, and waits for it every time another thread computes in Python.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="rasterizer")


os.register_at_fork(after_in_child=_pool.cache_clear)


def num_threads() -> int:
    """Threads that take part. Follows `torch.set_num_threads` up to `MAX_THREADS`."""
    return min(torch.get_num_threads(), MAX_THREADS)


def num_chunks() -> int:
    """How many chunks to cut a job into: 1 on one thread."""
    threads = num_threads()
    return 1 if threads == 1 else threads * CHUNKS_PER_THREAD


def run_chunks(kernel: Callable[..., None], chunks: Sequence[tuple[Any, ...]], *shared: Any) -> None:
    """Runs `kernel(*chunk, *shared)` for all chunks; the order is unspecified, so chunks must write to different places."""
    pending = deque(chunks)

    def work() -> None:
        while True:
            try:
                chunk = pending.popleft()
            except IndexError:
                return
            kernel(*chunk, *shared)

    num_helpers = min(num_threads(), len(chunks)) - 1
    helpers = [_pool().submit(work) for _ in range(num_helpers)]
    work()
    for helper in helpers:
        helper.result()


def in_parallel(here: Callable[[], Array], beside: Callable[[], None]) -> Array:
    """Does both, `beside` on another thread if there is one; the result of `here`."""
    if num_threads() == 1:
        beside()
        return here()
    helper = _pool().submit(beside)
    result = here()
    helper.result()
    return result


def bands(count: int) -> list[tuple[int, int]]:
    """Cuts 0..count into one range (begin, end) per thread, for work that reads all of its input in every range."""
    return _cut(count, num_threads())


def ranges(count: int) -> list[tuple[int, int]]:
    """Cuts 0..count into chunks (begin, end)."""
    return _cut(count, num_chunks())


def _cut(count: int, pieces: int) -> list[tuple[int, int]]:
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return [(begin, end) for begin, end in pairwise(bounds) if end > begin]
