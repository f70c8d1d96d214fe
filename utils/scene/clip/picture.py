"""One decoded frame as a picture: upright, square pixels, sRGB at 8 bits, with its transparency apart."""

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from utils.scene.clip.colour import Conversion
from utils.types import Array

# Pixel aspects nearer to 1 than this are taken for square: a picture of 1000 pixels would change by 4.
_SQUARE = 0.004
# Aspects beyond are taken for nonsense in the file.
_WIDEST = 8.0
_NO_TURN = (1, 0, 0, 1)


@dataclass(frozen=True)
class Shape:
    """How stored pixels become upright square ones.

    Attributes:
        stored: (h, w) in the file.
        aspect: width of a stored pixel over its height.
        turn: (a, b, c, d), the display matrix's signs: x' = a x + c y, y' = b x + d y.
    """

    stored: tuple[int, int]
    aspect: float = 1.0
    turn: tuple[int, int, int, int] = _NO_TURN

    @property
    def square(self) -> tuple[int, int]:
        """(h, w) with square pixels, before turning: the short side of the pixels is stretched, so nothing is thrown away."""
        height, width = self.stored
        return (height, round(width * self.aspect)) if self.aspect >= 1 else (round(height / self.aspect), width)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the picture."""
        height, width = self.square
        return (height, width) if self.turn[0] else (width, height)

    def turned(self, image: Array) -> Array:
        """A picture in stored orientation, upright."""
        a, b, c, d = self.turn
        if not a:
            image = image.swapaxes(0, 1)
            a, d = c, b
        return np.ascontiguousarray(image[:: d or 1, :: a or 1])


def shape_of(frame: Any, stream_aspect: Any = None) -> Shape:
    """The shape of a frame; its own pixel aspect, or else that of its stream."""
    aspect = float(stream_aspect or 1) or 1.0
    if not 1 / _WIDEST <= aspect <= _WIDEST or abs(aspect - 1) < _SQUARE:
        aspect = 1.0
    return Shape((frame.height, frame.width), aspect, _turn(frame))


def _turn(frame: Any) -> tuple[int, int, int, int]:
    """The display matrix of a frame as signs; turns that are no multiple of 90 degrees are left alone."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _NO_TURN
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    largest = max(map(abs, (a, b, c, d)))
    signs = tuple(round(v / largest) if largest else 0 for v in (a, b, c, d))
    return signs if sorted(map(abs, signs)) == [0, 0, 1, 1] and abs(signs[0]) == abs(signs[3]) else _NO_TURN  # type: ignore[return-value]


def conversion_of(frame: Any, peak: float = 1.0) -> Conversion:
    """What a frame's tags say of its colours."""
    return Conversion(int(frame.color_trc), int(frame.color_primaries), peak)


def has_alpha(frame: Any) -> bool:
    """Whether the frame's pixels can be transparent."""
    return any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8"


def picture(frame: Any, shape: Shape, conversion: Conversion, longest: int | None = None) -> Array:
    """(h, w, 3) uint8 sRGB, upright, square pixels; with the longest side at about `longest` if that is smaller."""
    target = _scaled(shape.square, longest)
    if longest is None or target == shape.square:
        image = _rgb(frame, conversion, None)
        if image.shape[:2] != target:
            image = cv2.resize(image, target[::-1], interpolation=cv2.INTER_CUBIC)
    else:
        image = _rgb(frame, conversion, target)
    return shape.turned(image)


def _scaled(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    scale = 1.0 if longest is None else min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _rgb(frame: Any, conversion: Conversion, size: tuple[int, int] | None) -> Array:
    """(h, w, 3) uint8 in stored orientation, resized by FFmpeg's box filter to `size` if given."""
    if not conversion.needed:
        return np.asarray(_reformatted(frame, "rgb24", size).to_ndarray())
    return conversion.apply(_code_values(frame, size))


def _code_values(frame: Any, size: tuple[int, int] | None) -> Array:
    """(h, w, 3) uint16 R'G'B' over the full range."""
    return np.asarray(_reformatted(frame, "rgb48le", size).to_ndarray())


def _reformatted(frame: Any, kind: str, size: tuple[int, int] | None) -> Any:
    if size is None:
        return frame.reformat(format=kind)
    return frame.reformat(width=size[1], height=size[0], format=kind, interpolation="AREA")


def light_peak(frame: Any, conversion: Conversion) -> float:
    """The brightest channel of a frame in units of reference white, specular dots left out."""
    small = _scaled((frame.height, frame.width), 256)
    return float(np.percentile(conversion.light(_code_values(frame, small)).max(axis=-1), 99.9))


def alpha(frame: Any, shape: Shape) -> Array | None:
    """(h, w) uint8 opacity, upright; None where the format has none."""
    if not has_alpha(frame):
        return None
    opacity = np.asarray(frame.reformat(format="rgba").to_ndarray())[..., 3]
    if opacity.shape != shape.square:
        opacity = cv2.resize(opacity, shape.square[::-1], interpolation=cv2.INTER_LINEAR)
    return shape.turned(opacity)


def luma(frame: Any) -> Array:
    """(h, w) uint8 grey in stored orientation, at full size: where rows still are rows."""
    return np.asarray(frame.reformat(format="gray").to_ndarray())
