"""Images in and out, and films out. Only pixels; which frames of a clip are used is decided in `utils.scene.clip`.

All images are uint8 sRGB (h, w, 3) in RGB order. Video goes through PyAV, so no program has to be installed beside Python.
"""

import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import av.container
import av.error
import av.video.reformatter
import cv2
import numpy as np

from utils.errors import ConfigError, InputError
from utils.runtime import cpu_count, ffmpeg_name
from utils.scene.clip.colour import light_to_srgb
from utils.scene.clip.picture import conversion_of, picture, shape_of
from utils.scene.clip.stream import decoded, pixel_aspect
from utils.scene.manifest import writing
from utils.scene.resample import resized
from utils.types import Array

# Images that OpenCV always reads, and those that FFmpeg or a newer OpenCV may read.
FFMPEG_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".exr", ".jxl"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".hdr"}) | FFMPEG_SUFFIXES
CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".webm", ".gif", ".mkv", ".avi", ".m4v"})
WRITABLE_SUFFIXES = ("png", "jpg", "jpeg", "webp")

# OpenCV's own choice for speed: one filter for all rows. 1.6 times as fast as level 1 with a filter chosen for each, 17 % larger.
_PNG_SPEED: list[int] = []
_WRITE_OPTIONS: dict[str, list[int]] = {
    ".png": _PNG_SPEED,
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10, folder by folder."""
    return natural_name(path.as_posix())


def natural_name(name: str) -> list[tuple[int, str]]:
    """The same for a name. Numbers come before words, and very long ones count as words."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if part.isascii() and part.isdigit() else (1 << 62, part.casefold()) for part in parts if part] + [(-1, name)]


def exists(path: Path) -> bool:
    """Whether anything is there; also for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_image(path: Path, *, upright: bool = True) -> Array:
    """(h, w, 3) uint8 sRGB of an image file; transparency is dropped, grey is repeated, light (EXR, float TIFF) becomes sRGB.

    Args:
        path: the file.
        upright: turn it as its EXIF says.

    Raises:
        InputError: not an image, truncated, or of a format that no installed library reads.
    """
    raw = _bytes_of(path)
    how = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    image = _decoded(raw, how)
    if image is None:
        return _by_ffmpeg(path)
    image = image[..., ::-1]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if np.issubdtype(image.dtype, np.integer):
        return (image * (255 / _white_of(image)) + 0.5).astype(np.uint8)
    return _from_light(image)


def stored_on_its_side(path: Path) -> bool:
    """Whether an image file's EXIF turns it by a quarter, so that it is as wide as it is stored high; False where it cannot be read."""
    raw = _bytes_of(path)
    small = [_decoded(raw, how) for how in (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION)]
    if any(image is None for image in small):
        return False
    upright, stored = (image.shape[:2] for image in small if image is not None)
    return upright == stored[::-1] and upright != stored


def read_opacity(path: Path) -> Array | None:
    """(h, w) uint8 opacity of an image file, upright; None if it has none.

    Raises:
        InputError: as `read_image`.
    """
    image = _decoded(_bytes_of(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4:
        return None
    opacity = image[..., 3]
    return opacity if opacity.dtype == np.uint8 else (np.clip(opacity / _white_of(opacity), 0, 1) * 255 + 0.5).astype(np.uint8)


def _white_of(values: Array) -> float:
    return float(np.iinfo(values.dtype).max) if np.issubdtype(values.dtype, np.integer) else 1.0


def _bytes_of(path: Path) -> Array:
    """The bytes of a regular file; anything else could block or never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is no file", "give image files")
        return np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(path)[:300]}: {reason}", "check the path and its permissions") from error


def _decoded(raw: Array, how: int) -> Array | None:
    """What OpenCV makes of an image's bytes; None if nothing, or if the picture is larger than any camera's."""
    try:
        return cv2.imdecode(raw, how) if raw.size else None
    except cv2.error:
        return None


def _by_ffmpeg(path: Path) -> Array:
    """What FFmpeg makes of an image that OpenCV does not read: HEIC, AVIF, EXR, JPEG XL, as far as it was built with them."""
    suffix = path.suffix.lower()
    if suffix not in FFMPEG_SUFFIXES:
        raise InputError(f"{path} is not a readable image", "remove the file or replace it by an intact one")
    try:
        frame = next(iter(decoded(path))).frame
        shape = shape_of(frame)
        if suffix == ".exr":
            return _from_light(np.asarray(frame.to_ndarray(format="gbrpf32le")))
        return picture(frame, shape, conversion_of(frame))
    except (StopIteration, InputError, av.error.FFmpegError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: the installed libraries have no decoder for this {suffix[1:].upper()} file",
            "convert the frames to PNG or JPEG",
        ) from error


def _from_light(light: Array) -> Array:
    """(h, w, 3) uint8 sRGB of linear light, 1 = white."""
    return (light_to_srgb(np.nan_to_num(light.astype(np.float32))) * 255 + 0.5).astype(np.uint8)


def write_image(path: Path, image: Array) -> None:
    """Writes (h, w, 3) uint8 sRGB or (h, w) uint8 grey; the suffix chooses the format.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
        ConfigError: unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITE_OPTIONS:
        raise ConfigError(f"cannot write images of type '{suffix}'", f"use one of: {', '.join(WRITABLE_SUFFIXES)}")
    pixels = image[..., ::-1] if image.ndim == 3 else image
    encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels), _WRITE_OPTIONS[suffix])[1]
    with writing(path):
        path.write_bytes(encoded.tobytes())


def image_size(path: Path) -> tuple[int, int]:
    """(h, w) of an image file."""
    return read_image(path).shape[:2]


def resize_area(image: Array, size: tuple[int, int]) -> Array:
    """`image` at (h, w): box filter when shrinking, cubic when enlarging, so that neither aliases nor blurs."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def working_size(size: tuple[int, int], longest: int, multiple: int = 14) -> tuple[int, int]:
    """(H, W) with the longest side at `longest` and both sides at the nearest multiple of 14, ties upwards.

    14 is the patch size of the learned depth backend; keeping the rule makes every backend's results.npz alike.
    """
    scale = longest / max(size)
    height, width = (max(multiple, int(side * scale / multiple + 0.5) * multiple) for side in size)
    return height, width


def list_clips(given: Sequence[Path]) -> list[Path]:
    """The clips named, a folder standing for all clips in it, sorted by name.

    Raises:
        InputError: a path that does not exist, or a folder without clips.
    """
    clips: list[Path] = []
    for path in given:
        if not exists(path):
            raise InputError(f"{str(path)[:300] or 'an empty path'} does not exist", "check the path given to --input_video")
        found = sorted((p for p in path.iterdir() if _is_clip(p)), key=natural) if path.is_dir() else [path]
        if not found:
            raise InputError(
                f"{path} holds no clips", f"clips end in one of {', '.join(sorted(CLIP_SUFFIXES))}; for a folder of images use --frames_dir"
            )
        clips += found
    return clips


def read_frames(paths: Sequence[Path], size: tuple[int, int] | None = None) -> Array:
    """(F, h, w, 3) uint8 of image files that share one size, at another if given; raises as `read_frames_at`."""
    return read_frames_at(paths, size)[0]


def read_frames_at(paths: Sequence[Path], *sizes: tuple[int, int] | None) -> list[Array]:
    """(F, h, w, 3) uint8 of image files that share one size, at each size given (None: their own), each made from the files.

    Raises:
        InputError: an unreadable image, or sizes that differ.
    """
    with ThreadPoolExecutor(min(4, cpu_count())) as pool:
        loaded = list(pool.map(lambda path: _read_resized(path, sizes), paths))
    expected = loaded[0][1]
    for path, (_, original) in zip(paths, loaded, strict=True):
        if original != expected:
            raise InputError(
                f"{path.name} is {original[1]}x{original[0]}, but {paths[0].name} is {expected[1]}x{expected[0]}",
                "all frames of a scene must share one size: crop or resize them to the same size first",
            )
    return [np.stack([images[k] for images, _ in loaded]) for k in range(len(sizes))]


def _read_resized(path: Path, sizes: Sequence[tuple[int, int] | None]) -> tuple[list[Array], tuple[int, int]]:
    image = read_image(path)
    return [image if size is None else resized(image, size) for size in sizes], (image.shape[0], image.shape[1])


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in CLIP_SUFFIXES and not path.name.startswith(".") and path.is_file()


def decode(path: Path) -> Iterator[Array]:
    """Every frame of a clip that can be decoded, in display order: (h, w, 3) uint8 sRGB, upright, square pixels.

    Raises:
        InputError: unreadable file or no video stream.
    """
    aspect = pixel_aspect(path)
    for item in decoded(path):
        yield picture(item.frame, shape_of(item.frame, aspect), conversion_of(item.frame))


def pad_to_even(image: Array) -> Array:
    """`image` with the last row or column repeated where a side is odd: 4:2:0 video needs even sides."""
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class Mp4Writer:
    """An H.264 4:2:0 film with the index in front, which every browser plays; a context manager.

    Args:
        path: the file to write; its folder must exist.
        fps: frames per second, at least 1.
        quality: x264's constant rate factor, smaller is better and larger.
        speed: x264's preset: "medium", or "veryfast" for about half the time and a tenth more bytes.

    Raises:
        ArtifactError: the file cannot be written.
        InputError: no frames were added.
    """

    def __init__(self, path: Path, fps: float, *, quality: int = 18, speed: str = "medium"):
        self._path, self._fps, self._options = path, fps, {"crf": str(quality), "preset": speed}
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._writing = writing(path)

    def __enter__(self) -> "Mp4Writer":
        self._writing.__enter__()
        return self

    def add(self, image: Array) -> None:
        """The next frame, (h, w, 3) uint8; all have the size of the first."""
        self.add_frame(film_frame(image))

    def add_frame(self, frame: "av.VideoFrame") -> None:
        """The next frame as `film_frame` makes it, which other threads can do."""
        if self._container is None or self._stream is None:
            self._container = av.open(ffmpeg_name(self._path), "w", format="mp4", options={"movflags": "+faststart"})
            self._stream = _add_h264(self._container, (frame.height, frame.width), self._fps, self._options)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        container, stream = self._container, self._stream
        try:
            if container is not None and stream is not None:
                if error is None:
                    container.mux(stream.encode(None))
                container.close()
        except BaseException as late:
            self._writing.__exit__(type(late), late, late.__traceback__)
            raise
        self._writing.__exit__(kind, error, trace)
        if error is None and container is None:
            raise InputError(f"no frames to write to {self._path.name}", "render at least one frame")


def write_mp4(path: Path, frames: Iterable[Array], fps: float, *, quality: int = 18) -> None:
    """Writes (h, w, 3) uint8 images of one size as a film; an iterator is consumed as it is encoded. Raises as `Mp4Writer`."""
    with Mp4Writer(path, fps, quality=quality) as film:
        for image in frames:
            film.add(image)


def _add_h264(container: "av.container.OutputContainer", size: tuple[int, int], fps: float, options: dict[str, str]) -> "av.VideoStream":
    stream = container.add_stream("libx264", rate=Fraction(max(fps, 1)).limit_denominator(1000), options=options)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    # Said explicitly: an untagged file is decoded as BT.601 or BT.709 depending on its size and the player.
    context = stream.codec_context
    # Several frames at once, as x264 itself would; PyAV's default cuts each into slices, which is slower and no better.
    context.thread_type = "FRAME"
    context.colorspace = av.video.reformatter.Colorspace.ITU709
    context.color_primaries, context.color_trc = 1, 1
    context.color_range = av.video.reformatter.ColorRange.MPEG
    return stream


def film_frame(image: Array) -> "av.VideoFrame":
    """The frame of a film (4:2:0, BT.709, even sides) that shows an image (h, w, 3) uint8."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pad_to_even(image)), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=av.video.reformatter.Colorspace.ITU709,
        dst_color_range=av.video.reformatter.ColorRange.MPEG,
    )
