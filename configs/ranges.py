"""Ranges of numbers in settings: one line per range, one kind of message."""

import math
from dataclasses import dataclass

from utils.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds.

    Attributes:
        low: smallest.
        high: largest.
        above: `low` itself is too small.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (f"{bound:g}" for bound in (self.low, self.high))
        if self.high < LARGEST:
            return f"give a value {'above' if self.above else 'from'} {low} {'and at most' if self.above else 'to'} {high}"
        return f"give a value above {low}" if self.above else f"give at least {low}"


# Beyond this no setting means anything; what is infinite or mistyped by many digits is refused.
LARGEST = 1e11
NOT_NEGATIVE, POSITIVE, COUNT = Range(0, LARGEST), Range(0, LARGEST, above=True), Range(1, LARGEST)
SHARE, PERCENT, COSINE = Range(0, 1), Range(0, 100), Range(-1, 1)


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
            raise ConfigError(f"{group + '.' if group else ''}{name} is {value}", str(expected))
