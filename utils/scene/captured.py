"""Lens distortion and rolling shutter of captured clips, taken out of the frames.

Both are taken out of the frames before anything is measured in them, so that every later stage may assume a pinhole whose picture is of
one moment: that at which the middle row was read. A pixel q of that picture is seen at `p = q + readout * s(p) * motion(p)`, s from -1/2
at the first row read to 1/2 at the last, motion in pixels for each frame of the clip. The motion is measured between the frames
themselves, which needs neither poses nor depth. (A model of the camera's motion is the usual way, for example Forssen and Ringaby 2010.)

Sensors read along their short side. Pixel centres at +0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from utils.cameras.lens import Lens, parse_lens
from utils.errors import ConfigError
from utils.scene.media import resize_area
from utils.types import Array

# Motion is measured at up to this size.
_MOTION_RESOLUTION = 512
# Standard deviation, in longest sides, of the blur that takes flow's noise out of the motion.
_MOTION_BLUR = 1 / 128
# Fields kept: consecutive frames are asked for one after another, and the scene's frames again later.
_KEPT = 128


@dataclass(frozen=True)
class CapturedCamera:
    """Lens and shutter of a camera.

    Attributes:
        lens: its distortion.
        readout: time from the first row to the last, in frame intervals of the clip; negative if the lower (right) rows come first.
    """

    lens: Lens
    readout: float = 0.0

    def __post_init__(self) -> None:
        if not abs(self.readout) <= 1:
            raise ConfigError(
                f"a shutter's readout of {self.readout:g} frame intervals", "a picture is read within one interval: give -1 to 1"
            )

    def straightened(self, image: Array, motion: Array | None = None, *, nearest: bool = False) -> Array:
        """The image (h, w[, C]) as a pinhole with a global shutter would show it, at the same size.

        Args:
            image: as captured.
            motion: (h', w', 2) of the frame, in its own pixels for each frame of the clip; needed if there is a readout.
            nearest: pick values instead of mixing them.
        """
        if not self.readout:
            return self.lens.undistorted(image, nearest=nearest)
        if motion is None:
            raise ValueError("the shutter can only be taken out with the frame's motion")
        size = image.shape[:2]
        moved = scaled_motion(motion, size)
        target = self.lens.sources(size)
        at = target
        for _ in range(3):
            at = target + self.readout * read_share(at, size)[..., None] * _sampled(moved, at)
        how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        return cv2.remap(image, at[..., 0] - 0.5, at[..., 1] - 0.5, how, borderMode=cv2.BORDER_REPLICATE)


def read_share(pixels: Array, size: tuple[int, int]) -> Array:
    """(...,) when pixels (..., 2) of a picture (h, w) are read: -1/2 first, 1/2 last."""
    axis = 1 if size[0] <= size[1] else 0
    return (pixels[..., axis] / size[1 - axis] - 0.5).astype(np.float32)


def scaled_motion(motion: Array, size: tuple[int, int]) -> Array:
    """Motion (h', w', 2) at another size, in pixels of that."""
    scale = np.array([size[1] / motion.shape[1], size[0] / motion.shape[0]], np.float32)
    return cv2.resize(motion, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) * scale


def _sampled(field: Array, at: Array) -> Array:
    at = at.astype(np.float32)
    return cv2.remap(field, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def motion_at(motion: Array, pixels: Array, size: tuple[int, int]) -> Array:
    """(M, 2) motion of pixels (M, 2) of a picture (h, w)."""
    return _sampled(scaled_motion(motion, size), pixels[None])[0].astype(np.float64)


def image_motion(before: Array | None, here: Array, after: Array | None) -> Array:
    """(h, w, 2) float32 pixels by which a frame's content moves for each frame of the clip: the mean of how it came and how it goes on.

    Args:
        before: (h, w) uint8 grey, the frame before; `None` at the start.
        here: the frame.
        after: the frame after; `None` at the end.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    parts = [sign * flow.calc(here, other, None) for sign, other in ((-1, before), (1, after)) if other is not None]
    if not parts:
        return np.zeros((*here.shape, 2), np.float32)
    return cv2.GaussianBlur(np.mean(parts, axis=0), (0, 0), _MOTION_BLUR * max(here.shape))


class ClipMotion:
    """The motion of any frame of a source, see `image_motion`.

    Args:
        read: gives the (h, w, 3) image of a position.
        totals: frames of each clip; frames of different clips are no neighbours.
    """

    def __init__(self, read: Callable[[int], Array], totals: Sequence[int]):
        self._clip_of = np.repeat(np.arange(len(totals)), totals)
        self._read = read
        self._gray = lru_cache(4)(self._load)
        self.of = lru_cache(_KEPT)(self._measure)

    def _load(self, position: int) -> Array:
        image = self._read(position)
        scale = min(1.0, _MOTION_RESOLUTION / max(image.shape[:2]))
        return cv2.cvtColor(resize_area(image, (round(image.shape[0] * scale), round(image.shape[1] * scale))), cv2.COLOR_RGB2GRAY)

    def _measure(self, position: int) -> Array:
        before, after = (self._neighbour(position, step) for step in (-1, 1))
        return image_motion(before, self._gray(position), after)

    def _neighbour(self, position: int, step: int) -> Array | None:
        other = position + step
        same = 0 <= other < len(self._clip_of) and self._clip_of[other] == self._clip_of[position]
        return self._gray(other) if same else None


@dataclass(frozen=True)
class Straightener:
    """Takes a camera's lens and shutter out of frames of a clip, given with their positions in it."""

    camera: CapturedCamera
    motion: ClipMotion

    def __call__(self, image: Array, position: int, *, nearest: bool = False) -> Array:
        """The image (h, w[, C]) of a position as a pinhole with a global shutter would show it."""
        return self.camera.straightened(image, self.motion.of(position) if self.camera.readout else None, nearest=nearest)

    def all(self, images: Array, positions: Sequence[int], *, nearest: bool = False) -> Array:
        """The same of many (F, h, w[, C])."""
        return np.stack([self(image, position, nearest=nearest) for image, position in zip(images, positions, strict=True)])

    def masks(self, masks: Array, positions: Sequence[int]) -> Array:
        """Masks (F, h, w) bool that go with the straightened frames."""
        return self.all(masks.astype(np.uint8), positions, nearest=True) > 0

    def readout_text(self, fps: float) -> str:
        """The readout for people; milliseconds if the frame rate is known."""
        share = f"{self.camera.readout:+.3f} frame intervals from the first row to the last"
        return share if not fps else f"{share} ({1000 * self.camera.readout / fps:+.1f} ms)"

    def described(self, fps: float) -> dict[str, float | None]:
        """Focal length in longest sides, radial coefficient, and readout as share of the frame interval and in milliseconds."""
        camera = self.camera
        return {
            "focal": camera.lens.focal,
            "k": camera.lens.k,
            "readout_share": camera.readout,
            "readout_ms": 1000 * camera.readout / fps if fps else None,
        }


def parse_camera(text: str) -> CapturedCamera:
    """The camera of "FOCAL,K" or "FOCAL,K,READOUT".

    Raises:
        ConfigError: anything else.
    """
    lens, _, readout = text.rpartition(",") if text.count(",") == 2 else (text, "", "0")
    try:
        return CapturedCamera(parse_lens(lens), float(readout))
    except ValueError:
        raise ConfigError(f"readout '{readout}' is not a number", "give FOCAL,K,READOUT such as 0.82,-0.03,0.9") from None
