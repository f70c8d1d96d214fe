"""What is asked of an upload's name, and the check of its content by a process of its own that a hostile file may exhaust."""

import json
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.errors import InputError
from web.processes import Commands

CLIP_TYPES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif")
FRAMES_TYPE = ".zip"
UPLOAD_TYPES = (*CLIP_TYPES, FRAMES_TYPE)
ALLOWED_WORDS = "MP4, MOV, WebM, MKV or GIF, or a ZIP of PNG, JPEG or WebP frames"
THUMBNAIL = "thumbnail.jpg"
MIN_FRAMES = 8
_SECONDS_TO_CHECK = 180.0
_MAX_NAME, _MAX_NAME_BYTES = 80, 180
# Not part of a shown name: what file systems and shells take for something else, and characters that cannot be seen or turn the text.
_UNFIT = frozenset('/\\:*?"<>|')


@dataclass(frozen=True)
class Clip:
    """A checked upload.

    Attributes:
        source: what to read, relative to the job's folder.
        about: size and length in words.
        frames: number of frames as far as it is known, else 0.
    """

    source: str
    about: str
    frames: int


def shown_name(name: str) -> str:
    """The last part of an uploaded name, in its own script, without what is unfit for a file name; the extension is kept."""
    last = PureWindowsPath(PurePosixPath(name).name).name
    fit = (" " if c.isspace() else "_" if c in _UNFIT else c for c in unicodedata.normalize("NFC", last))
    plain = "".join(c for c in fit if unicodedata.category(c)[0] != "C").strip(". ")
    suffix = Path(plain).suffix if len(Path(plain).suffix) <= 8 else ""
    stem = plain.removesuffix(suffix)[: _MAX_NAME - len(suffix)]
    while len((stem + suffix).encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return (stem + suffix).strip(". ") or "clip"


def type_of(name: str) -> str:
    """The upload's extension.

    Raises:
        InputError: not one that is taken.
    """
    suffix = Path(shown_name(name)).suffix.lower()
    if suffix not in UPLOAD_TYPES:
        raise InputError(f"{shown_name(name)} is not a kind of file that can be used here", f"choose {ALLOWED_WORDS}")
    return suffix


def accept(commands: Commands, upload: Path, name: str, folder: Path, room: int) -> Clip:
    """Moves a checked upload into its job's folder, with a thumbnail; all of it is done by another process.

    Args:
        commands: how programs are called.
        upload: the uploaded bytes, with the extension it came with.
        name: its name for messages.
        folder: folder of the job.
        room: bytes that may be unpacked.

    Raises:
        InputError: it is no clip, or no frames, or more than the check may use.
    """
    refused = InputError(f"{name} could not be checked: it takes too much memory or time", "export it again as an ordinary MP4")
    try:
        done = commands.ask([*commands.check, str(upload), name, str(folder), str(room)], _SECONDS_TO_CHECK)
    except subprocess.TimeoutExpired as error:
        raise refused from error
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise refused from error
    if "error" in said:
        if said.get("errno"):
            raise OSError(said["errno"], said["error"])
        raise InputError(said["error"], said["hint"])
    return Clip(said["source"], said["about"], said["frames"])
