"""The input of stage 0: what it consists of, its frames as files, and which of them become the scene."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.preprocess import PreprocessConfig
from utils.errors import InputError
from utils.imports.cameras import files_of_cameras
from utils.runtime import cpu_count
from utils.scene.frame_selection import between, choose_uniform, prefer_sharp, share_fairly, sharpness
from utils.scene.layout import SceneLayout
from utils.scene.manifest import content_hash, fingerprints
from utils.scene.media import decode, extract_frames, list_clips, list_frames, read_image
from utils.types import Array, Reporter


@dataclass(frozen=True, kw_only=True)
class Source:
    """The frames of the input on disk.

    Attributes:
        frames: every frame in order; those of a clip lie where they are written until the whole of stage 0 is published.
        totals: frames of each clip.
        folder: where they will lie.
        fps: frames a second of the first clip, 0 if unknown.
    """

    frames: list[Path]
    totals: list[int]
    folder: Path
    fps: float = 0.0

    def place(self, position: int) -> Path:
        """Where a frame will lie."""
        return self.folder / self.frames[position].name


def input_ids(config: PreprocessConfig) -> dict[str, str]:
    """Content ids of everything that is read: neither times nor the folders and names of clips matter.

    Names of frames, masks and depth images do, since cameras, masks and frames belong together by them.

    Raises:
        InputError: an input does not exist or cannot be read.
    """
    if config.input_video:
        ids = {"source": content_hash("clips", _contents(list_clips(config.input_video)))}
    else:
        ids = {"source": _named(list_frames(_folder(config)), _folder(config))}
    for name, given in (("cameras", config.cameras), ("masks", config.masks)):
        if given is None:
            continue
        if not given.exists():
            raise InputError(f"{given} does not exist", f"check the path given to --{name}")
        if name == "cameras":
            ids[name] = _named(files_of_cameras(given), given)
        else:
            ids[name] = _named(list_frames(given), given)
    return ids


def _named(files: list[Path], below: Path) -> str:
    """Hash of names and contents of files."""
    return content_hash([os.path.relpath(path, below) for path in files], _contents(files))


def _contents(files: list[Path]) -> list[str]:
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is no file", "give clips, images and cameras as plain files")
    try:
        return fingerprints(files)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "check the file and its permissions") from error


def _folder(config: PreprocessConfig) -> Path:
    if config.frames_dir is None:
        raise InputError("no frames were given", "pass --input_video CLIP or --frames_dir FOLDER")
    return config.frames_dir


def frames_on_disk(config: PreprocessConfig, layout: SceneLayout, staging: Path | None, report: Reporter) -> Source:
    """All frames as files; clips are decoded into `frames/`, numbered from 1.

    Args:
        config: names the clips or the folder of frames.
        layout: of the scene.
        staging: the folder that will be `frames/`; None for a folder of frames.
        report: told of a clip that breaks off.

    Raises:
        InputError: fewer than two frames, clips of several sizes, or a clip that cannot be decoded.
        ArtifactError: the frames cannot be written.
    """
    if staging is None:
        frames = list_frames(_folder(config))
        _require_two(len(frames), str(_folder(config)))
        return Source(frames=frames, totals=[len(frames)], folder=_folder(config))
    totals: list[int] = []
    fps = 0.0
    clips = list_clips(config.input_video)
    _require_one_size(clips)
    for clip in clips:
        info = extract_frames(clip, staging, extension=config.image_ext, first=1 + sum(totals))
        totals.append(len(info.frames))
        fps = fps or info.fps
        if info.broken:
            report.note(f"{clip.name} breaks off after {len(info.frames)} frames ({info.broken}); they are used")
    _require_two(sum(totals), ", ".join(clip.name for clip in clips))
    return Source(frames=list_frames(staging), totals=totals, folder=layout.frames, fps=fps)


def _require_two(count: int, where: str) -> None:
    if count < 2:
        raise InputError(
            f"{where}: {count} frame, at least 2 are needed, 24 or more are sensible",
            "use a clip or folder that shows the scene from several positions",
        )


def _require_one_size(clips: list[Path]) -> None:
    """All clips of a scene must show frames of one size; told before minutes of decoding."""
    if len(clips) < 2:
        return
    sizes = [next(decode(clip)).shape[:2] for clip in clips]
    for clip, (height, width) in zip(clips, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise InputError(
                f"{clip.name} is {width}x{height}, but {clips[0].name} is {sizes[0][1]}x{sizes[0][0]}",
                "clips of one scene are taken for one camera: crop or resize them to the same size first, or leave this one out",
            )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Positions in the source, increasing.

    Attributes:
        scene: frames that become the scene.
        read: these and the frames in between that help to measure depth.
    """

    scene: list[int]
    read: list[int]


def choose(config: PreprocessConfig, source: Source, report: Reporter) -> Choice:
    """Spreads the scene's frames evenly over each clip, every clip with an equal share."""
    scene: list[int] = []
    read: list[int] = []
    first = 0
    for total, share in zip(source.totals, share_fairly(source.totals, config.max_frames), strict=True):
        selection = choose_uniform(total, share, config.max_stride)
        if selection.sparse:
            report.note(
                f"frames: {share} of {total} are chosen, {selection.stride:.1f} apart (more than max_stride"
                f" {config.max_stride}), to cover the whole clip"
            )
        indices = selection.indices
        if config.prefer_sharp:
            indices = prefer_sharp(indices, _sharpness(source.frames[first : first + total]))
        scene += (first + indices).tolist()
        read += (first + between(indices, config.between_frames)).tolist()
        first += total
    return Choice(scene=scene, read=read)


def _sharpness(paths: list[Path]) -> Array:
    with ThreadPoolExecutor(cpu_count()) as pool:
        return np.array(list(pool.map(lambda path: sharpness(read_image(path)), paths)))
