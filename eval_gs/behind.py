"""Work that is done on threads behind the renders: pictures written, renders compared."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from utils.device.threads import num_threads

Result = TypeVar("Result")
_WAITING_PER_THREAD = 2
"""Jobs that may wait for a thread: each holds its pictures in memory."""


class Behind(Generic[Result]):
    """Runs jobs on as many threads as torch has, or as many as are given; a context manager that ends when they have ended.

    One thread does the jobs in their order. `waiting` of them, by default two per thread, may wait; more are not taken until one is done.

    Attributes:
        results: what the jobs returned, in the order in which they were given; complete after the end.

    Raises:
        Exception: the first error of a job, at a later job or at the end.
    """

    def __init__(self, threads: int = 0, waiting: int = 0) -> None:
        self.results: list[Result] = []
        self._threads = threads or num_threads()
        self._most_waiting = waiting or _WAITING_PER_THREAD * self._threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="evaluation")
        self._waiting: deque[Future[Result]] = deque()

    def do(self, work: Callable[[], Result], waiting: int = 0) -> None:
        """Starts a job as soon as a thread is free; waits while too many are waiting, `waiting` of them if that is given."""
        self._waiting.append(self._pool.submit(work))
        while len(self._waiting) > (waiting or self._most_waiting) or (self._waiting and self._waiting[0].done()):
            self.results.append(self._waiting.popleft().result())

    def end(self) -> list[Result]:
        """Waits for all jobs so far; their results."""
        while self._waiting:
            self.results.append(self._waiting.popleft().result())
        return self.results

    def __enter__(self) -> "Behind[Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.end()
        finally:
            self._pool.shutdown(cancel_futures=True)
