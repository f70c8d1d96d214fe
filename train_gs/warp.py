"""The inverse deformation of every training view, kept as local warps while the splats hardly move."""

from collections.abc import Callable

from torch import Tensor

from utils.deformation.inverse import LocalWarp


class WarpCache:
    """One `LocalWarp` per view, renewed after some visits while the splats move.

    Args:
        solve: the local warp at points y (N, 3) of a view.
        refresh_visits: visits a local warp serves before it is solved anew.
    """

    def __init__(self, solve: Callable[[Tensor, int], LocalWarp], refresh_visits: int):
        self._solve = solve
        self._refresh_visits = refresh_visits
        self._frozen = False
        self._stored: dict[int, tuple[LocalWarp, int]] = {}

    def at(self, y: Tensor, view: int) -> tuple[LocalWarp, bool]:
        """The local warp of a view, and whether it was solved just now, at or near the rigidly transformed points y (N, 3)."""
        if y.is_cuda:  # solving anew takes less time there than the stored warps of all views take memory
            return self._solve(y, view), True
        local, visits = self._stored.get(view, (None, 0))
        fresh = local is None or (visits >= self._refresh_visits and not self._frozen)
        if local is None or fresh:
            local, visits = self._solve(y, view), 0
        self._stored[view] = (local, visits + 1)
        return local, fresh

    def freeze(self) -> None:
        """The splats and poses move no more: every view is solved once more and then kept."""
        self._frozen = True
        self._stored.clear()

    def clear(self) -> None:
        """Forgets everything, for example because rows were added or dropped."""
        self._stored.clear()
