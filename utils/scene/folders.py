"""Folders of frames as people have them: which of their files are the frames, in which order, and what is not one.

Beside frames lie depth images, masks, copies in another format, hidden files of other systems and sub-folders, one for each camera.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.scene.media import IMAGE_SUFFIXES, exists, natural, read_image
from utils.types import Array

# Words in names of images that are no pictures of the scene.
_BESIDE = re.compile(
    r"(?:^|[^a-z])(depths?|masks?|normals?|conf(?:idence)?s?|alphas?|segs?|segmentations?|labels?|disp(?:arity)?|flows?)(?:[^a-z]|$)"
)
# Sub-folders that hold the pictures where others hold something else.
_PICTURES = ("images", "image", "rgb", "color", "colour", "frames", "imgs")
_SAME = {".jpeg": ".jpg", ".tiff": ".tif", ".heif": ".heic"}


@dataclass(frozen=True, kw_only=True)
class FrameFolder:
    """The frames of a folder.

    Attributes:
        root: the folder.
        frames: every frame, one camera after another, each in natural order.
        totals: frames of each camera.
        skipped: what is left out, in words.
    """

    root: Path
    frames: list[Path]
    totals: list[int]
    skipped: list[str]

    @property
    def names(self) -> list[str]:
        """Paths within the folder, with forward slashes."""
        return [path.relative_to(self.root).as_posix() for path in self.frames]


def frame_folder(folder: Path) -> FrameFolder:
    """The frames of a folder, or of its sub-folders if it holds none itself.

    Raises:
        InputError: no folder, no images in it, or names that are no text.
    """
    if not exists(folder) or not folder.is_dir():
        raise InputError(f"{str(folder)[:300]} is not a folder", "pass a folder of images with --frames_dir, or a clip with --input_video")
    skipped: list[str] = []
    frames = _frames_in(folder, skipped)
    if frames:
        _require_names(frames)
        return FrameFolder(root=folder, frames=frames, totals=[len(frames)], skipped=skipped)
    cameras = [_frames_in(sub, skipped) for sub in _camera_folders(folder, skipped)]
    cameras = [frames for frames in cameras if frames]
    if not cameras:
        raise InputError(f"{folder} holds no images", f"frames must end in one of {', '.join(sorted(IMAGE_SUFFIXES))} and sort by name")
    _require_names([path for frames in cameras for path in frames])
    if len(cameras) > 1:
        skipped.insert(0, f"{len(cameras)} sub-folders are taken for {len(cameras)} clips of one scene")
    return FrameFolder(
        root=folder, frames=[path for frames in cameras for path in frames], totals=[len(c) for c in cameras], skipped=skipped
    )


def _require_names(frames: Sequence[Path]) -> None:
    """Cameras and masks belong to frames by their names, which files can only hold as text."""
    for path in frames:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            shown = path.name.encode(errors="backslashreplace").decode()
            raise InputError(
                f"the name of {shown} is no text (not UTF-8)", "rename the frames, for example to 0001.png, 0002.png ..."
            ) from error


def list_frames(folder: Path) -> list[Path]:
    """The frames of a folder in natural order.

    Raises:
        InputError: as `frame_folder`.
    """
    return frame_folder(folder).frames


def frames_of_scene(folder: Path, frames: int) -> list[Path]:
    """The images of a folder that holds one for each frame of a scene, in their order.

    Raises:
        InputError: as `frame_folder`, or another number of images.
    """
    paths = list_frames(folder)
    if len(paths) != frames:
        raise InputError(
            f"{folder} holds {len(paths)} images, results.npz has {frames} frames", "give the folder frames_subsampled of the scene"
        )
    return paths


def _camera_folders(folder: Path, skipped: list[str]) -> list[Path]:
    subs = sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)
    named = [p for p in subs if p.name.lower() in _PICTURES]
    if named and len(subs) > 1:
        left = [p.name for p in subs if p is not named[0]]
        skipped.append(f"the frames are those of {named[0].name}/, {_some(left)} left out")
        return named[:1]
    beside = [p for p in subs if _BESIDE.search(p.name.lower())]
    if beside and len(beside) < len(subs):
        skipped.append(f"{_some([p.name for p in beside])} left out")
        return [p for p in subs if p not in beside]
    return subs


def _frames_in(folder: Path, skipped: list[str]) -> list[Path]:
    """The frames that lie in a folder itself."""
    files = sorted((p for p in folder.iterdir() if _is_image(p)), key=natural)
    if len(files) < 2:
        return files
    files = _without_companions(files, skipped)
    return _one_of_each(files, skipped)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _without_companions(files: list[Path], skipped: list[str]) -> list[Path]:
    """Without images that say of themselves that they are depth, masks and the like, where others do not."""
    beside = [p for p in files if _BESIDE.search(p.stem.lower())]
    if not beside or len(beside) == len(files):
        return files
    skipped.append(f"{_some([p.name for p in beside])}: no frames by their names, left out")
    return [p for p in files if p not in set(beside)]


def _one_of_each(files: list[Path], skipped: list[str]) -> list[Path]:
    """One file for each frame: of `000.jpg` and `000.png` the one with the picture; files nobody can read where others are many."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_stem[path.stem].append(path)
    if max(map(len, by_stem.values())) > 1:
        kind = _picture_kind([paths for paths in by_stem.values() if len(paths) > 1])
        kept = [next((p for p in paths if _kind(p) == kind), paths[0]) if len(paths) > 1 else paths[0] for paths in by_stem.values()]
        left = [p.name for p in files if p not in set(kept)]
        skipped.append(f"{kind[1:]} is taken of frames that are there twice, {_some(left)} left out")
        files = kept
    counts = Counter(_kind(p) for p in files)
    if len(counts) > 1:
        most = counts.most_common(1)[0][0]
        unread = {kind for kind in counts if kind != most and not _readable(next(p for p in files if _kind(p) == kind))}
        if unread:
            left = [p.name for p in files if _kind(p) in unread]
            skipped.append(f"{_some(left)} left out: no installed library reads {', '.join(sorted(k[1:].upper() for k in unread))}")
            files = [p for p in files if _kind(p) not in unread]
    return files


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return _SAME.get(suffix, suffix)


def _picture_kind(groups: Sequence[Sequence[Path]]) -> str:
    """Of the formats that the same frames come in, the one that shows most colour."""
    colour: dict[str, float] = {}
    for path in groups[len(groups) // 2]:
        try:
            colour[_kind(path)] = _colourfulness(read_image(path))
        except InputError:
            colour[_kind(path)] = -1.0
    return max(sorted(colour), key=lambda kind: colour[kind])


def _colourfulness(image: Array) -> float:
    """How much of a picture there is: colour counts most, then the number of grey levels."""
    channels = image.reshape(-1, 3)[:: max(1, image.size // 30_000)].astype(np.int16)
    return float(np.ptp(channels, axis=1).mean() * 10 + len(np.unique(channels[:, 1])) / 256)


def _readable(path: Path) -> bool:
    try:
        read_image(path)
    except InputError:
        return False
    return True


def _some(names: Sequence[str]) -> str:
    """Some of the names, and whether they are or it is."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
