"""Frames in and out: video files, frame folders and single images. Only pixels; what to do with them is decided elsewhere.

All images are uint8 sRGB (h, w, 3) in RGB order. Video goes through PyAV, so no program has to be installed beside Python.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import av.container
import av.error
import av.video
import av.video.reformatter
import cv2
import numpy as np

from utils.errors import ConfigError, InputError
from utils.scene.manifest import writing
from utils.types import Array

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".webm", ".gif", ".mkv", ".avi", ".m4v"})
WRITABLE_SUFFIXES = ("png", "jpg", "jpeg", "webp")

# A clip that breaks off is still used if this many frames could be read.
MIN_FRAMES_OF_BROKEN_CLIP = 8

# Level 1 of 9: PNG stays lossless, is a few percent larger than the default and is written about three times faster.
_PNG_SPEED = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_WRITE_OPTIONS: dict[str, list[int]] = {
    ".png": _PNG_SPEED,
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
}

# Frames waiting for the disk while decoding runs ahead: bounds memory at about 8 full-size frames.
_MAX_PENDING_WRITES = 8


@dataclass(frozen=True)
class ClipInfo:
    """What decoding a clip gave.

    Attributes:
        frames: paths of the written frames in order.
        fps: average frame rate of the container, 0 if unknown.
        broken: why decoding ended early, empty if it did not.
    """

    frames: list[Path]
    fps: float
    broken: str


def read_image(path: Path) -> Array:
    """(h, w, 3) uint8 sRGB of an image file; alpha is dropped, grey is repeated.

    Raises:
        InputError: not an image, or truncated.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    image = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    if image is None:
        raise InputError(f"{path} is not a readable image", "remove the file or replace it by an intact one")
    return np.ascontiguousarray(image[..., ::-1])


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


def list_frames(folder: Path) -> list[Path]:
    """Image files of a folder sorted by name.

    Raises:
        InputError: no folder, or no images in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", "pass a folder of images with --frames_dir, or a clip with --input_video")
    frames = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not frames:
        raise InputError(f"{folder} holds no images", f"frames must end in one of {', '.join(sorted(IMAGE_SUFFIXES))} and sort by name")
    return frames


def list_clips(given: Sequence[Path]) -> list[Path]:
    """The clips named, a folder standing for all clips in it, sorted by name.

    Raises:
        InputError: a path that does not exist, or a folder without clips.
    """
    clips: list[Path] = []
    for path in given:
        if not path.exists():
            raise InputError(f"{path} does not exist", "check the path given to --input_video")
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in CLIP_SUFFIXES) if path.is_dir() else [path]
        if not found:
            raise InputError(
                f"{path} holds no clips", f"clips end in one of {', '.join(sorted(CLIP_SUFFIXES))}; for a folder of images use --frames_dir"
            )
        clips += found
    return clips


def read_frames(paths: Sequence[Path], size: tuple[int, int] | None = None) -> Array:
    """(F, h, w, 3) uint8 of image files that share one size, each resized to `size` if given.

    Raises:
        InputError: an unreadable image, or sizes that differ.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        loaded = list(pool.map(lambda path: _read_resized(path, size), paths))
    expected = loaded[0][1]
    for path, (_, original) in zip(paths, loaded, strict=True):
        if original != expected:
            raise InputError(
                f"{path.name} is {original[1]}x{original[0]}, but {paths[0].name} is {expected[1]}x{expected[0]}",
                "all frames of a scene must share one size: crop or resize them to the same size first",
            )
    return np.stack([image for image, _ in loaded])


def _read_resized(path: Path, size: tuple[int, int] | None) -> tuple[Array, tuple[int, int]]:
    image = read_image(path)
    return (image if size is None else resize_area(image, size)), (image.shape[0], image.shape[1])


def decode(path: Path) -> Iterator[Array]:
    """Every frame of a clip in display order, (h, w, 3) uint8, turned upright as the container says.

    Raises:
        InputError: unreadable file or no video stream, before the first frame. A clip that breaks off later raises
            `av.error.FFmpegError` from the iterator; the frames before it were good.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            image = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4
            yield np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _open(path: Path) -> "av.container.InputContainer":
    if not path.is_file():
        raise InputError(f"{path} does not exist", "check the path given to --input_video")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read as a video: {error.strerror or error}",
            "the file may be truncated or not a video; play it, or download it again",
        ) from error
    if not container.streams.video:
        container.close()
        raise InputError(f"{path.name} has no video stream", "pass an MP4, MOV, WebM or GIF clip that shows the scene")
    return container


def announced(path: Path) -> tuple[float, int]:
    """Average frames per second and the number of frames as the container states them, 0 where it does not."""
    with _open(path) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or 0), stream.frames


def extract_frames(clip: Path, folder: Path, *, extension: str, first: int = 1) -> ClipInfo:
    """Writes every frame of a clip as `<folder>/%06d.<extension>`, numbered from `first`.

    Encoding runs in threads beside the decoder, so that both cores are busy.

    Raises:
        InputError: no video, no frame, or a clip that breaks off before MIN_FRAMES_OF_BROKEN_CLIP frames.
        ArtifactError: the frames cannot be written.
    """
    (fps, expected), broken = announced(clip), ""
    paths: list[Path] = []
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        frames = decode(clip)
        while True:
            try:
                image = next(frames)
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                broken = str(error.strerror or error)
                break
            paths.append(folder / f"{first + len(paths):06d}.{extension}")
            pending.append(pool.submit(write_image, paths[-1], image))
            if len(pending) >= _MAX_PENDING_WRITES:
                pending.pop(0).result()
        for write in pending:
            write.result()
    if not broken and len(paths) < expected:
        # FFmpeg ends quietly at a truncation if the index stands in front.
        broken = f"{expected} frames are announced"
    if broken and len(paths) < MIN_FRAMES_OF_BROKEN_CLIP:
        raise InputError(
            f"{clip.name} breaks off after {len(paths)} frames: {broken}",
            f"at least {MIN_FRAMES_OF_BROKEN_CLIP} intact frames are needed; download or export the clip again",
        )
    if not paths:
        raise InputError(f"{clip.name} holds no frames", "the file may be truncated; play it, or export it again")
    return ClipInfo(paths, fps, broken)


def pad_to_even(image: Array) -> Array:
    """`image` with the last row or column repeated where a side is odd: 4:2:0 video needs even sides."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_mp4(path: Path, frames: Iterable[Array], fps: float, *, quality: int = 18) -> None:
    """Writes H.264 4:2:0 with the index in front, which every browser plays.

    Args:
        path: the file to write; its folder must exist.
        frames: (h, w, 3) uint8 images of one size; an iterator is consumed as it is encoded.
        fps: frames per second.
        quality: x264's constant rate factor, smaller is better and larger.

    Raises:
        ArtifactError: the file cannot be written.
        InputError: no frames.
    """
    images = iter(frames)
    first = next(images, None)
    if first is None:
        raise InputError(f"no frames to write to {path.name}", "render at least one frame")
    with (
        writing(path),
        av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = _add_h264(container, pad_to_even(first).shape[:2], fps, quality)
        for image in chain([first], images):
            _encode(container, stream, image)
        container.mux(stream.encode(None))


def _add_h264(container: "av.container.OutputContainer", size: tuple[int, int], fps: float, quality: int) -> "av.VideoStream":
    stream = container.add_stream("libx264", rate=round(max(fps, 1)), options={"crf": str(quality), "preset": "medium"})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    # Said explicitly: an untagged file is decoded as BT.601 or BT.709 depending on its size and the player.
    context = stream.codec_context
    context.colorspace = av.video.reformatter.Colorspace.ITU709
    context.color_primaries, context.color_trc = 1, 1
    context.color_range = av.video.reformatter.ColorRange.MPEG
    return stream


def _encode(container: "av.container.OutputContainer", stream: "av.VideoStream", image: Array) -> None:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pad_to_even(image)), format="rgb24")
    converted = frame.reformat(
        format="yuv420p",
        dst_colorspace=av.video.reformatter.Colorspace.ITU709,
        dst_color_range=av.video.reformatter.ColorRange.MPEG,
    )
    container.mux(stream.encode(converted))
