"""The inverse deformation of every training view, kept as local warps while the splats hardly move."""

from torch import Tensor

from utils.deformation.inverse import InverseWarp, LocalWarp


class WarpCache:
    """One `LocalWarp` per view, renewed after some visits while the splats move.

    Args:
        warp: the inverse deformation.
        refresh_visits: visits a local warp serves before it is solved anew.
    """

    def __init__(self, warp: InverseWarp, refresh_visits: int):
        self.warp = warp
        self._refresh_visits = refresh_visits
        self._frozen = False
        self._stored: dict[int, tuple[LocalWarp, int]] = {}

    def at(self, y: Tensor, view: int) -> LocalWarp:
        """The local warp of a view, at or near the rigidly transformed points y (N, 3)."""
        if y.is_cuda:  # solving anew takes less time there than the stored warps of all views take memory
            return self.warp.linearize(y, view)
        local, visits = self._stored.get(view, (None, 0))
        if local is None or (visits >= self._refresh_visits and not self._frozen):
            local, visits = self.warp.linearize(y, view), 0
        self._stored[view] = (local, visits + 1)
        return local

    def freeze(self) -> None:
        """The splats and poses move no more: every view is solved once more and then kept."""
        self._frozen = True
        self._stored.clear()

    def clear(self) -> None:
        """Forgets everything, for example because rows were added or dropped."""
        self._stored.clear()
