"""Refinement of the poses while the splats are trained: one small twist per frame, the reference frame fixed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from utils.cameras import se3
from utils.cameras.blending import neighbours_in_time
from utils.device.triton_support import triton_ready
from utils.types import CameraSet


@dataclass(frozen=True, kw_only=True)
class CorrectionSources:
    """Where the corrections that training finds come from, frame by frame.

    Attributes:
        frame_ids: (F,) ascending.
        trained: (F,) bool, frames with corrections of their own.
        blended: (F,) bool, frames whose pose and field are blended from their neighbours in time, so that the neighbours' corrections
            belong to them. A frame with a pose and field of its own is not helped by what corrects others (Uni3C clip: 30 dB with its own
            field, 23 dB with its neighbours' corrections on top) and takes none.
        clips: (F,) clip of each frame; frames of different clips are no neighbours.
    """

    frame_ids: np.ndarray
    trained: np.ndarray
    blended: np.ndarray
    clips: np.ndarray

    def fill(self, values: Tensor, *, everywhere: bool = False) -> Tensor:
        """Values (F, C): those of untrained frames interpolated over time between trained ones, or zero, see `blended`.

        Args:
            values: per frame.
            everywhere: interpolate for frames with a field of their own, too.
        """
        own, rest = np.flatnonzero(self.trained), np.flatnonzero(~self.trained)
        around = neighbours_in_time(self.frame_ids[own], self.frame_ids[rest], self.clips[own], self.clips[rest])
        takes = around.found & (self.blended[rest] | everywhere)
        filled = values.clone()
        filled[rest] = torch.from_numpy(around.blend(values.numpy()[own]) * takes[:, None]).to(values.dtype)
        return filled


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
    def refined(self, cameras: CameraSet, sources: CorrectionSources) -> CameraSet:
        """All cameras refined; what frames that were not trained take over from their neighbours, see `CorrectionSources`."""
        twists = torch.stack(list(self.twists)).double().cpu() * self.scale.double().cpu()
        twists = sources.fill(twists)
        w2c = se3.exp(twists) @ torch.from_numpy(cameras.w2c)
        return CameraSet(c2w=se3.inverse(w2c).numpy(), K=cameras.K, size=cameras.size, frame_ids=cameras.frame_ids)
