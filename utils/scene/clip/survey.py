"""A first look at every frame of a clip: small pictures and a few full-size samples, from which all decisions about it are made.

Nothing is written and nothing large is kept, so that a long clip can be looked at before its frames take any disk.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import InputError
from utils.scene.clip.colour import Conversion
from utils.scene.clip.picture import Shape, alpha, conversion_of, has_alpha, light_peak, luma, picture, shape_of
from utils.scene.clip.stream import Damage, Decoded, StreamFacts, combed_share, decoded, facts, pixel_aspect
from utils.scene.frame_selection import sharpness
from utils.types import Array

# Longest sides of the pictures kept of every frame: grey to compare frames, colour to compare their exposure.
THUMB, TINT = 160, 64
# A damaged clip is used if this many of its frames can be decoded.
LEAST_OF_DAMAGED = 8
# Frames that are looked at in full size, spread over the clip; of those, size for marks that stand still.
_SAMPLES = 48
MARKS = 512
# Size at which sharpness is compared: blur that is not seen there does no harm.
SHARP = 1280
# Where the length is unknown, every so many frames are sampled; beyond twice the wanted number every second sample is let go.
_UNKNOWN_STEP = 4


@dataclass(kw_only=True)
class Survey:
    """What a clip shows.

    Attributes:
        name: of the file or folder.
        size: (h, w) of its pictures, upright and with square pixels.
        times: (T,) seconds.
        spoiled: (T,) see `stream.Decoded`.
        thumbs: (T, h', w') uint8 grey.
        tints: (T, h'', w'', 3) uint8.
        sampled: (S,) positions of the samples.
        profiles: for each sample least, mean and largest grey level of every row (h, 3) and column (w, 3).
        small: (S, h''', w''') uint8 grey of the samples.
        shape: how stored pixels become upright square ones.
        conversion: how code values become sRGB.
        combed: share of places of the samples with combs.
        flagged: share of frames that say they are interlaced.
        opacity: least and largest share of opaque pixels among the samples; (1, 1) without transparency.
        odd: positions of frames of another size.
        sharpness: (T,) see `frame_selection.sharpness`; empty if it was not asked for.
        damage: what could not be decoded.
        facts: what the container says; None for a folder.
    """

    name: str
    size: tuple[int, int]
    times: Array
    spoiled: Array
    thumbs: Array
    tints: Array
    sampled: Array
    profiles: list[tuple[Array, Array]]
    small: Array
    shape: Shape | None = None
    conversion: Conversion = field(default_factory=lambda: Conversion(1, 1))
    combed: float = 0.0
    flagged: float = 0.0
    opacity: tuple[float, float] = (1.0, 1.0)
    odd: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    sharpness: Array = field(default_factory=lambda: np.zeros(0))
    damage: Damage = field(default_factory=Damage)
    facts: StreamFacts | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def interlaced(self) -> bool:
        """Combs are seen; what a file says of itself only lowers how many are enough."""
        return self.combed > (0.02 if self.flagged > 0.5 else 0.06)


class _Samples:
    """Full-size measurements of frames spread over a clip whose length may be unknown."""

    def __init__(self, total: int):
        self.step = max(1, total // _SAMPLES) if total else _UNKNOWN_STEP
        self.positions: list[int] = []
        self.rows: list[Any] = []

    def wants(self, position: int) -> bool:
        return position % self.step == 0

    def add(self, position: int, row: Any) -> None:
        self.positions.append(position)
        self.rows.append(row)
        if len(self.rows) > 2 * _SAMPLES:
            self.positions, self.rows, self.step = self.positions[::2], self.rows[::2], self.step * 2


def _require_frames(path: Path, damage: Damage, announced: int, read: int) -> None:
    """Notes a truncation in `damage`.

    Args:
        path: of the video file.
        damage: of its decoding.
        announced: frames that its container announces.
        read: frames that were decoded.

    Raises:
        InputError: no frames, or too few before the damage.
    """
    if not damage.ended and damage.packets < announced:
        # FFmpeg ends quietly at a truncation if the index stands in front.
        damage.ended = f"{announced} frames are announced, {damage.packets} are there"
    if not read:
        raise InputError(f"{path.name} holds no frames", "the file may be truncated; play it, or export it again")
    if (damage.ended or damage.lost) and read < LEAST_OF_DAMAGED:
        raise InputError(
            f"{path.name} breaks off after {read} frames: {damage.ended or f'{len(damage.lost)} cannot be decoded'}",
            f"at least {LEAST_OF_DAMAGED} intact frames are needed; download or export the clip again",
        )


def survey_clip(path: Path, *, sharp: bool = False) -> Survey:
    """Looks at every frame of a video file.

    Args:
        path: the file.
        sharp: measure how sharp each frame is.

    Raises:
        InputError: unreadable, no video stream, no frame, or a picture of an impossible shape.
    """
    known, damage = facts(path), Damage()
    samples = _Samples(known.frames or round(known.seconds * known.fps))
    thumbs: list[Array] = []
    tints: list[Array] = []
    times, spoiled, odd, sharpnesses = [], [], [], []
    shape, conversion, flagged, peak = None, Conversion(1, 1), 0, 1.0
    aspect = pixel_aspect(path)
    for position, item in enumerate(decoded(path, damage)):
        frame = item.frame
        if shape is None:
            shape, conversion = shape_of(frame, aspect), conversion_of(frame)
            require_plausible(path.name, shape.size)
        this = shape_of(frame, aspect)
        if this.size != shape.size:
            odd.append(position)
        small = picture(frame, this, conversion, THUMB)
        if sharp:
            sharpnesses.append(sharpness(picture(frame, this, conversion, SHARP)))
        thumbs.append(_fitted(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), thumbs))
        tints.append(_fitted(cv2.resize(small, _within(small, TINT), interpolation=cv2.INTER_AREA), tints))
        times.append(item.time)
        spoiled.append(item.spoiled)
        flagged += bool(frame.interlaced_frame)
        if samples.wants(position) and this == shape:
            if conversion.high_range:
                peak = max(peak, light_peak(frame, conversion))
            samples.add(position, _sample(item, this, conversion))
    _require_frames(path, damage, known.frames, len(times))
    assert shape is not None
    opaque = [row[3] for row in samples.rows]
    return Survey(
        name=path.name,
        size=shape.size,
        times=np.array(times),
        spoiled=np.array(spoiled),
        thumbs=np.stack(thumbs),
        tints=np.stack(tints),
        sampled=np.array(samples.positions, np.int64),
        profiles=[row[0] for row in samples.rows],
        small=np.stack([row[1] for row in samples.rows]),
        shape=shape,
        conversion=Conversion(conversion.transfer, conversion.primaries, peak),
        combed=float(np.mean([row[2] for row in samples.rows])),
        flagged=flagged / len(times),
        opacity=(min(opaque, default=1.0), max(opaque, default=1.0)),
        odd=np.array(odd, np.int64),
        sharpness=np.array(sharpnesses),
        damage=damage,
        facts=known,
    )


def survey_images(name: str, images: Iterable[tuple[Array, Array | None]], total: int = 0, *, sharp: bool = False) -> Survey:
    """Looks at pictures one after another, for example those of a folder.

    Args:
        name: of the folder.
        images: (h, w, 3) uint8 and opacity (h, w) uint8, None where there is none.
        total: how many there are, 0 if unknown.
        sharp: measure how sharp each is.

    Raises:
        InputError: none, or a picture of an impossible shape.
    """
    samples = _Samples(total)
    thumbs: list[Array] = []
    tints: list[Array] = []
    odd: list[int] = []
    size: tuple[int, int] | None = None
    opaque: list[float] = []
    sharpnesses: list[float] = []
    for position, (image, cover) in enumerate(images):
        if size is None:
            size = (image.shape[0], image.shape[1])
            require_plausible(name, size)
        if image.shape[:2] != size:
            odd.append(position)
        small = cv2.resize(image, _within(image, THUMB), interpolation=cv2.INTER_AREA)
        thumbs.append(_fitted(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), thumbs))
        tints.append(_fitted(cv2.resize(small, _within(small, TINT), interpolation=cv2.INTER_AREA), tints))
        if sharp:
            sharpnesses.append(sharpness(cv2.resize(image, _within(image, SHARP), interpolation=cv2.INTER_AREA)))
        opaque.append(1.0 if cover is None else float((cover >= 128).mean()))
        if samples.wants(position) and image.shape[:2] == size:
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            samples.add(position, (_profile(gray), _marks(gray)))
    if size is None:
        raise InputError(f"{name} holds no frames", "give a folder of images, or a clip")
    count = len(thumbs)
    return Survey(
        name=name,
        size=size,
        times=np.arange(count, dtype=np.float64),
        spoiled=np.zeros(count, np.int64),
        thumbs=np.stack(thumbs),
        tints=np.stack(tints),
        sampled=np.array(samples.positions, np.int64),
        profiles=[row[0] for row in samples.rows],
        small=np.stack([row[1] for row in samples.rows]),
        opacity=(min(opaque), max(opaque)),
        odd=np.array(odd, np.int64),
        sharpness=np.array(sharpnesses),
    )


# A picture needs this many pixels a side to show anything, and at most this aspect for a camera to have seen it.
_LEAST_SIDE, _WIDEST = 16, 12.0


def require_plausible(name: str, size: tuple[int, int]) -> None:
    """A picture's size (h, w) is one that a camera has.

    Raises:
        InputError: it is not.
    """
    if min(size) < _LEAST_SIDE or max(size) > _WIDEST * min(size):
        raise InputError(
            f"{name} shows pictures of {size[1]}x{size[0]} pixels",
            f"each side needs at least {_LEAST_SIDE} pixels, and the longer one is at most {_WIDEST:.0f} times the shorter",
        )


def _sample(item: Decoded, shape: Shape, conversion: Conversion) -> tuple[tuple[Array, Array], Array, float, float]:
    """Profile, small picture, share of combs and of opaque pixels of one frame."""
    frame = item.frame
    gray = cv2.cvtColor(picture(frame, shape, conversion), cv2.COLOR_RGB2GRAY)
    cover = alpha(frame, shape) if has_alpha(frame) else None
    return _profile(gray), _marks(gray), combed_share(luma(frame)), 1.0 if cover is None else float((cover >= 128).mean())


def _profile(gray: Array) -> tuple[Array, Array]:
    """Least, mean and largest level of every row (h, 3) and every column (w, 3), float32."""
    along = [np.stack([gray.min(axis), gray.mean(axis), gray.max(axis)], -1).astype(np.float32) for axis in (1, 0)]
    return along[0], along[1]


def _marks(gray: Array) -> Array:
    return cv2.resize(gray, _within(gray, MARKS), interpolation=cv2.INTER_AREA)


def _within(image: Array, longest: int) -> tuple[int, int]:
    """(w, h), as OpenCV wants it, with the longest side at most `longest`."""
    scale = min(1.0, longest / max(image.shape[:2]))
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))


def _fitted(image: Array, others: list[Array]) -> Array:
    """The picture at the size of the first of `others`."""
    if not others or image.shape == others[0].shape:
        return image
    return cv2.resize(image, others[0].shape[1::-1], interpolation=cv2.INTER_AREA)
