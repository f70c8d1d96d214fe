"""Refinement of the poses while the splats are trained: one small twist per frame, the reference frame fixed.

`reference` is the map from a twist to a pose, `triton` the same with its gradient in one GPU kernel each way.
May import: what `train_gs` may.
Start: `reference.pose`.
"""

import torch
from torch import Tensor, nn

from train_gs.cameras import reference
from train_gs.data import CorrectionSources
from utils.cameras import se3
from utils.device.triton_support import triton_ready
from utils.types import CameraSet


class CameraRefinement(nn.Module):
    """Poses `w2c_i = exp(xi_i) @ w2c_i^aligned`, xi = [omega, v * median_depth], zero at the start.

    The twist acts in the camera's own space, so turning and moving stay independent however far the camera is from the origin. One
    parameter per frame: a frame that was not rendered has no gradient, and the optimiser leaves it (and its moments) alone.
    """

    def __init__(self, cameras: CameraSet, median_depth: float, device: torch.device):
        super().__init__()
        self.w2c = torch.from_numpy(cameras.w2c).float().to(device)
        self.scale = torch.tensor([1.0, 1.0, 1.0] + [median_depth] * 3, device=device)
        self.twists = nn.ParameterList([nn.Parameter(torch.zeros(6, device=device)) for _ in range(len(cameras))])

    def c2w(self, view: int) -> Tensor:
        """(4, 4) refined pose, differentiable in the frame's twist."""
        return reference.pose(self.twists[view], self.scale, self.w2c[view])

    def pose(self, view: int) -> tuple[Tensor, Tensor | None]:
        """`c2w`, and on a GPU also the quaternion (4,) of the world-to-camera rotation, where one kernel makes both."""
        if not (self.w2c.is_cuda and triton_ready()):
            return self.c2w(view), None
        from train_gs.cameras import triton

        return triton.pose(self.twists[view], self.scale, self.w2c[view])

    def penalty(self, view: int) -> Tensor:
        """Squared twist, in squared radians and median depths."""
        return self.twists[view].square().sum()

    @torch.no_grad()
    def refined(self, cameras: CameraSet, sources: CorrectionSources) -> CameraSet:
        """All cameras refined; twists of untrained frames come from their neighbours, see `CorrectionSources`."""
        twists = torch.stack(list(self.twists)).double().cpu() * self.scale.double().cpu()
        twists = sources.fill(twists)
        w2c = se3.exp(twists) @ torch.from_numpy(cameras.w2c)
        return CameraSet(c2w=se3.inverse(w2c).numpy(), K=cameras.K, size=cameras.size, frame_ids=cameras.frame_ids)
