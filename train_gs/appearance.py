"""Colour drift of the frames: an affine colour map per frame, whose mean over the training frames is the identity.

The mean is held, not one frame: a generated clip drifts in colour from its first frame on, and the mean is nearer to every frame.
"""

import numpy as np
import torch
from torch import Tensor, nn

from train_gs.data import CorrectionSources


class Appearance(nn.Module):
    """rgb' = (I + D_i[:, :3]) @ rgb + D_i[:, 3] for frame i, D_i (3, 4), that of the alignment (or zero) at the start."""

    def __init__(self, frames: int, device: torch.device, color_maps: np.ndarray | None = None):
        super().__init__()
        maps = torch.eye(3, 4).expand(frames, 3, 4) if color_maps is None else torch.from_numpy(color_maps).float()
        self._start = (maps - torch.eye(3, 4)).to(device)
        self.deviations = nn.ParameterList([nn.Parameter(start.clone()) for start in self._start])

    def forward(self, rgb: Tensor, alpha: Tensor, view: int) -> Tensor:
        """(H, W, 3) the image as that frame shows it; rgb is premultiplied, so the offset is weighted by alpha (H, W)."""
        deviation = self.deviations[view]
        if rgb.is_cuda:  # a matrix product of three columns takes ten times as long there
            turned = (rgb[..., None, :] * deviation[:, :3]).sum(-1)
            return rgb + turned + alpha[..., None] * deviation[:, 3]
        # On a CPU a product with whole planes, which is how the rasteriser draws, takes a quarter of the time.
        planes = torch.cat([rgb.permute(2, 0, 1).reshape(3, -1), alpha.reshape(1, -1)])
        turned = (deviation + torch.eye(3, 4)) @ planes
        return turned.reshape(3, *alpha.shape).permute(1, 2, 0)

    def penalty(self, view: int) -> Tensor:
        """Squared deviation from where it started."""
        return (self.deviations[view] - self._start[view]).square().sum()

    @torch.no_grad()
    def center(self, views: list[int]) -> None:
        """Subtracts the mean deviation of these views from each of them."""
        mean = torch.stack([self.deviations[v] for v in views]).mean(0)
        for view in views:
            self.deviations[view] -= mean

    @torch.no_grad()
    def matrices(self, sources: CorrectionSources) -> Tensor:
        """(F, 3, 4) maps of all frames; those of untrained frames are interpolated between their trained neighbours in time."""
        start = self._start.cpu().reshape(-1, 12)
        learnt = torch.stack(list(self.deviations)).cpu().reshape(-1, 12) - start
        identity = torch.eye(3, 4).reshape(12)
        return (sources.fill(learnt, everywhere=True) + start + identity).reshape(-1, 3, 4)
