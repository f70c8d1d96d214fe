"""What every geometry backend offers: cameras, depth and confidence of the chosen frames of a clip.

Adding one is a class with `estimate` and an entry in `GEOMETRY`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from utils.errors import InputError
from utils.registry import Registry
from utils.scene.resample import resized
from utils.types import Array, Reporter, Scene

GEOMETRY = Registry(
    "geometry backend",
    sfm="utils.sfm.backend:SfmGeometry",
    da3="utils.da3.backend:Da3Geometry",
    **{"import": "utils.imports.backend:ImportGeometry"},
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseModel:
    """Registered cameras and the points they see.

    Attributes:
        frames: (R,) int64, position of each registered image in the list given, increasing.
        w2c: (R, 4, 4) camera from world.
        K: (R, 3, 3) pixels of the images given; all of one principal point, and of one focal length unless the clip zooms.
        points: (P, 3) world.
        seen_by: (M,) int64, row of `frames` of each observation.
        seen_point: (M,) int64, row of `points` of each observation.
        seen_at: (M, 2) pixel of each observation.
        error_px: mean reprojection error.
        zoom_sigma: by how much the log focal length may change from the first to the last frame of a clip; 0: all frames share one.
    """

    frames: Array
    w2c: Array
    K: Array
    points: Array
    seen_by: Array
    seen_point: Array
    seen_at: Array
    error_px: float
    zoom_sigma: float = 0.0

    @property
    def focal(self) -> float:
        """Focal length in pixels, the median of a zoom."""
        return float(np.median(self.K[:, 0, 0]))


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """The frames a backend may look at.

    Attributes:
        images: (T, h, w, 3) uint8 sRGB in the order of the clip, square pixels; the chosen frames and perhaps some in between.
        chosen: (N,) int64, increasing positions in `images`: the frames that become the scene.
        size: (H, W) of the scene's images and depth.
        names: (T,) what to call each frame in messages.
        pictures: (T, H, W, 3) uint8 the same frames at `size`, made from their source and not from `images`. None: from `images`.
        keep: (T, h, w) bool, pixels that may be matched: not an overlay, nothing that moves by itself. None: all.
        mapped: sparse model of the chosen frames, if mapping them was necessary before; None leaves it to the backend.
        clips: (T,) int64 clip of each frame: frames of different clips are no neighbours. None: all are of one.
        numbers: (T,) int64 of each frame in its input, from 0, whatever was left out. None: these are all of it.
        total: frames of the input; 0: these.
        counted: the names are numbers that frames of a clip were given, not names of files.
        folder: what the folder of the frames is called; it may tell frames of one name apart.
    """

    images: Array
    chosen: Array
    size: tuple[int, int]
    names: tuple[str, ...]
    pictures: Array | None = None
    keep: Array | None = None
    mapped: SparseModel | None = None
    clips: Array | None = None
    numbers: Array | None = None
    total: int = 0
    counted: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        if len(self.chosen) < 2:
            raise InputError(
                f"{len(self.chosen)} frame was given, at least 2 are needed",
                "use a clip or folder that shows the scene from several positions",
            )
        if not (np.diff(self.chosen) > 0).all() or self.chosen[0] < 0 or self.chosen[-1] >= len(self.images):
            raise ValueError("chosen must be increasing positions in images")
        if self.pictures is not None and self.pictures.shape != (len(self.images), *self.size, 3):
            raise ValueError("pictures must be the images at the scene's size")
        if self.keep is not None and self.keep.shape != self.images.shape[:3]:
            raise ValueError("keep must be as large as the images")

    def picture(self, position: int) -> Array:
        """(H, W, 3) a frame as the scene shows it."""
        return resized(self.images[position], self.size) if self.pictures is None else self.pictures[position]


class GeometryBackend(Protocol):
    """Estimates geometry from images.

    The scene holds one entry for each chosen frame that could be placed; `scene.cameras.frame_ids` are rows of `frames.chosen`.
    """

    def estimate(self, frames: ClipFrames, report: Reporter) -> Scene:
        """Cameras, depth and confidence; raises `GeometryError` if the frames do not determine them."""
        ...
