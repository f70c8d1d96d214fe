"""A consistent world as a hand-held camera with a lens and a rolling shutter captures it; the truth is that of the middle row's moment.

Strips of rows are rendered from the poses of their moments. The view sways as well as moves: a steady motion alone bends every frame alike,
which poses and depth explain nearly as well as a shutter does.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from utils.cameras.lens import Lens
from utils.synthetic.inconsistency import make_inconsistency, tint
from utils.synthetic.raycast import View, render_view
from utils.synthetic.scenes import Place, build_place
from utils.synthetic.world import FOCAL
from utils.types import Array, CameraSet

# Rows that share a pose.
_STRIP = 4
# Progress along the path in each frame, and how the view turns: amplitude (radians) and angular frequency (radians a frame) about x, y, z.
_SPEED = 0.06
_SWAY, _FREQUENCY = (0.05, 0.06, 0.03), (0.6, 0.45, 0.5)


@dataclass(frozen=True)
class CapturedConfig:
    """What determines a captured clip.

    Attributes:
        layout: of the world.
        frames: number of frames.
        size: (h, w) in pixels, wider than high.
        seed: of the world.
        readout: time from the first row to the last, in frame intervals.
        k: radial coefficient of the lens.
    """

    layout: str = "room"
    frames: int = 14
    size: tuple[int, int] = (144, 256)
    seed: int = 1
    readout: float = 0.0
    k: float = 0.0


@dataclass(frozen=True)
class CapturedClip:
    """A captured clip and its truth.

    Attributes:
        config: what it was made from.
        images: (F, H, W, 3) uint8 as captured.
    """

    config: CapturedConfig
    images: Array

    @cached_property
    def cameras(self) -> CameraSet:
        """Pinholes at the moments of the middle rows."""
        place, count = build_place(self.config.layout, self.config.seed), self.config.frames
        c2w = np.stack([_pose(place, frame) for frame in range(count)])
        K = np.repeat(_intrinsics(self.config.size)[None], count, 0)
        return CameraSet(c2w=c2w, K=K, size=self.config.size, frame_ids=np.arange(count))

    @cached_property
    def depth(self) -> Array:
        """(F, H, W) float32 camera z in these, 0 at sky."""
        config = self.config
        place = build_place(config.layout, config.seed)
        return np.stack([_view(place, config, frame, 0, config.size[0]).depth for frame in range(config.frames)])


def capture(config: CapturedConfig) -> CapturedClip:
    """The clip of a configuration."""
    place = build_place(config.layout, config.seed)
    height, width = config.size
    images = np.zeros((config.frames, height, width, 3), np.uint8)
    step = _STRIP if config.readout else height
    for frame in range(config.frames):
        for top in range(0, height, step):
            rows = min(step, height - top)
            color = _view(place, config, frame + config.readout * ((top + rows / 2) / height - 0.5), top, rows).color
            images[frame, top : top + rows] = tint(color, np.ones(3), np.zeros(3))
    return CapturedClip(config, bent(images, Lens(FOCAL, config.k)) if config.k else images)


def global_shutter(config: CapturedConfig, frame: int) -> Array:
    """(H, W, 3) uint8 what a pinhole shows at the moment of a frame's middle row."""
    color = _view(build_place(config.layout, config.seed), config, frame, 0, config.size[0]).color
    return tint(color, np.ones(3), np.zeros(3))


def bent(images: Array, lens: Lens) -> Array:
    """What a camera with a lens shows of undistorted images (F, h, w, 3) of the same focal length."""
    height, width = images.shape[1:3]
    focal = lens.focal * max(height, width)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    x, y = (x - width / 2) / focal, (y - height / 2) / focal
    u, v = x.copy(), y.copy()
    for _ in range(30):
        stretch = 1 + lens.k * (u**2 + v**2)
        u, v = x / stretch, y / stretch
    at = np.stack([u * focal + width / 2 - 0.5, v * focal + height / 2 - 0.5], -1).astype(np.float32)
    return np.stack([cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for image in images])


def _intrinsics(size: tuple[int, int]) -> Array:
    focal = FOCAL * size[1]
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])


def _pose(place: Place, time: float) -> Array:
    """c2w (4, 4) at a time in frames."""
    turn = np.array([amplitude * np.sin(rate * time + i) for i, (amplitude, rate) in enumerate(zip(_SWAY, _FREQUENCY, strict=True))])
    sway = np.eye(4)
    sway[:3, :3] = cv2.Rodrigues(turn)[0]
    return place.path.c2w(_SPEED * time) @ sway


def _view(place: Place, config: CapturedConfig, time: float, top: int, rows: int) -> View:
    """What the rows from `top` on show at a time."""
    K = _intrinsics(config.size)
    K[1, 2] -= top
    still = make_inconsistency(1, warp="smooth", severity=0.0, scale=1.0, shapes=place.shapes, pivot=np.zeros(3), seed=0).still()
    cameras = CameraSet(c2w=_pose(place, time)[None], K=K[None], size=(rows, config.size[1]), frame_ids=np.arange(1))
    return render_view(place.shapes, place.materials, still, cameras=cameras, index=0, scale=1.0, salt=config.seed)
