"""Writes the frames of a clip that are used: as they will be seen, and no more of them than the disk should hold."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import ArtifactError, InputError
from utils.runtime import cpu_count
from utils.scene.clip.picture import alpha, picture, shape_of
from utils.scene.clip.plan import ClipPlan
from utils.scene.clip.stream import decoded
from utils.scene.clip.survey import Survey
from utils.scene.media import write_image
from utils.types import Array

# Frames waiting for the disk while decoding runs ahead: bounds memory at about 8 full-size frames.
_MAX_PENDING = 8
# Bytes of a written pixel: what PNG, WebP (lossless) and JPEG (quality 95) take for pictures of a camera, with some room.
_BYTES_PER_PIXEL = {"png": 2.0, "webp": 1.6, "jpg": 0.6, "jpeg": 0.6}
# All frames of a clip are written if they take at most this much, and at most this share of what is free.
_ALL_FRAMES_BYTES, _SHARE_OF_FREE = 6e9, 0.4
# What is left free beside the frames for everything that is made from them.
_REST = 1.5e9


@dataclass(frozen=True)
class Picked:
    """A frame on its way to the disk.

    Attributes:
        position: in the clip.
        image: (h, w, 3) uint8.
        opacity: (h, w) uint8, None if it has none.
    """

    position: int
    image: Array
    opacity: Array | None


def bytes_of(size: tuple[int, int], frames: int, extension: str) -> float:
    """About how much disk frames of (h, w) take."""
    return size[0] * size[1] * frames * _BYTES_PER_PIXEL.get(extension, 2.0)


def all_fit(sizes: list[tuple[tuple[int, int], int]], extension: str, folder: Path) -> bool:
    """Whether every usable frame may be written: (h, w) and number of frames of each clip."""
    wanted = sum(bytes_of(size, frames, extension) for size, frames in sizes)
    return wanted <= min(_ALL_FRAMES_BYTES, _SHARE_OF_FREE * free_bytes(folder))


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder is, or would be made."""
    for there in (folder, *folder.parents):
        try:
            return shutil.disk_usage(there).free
        except OSError:
            continue
    return 1 << 62


def require_room(size: tuple[int, int], frames: int, extension: str, folder: Path) -> None:
    """The disk holds the frames that are used.

    Raises:
        ArtifactError: it does not; told before anything is written.
    """
    wanted, free = bytes_of(size, frames, extension), free_bytes(folder)
    if wanted + _REST > free:
        raise ArtifactError(
            f"{frames} frames of {size[1]}x{size[0]} as {extension} take about {wanted / 1e9:.1f} GB and {_REST / 1e9:.1f} GB are needed"
            f" beside them, but {free / 1e9:.1f} GB are free at {folder}",
            "free some space, choose another --scene_root, use fewer frames (--max_frames) or --image_ext jpg",
        )


def picked(path: Path, survey: Survey, plan: ClipPlan, wanted: Array) -> Iterator[Picked]:
    """The frames at `wanted` (increasing positions), cut and converted as planned."""
    if survey.shape is None:
        raise ValueError("frames are taken from clips only")
    asked = set(int(position) for position in wanted)
    for position, item in enumerate(decoded(path, deinterlace=plan.deinterlace)):
        if position not in asked:
            continue
        frame = item.frame
        # Turn and pixel aspect are the clip's: a filter's frames no longer tell them.
        shape = survey.shape if (frame.height, frame.width) == survey.shape.stored else shape_of(frame)
        opacity = alpha(frame, shape) if plan.transparent else None
        image = plan.crop.of(picture(frame, shape, survey.conversion))
        yield Picked(position, image, None if opacity is None else plan.crop.of(opacity))
        asked.discard(position)
        if not asked:
            return


def write_frames(
    path: Path, survey: Survey, plan: ClipPlan, wanted: Array, folder: Path, *, extension: str, first: int = 1, masks: Path | None = None
) -> list[Path]:
    """Writes frames as `<folder>/%06d.<extension>`, numbered from `first` by their position in the clip, and returns their paths.

    Encoding runs in threads beside the decoder, so that all cores are busy.

    Args:
        path: the clip.
        survey: of it.
        plan: for it.
        wanted: (N,) increasing positions of the frames to write.
        folder: where to.
        extension: format.
        first: number of the clip's first frame.
        masks: folder for masks of frames with transparent pixels, named like the frames: white = use.

    Raises:
        InputError: the clip gives fewer frames than when it was looked at.
        ArtifactError: the frames cannot be written.
    """
    paths: list[Path] = []
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(max(2, cpu_count())) as pool:
        for frame in picked(path, survey, plan, wanted):
            name = f"{first + frame.position:06d}"
            paths.append(folder / f"{name}.{extension}")
            pending.append(pool.submit(write_image, paths[-1], frame.image))
            if masks is not None and frame.opacity is not None:
                pending.append(pool.submit(write_image, masks / f"{name}.png", np.where(frame.opacity >= 128, 255, 0).astype(np.uint8)))
            while len(pending) >= _MAX_PENDING:
                pending.pop(0).result()
        for write in pending:
            write.result()
    if len(paths) != len(wanted):
        raise InputError(
            f"{path.name} gave {len(paths)} of {len(wanted)} frames when it was read again", "the file changed meanwhile; run it again"
        )
    return paths
