"""Refinement of the poses while the splats are trained: one small twist per frame, the reference frame fixed."""

import numpy as np
import torch
from torch import Tensor, nn

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
        return se3.inverse(se3.exp(self.twists[view] * self.scale) @ self.w2c[view])

    def pose(self, view: int) -> tuple[Tensor, Tensor | None]:
        """`c2w`, and on a GPU also the quaternion (4,) of the world-to-camera rotation, where one kernel makes both."""
        if not (self.w2c.is_cuda and triton_ready()):
            return self.c2w(view), None
        from train_gs import cameras_triton

        return cameras_triton.pose(self.twists[view], self.scale, self.w2c[view])

    def penalty(self, view: int) -> Tensor:
        """Squared twist, in squared radians and median depths."""
        return self.twists[view].square().sum()

    @torch.no_grad()
    def refined(self, cameras: CameraSet, trained: np.ndarray) -> CameraSet:
        """All cameras refined; frames that were not trained take the twist interpolated between their trained neighbours."""
        twists = torch.stack(list(self.twists)).double().cpu() * self.scale.double().cpu()
        twists = interpolate_untrained(twists, cameras.frame_ids, trained)
        w2c = se3.exp(twists) @ torch.from_numpy(cameras.w2c)
        return CameraSet(c2w=se3.inverse(w2c).numpy(), K=cameras.K, size=cameras.size, frame_ids=cameras.frame_ids)


def interpolate_untrained(values: Tensor, frame_ids: np.ndarray, trained: np.ndarray) -> Tensor:
    """Values (F, C), those of untrained frames replaced by linear interpolation over the frame ids of trained ones."""
    columns = values.numpy()
    filled = [np.interp(frame_ids, frame_ids[trained], column[trained]) for column in columns.T]
    return torch.from_numpy(np.stack(filled, 1)).to(values.dtype)
