"""What is checked of an upload before it becomes a job: name, size, what the bytes really are, and that a picture comes out.

FFmpeg picks a reader by content, and some readers (playlists) open further files. So the first bytes must be those of a container that
is allowed here, whatever the name says.
"""

import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import av
import cv2
import numpy as np

from configs.preprocess import IMAGE_EXTENSIONS
from utils.errors import InputError

CLIP_TYPES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif")
FRAMES_TYPE = ".zip"
UPLOAD_TYPES = (*CLIP_TYPES, FRAMES_TYPE)
THUMBNAIL = "thumbnail.jpg"
_THUMBNAIL_WIDTH = 480
_MIN_FRAMES, _MAX_FRAMES = 2, 5000
_MAX_UNPACKED = 4 << 30
_ALLOWED = "MP4, MOV, WebM, MKV or GIF, or a ZIP of PNG, JPEG or WebP frames"


def shown_name(name: str) -> str:
    """The last part of an uploaded name, without anything but letters, digits, space, dot, dash and underscore."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    plain = re.sub(r"[^\w .-]+", "_", last, flags=re.ASCII).strip(". ")
    return plain[-80:].strip(". ") or "clip"


def type_of(name: str) -> str:
    """The upload's extension.

    Raises:
        InputError: not one that is taken.
    """
    suffix = Path(shown_name(name)).suffix.lower()
    if suffix not in UPLOAD_TYPES:
        raise InputError(f"{shown_name(name)} is not a kind of file that can be used here", f"choose {_ALLOWED}")
    return suffix


def accept(upload: Path, suffix: str, name: str, folder: Path) -> tuple[str, str]:
    """Moves a checked upload into its job's folder, with a thumbnail.

    Args:
        upload: the uploaded bytes.
        suffix: extension it came with.
        name: its name for messages.
        folder: folder of the job.

    Returns:
        What to read, relative to the folder, and size and length in words.

    Raises:
        InputError: it is no clip, or no frames.
    """
    with upload.open("rb") as stream:
        head = stream.read(16)
    if not _is_kind(head, suffix):
        raise InputError(f"{name} is not what its name says: the content is no {suffix[1:].upper()}", f"choose {_ALLOWED}")
    if suffix == FRAMES_TYPE:
        target = folder / "frames"
        image, count = _unpack(upload, name, target)
        upload.unlink()
        about = f"{count} frames"
    else:
        image, about = _first_picture(upload, name)
        target = folder / f"clip{suffix}"
        shutil.move(upload, target)
    height, width = image.shape[:2]
    small = cv2.resize(image, (_THUMBNAIL_WIDTH, max(1, round(_THUMBNAIL_WIDTH * height / width))), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / THUMBNAIL), np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return target.name, f"{width} x {height}, {about}"


def _is_kind(head: bytes, suffix: str) -> bool:
    if suffix in (".mp4", ".m4v", ".mov"):
        return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    if suffix in (".webm", ".mkv"):
        return head.startswith(b"\x1a\x45\xdf\xa3")
    if suffix == ".gif":
        return head[:6] in (b"GIF87a", b"GIF89a")
    return head.startswith(b"PK\x03\x04")


def _first_picture(path: Path, name: str) -> tuple[np.ndarray, str]:
    """First frame as (h, w, 3) uint8 RGB, and the clip's length in words."""
    advice = "play it: it may be damaged, or sound only"
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{name} has no video stream", advice)
            stream = container.streams.video[0]
            frame = next(container.decode(stream), None)
            if frame is None:
                raise InputError(f"{name} holds no picture", advice)
            turns = round(frame.rotation / 90) % 4
            image = np.rot90(frame.to_ndarray(format="rgb24"), turns)
            seconds = float(container.duration or 0) / av.time_base
            count = stream.frames or round(seconds * float(stream.average_rate or 0))
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{name} cannot be read as a video: {error.strerror or error}", advice) from error
    words = [f"{count} frames"] if count else []
    return np.ascontiguousarray(image), ", ".join([*words, f"{seconds:.1f} s"] if seconds else words)


def _unpack(path: Path, name: str, target: Path) -> tuple[np.ndarray, int]:
    """Writes the archive's images under names of our own, in the order of theirs; returns the first, and how many there are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if _is_image(m)]
            if not _MIN_FRAMES <= len(members) <= _MAX_FRAMES:
                raise InputError(f"{name} holds {len(members)} images", f"give {_MIN_FRAMES} to {_MAX_FRAMES} PNG, JPEG or WebP frames")
            if sum(m.file_size for m in members) > _MAX_UNPACKED:
                raise InputError(f"{name} is too large when unpacked", "give fewer or smaller frames")
            target.mkdir()
            first = None
            for number, member in enumerate(sorted(members, key=lambda m: _natural(m.filename))):
                written = target / f"{number:06d}{Path(member.filename).suffix.lower()}"
                written.write_bytes(archive.read(member))
                if first is None:
                    first = cv2.imread(str(written))
                    if first is None:
                        raise InputError(f"{PurePosixPath(member.filename).name} in {name} is no readable image", "pack the frames again")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{name} cannot be unpacked: {error}", "pack the frames again, without a password") from error
    assert first is not None
    return first[..., ::-1], len(members)


def _is_image(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return (
        not member.is_dir()
        and path.suffix.lower()[1:] in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and "__MACOSX" not in path.parts
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
