"""Data of a training: cameras, images, masks and depth of the frames, and the role of each frame."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from utils.cameras.blending import neighbours_in_time
from utils.types import Array, CameraSet


@dataclass(frozen=True, kw_only=True)
class CorrectionSources:
    """Which frames have corrections (pose, field, colour) of their own, and which take those of their neighbours in time.

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


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What the splats are fitted to.

    Attributes:
        cameras: aligned cameras of all frames, at the images' resolution.
        images: (F, H, W, 3) uint8.
        heldout: (F,) bool, frames that are only measured.
        median_depth: scene units.
        used: (F, H, W) bool, pixels that no mask takes out; None for all.
        color_maps: (F, 3, 4) colour maps of the frames as far as the alignment knows them.
        depth: (F, h, w) float32 camera z as stage 0 estimated it, at its own size, 0 where unknown; None where nobody asks.
        blended: (F,) bool, frames whose pose and field are blended from their neighbours in time; None for none.
        left_out: (F,) bool, frames that alignment could not place: not trained on, like held-out ones; None for none.
        clips: (F,) clip of each frame; None where all are of one.
    """

    cameras: CameraSet
    images: Tensor
    heldout: Array
    median_depth: float
    used: Tensor | None = None
    color_maps: Array | None = None
    depth: Array | None = None
    blended: Array | None = None
    left_out: Array | None = None
    clips: Array | None = None

    @property
    def trained(self) -> Array:
        """(F,) bool, frames to train on."""
        trained: Array = ~self.heldout if self.left_out is None else ~(self.heldout | self.left_out)
        return trained

    @property
    def sources(self) -> CorrectionSources:
        """Which frames have corrections of their own, and what the others take over."""
        none = np.zeros(len(self.cameras), bool)
        return CorrectionSources(
            frame_ids=self.cameras.frame_ids,
            trained=self.trained,
            blended=none if self.blended is None else self.blended,
            clips=none.astype(int) if self.clips is None else self.clips,
        )

    def select(self, views: Array) -> "TrainingData":
        """The frames at these positions."""
        rows = lambda values: None if values is None else values[views]  # noqa: E731
        return replace(
            self,
            cameras=self.cameras.select(views),
            images=self.images[views],
            heldout=self.heldout[views],
            used=rows(self.used),
            color_maps=rows(self.color_maps),
            depth=rows(self.depth),
            blended=rows(self.blended),
            left_out=rows(self.left_out),
            clips=rows(self.clips),
        )
