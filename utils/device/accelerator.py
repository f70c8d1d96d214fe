"""The GPU for work that is not tied to a device by its inputs, and what to do when its memory is short."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_GIB = 2**30
_log = logging.getLogger(__name__)
_allowed = True


def accelerator() -> torch.device | None:
    """The CUDA device of this process, if there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if _allowed and torch.cuda.is_available() else None


@contextlib.contextmanager
def without_accelerator() -> Iterator[None]:
    """Inside, everything runs on the CPU."""
    global _allowed  # noqa: PLW0603
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def cap_memory(device: torch.device, gib: float) -> None:
    """Lets PyTorch take at most so many GiB of the device; 0 lifts the cap. Does nothing on the CPU."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        index = torch.cuda.current_device() if device.index is None else device.index  # PyTorch asks for a number here
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * _GIB / total) if gib else 1.0, index)


def cap_accelerator(gib: float) -> None:
    """`cap_memory` of the process's GPU, if there is one."""
    device = accelerator()
    if device is not None:
        cap_memory(device, gib)


def release_memory() -> None:
    """Gives back what PyTorch keeps of the device; call it outside of the handler of an error, whose traceback keeps tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_chunks(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], size: int, what: str) -> list[Result]:
    """`work` on chunks of `items`, its lists joined; where the device runs out of memory, chunks are halved from there on.

    Args:
        work: from a chunk to one result per item.
        items: all of them.
        size: of the first chunks.
        what: the work, for the line that tells of it.

    Raises:
        torch.OutOfMemoryError: not even one item fits.
    """
    done: list[Result] = []
    while len(done) < len(items):
        try:
            done += work(items[len(done) : len(done) + size])
            continue
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        release_memory()
        size = max(1, size // 2)
        _log.warning("%s: out of GPU memory, going on with %d at once", what, size)
    return done


def or_on_cpu(work: Callable[[], Result], fallback: Callable[[], Result], what: str) -> Result:
    """`work()`, or `fallback()` where the device runs out of memory; says so in one line."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass
    release_memory()
    _log.warning("%s: out of GPU memory, going on on the CPU", what)
    return fallback()
