"""Per-pixel weights of the photometric loss: 0 under masks, lower at outliers, which contradict the other frames.

A generated clip may show an object that no other frame shows. The one world that all frames share cannot contain it, and fitting it
leaves a ghost. Such places keep a large error however long the training goes on, and one of colour, not of detail: so the running mean
of the signed difference over coarse cells is compared with what is usual over the whole clip. A misplaced edge averages out of it.
"""

import torch
from torch import Tensor, nn

_USUAL, _FLOOR = 5.0, 0.05
"""A cell is trusted fully up to this many times the median cell's error, and always up to this error (colours are 0..1)."""
_CELLS_ALONG = 24
_MEMORY = 0.6


class PixelTrust(nn.Module):
    """Weight of every pixel of every training frame; 1 until `settle` has been called.

    Args:
        used: (F, H, W) bool, pixels that may supervise; None for all.
        views: the training frames.
        frames: F.
        size: (H, W).
        device: of the training.
    """

    errors: Tensor
    limit: Tensor

    def __init__(self, used: Tensor | None, views: list[int], frames: int, size: tuple[int, int], device: torch.device):
        super().__init__()
        self._used, self._views, self._size = None if used is None else used.to(device), views, size
        self._edge = max(4, round(max(size) / _CELLS_ALONG))
        cells = [-(-side // self._edge) for side in size]
        self.register_buffer("errors", torch.zeros(frames, *cells, device=device))
        self.register_buffer("limit", torch.full((), float("inf"), device=device))

    @torch.no_grad()
    def weights(self, view: int) -> Tensor:
        """(H, W) in 0..1."""
        cells = (self.limit / self.errors[view].clamp(min=1e-6)).clamp(max=1.0).square()
        weight = torch.nn.functional.interpolate(cells[None, None], scale_factor=self._edge, mode="bilinear")[0, 0]
        weight = weight[: self._size[0], : self._size[1]]
        return weight if self._used is None else weight * self._used[view]

    @torch.no_grad()
    def observe(self, difference: Tensor, view: int) -> None:
        """Remembers how a rendered frame differs from what it should be, (h, w, 3) at this size or a smaller one."""
        difference = difference.permute(2, 0, 1)[None]
        if difference.shape[2:] != self._size:
            difference = torch.nn.functional.interpolate(difference, self._size)
        if self._used is not None:
            difference = difference * self._used[view]
        cells = torch.nn.functional.avg_pool2d(difference, self._edge, ceil_mode=True, count_include_pad=False)[0]
        self.errors[view].mul_(_MEMORY).add_(cells.norm(dim=0), alpha=1 - _MEMORY)

    @torch.no_grad()
    def settle(self) -> None:
        """Takes what is usual now as the measure; to be called when every training frame has been seen often enough."""
        self.limit.copy_((_USUAL * self.errors[self._views].median()).clamp(min=_FLOOR))


def weighted_pair(rgb: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two images (H, W, 3) whose difference, and its gradient with respect to rgb, is weighted (H, W); rgb keeps its values.

    What is not trusted is compared with itself, so every loss on the pair is blind to it, structural ones included.
    """
    weight, seen = weight[..., None], rgb.detach()
    return seen + weight * (rgb - seen), seen + weight * (target - seen)
