"""`python -m web.check_upload UPLOAD NAME FOLDER BYTES`: looks at an upload, takes it into a folder with a thumbnail, and prints one line
of JSON. What is unpacked may fill at most that many bytes.

It is a process of its own with little memory and time, because decoders do what files tell them. FFmpeg picks a reader by content, and some
readers (playlists) open further files: so the first bytes must be those of a container that is allowed here, whatever the name says.
Sizes are read before anything is decoded, and what an archive says of its members is not believed.
"""

import json
import re
import resource
import shutil
import sys
import zipfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import av
import cv2
import numpy as np

from configs.preprocess import IMAGE_EXTENSIONS
from utils.errors import InputError
from utils.runtime import ffmpeg_name
from utils.scene.clip.picture import conversion_of, picture, shape_of
from utils.scene.clip.stream import decoded, facts, pixel_aspect
from web.clips import ALLOWED_WORDS, FRAMES_TYPE, MIN_FRAMES, THUMBNAIL
from web.processes import MAX_PIXELS

_THUMBNAIL_WIDTH = 480
_MAX_FRAMES = 5000
_MIN_SIDE, _MAX_ASPECT = 64, 6.0
_MAX_UNPACKED, _MAX_MEMBER = 4 << 30, 256 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 1 << 20
# Beyond what the libraries take when loaded; a frame of MAX_PIXELS, those a decoder keeps, and a copy in RGB.
_MEMORY, _SECONDS = 2 << 30, 120
_ADVICE = "play it: it may be damaged, or sound only"


def main(argv: list[str]) -> None:
    """Checks one upload; the answer is the last line printed."""
    upload, name, folder = Path(argv[0]), argv[1], Path(argv[2])
    _limit()
    try:
        answer = accept(upload, name, folder, min(int(argv[3]), _MAX_UNPACKED))
    except InputError as error:
        answer = {"error": error.message, "hint": error.hint}
    except MemoryError:
        answer = {"error": f"{name} takes too much memory to be looked at", "hint": "export it again as an ordinary MP4"}
    except OSError as error:
        answer = {"error": error.strerror or str(error), "errno": error.errno or 5}
    print(json.dumps(answer), flush=True)


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    for what, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY if pages else resource.RLIM_INFINITY),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_FSIZE, _MAX_UNPACKED),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def accept(upload: Path, name: str, folder: Path, room: int = _MAX_UNPACKED) -> dict[str, Any]:
    """What to read, relative to the folder, size and length in words, and the number of frames, 0 if it is not known.

    Raises:
        InputError: it is no clip, or no frames.
    """
    suffix = upload.suffix
    with upload.open("rb") as stream:
        head = stream.read(16)
    if not _is_kind(head, suffix):
        raise InputError(f"{name} is not what its name says: the content is no {suffix[1:].upper()}", f"choose {ALLOWED_WORDS}")
    if suffix == FRAMES_TYPE:
        target = folder / "frames"
        image, count = _unpack(upload, name, target, room)
        upload.unlink()
        about = f"{count} frames"
    else:
        image, count, about = _first_picture(upload, name)
        target = folder / f"clip{suffix}"
        shutil.move(upload, target)
    height, width = image.shape[:2]
    small = cv2.resize(image, (_THUMBNAIL_WIDTH, round(_THUMBNAIL_WIDTH * height / width)), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / THUMBNAIL), np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return {"source": target.name, "about": f"{width} x {height}, {about}", "frames": count}


def _is_kind(head: bytes, suffix: str) -> bool:
    if suffix in (".mp4", ".m4v", ".mov"):
        return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    if suffix in (".webm", ".mkv"):
        return head.startswith(b"\x1a\x45\xdf\xa3")
    if suffix == ".gif":
        return head[:6] in (b"GIF87a", b"GIF89a")
    return head.startswith(b"PK\x03\x04")


def _check_size(width: int, height: int, name: str) -> None:
    """Refuses pictures that no decoder should be asked for, and those that nothing can be seen in."""
    short, long = sorted((width, height))
    if short < _MIN_SIDE or long > _MAX_ASPECT * short or width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has pictures of {width} x {height} pixels",
            f"give at least {_MIN_SIDE} pixels a side, at most {_MAX_ASPECT:.0f}:1 and {MAX_PIXELS // 10**6} megapixels",
        )


def _first_picture(path: Path, name: str) -> tuple[np.ndarray, int, str]:
    """First frame as (h, w, 3) uint8 RGB, as stage 0 will show it, the number of frames, 0 if unknown, and the clip's length in words."""
    image, seen = None, 0
    try:
        about, aspect = facts(path), pixel_aspect(path)
        if all(about.size):
            _check_size(about.size[1], about.size[0], name)
        for item in decoded(path, threads=1):
            if image is None:
                _check_size(item.frame.width, item.frame.height, name)
                image = picture(item.frame, shape_of(item.frame, aspect), conversion_of(item.frame))
            seen += 1
            if seen == MIN_FRAMES:
                break
    except InputError as error:
        raise InputError(error.message.replace(path.name, name), _ADVICE if str(path.name) in error.message else error.hint) from error
    except (av.error.FFmpegError, ValueError, cv2.error) as error:
        raise InputError(f"{name} cannot be read as a video: {getattr(error, 'strerror', None) or error}", _ADVICE) from error
    if image is None:
        raise InputError(f"{name} holds no picture", _ADVICE)
    if seen < MIN_FRAMES:
        raise InputError(f"{name} has {seen} frames that can be read", f"give a clip of at least {MIN_FRAMES} frames")
    count = about.frames or round(about.seconds * about.fps)
    words = [f"{count} frames"] if count else []
    return image, count, ", ".join([*words, f"{about.seconds:.1f} s"] if about.seconds else words)


def _unpack(path: Path, name: str, target: Path, room: int) -> tuple[np.ndarray, int]:
    """Writes the archive's images under names of our own, in the order of theirs; returns the first, and how many there are."""
    first, written = None, 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = _images(archive, name)
            target.mkdir()
            for number, member in enumerate(sorted(members, key=lambda m: natural(m.filename))):
                file = target / f"{number:06d}{Path(member.filename).suffix.lower()}"
                written += _write_member(archive, member, file, min(_MAX_MEMBER, room - written), name)
                if first is None:
                    first = _first_frame(file, PurePosixPath(member.filename).name, name)
    except (zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:  # type: ignore[attr-defined]
        raise InputError(f"{name} cannot be unpacked: {error}", "pack the frames again, without a password") from error
    assert first is not None
    return first, len(members)


def _images(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    members = [m for m in archive.infolist() if _is_image(m)]
    if not MIN_FRAMES <= len(members) <= _MAX_FRAMES:
        raise InputError(f"{name} holds {len(members)} images", f"give {MIN_FRAMES} to {_MAX_FRAMES} PNG, JPEG or WebP frames")
    if any(m.compress_type not in _METHODS for m in members):
        raise InputError(f"{name} is packed by a method that is not taken here", "pack the frames again as an ordinary ZIP")
    return members


def _write_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, most: int, name: str) -> int:
    """Unpacks one member up to a number of bytes, whatever size it declares; returns its size."""
    size = 0
    with archive.open(member) as packed, file.open("wb") as out:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > most:
                raise InputError(f"{name} is too large when unpacked", "give fewer or smaller frames")
            out.write(chunk)
    return size


def _first_frame(file: Path, member: str, name: str) -> np.ndarray:
    """(h, w, 3) uint8 RGB; its size is read from its header first."""
    unreadable = InputError(f"{member} in {name} is no readable image", "pack the frames again")
    try:
        with av.open(ffmpeg_name(file)) as container:  # reads the header and decodes nothing
            context = container.streams.video[0].codec_context
            if context.width and context.height:
                _check_size(context.width, context.height, f"{member} in {name}")
        image = cv2.imread(str(file))
    except (av.error.FFmpegError, cv2.error, IndexError) as error:
        raise unreadable from error
    if image is None:
        raise unreadable
    _check_size(image.shape[1], image.shape[0], f"{member} in {name}")
    return image[..., ::-1]


def _is_image(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    return (
        not member.is_dir()
        and path.suffix.lower()[1:] in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and "__MACOSX" not in path.parts
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10, with numbers of any length."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(p.lstrip("0")) + 1, p.lstrip("0")) if i % 2 else (0, p) for i, p in enumerate(parts)]


if __name__ == "__main__":
    main(sys.argv[1:])
