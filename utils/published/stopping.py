"""When an optimisation ends before its last iteration."""

from collections.abc import Mapping


class EarlyStopping:
    """Ends when no term has fallen below its best value by `min_delta` for `patience` iterations in a row.

    Args:
        patience: 0 never ends.
        min_iters: iterations before it may end.
        min_delta: decrease that counts.
    """

    def __init__(self, patience: int, min_iters: int, min_delta: float):
        self._patience, self._min_iters, self._min_delta = patience, min_iters, min_delta
        self._best: dict[str, float] = {}
        self._stalled = 0
        self._done = 0

    def update(self, terms: Mapping[str, float]) -> bool:
        """True if this iteration, whose terms have these values, was the last."""
        self._done += 1
        improved = False
        for name, value in terms.items():
            if value <= self._best.get(name, float("inf")) - self._min_delta:
                self._best[name] = value
                improved = True
        self._stalled = 0 if improved else self._stalled + 1
        return self._patience > 0 and self._done >= self._min_iters and self._stalled >= self._patience
