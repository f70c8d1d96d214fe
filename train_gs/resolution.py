"""Coarse to fine: the frames at the image size of the current part of the training.

Colours and places settle on small images, where a step costs a fraction; the last part of the steps then only has the fine detail to
add. (Chen et al., "DashGaussian", 2025, derive how the size may grow; two sizes already save most of it here.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SIDE = 64
"""Pixels of the shorter side below which images are not made smaller."""


@dataclass(frozen=True)
class Shown:
    """The frames at one size.

    Attributes:
        images: (F, H, W, 3) uint8.
        used: (F, H, W) bool, pixels that may supervise; None for all.
        K: (F, 3, 3) in pixels of this size.
    """

    images: Tensor
    used: Tensor | None
    K: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return int(self.images.shape[1]), int(self.images.shape[2])

    def resized(self, scale: float) -> "Shown":
        """Area averages; a pixel is used where all that it covers is."""
        (h, w), frames = self.size, len(self.images)
        size = (round(h * scale), round(w * scale))
        if min(size) < LEAST_SIDE:
            return self
        images = torch.stack([shrunk(image.permute(2, 0, 1).float(), size).permute(1, 2, 0) for image in self.images])
        used = None if self.used is None else torch.stack([shrunk(u[None].float(), size)[0] > 1 - 1e-3 for u in self.used])
        factor = self.K.new_tensor([size[1] / w, size[0] / h, 1.0])
        assert len(images) == frames
        return Shown((images + 0.5).clamp(max=255).to(torch.uint8), used, self.K * factor[:, None])


def shrunk(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) averaged over the areas of the pixels of a smaller size."""
    return torch.nn.functional.interpolate(planes[None], size, mode="area")[0]


def scale_at(progress: float, scales: tuple[float, ...], until: float) -> float:
    """Image scale at a step: each of `scales` for equally many steps, then 1."""
    if progress >= until:
        return 1.0
    return scales[int(progress / until * len(scales))] if scales else 1.0
