"""Early stop: whether the loss still falls from one round over the frames to the next."""

from typing import Any


class Plateau:
    """Mean loss of every round; reached when the best of the last rounds is hardly below the best before them.

    Args:
        rounds: how many rounds may pass without gain; 0: never stop.
        gain: least relative fall of the loss that counts.
    """

    def __init__(self, rounds: int, gain: float):
        self._rounds, self._gain = rounds, gain
        self._sum, self._count = 0.0, 0
        self._means: list[float] = []
        self.reached = False

    def add(self, loss: float) -> None:
        """The loss of one step of the round."""
        self._sum, self._count = self._sum + loss, self._count + 1

    def end_round(self) -> None:
        """All frames have been seen once more."""
        if not self._rounds or not self._count:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) > self._rounds:
            before, lately = min(self._means[: -self._rounds]), min(self._means[-self._rounds :])
            self.reached = lately > before * (1 - self._gain)

    def state(self) -> dict[str, Any]:
        """What the rest of the run depends on."""
        return {"sum": self._sum, "count": self._count, "means": self._means, "reached": self.reached}

    def load(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self._sum, self._count, self._means, self.reached = state["sum"], state["count"], list(state["means"]), state["reached"]
