"""What the solvers share: sums in a fixed number of parts, which do not depend on the number of cores; damping; small matrices."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from utils.runtime import cpu_count
from utils.types import Array

# So many parts, whatever the number of threads; fewer where the parts' matrices would take more memory than this (in numbers).
_PARTS, _PARTS_NUMBERS = 16, 1 << 25


_lock = threading.Lock()
_at_work: list[int] = []  # the threads of the solvers inside, one for each solver
_own = threading.local()  # `threads`: how many a thread had before it was kept to one, if it has not got them back


@contextmanager
def solver_threads() -> Iterator[ThreadPoolExecutor]:
    """A thread per core for the sums; torch is kept to one, since what its solvers return depends on their number.

    The number that torch keeps is one of each thread, that of its matrix library one of the process. So while solvers are at work on
    other threads, nobody gets more back; a thread that has left then gets them with `threads_given_back`, or when it leaves the next one.
    """
    with _lock:
        _at_work.append(threading.get_ident())
        if not hasattr(_own, "threads"):
            _own.threads = torch.get_num_threads()
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cpu_count()) as pool:
            yield pool
    finally:
        with _lock:
            _at_work.remove(threading.get_ident())
        threads_given_back()


def threads_given_back() -> None:
    """Gives torch the threads on this thread that `solver_threads` took, unless a solver is at work anywhere."""
    with _lock:
        if not _at_work and hasattr(_own, "threads"):
            torch.set_num_threads(_own.threads)
            del _own.threads


def part_bounds(first: Array, unknowns: int) -> list[int]:
    """Points at which parts of about as many observations begin, and the end.

    Args:
        first: (P + 1,) first observation of each point, and their number.
        unknowns: side of each part's matrix.
    """
    parts = int(np.clip(_PARTS_NUMBERS // unknowns**2, 1, _PARTS))
    wanted = np.searchsorted(first, np.arange(parts) * first[-1] // parts)
    return np.unique(np.r_[0, wanted[wanted < len(first)], len(first) - 1]).tolist()


@dataclass
class TrustRegion:
    """Damping of Levenberg-Marquardt, as a share of the diagonal: relaxed as far as the cost falls by what was expected.

    Source: Madsen, Nielsen, Tingleff, "Methods for non-linear least squares problems", 2004, as in Ceres.
    """

    damping: float = 1e-4
    _growth: float = 2.0

    def accepts(self, fell: float, expected: float) -> bool:
        """Whether a step after which the cost fell by so much instead of what was expected is taken."""
        gain = fell / expected if expected > 0 and np.isfinite(fell) else -1.0
        if gain < 1e-3:
            self.damping *= self._growth
            self._growth *= 2
            return False
        self.damping = max(self.damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-16)
        self._growth = 2.0
        return True

    @property
    def is_spent(self) -> bool:
        """Whether steps have become too short to matter."""
        return self.damping > 1e10


@njit(nogil=True, cache=True)
def inverse_3x3(a: Array, out: Array) -> None:
    """Inverse of a symmetric 3x3 matrix."""
    x = a[1, 1] * a[2, 2] - a[1, 2] * a[1, 2]
    y = a[0, 2] * a[1, 2] - a[0, 1] * a[2, 2]
    z = a[0, 1] * a[1, 2] - a[0, 2] * a[1, 1]
    determinant = a[0, 0] * x + a[0, 1] * y + a[0, 2] * z
    scale = 1.0 / determinant
    out[0, 0], out[0, 1], out[0, 2] = x * scale, y * scale, z * scale
    out[1, 1] = (a[0, 0] * a[2, 2] - a[0, 2] * a[0, 2]) * scale
    out[1, 2] = (a[0, 1] * a[0, 2] - a[0, 0] * a[1, 2]) * scale
    out[2, 2] = (a[0, 0] * a[1, 1] - a[0, 1] * a[0, 1]) * scale
    out[1, 0], out[2, 0], out[2, 1] = out[0, 1], out[0, 2], out[1, 2]
