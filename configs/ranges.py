"""Ranges of numbers in settings: one line per range, one kind of message. Every number has an upper bound, too.

Bounds are where a setting stops meaning anything, or where what it asks for fits no machine: memory by width, by lattice, by pixels.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from utils.errors import ConfigError

_TINY = 1e-12


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds.

    Attributes:
        low: smallest.
        high: largest.
        above: `low` itself is too small, and what exceeds it by less than `_TINY`: divided by, it would overflow.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value >= self.low + _TINY if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (f"{bound:,.0f}" if abs(bound) >= 1000 else f"{bound:g}" for bound in (self.low, self.high))
        if math.isinf(self.low):
            return f"give at most {high}"
        return f"give a value {'above' if self.above else 'from'} {low} {'and at most' if self.above else 'to'} {high}"


LARGEST = 1e7
"""Of what costs time alone, and of weights: beyond, nothing is meant but a typing error."""
NOT_NEGATIVE, POSITIVE, COUNT = Range(0, LARGEST), Range(0, LARGEST, above=True), Range(1, LARGEST)
AT_MOST = Range(high=LARGEST)
"""Numbers of which those below 1 mean all, or none."""
SHARE, PERCENT, COSINE = Range(0, 1), Range(0, 100), Range(-1, 1)
RATE = Range(0, 10)
"""Learning rates."""
NEAREST = 100
"""Most neighbours of a point: each has an index and a distance for every point of a cloud."""
WIDTH, LAYERS, SAMPLES = Range(1, 1024), Range(1, 32), Range(1, 1e6)
"""Of networks; of what is drawn at once."""
SEED = Range(0, (1 << 32) - 1)
SIDE = 8192
"""Longest side of pictures that are computed, in pixels."""
MEMORY_GB = Range(0, 1e6)
_NODES, _MOST_NODES = Range(2, 256), 100_000

_found: ContextVar[list[ConfigError] | None] = ContextVar("found", default=None)


@contextmanager
def all_at_once() -> Iterator[None]:
    """Inside, what `check` finds wrong is gathered; at the end all of it is one error, with a ConfigError that ends the inside.

    Raises:
        ConfigError: numbers out of range.
    """
    found: list[ConfigError] = []
    token = _found.set(found)
    try:
        yield
    except ConfigError as error:
        found.append(error)
    finally:
        _found.reset(token)
    told = {error.message: error for error in found}  # settings are built more than once
    if len(told) == 1:
        raise next(iter(told.values()))
    if told:
        raise ConfigError("; ".join(told), "; ".join(dict.fromkeys(e.hint for e in told.values() if e.hint)))


def refuse(error: ConfigError) -> None:
    """Raises the error, or keeps it for the end of `all_at_once`."""
    found = _found.get()
    if found is None:
        raise error
    found.append(error)


def check_lattice(settings: object, name: str, group: str = "", least: int = 2) -> None:
    """The numbers of nodes of a lattice make sense, and so does their product: every frame has a lattice of its own.

    Raises:
        ConfigError: too few or too many.
    """
    check(settings, Range(least, _NODES.high), name, group=group)
    nodes = getattr(settings, name)
    count = math.prod(nodes)
    if count > _MOST_NODES and all(node in _NODES for node in nodes):
        where = f"{group + '.' if group else ''}{name}"
        refuse(ConfigError(f"{where} is {nodes}, which makes {count:,} nodes a frame", f"give at most {_MOST_NODES:,} in all"))


def check(settings: object, expected: Range, *names: str, group: str = "") -> None:
    """Every number of these fields lies in the range; tuples entry by entry, None always passes.

    Args:
        settings: the dataclass.
        expected: the range.
        names: of fields.
        group: the settings' own name on the command line, for the message.

    Raises:
        ConfigError: a number out of range, or NaN.
    """
    for name in names:
        value = getattr(settings, name)
        entries = value if isinstance(value, tuple) else (value,)
        if any(entry is not None and entry not in expected for entry in entries):
            refuse(ConfigError(f"{group + '.' if group else ''}{name} is {_shown(value)}", str(expected)))


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:76] + " ..."
